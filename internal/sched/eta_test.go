package sched

import (
	"math"
	"testing"
	"time"
)

// Answers of which some take fifteen times as long as most, to 64 calls at a time: how far the time
// of arrival is off, as a part of the time that is left, when a tenth, a half and nine tenths of the
// requests are done. What is left of a small batch is one long answer, and its length is luck.
func TestETAOfHeavyTails(t *testing.T) {
	const seeds = 8
	shares := []float64{0.1, 0.5, 0.9}
	for _, c := range []struct {
		n    int
		most [3]float64 // on average, whatever the sign
	}{
		{500, [3]float64{0.6, 0.35, 0.35}},
		{2000, [3]float64{0.25, 0.25, 0.3}},
		{5000, [3]float64{0.15, 0.15, 0.2}},
		{20000, [3]float64{0.1, 0.1, 0.15}},
	} {
		var off, before [3]float64
		for seed := range uint64(seeds) {
			s := scenario{n: c.n, slots: always(64), seed: seed, pace: &Pace{}, eta: shares}
			r := s.drive(NewGate(GateConfig{Max: 64}))
			for i, told := range r.told {
				left := r.makespan - told.at
				off[i] += math.Abs(told.eta-r.makespan) / left / seeds
				before[i] += math.Abs(told.byRate-r.makespan) / left / seeds
			}
		}
		for i, share := range shares {
			t.Logf("%5d requests, %2.0f %% done: off by %.1f %% of what is left (by the rate of the last 10 s: %.1f %%)", c.n, 100*share, 100*off[i], 100*before[i])
			if off[i] > c.most[i] {
				t.Errorf("%d requests, %.0f %% done: off by %.1f %%, want %.0f %% at most", c.n, 100*share, 100*off[i], 100*c.most[i])
			}
		}
	}
}

func TestPace(t *testing.T) {
	now := epoch
	var p Pace
	if eta := p.ETA(10, now); !eta.IsZero() || p.PerRequest() != 0 || p.Rate(now) != 0 {
		t.Errorf("before anything: ETA %v, %v per request, rate %v", eta, p.PerRequest(), p.Rate(now))
	}
	// Four calls at a time, each of ten seconds.
	for range 4 {
		p.Send(now)
	}
	if eta := p.ETA(10, now); !eta.IsZero() {
		t.Errorf("before the first result: ETA %v", eta)
	}
	for range 100 {
		now = now.Add(10 * time.Second)
		for range 4 {
			p.Done(10*time.Second, now)
			p.Send(now)
		}
	}
	if got := p.PerRequest(); got < 9999*ms || got > 10500*ms {
		t.Errorf("a request takes %v, want 10 s", got)
	}
	if got := p.Rate(now); math.Abs(got-0.4) > 0.25 {
		t.Errorf("rate %.2f, want about 0.4", got)
	}
	for _, c := range []struct {
		left int64
		want time.Duration // and up to a call more
	}{{0, 0}, {1, 0}, {4, 0}, {40, 90 * time.Second}, {400, 990 * time.Second}} {
		if got := p.ETA(c.left, now).Sub(now); got < c.want*98/100 || got > c.want*103/100+13*time.Second {
			t.Errorf("%d left: %v, want %v", c.left, got, c.want)
		}
	}
	// An outage: everything is dropped, and nobody can tell.
	for range 4 {
		p.Drop(5*time.Second, now.Add(5*time.Second))
	}
	if eta := p.ETA(10, now.Add(10*time.Minute)); !eta.IsZero() {
		t.Errorf("in an outage: ETA %v", eta)
	}
}

// It follows when calls come to take longer.
func TestPaceFollows(t *testing.T) {
	now := epoch
	var p Pace
	each := time.Second
	for now.Before(epoch.Add(2 * time.Hour)) {
		if now.After(epoch.Add(time.Hour)) {
			each = 20 * time.Second
		}
		p.Send(now)
		now = now.Add(each)
		p.Done(each, now)
	}
	if got := p.PerRequest(); got < 19*time.Second || got > 20001*ms {
		t.Errorf("an hour after calls came to take 20 s, one takes %v", got)
	}
}
