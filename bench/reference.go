package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
)

// referenceNamed returns what this program does as a child of itself, so that the system says what
// it took; nil if it is none of that.
func referenceNamed(name string) func(args []string) error {
	switch name {
	case "bare":
		return bare
	case "write":
		return write
	case "hash":
		return hash
	}
	return nil
}

// bare is the loop that Offpeak is compared with: as many goroutines as calls may be in flight take
// the next body, send it with net/http, and write the answer to a file. Nothing else: no checks, no
// retries, no journal.
func bare(args []string) error {
	flags := flag.NewFlagSet("bare", flag.ExitOnError)
	in := flags.String("in", "", "file of bodies, one a line")
	out := flags.String("out", "", "output file")
	url := flags.String("url", "", "where to send them")
	c := flags.Int("c", 64, "calls in flight")
	flags.Parse(args)
	text, err := os.ReadFile(*in)
	if err != nil {
		return err
	}
	var bodies [][]byte
	for line := range bytes.Lines(text) {
		bodies = append(bodies, line[:len(line)-1])
	}
	f, err := os.Create(*out)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: *c, DisableCompression: true}}
	var next atomic.Int64
	var mu sync.Mutex // guards w and failed
	var failed error
	var wg sync.WaitGroup
	for range *c {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(bodies) {
					return
				}
				answer, err := post(client, *url, bodies[i])
				mu.Lock()
				if err != nil {
					failed = err
					next.Store(int64(len(bodies)))
				}
				w.Write(answer)
				w.WriteByte('\n')
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func post(c *http.Client, url string, body []byte) ([]byte, error) {
	resp, err := c.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	return answer, err
}

// write writes a file of so many bytes and syncs it.
func write(args []string) error {
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	buf := bytes.Repeat([]byte("x"), 1<<20)
	for size > 0 {
		n, err := f.Write(buf[:min(size, len(buf))])
		if err != nil {
			return err
		}
		size -= n
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

// hash reads a file and computes its SHA-256.
func hash(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 1<<20)); err != nil {
		return err
	}
	_, err = fmt.Printf("%x\n", h.Sum(nil))
	return err
}
