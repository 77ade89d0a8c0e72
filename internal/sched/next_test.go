package sched

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// Contenders who always want more share slots by their weights, however few slots there are and
// however long calls take. One that has no use for its due takes nothing from anybody later.
func TestNextSharesByWeight(t *testing.T) {
	weights := []float64{1, 1, 2, 4}
	for _, c := range []struct {
		slots   int
		call    time.Duration // on average
		minutes int
	}{{1, time.Second, 10}, {1, time.Minute, 600}, {3, 10 * time.Second, 60}, {5, time.Second, 10}, {5, 30 * time.Second, 120}, {64, 10 * time.Second, 30}} {
		s := newTurns(c.slots, c.call, weights)
		s.run(2 * time.Minute)
		got := s.run(time.Duration(c.minutes) * time.Minute)
		for i, w := range weights {
			if due := w / 8; math.Abs(got[i]-due) > 0.05*due {
				t.Errorf("%d slots, calls of %v: weight %v has %.3f of the slots, due %.3f", c.slots, c.call, w, got[i], due)
			}
		}
		t.Logf("%d slots, calls of %v: %.3f", c.slots, c.call, got)
	}
}

// Whoever did without for an hour does not take everything for an hour.
func TestNextForgets(t *testing.T) {
	s := newTurns(4, time.Second, []float64{1, 1})
	s.wants[0] = 1
	got := s.run(time.Hour)
	if math.Abs(got[0]-0.25) > 0.02 {
		t.Errorf("the one that wants one slot of four has %.3f of them", got[0])
	}
	s.wants[0] = 100
	if got = s.run(5 * time.Minute); got[0] > 0.56 {
		t.Errorf("the one that was modest has %.3f of the slots, due 0.5", got[0])
	}
}

// turns are contenders at slots without end.
type turns struct {
	slots    int
	call     time.Duration
	weights  []float64
	wants    []int // most calls in flight of each
	accounts []Account
	r        *rand.Rand
	now      time.Time
	ends     []time.Time // of calls in flight
	of       []int       // whose they are
}

func newTurns(slots int, call time.Duration, weights []float64) *turns {
	s := &turns{slots: slots, call: call, weights: weights, accounts: make([]Account, len(weights)), r: rand.New(rand.NewPCG(1, 2)), now: epoch}
	for range weights {
		s.wants = append(s.wants, slots)
	}
	return s
}

// run lets d pass and returns the share of slots that each had.
func (s *turns) run(d time.Duration) []float64 {
	had := make([]float64, len(s.weights))
	all := 0.0
	for end := s.now.Add(d); s.now.Before(end); {
		for len(s.ends) < s.slots {
			var c []Contender
			var who []int
			for i := range s.accounts {
				if k := s.accounts[i].Contender(s.weights[i], s.now); k.Running < s.wants[i] {
					c, who = append(c, k), append(who, i)
				}
			}
			for _, i := range who {
				s.accounts[i].Settle(Mean(c))
			}
			i := who[Next(c)]
			s.accounts[i].Send(s.now)
			took := time.Duration((0.5 + s.r.Float64()) * float64(s.call))
			s.ends, s.of = append(s.ends, s.now.Add(took)), append(s.of, i)
			had[i] += took.Seconds()
			all += took.Seconds()
		}
		first := 0
		for k := range s.ends {
			if s.ends[k].Before(s.ends[first]) {
				first = k
			}
		}
		s.now = s.ends[first]
		s.accounts[s.of[first]].Done(s.now)
		last := len(s.ends) - 1
		s.ends[first], s.of[first] = s.ends[last], s.of[last]
		s.ends, s.of = s.ends[:last], s.of[:last]
	}
	for i := range had {
		had[i] /= all
	}
	return had
}
