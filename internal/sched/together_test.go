package sched

import (
	"testing"
	"time"

	"offpeak/internal/batch"
)

func TestTogether(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	b := batch.Batch{Status: batch.InProgress, ExpiresAt: now.Add(time.Minute), Counts: batch.Counts{Total: 1000, Completed: 390, Failed: 10}}
	busy := batch.Activity{InFlight: 4, Rate: 5, ETA: now.Add(2 * time.Minute), AtRisk: true} // as if it was alone
	stuck := batch.Activity{WaitingFor: "upstream x down"}
	for name, c := range map[string]struct {
		here   batch.Activity
		others []batch.Activity
		want   batch.Activity
	}{
		"nobody else":        {here: busy, want: busy},
		"others do nothing":  {busy, []batch.Activity{{}, stuck}, busy},
		"three of a kind":    {busy, []batch.Activity{busy, busy}, batch.Activity{InFlight: 12, Rate: 15, ETA: now.Add(40 * time.Second)}},
		"elsewhere alone":    {batch.Activity{}, []batch.Activity{busy}, batch.Activity{InFlight: 4, Rate: 5, ETA: now.Add(2 * time.Minute), AtRisk: true}},
		"one moves":          {stuck, []batch.Activity{busy}, batch.Activity{InFlight: 4, Rate: 5, ETA: now.Add(2 * time.Minute), AtRisk: true}},
		"nobody moves":       {batch.Activity{}, []batch.Activity{stuck, {}}, stuck},
		"nobody knows of it": {},
		"one has just begun": {batch.Activity{}, []batch.Activity{{InFlight: 3}}, batch.Activity{InFlight: 3}},
	} {
		if got := Together(b, c.here, c.others, now); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
