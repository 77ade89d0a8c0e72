package sched

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// bursts are people who come for 20 s of every minute, whose calls take 2.6 s on average.
func bursts(perSecond float64) func(r *rand.Rand) []*job {
	return func(r *rand.Rand) []*job {
		var jobs []*job
		for t := 0.0; t < 600; {
			t += r.ExpFloat64() / perSecond
			if math.Mod(t, 60) > 20 {
				t = math.Ceil(t/60) * 60
				continue
			}
			jobs = append(jobs, &job{id: -len(jobs) - 1, foreign: true, sent: t, work: 0.1 + 2*math.Exp(0.7*r.NormFloat64())})
		}
		return jobs
	}
}

// alone returns how long people wait when nobody else is there.
func (s scenario) alone() (waits []float64) {
	m := &model{slots: s.slots, speed: alike}
	jobs := s.people(rand.New(rand.NewPCG(s.seed, 11)))
	for len(jobs) > 0 || len(m.busy) > 0 {
		at := m.next()
		if len(jobs) > 0 {
			at = min(at, jobs[0].sent)
		}
		m.pass(at)
		for len(jobs) > 0 && jobs[0].sent <= at {
			m.arrive(jobs[0])
			jobs = jobs[1:]
		}
		for _, c := range m.ended {
			waits = append(waits, at-c.sent)
		}
		m.ended = m.ended[:0]
	}
	return waits
}

func percentile(waits []float64, p float64) float64 {
	waits = slices.Sorted(slices.Values(waits))
	return waits[int(p*float64(len(waits)-1))]
}

// People come in bursts to a server of 64 slots that has a batch to work on. Their calls take hardly
// longer than without, and the batch gets most of what they leave where the server says how much it
// has to do; else it has to be careful.
func TestSharedYieldsToPeople(t *testing.T) {
	for _, c := range []struct {
		name    string
		rate    float64 // people per second in a burst, who need 2.6 slots each
		metrics float64
		press   float64
		config  GateConfig
		longer  float64 // p95 at most, than alone
		spare   float64 // of the slot seconds that they leave, at least
	}{
		{"10 slots", 4, 0.25, 0, GateConfig{}, 1.05, 0.95},
		{"31 slots", 12, 0.25, 0, GateConfig{}, 1.05, 0.95},
		{"52 slots", 20, 0.25, 0, GateConfig{}, 1.2, 0.95},
		{"31 slots, and a limit", 12, 0.25, 0, GateConfig{Max: 60}, 1.05, 0.9},
		{"31 slots, half pressed", 12, 0.25, 0.5, GateConfig{}, 1.1, 0.97},
		{"31 slots, pressed", 12, 0.25, 1, GateConfig{}, 1.2, 0.99},
		{"10 slots, no readings", 4, 0, 0, GateConfig{}, 1.1, 0.85},
		{"31 slots, no readings", 12, 0, 0, GateConfig{}, 1.2, 0.5},
		{"52 slots, no readings", 20, 0, 0, GateConfig{}, 1.25, 0.3},
		{"31 slots, no readings, pressed", 12, 0, 1, GateConfig{}, 2, 0.7},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const seeds = 3
			spare, longer := 0.0, 0.0
			for seed := range uint64(seeds) {
				s := scenario{n: 6000, slots: always(64), people: bursts(c.rate), metrics: c.metrics, seed: seed}
				c.config.Shared = true
				g := NewGate(c.config)
				g.Press(c.press)
				r := s.drive(g)
				alone := s.alone()
				t.Logf("alone %.2f %.2f %.2f s, with the batch %.2f %.2f %.2f s (p50, p95, p99); %.1f %% of the spare slots used, %.0f s",
					percentile(alone, 0.5), percentile(alone, 0.95), percentile(alone, 0.99),
					percentile(r.waits, 0.5), percentile(r.waits, 0.95), percentile(r.waits, 0.99), 100*r.spare, r.makespan)
				spare += r.spare / seeds
				longer += percentile(r.waits, 0.95) / percentile(alone, 0.95) / seeds
				if c.config.Max > 0 && r.most > c.config.Max {
					t.Errorf("%d calls, at most %d are allowed", r.most, c.config.Max)
				}
			}
			t.Logf("p95 %.2f times as long, %.1f %% of the spare slots used", longer, 100*spare)
			if longer > c.longer || spare < c.spare {
				t.Errorf("want p95 %.2f times as long at most, %.1f %% of the spare slots used at least", c.longer, 100*c.spare)
			}
		})
	}
}

// The same where the server refuses everybody's calls above a number in flight, and people's programs
// ask again after half a second, a second, two.
func TestSharedLeavesPlacesBelowAWall(t *testing.T) {
	for _, c := range []struct {
		name   string
		rate   float64
		wall   int
		press  float64
		longer float64 // p95 at most, than alone
		pushed float64 // calls of people that are refused, per call
		spare  float64
	}{
		{"10 slots", 4, 72, 0, 1.2, 0.25, 0.7},
		{"31 slots", 12, 72, 0, 1.2, 0.25, 0.6},
		{"31 slots, no queue", 12, 64, 0, 1.2, 0.25, 0.5},
		{"31 slots, much queue", 12, 128, 0, 1.2, 0.01, 0.5},
		{"45 slots", 17, 72, 0, 1.3, 0.4, 0.5},
		{"31 slots, pressed", 12, 72, 1, 1.4, 0.5, 0.65},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const seeds = 3
			spare, longer, pushed := 0.0, 0.0, 0.0
			for seed := range uint64(seeds) {
				s := scenario{n: 6000, slots: always(64), people: bursts(c.rate), wall: c.wall, seed: seed}
				g := NewGate(GateConfig{Shared: true})
				g.Press(c.press)
				r := s.drive(g)
				alone := s.alone()
				t.Logf("alone %.2f %.2f %.2f s, with the batch %.2f %.2f %.2f s (p50, p95, p99); %.1f %% of the spare slots used, %d of %d calls of people refused, %d of ours; %v",
					percentile(alone, 0.5), percentile(alone, 0.95), percentile(alone, 0.99),
					percentile(r.waits, 0.5), percentile(r.waits, 0.95), percentile(r.waits, 0.99), 100*r.spare, r.pushed, len(r.waits), r.refused, g)
				spare += r.spare / seeds
				longer += percentile(r.waits, 0.95) / percentile(alone, 0.95) / seeds
				pushed += float64(r.pushed) / float64(len(r.waits)) / seeds
			}
			t.Logf("p95 %.2f times as long, %.2f refused, %.1f %% of the spare slots used", longer, pushed, 100*spare)
			if longer > c.longer || pushed > c.pushed || spare < c.spare {
				t.Errorf("want p95 %.2f times as long and %.2f refused at most, %.1f %% of the spare slots used at least", c.longer, c.pushed, 100*c.spare)
			}
		})
	}
}

// Where people would run into the limit, some of it is left to them.
func TestSharedStaysBelowTheWall(t *testing.T) {
	s := &script{t: t, g: NewGate(GateConfig{Max: 100, Shared: true}), now: epoch}
	s.g.setWant(100, s.now)
	s.now = s.now.Add(time.Minute)
	s.send(100)
	for range 50 {
		s.endLast(Throttled, 0)
	}
	s.want("limit 37, in flight 50", 0)
	s.now = s.now.Add(10 * time.Second)
	s.end(20, Answered, 0)
	s.want("limit 37, in flight 30", 0) // somebody else may want the places
	s.now = s.now.Add(50 * time.Millisecond)
	s.want("limit 37, in flight 30", 7)
	s.send(7)
	s.now = s.now.Add(4 * time.Second)
	s.want("limit 37, in flight 37", 0)
	s.now = s.now.Add(time.Second)
	s.want("limit 37, in flight 37", 14) // is there more?
	s.send(5)
	s.endLast(Throttled, 0) // no: somebody else is there
	if room := s.g.Room(s.now); room != 0 || s.g.Limit() >= 37 {
		t.Errorf("after a refusal there is room for %d of %d", room, s.g.Limit())
	}
}
