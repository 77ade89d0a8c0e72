package main

import (
	"context"
	"fmt"
	"time"
)

// waiting measures how full an upstream is kept that takes its time: what it answered, beside what
// so many slots can answer that are never empty.
func waiting(ctx context.Context, e *env) error {
	const delay, rounds = 200 * time.Millisecond, 25
	up, err := newStub(delay, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	for _, inFlight := range []int{1000, 4000} {
		if err := e.waitingAt(ctx, up, delay, inFlight, inFlight*rounds); err != nil {
			return err
		}
	}
	return nil
}

func (e *env) waitingAt(ctx context.Context, up *stub, delay time.Duration, inFlight, lines int) error {
	in, err := e.chats(lines, 335)
	if err != nil {
		return err
	}
	s, err := e.serve(ctx, serving{upstream: up.url(), inFlight: inFlight})
	if err != nil {
		return err
	}
	defer s.stop()
	file, err := s.upload(ctx, in.path)
	if err != nil {
		return err
	}
	var all []sample
	if err := e.inTurn(func() error {
		x, err := e.batch(ctx, s, up, in, file)
		all = append(all, x)
		return err
	}); err != nil {
		return err
	}
	our, limit := medianOf(all, rate), float64(inFlight)/delay.Seconds()
	e.report(figure{Case: fmt.Sprintf("%s lines, 200 ms, %s in flight", number(float64(lines)), number(float64(inFlight))),
		Unit: "requests/s", Measured: our, Reference: limit, Against: "in flight ÷ 200 ms", Ratio: our / limit},
		ratioOf(0.98, "the beginning and end of the batch, when not every slot is full, and beyond some 20,000 requests/s the cores, which upstream and server share"))
	return nil
}
