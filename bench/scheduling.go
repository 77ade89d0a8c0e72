package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// scheduling shows the table of bench/scheduling, which is in simulated time.
func scheduling(ctx context.Context, e *env) error {
	requests := e.size(6000, 20_000)
	fmt.Fprintf(e.out, "\nscheduling: batches of %s requests in simulated time, 64 slots, answers of 2 s in the median, 30 s at p99\n", number(float64(requests)))
	c := command(ctx, "go", "test", "./bench/scheduling", "-v", "-count=1", "-timeout", "4h", "-requests", strconv.Itoa(requests))
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	var missed []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		_, text, found := strings.Cut(lines.Text(), ".go:")
		if !found {
			if strings.HasPrefix(strings.TrimSpace(lines.Text()), "--- FAIL") {
				missed = append(missed, strings.TrimSpace(lines.Text()))
			}
			continue
		}
		_, text, _ = strings.Cut(text, ": ")
		if row, ok := strings.CutPrefix(text, "| "); ok {
			fmt.Fprintln(e.out, "  "+row)
		} else {
			missed = append(missed, text)
		}
	}
	if err := c.Wait(); err != nil && len(missed) == 0 {
		return fmt.Errorf("%s: %w", c, err)
	}
	fmt.Fprintln(e.out)
	e.report(figure{Case: "goals of this table that are missed", Unit: "goals", Measured: float64(len(missed))}, atMost(0, strings.Join(missed, "; ")))
	return nil
}

// auto runs a file against a simulated upstream, in processes and time of the real world, with no
// limit given and with limits that somebody might have guessed.
//
// The upstream has 64 slots and a queue, and answers take 0.4 s in the median and 6 s at p99.
func auto(ctx context.Context, e *env) error {
	in, err := e.chats(6000, 335)
	if err != nil {
		return err
	}
	took := map[string]float64{}
	for _, limit := range []string{"64", "auto", "48", "96"} {
		if took[limit], err = e.against(ctx, in.path, limit); err != nil {
			return err
		}
		g := goal{}
		if limit == "auto" {
			g = ratioUpTo(1.1, "")
		}
		e.report(figure{Case: "6,000 requests, " + limit + " in flight", Unit: "s", Measured: took[limit],
			Reference: took["64"], Against: "64 in flight", Ratio: took[limit] / took["64"]}, g)
	}
	return nil
}

// against runs the file against an upstream of its own and returns how long that took.
func (e *env) against(ctx context.Context, in, limit string) (seconds float64, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	addr := l.Addr().String()
	l.Close()
	s := command(ctx, e.offpeak, "sim", "--listen", addr, "--slots", "64", "--seed", "7",
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
	u, err := measure(command(ctx, e.offpeak, "run", in, "-o", e.path("auto-"+limit+".jsonl"),
		"--upstream", "http://"+addr+"/v1", "--max-in-flight", limit))
	return u.wall.Seconds(), err
}
