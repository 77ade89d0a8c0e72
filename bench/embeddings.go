package main

import (
	"context"
	"fmt"
)

// embeddings compares a batch of embeddings, which hardly compress, with the bare loop, and what it
// writes to the disk with its output.
func embeddings(ctx context.Context, e *env) error {
	in, err := e.texts(e.size(5_000, 100_000))
	if err == nil {
		in, err = in.withBodies()
	}
	if err != nil {
		return err
	}
	up, err := newStub(0, vectors(3072)...)
	if err != nil {
		return err
	}
	defer up.close()
	s, err := e.serve(ctx, serving{upstream: up.url(), inFlight: 64})
	if err != nil {
		return err
	}
	defer s.stop()
	file, err := s.upload(ctx, in.path)
	if err != nil {
		return err
	}
	var bares, ours []sample
	var factors []float64
	err = e.inTurn(func() error {
		x, err := e.bare(ctx, up, in, 64)
		bares = append(bares, x)
		return err
	}, func() error {
		before, err := s.written()
		if err != nil {
			return err
		}
		x, err := e.batch(ctx, s, up, in, file)
		if err != nil {
			return err
		}
		ours = append(ours, x)
		after, err := s.written()
		if err != nil {
			return err
		}
		size, err := s.newestOutput(ctx)
		factors = append(factors, (after-before)/size)
		return err
	})
	if err != nil {
		return err
	}
	is := fmt.Sprintf("%s answers of 3,072 floats", number(float64(in.lines)))
	our, loop := medianOf(ours, rate), medianOf(bares, rate)
	e.report(figure{Case: is, Unit: "requests/s", Measured: our, Reference: loop, Against: "bare loop", Ratio: our / loop},
		ratioOf(0.7, "of the CPU a third is SQLite's for the journal, a sixth checks the numbers, a sixth writes the output; the loop checks nothing, and syncs nothing"))
	our, loop = medianOf(ours, cpu), medianOf(bares, cpu)
	e.report(figure{Case: is + ", CPU", Unit: "s/10,000", Measured: our, Reference: loop, Against: "bare loop", Ratio: our / loop}, goal{})
	e.report(figure{Case: is + ", written", Unit: "× the output", Measured: median(factors)},
		atMost(2.5, "the journal goes through SQLite's log and its file before the output is written"))
	return nil
}

// newestOutput returns the size of the newest output file.
func (c client) newestOutput(ctx context.Context) (float64, error) {
	var list struct{ Data []struct{ Bytes float64 } }
	if err := c.get(ctx, "/v1/files?purpose=batch_output&limit=1", &list); err != nil {
		return 0, err
	}
	if len(list.Data) == 0 {
		return 0, fmt.Errorf("there is no output file")
	}
	return list.Data[0].Bytes, nil
}
