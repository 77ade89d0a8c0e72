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

// The same without an upper limit for the longest answers, which take minutes, as a part of the whole
// time. How long the last of them takes is luck: nobody could say beforehand more than what most such
// batches take, and that is off, too, by so much. But it must not be off to one side.
func TestETAOfTheLongest(t *testing.T) {
	const seeds = 20
	shares := []float64{0.1, 0.5, 0.9}
	for _, c := range []struct {
		n          int
		off, aside [3]float64
	}{
		{4000, [3]float64{0.16, 0.12, 0.1}, [3]float64{0.12, 0.05, 0.05}},
		{20000, [3]float64{0.05, 0.03, 0.03}, [3]float64{0.02, 0.02, 0.02}},
	} {
		var off, aside [3]float64
		var took []float64
		for seed := range uint64(seeds) {
			s := scenario{n: c.n, slots: always(64), seed: seed, pace: &Pace{}, eta: shares, uncut: true}
			r := s.drive(NewGate(GateConfig{Max: 64}))
			took = append(took, r.makespan)
			for i, told := range r.told {
				wrong := (told.eta - r.makespan) / r.makespan
				off[i] += math.Abs(wrong) / seeds
				aside[i] += wrong / seeds
			}
		}
		luck := 0.0
		for _, m := range took {
			luck += math.Abs(percentile(took, 0.5)-m) / m / seeds
		}
		t.Logf("%5d requests: what most take is off by %.1f %%", c.n, 100*luck)
		for i, share := range shares {
			t.Logf("%5d requests, %2.0f %% done: off by %.1f %% of the whole, on average %+.1f %%", c.n, 100*share, 100*off[i], 100*aside[i])
			if off[i] > c.off[i] || math.Abs(aside[i]) > c.aside[i] {
				t.Errorf("%d requests, %.0f %% done: want it off by %.0f %% at most, on average by %.0f %%", c.n, 100*share, 100*c.off[i], 100*c.aside[i])
			}
		}
	}
}

func TestPace(t *testing.T) {
	now := epoch
	var p Pace
	if eta := p.ETA(10, now); !eta.IsZero() || p.PerRequest(now) != 0 || p.Rate(now) != 0 {
		t.Errorf("before anything: ETA %v, %v per request, rate %v", eta, p.PerRequest(now), p.Rate(now))
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
	if got := p.PerRequest(now); got < 9999*ms || got > 10500*ms {
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
	if got := p.PerRequest(now); got < 19*time.Second || got > 20001*ms {
		t.Errorf("an hour after calls came to take 20 s, one takes %v", got)
	}
	before := p.PerRequest(now)
	for range 50 {
		p.Send(now)
	}
	if got := p.PerRequest(now.Add(10 * time.Minute)); got < 2*before {
		t.Errorf("with 50 calls that hang for ten minutes one takes %v, and took %v before", got, before)
	}
}
