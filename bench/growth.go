package main

import (
	"context"
)

// growth measures if a request costs more in a larger batch.
func growth(ctx context.Context, e *env) error {
	up, err := newStub(0, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	s, err := e.serve(ctx, serving{upstream: up.url(), inFlight: 256})
	if err != nil {
		return err
	}
	defer s.stop()
	sizes := []int{10_000, 100_000}
	if e.full {
		sizes = append(sizes, 1_000_000)
	}
	samples := make([][]sample, len(sizes))
	var turns []func() error
	for i, lines := range sizes {
		in, err := e.chats(lines, 335)
		if err != nil {
			return err
		}
		file, err := s.upload(ctx, in.path)
		if err != nil {
			return err
		}
		turns = append(turns, func() error {
			x, err := e.batch(ctx, s, up, in, file)
			samples[i] = append(samples[i], x)
			return err
		})
	}
	if err := e.inTurn(turns...); err != nil {
		return err
	}
	for i, lines := range sizes[1:] {
		is := number(float64(lines)) + " lines"
		time := func(all []sample, n int) float64 {
			return medianOf(all, func(s sample) float64 { return s.wall }) / float64(n) * 1e6
		}
		least, most := time(samples[0], sizes[0]), time(samples[i+1], lines)
		e.report(figure{Case: is + ", time of a line", Unit: "µs", Measured: most, Reference: least, Against: "at 10,000", Ratio: most / least}, ratioUpTo(1.1, ""))
		least, most = medianOf(samples[0], cpu)*100, medianOf(samples[i+1], cpu)*100
		e.report(figure{Case: is + ", CPU of a line", Unit: "µs", Measured: most, Reference: least, Against: "at 10,000", Ratio: most / least}, ratioUpTo(1.1, ""))
	}
	return nil
}
