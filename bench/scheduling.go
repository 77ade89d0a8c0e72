package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// scheduling prints the table of bench/scheduling, which is in simulated time, and fails where one
// of its goals is missed.
func (b *bench) scheduling(requests int) error {
	fmt.Printf("scheduling: batches of %d requests in simulated time, 64 slots, answers of 2 s in the median, 30 s at p99\n", requests)
	c := command("go", "test", "./bench/scheduling", "-v", "-count=1", "-timeout", "4h", "-requests", strconv.Itoa(requests))
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	var missed bytes.Buffer
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		_, text, found := strings.Cut(lines.Text(), ".go:")
		if !found {
			if strings.HasPrefix(strings.TrimSpace(lines.Text()), "--- FAIL") {
				missed.WriteString("  " + strings.TrimSpace(lines.Text()) + "\n")
			}
			continue
		}
		_, text, _ = strings.Cut(text, ": ")
		if row, ok := strings.CutPrefix(text, "| "); ok {
			fmt.Println("  " + row)
		} else {
			missed.WriteString("  " + text + "\n")
		}
	}
	if err := c.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", c, err, missed.String())
	}
	return nil
}

// auto runs a file against a simulated upstream, in processes and time of the real world, with no
// limit given and with limits that somebody might have guessed.
func (b *bench) auto(lines int) error {
	in, err := b.input(lines, 335)
	if err != nil {
		return err
	}
	fmt.Printf("auto: %d requests to a simulated upstream of 64 slots with a queue, answers of 0.4 s in the median, 6 s at p99\n", lines)
	took := map[string]time.Duration{}
	limits := []string{"64", "auto", "48", "96"}
	for _, limit := range limits {
		if took[limit], err = b.against(in, limit); err != nil {
			return err
		}
	}
	for _, limit := range limits {
		fmt.Printf("  %4s in flight: %6.1f s, %.3f of what 64 take\n", limit, took[limit].Seconds(), took[limit].Seconds()/took["64"].Seconds())
	}
	return nil
}

// against runs the file against an upstream of its own and returns how long that took.
func (b *bench) against(in, limit string) (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	addr := l.Addr().String()
	l.Close()
	s := exec.Command(b.offpeak, "sim", "--listen", addr, "--slots", "64", "--seed", "7",
		"--decode", "4ms", "--median-tokens", "100", "--p99-tokens", "1500", "--context", "1048576")
	if err := s.Start(); err != nil {
		return 0, err
	}
	defer func() { s.Process.Kill(); s.Wait() }()
	for range 500 {
		resp, err := http.Get("http://" + addr + "/metrics")
		if err == nil {
			resp.Body.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	out := filepath.Join(b.dir, "auto-"+limit+".jsonl")
	defer os.RemoveAll(out + ".offpeak")
	start := time.Now()
	if text, err := exec.Command(b.offpeak, "run", in, "-o", out, "--upstream", "http://"+addr+"/v1", "--max-in-flight", limit).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("offpeak run: %w: %s", err, text)
	}
	return time.Since(start), nil
}
