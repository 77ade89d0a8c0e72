package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
)

// bare is the loop that Offpeak is compared with: a goroutine per connection takes the next body,
// sends it with net/http, and the answers are written to a file. Nothing else: no checks, no
// retries, no journal.
func bare(args []string) error {
	flags := flag.NewFlagSet("bare", flag.ExitOnError)
	in := flags.String("in", "", "input file")
	out := flags.String("out", "", "output file")
	url := flags.String("url", "", "upstream")
	c := flags.Int("c", 64, "calls in flight")
	flags.Parse(args)
	text, err := os.ReadFile(*in)
	if err != nil {
		return err
	}
	var bodies [][]byte
	for line := range bytes.Lines(text) {
		var l struct{ Body json.RawMessage }
		if err := json.Unmarshal(line, &l); err != nil {
			return err
		}
		bodies = append(bodies, l.Body)
	}
	f, err := os.Create(*out)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: *c, DisableCompression: true}}
	var mu sync.Mutex // guards next, w and failed
	next := 0
	var failed error
	var wg sync.WaitGroup
	for range *c {
		wg.Go(func() {
			for {
				mu.Lock()
				if next == len(bodies) || failed != nil {
					mu.Unlock()
					return
				}
				body := bodies[next]
				next++
				mu.Unlock()
				answer, err := post(client, *url+"/chat/completions", body)
				mu.Lock()
				if err != nil {
					failed = err
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
