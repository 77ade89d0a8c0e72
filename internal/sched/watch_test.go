package sched

import (
	"math"
	"testing"
	"time"
)

// TestWatchBesideOthers has an upstream whose slots others fill, and always wait for. Who need not yield to
// them gets its half of the slots, and two who reckon alike the same; who serves people as well gets one
// call, to see if they are still there.
func TestWatchBesideOthers(t *testing.T) {
	const slots = 64
	load := func(all float64) Load {
		return Load{Running: int(min(all, slots)), Waiting: int(max(all-slots, 0))}
	}
	for _, test := range []struct {
		shared   bool
		low, top float64
	}{{false, slots / 2, slots/2 + 1}, {true, 1, 1}} {
		w, limit, now := watch{shared: test.shared}, 16.0, epoch
		for range 60 {
			now = now.Add(time.Second)
			limit = max(1, math.Floor(w.observe(load(84+limit), int(limit), limit, now)))
		}
		if limit < test.low || limit > test.top {
			t.Errorf("shared: %v: %v calls beside 84 of others, want %v to %v", test.shared, limit, test.low, test.top)
		}
	}
	var w [2]watch
	limit, now := [2]float64{60, 1}, epoch
	for range 60 {
		now = now.Add(time.Second)
		for i := range w {
			limit[i] = max(1, math.Floor(w[i].observe(load(limit[0]+limit[1]), int(limit[i]), limit[i], now)))
		}
	}
	if min(limit[0], limit[1]) < slots/2-2 || limit[0]+limit[1] > slots*5/4 {
		t.Errorf("two at the same upstream have %v calls", limit)
	}
}
