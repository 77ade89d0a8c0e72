package sched

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// bursts are people who come for 20 s of every minute.
func bursts(perSecond float64, until float64) func(r *rand.Rand) []*job {
	return func(r *rand.Rand) []*job {
		var jobs []*job
		for t := 0.0; t < until; {
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

func percentiles(waits []float64) (p50, p95, p99 float64) {
	slices.Sort(waits)
	at := func(p float64) float64 { return waits[int(p*float64(len(waits)-1))] }
	return at(0.5), at(0.95), at(0.99)
}

func TestShared(t *testing.T) {
	for _, metrics := range []float64{0.25, 1, 0} {
		for _, rate := range []float64{4, 12, 20} {
			s := scenario{name: "shared", n: 6000, slots: always(64), people: bursts(rate, 600), metrics: metrics, seed: 1}
			alone := s
			alone.n = 1
			var waits []float64
			{
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
			}
			a50, a95, a99 := percentiles(waits)
			for _, press := range []float64{0, 1} {
				g := NewGate(GateConfig{Shared: true})
				g.Press(press)
				r := s.drive(g)
				p50, p95, p99 := percentiles(r.waits)
				t.Logf("metrics %v, %v people a second, press %v: alone %.2f %.2f %.2f, with %.2f %.2f %.2f: %.2f; spare used %.3f, %.0f s", metrics, rate, press, a50, a95, a99, p50, p95, p99, p95/a95, r.spare, r.makespan)
			}
			r := s.drive(&fixed{n: 72})
			p50, p95, p99 := percentiles(r.waits)
			t.Logf("   fixed 72: %.2f %.2f %.2f: %.2f; spare %.3f", p50, p95, p99, p95/a95, r.spare)
		}
	}
}
