package engine

import (
	"fmt"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
	"offpeak/internal/upstream"
)

// BenchmarkTake measures how long it takes to choose a call and to end it, with work of many lanes,
// projects and batches in hand.
func BenchmarkTake(b *testing.B) {
	for _, c := range []struct{ lanes, projects, holds int }{{1, 1, 2}, {1, 20, 20}, {50, 20, 20}} {
		b.Run(fmt.Sprintf("%d lanes, %d projects, %d segments", c.lanes, c.projects, c.holds), func(b *testing.B) {
			u, err := upstream.New(upstream.Config{URL: "http://up/v1", MaxInFlight: 64, Models: models(c.lanes)})
			if err != nil {
				b.Fatal(err)
			}
			e := New(Config{Upstreams: upstream.NewPool(u)})
			e.alarm = time.NewTimer(time.Hour)
			s := e.sites[0]
			fill := func() {
				e.lanes = map[batch.Lane]*lane{}
				s.lanes = nil
				for _, m := range models(c.lanes) {
					for p := range c.projects {
						for i := range c.holds {
							e.keep(m, fmt.Sprint("project", p), fmt.Sprint("batch", p, i%4), 100)
						}
					}
				}
			}
			fill()
			left := c.lanes * c.projects * c.holds * 100
			var calls []*call
			b.ReportAllocs()
			for b.Loop() {
				if left == 0 {
					b.StopTimer()
					fill()
					left = c.lanes * c.projects * c.holds * 100
					b.StartTimer()
				}
				if len(calls) == 64 {
					x := calls[0]
					calls = calls[1:]
					e.settle(s, x, upstream.Answer{Class: upstream.OK, Status: 200})
					x.inFlight--
					x.count(time.Now())
				}
				x := e.take(s)
				if x == nil {
					b.Fatal("nothing to send")
				}
				calls = append(calls, x)
				left--
			}
		})
	}
}

func models(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint("model", i))
	}
	return names
}

// keep has the engine hold a segment of n requests.
func (e *Engine) keep(model, project, batchID string, n int) *hold {
	k := batch.Lane{Model: model, Endpoint: "/v1/chat/completions"}
	l := e.lanes[k]
	if l == nil {
		l = &lane{Lane: k}
		e.lanes[k] = l
		e.route(l)
	}
	h := &hold{lane: l, requests: make([]request, n), open: n}
	for i := range h.requests {
		h.requests[i].Body = fmt.Appendf(nil, `{"model":%q,"messages":[{"role":"user","content":"question %d of %s"}]}`, model, i, batchID)
		h.order = append(h.order, int32(i))
	}
	q := l.queue(batch.Work{BatchID: batchID, Project: project, Weight: 1, Lane: k}, time.Now())
	if q.pace == nil {
		q.pace = &sched.Pace{}
	}
	q.add(h, time.Now())
	return h
}
