package main

import (
	"context"
	"fmt"
	"os"
)

// binary measures the program itself.
func binary(ctx context.Context, e *env) error {
	up, err := newStub(0, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	data := e.path("data")
	var took []float64
	for range 20 {
		s, err := e.serve(ctx, serving{upstream: up.url(), data: data})
		if err != nil {
			return err
		}
		took = append(took, milliseconds(s.ready))
		s.stop()
	}
	e.report(figure{Case: "from its start to ready, 20 times", Unit: "ms", Measured: median(took)}, atMost(100, ""))
	fi, err := os.Stat(e.offpeak)
	if err != nil {
		return err
	}
	e.report(figure{Case: fmt.Sprintf("size of %s", fi.Name()), Unit: "MB", Measured: megabytes(fi.Size())}, atMost(40, ""))
	return nil
}
