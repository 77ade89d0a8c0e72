package sched

import (
	"math"
	"testing"
	"time"
)

func TestMeter(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	for _, perSecond := range []int{1, 50, 2000} {
		var m Meter
		step := time.Second / time.Duration(perSecond)
		now := start
		for range 60 * perSecond {
			now = now.Add(step)
			m.Add(now)
			if seen := now.Sub(start); seen > 3*time.Second && perSecond > 1 {
				if got := m.Rate(now); math.Abs(got/float64(perSecond)-1) > 0.1 {
					t.Fatalf("%d/s for %s: rate %.2f", perSecond, seen, got)
				}
			}
		}
		if got := m.Rate(now.Add(time.Minute)); got > float64(perSecond)/100 {
			t.Errorf("%d/s, then a minute of nothing: rate %.3f", perSecond, got)
		}
	}
	var m Meter
	if got := m.Rate(start); got != 0 {
		t.Errorf("nothing ever: rate %v", got)
	}
}

func TestETA(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, c := range []struct {
		remaining int64
		rate      float64
		want      time.Time
	}{
		{0, 5, now},
		{100, 10, now.Add(10 * time.Second)},
		{100, 0, time.Time{}},
		{1 << 60, 0.001, time.Time{}},
	} {
		if got := ETA(c.remaining, c.rate, now); !got.Equal(c.want) {
			t.Errorf("ETA(%d, %v) = %v, want %v", c.remaining, c.rate, got, c.want)
		}
	}
}
