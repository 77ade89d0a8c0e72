package main

import (
	"context"
	"fmt"
	"time"
)

// memory measures the most memory that a server takes, from upload to download, where something is
// large or there is much of it.
func memory(ctx context.Context, e *env) error {
	const mib = 1 << 20
	for _, m := range []large{
		{what: "lines of 2 KB", lines: e.size(200_000, 1_000_000), line: 2048, answer: 90, inFlight: 256, goal: 128},
		{what: "lines of 5 MiB, 8 in flight", lines: e.size(100, 1000), line: 5 * mib, answer: 90, inFlight: 8, goal: 8*5 + 64,
			reason: "windows of input are held while their requests run"},
		{what: "answers of 50 MiB, 4 in flight", lines: e.size(12, 40), line: 335, answer: 50 * mib, inFlight: 4, goal: 4*50 + 64,
			reason: "an answer is held in memory until it is packed"},
		{what: "lines in 1,000 batches at once", lines: 100_000, line: 335, answer: 90, batches: 1000, inFlight: 256, goal: 128},
	} {
		if err := e.most(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// large is what takes memory.
type large struct {
	what                          string
	lines, line, answer, inFlight int
	batches                       int // that the lines are in; 0: one
	goal                          float64
	reason                        string
}

func (e *env) most(ctx context.Context, m large) error {
	batches := max(1, m.batches)
	in, err := e.chats(m.lines/batches, m.line)
	if err != nil {
		return err
	}
	defer e.tidy()
	different := 64
	if m.answer > 1<<20 {
		different = 2
	}
	up, err := newStub(0, completions(different, m.answer)...)
	if err != nil {
		return err
	}
	defer up.close()
	s, err := e.serve(ctx, serving{upstream: up.url(), inFlight: m.inFlight})
	if err != nil {
		return err
	}
	defer s.stop()
	file, err := s.upload(ctx, in.path)
	if err != nil {
		return err
	}
	up.expect(m.lines)
	ids := make([]string, batches)
	for i := range ids {
		if ids[i], err = s.create(ctx, file, in.endpoint); err != nil {
			return err
		}
	}
	for _, id := range ids {
		b, err := s.await(ctx, id, "completed", 50*time.Millisecond)
		if err != nil {
			return err
		}
		if _, err := s.content(ctx, b.Output); err != nil {
			return err
		}
	}
	peak, err := s.peak()
	if err != nil {
		return err
	}
	e.report(figure{Case: fmt.Sprintf("%s %s", number(float64(m.lines)), m.what), Unit: "MiB", Measured: peak}, atMost(m.goal, m.reason))
	return nil
}
