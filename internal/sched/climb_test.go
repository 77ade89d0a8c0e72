package sched

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestKnee: what calls take beside their work may be so little that it cannot be told from nothing. The
// queue is seen for all that, and the limit comes down to the knee.
func TestKnee(t *testing.T) {
	const seeds, slots = 100, 64
	high := 0
	for seed := range uint64(seeds) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := &model{slots: always(slots), speed: alike}
		g := NewGate(GateConfig{})
		now := func() time.Time { return epoch.Add(time.Duration(m.now * float64(time.Second))) }
		for m.now < 60 {
			for g.Room(now()) > 0 {
				work := length(r) / 4
				m.arrive(&job{work: work + 0.002 + 0.004*r.ExpFloat64(), tokens: int64(200*work) + 1, ticket: g.Send(now())})
			}
			m.pass(m.next())
			for _, j := range m.ended {
				g.Done(j.ticket, Report{Outcome: Answered, Work: j.tokens}, now())
			}
			m.ended = nil
		}
		if limit := g.Limit(); limit > slots*4/3 {
			high++
		} else if limit < slots {
			t.Errorf("seed %d: after a minute the limit is %d, for %d slots", seed, limit, slots)
		}
	}
	t.Logf("after a minute %d of %d limits were more than a third too high", high, seeds)
	if high > seeds/20 {
		t.Errorf("%d of %d limits are more than a third too high", high, seeds)
	}
}
