package main

import (
	"context"
	"fmt"
	"time"
)

// admission compares the validation of a batch, every check of it, with reading and hashing the
// same file.
func admission(ctx context.Context, e *env) error {
	in, err := e.chats(e.size(200_000, 1_000_000), 2000)
	if err != nil {
		return err
	}
	up, err := newStub(500*time.Millisecond, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	s, err := e.serve(ctx, serving{upstream: up.url(), inFlight: 1}) // so that little else goes on
	if err != nil {
		return err
	}
	defer s.stop()
	file, err := s.upload(ctx, in.path)
	if err != nil {
		return err
	}
	var ours, perCore, hashes []float64
	err = e.inTurn(func() error {
		u, err := e.reference(ctx, "hash", in.path)
		hashes = append(hashes, megabytes(in.bytes)/u.wall.Seconds())
		return err
	}, func() error {
		took, cpu, err := s.admitted(ctx, file)
		ours = append(ours, megabytes(in.bytes)/took.Seconds())
		perCore = append(perCore, megabytes(in.bytes)/cpu.Seconds())
		return err
	})
	if err != nil {
		return err
	}
	is := fmt.Sprintf("%s lines, %s MB", number(float64(in.lines)), number(megabytes(in.bytes)))
	our, reference := median(ours), median(hashes)
	e.report(figure{Case: is, Unit: "MB/s", Measured: our, Reference: reference, Against: "read and SHA-256", Ratio: our / reference},
		ratioOf(0.5, "one goroutine parses the lines, token by token"))
	e.report(figure{Case: is + ", of a core", Unit: "MB/s", Measured: median(perCore)}, atLeast(400, "the JSON of every line is parsed whole, for its names, types and UTF-8"))
	return nil
}

// admitted creates a batch, tells how long it took until it was validated, and cancels it.
func (s *server) admitted(ctx context.Context, file string) (took, cpu time.Duration, err error) {
	before, err := s.cpu()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	id, err := s.create(ctx, file, chat)
	if err != nil {
		return 0, 0, err
	}
	if _, err := s.await(ctx, id, "in_progress", 5*time.Millisecond); err != nil {
		return 0, 0, err
	}
	took = time.Since(start)
	after, err := s.cpu()
	if err != nil {
		return 0, 0, err
	}
	resp, err := s.do(ctx, "POST", "/v1/batches/"+id+"/cancel", "", nil, 0)
	if err := decode(resp, err, nil); err != nil {
		return 0, 0, err
	}
	for b := (batchState{}); b.Status != "cancelled"; time.Sleep(20 * time.Millisecond) {
		if err := s.get(ctx, "/v1/batches/"+id, &b); err != nil {
			return 0, 0, err
		}
	}
	return took, after - before, nil
}
