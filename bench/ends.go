package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// first measures, on an idle server, how long it takes from the call that creates a batch to its
// first request at the upstream.
func first(ctx context.Context, e *env) error {
	in, err := e.chats(100, 335)
	if err != nil {
		return err
	}
	up, err := newStub(0, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	s, err := e.serve(ctx, serving{upstream: up.url()})
	if err != nil {
		return err
	}
	defer s.stop()
	file, err := s.upload(ctx, in.path)
	if err != nil {
		return err
	}
	var took []float64
	for range 200 {
		r := up.expect(in.lines)
		start := time.Now()
		id, err := s.create(ctx, file, in.endpoint)
		if err != nil {
			return err
		}
		if _, err := s.await(ctx, id, "completed", 5*time.Millisecond); err != nil {
			return err
		}
		took = append(took, milliseconds(r.first.Sub(start)))
		time.Sleep(20 * time.Millisecond) // idle again
	}
	const slow = "several fsyncs stand between: the batch, its validation, its claim"
	e.report(figure{Case: "200 batches on an idle server, median", Unit: "ms", Measured: median(took)}, atMost(20, slow))
	e.report(figure{Case: "200 batches on an idle server, p99", Unit: "ms", Measured: quantile(took, 0.99)}, atMost(50, slow))
	return nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// finish measures how long it takes from the last answer of the upstream until the batch is
// completed and its output's first byte is there.
func finish(ctx context.Context, e *env) error {
	const slow = "the last segment is recorded, sealed and finalized after its last answer: a commit, one or two parts with their folder, and two more commits, each with its fsync"
	sizes := []int{50_000}
	if e.full {
		sizes = append(sizes, 1_000_000)
	}
	for _, lines := range sizes {
		is := number(float64(lines)) + " lines"
		reps := e.reps
		if lines > 50_000 {
			reps = 1
		}
		took, err := e.finishing(ctx, lines, reps, nil)
		if err != nil {
			return err
		}
		e.report(figure{Case: is, Unit: "ms", Measured: median(took)}, atMost(50, slow))
	}
	if _, err := exec.LookPath("strace"); err != nil {
		fmt.Fprintln(e.out, "            └ strace is not installed, so the row with slow fsyncs is left out")
		return nil
	}
	took, err := e.finishing(ctx, 50_000, e.reps, []string{"strace", "-f", "--seccomp-bpf", "-o", "/dev/null",
		"-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_exit=5000"})
	if err != nil {
		return err
	}
	e.report(figure{Case: "50,000 lines, 5 ms more for each fsync", Unit: "ms", Measured: median(took)}, atMost(100, slow))
	return nil
}

func (e *env) finishing(ctx context.Context, lines, reps int, before []string) (took []float64, err error) {
	in, err := e.chats(lines, 335)
	if err != nil {
		return nil, err
	}
	up, err := newStub(0, completions(64, 90)...)
	if err != nil {
		return nil, err
	}
	defer up.close()
	s, err := e.serve(ctx, serving{upstream: up.url(), inFlight: 256, before: before})
	if err != nil {
		return nil, err
	}
	defer s.stop()
	file, err := s.upload(ctx, in.path)
	if err != nil {
		return nil, err
	}
	for range reps {
		r := up.expect(in.lines)
		id, err := s.create(ctx, file, in.endpoint)
		if err != nil {
			return nil, err
		}
		if err := r.wait(ctx); err != nil {
			return nil, err
		}
		b, err := s.await(ctx, id, "completed", time.Millisecond)
		if err != nil {
			return nil, err
		}
		if err := s.firstByte(ctx, b.Output); err != nil {
			return nil, err
		}
		took = append(took, milliseconds(time.Since(r.last)))
	}
	return took, nil
}

// firstByte waits for the first byte of a file.
func (c client) firstByte(ctx context.Context, file string) error {
	resp, err := c.do(ctx, "GET", "/v1/files/"+file+"/content", "", nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = resp.Body.Read(make([]byte, 1))
	return err
}
