package engine

import (
	"fmt"
	"time"
)

// WithSegmentLines makes segments small, so that a small batch has many.
func (c Config) WithSegmentLines(n int) Config {
	c.segmentLines = n
	return c
}

// WithPoll sets how often the engine looks for what nobody woke it for. Every look costs, and in
// tests hours may pass.
func (c Config) WithPoll(d time.Duration) Config {
	c.poll = d
	return c
}

// Idle reports whether the engine has nothing in hand.
func (e *Engine) Idle() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.holds) == 0 && len(e.lanes) == 0 && e.loaded == 0 && len(e.admitted) == 0
}

// Dump tells what the engine has in hand, for tests that wait in vain.
func (e *Engine) Dump() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := fmt.Sprintf("%d bytes loaded, %d batches in validation\n", e.loaded, len(e.admitted))
	for _, h := range e.holds {
		s += fmt.Sprintf("hold %d unsent %d retrying %d due %d open %d inflight %d ending %q sealing %v\n", h.lease.ID, h.unsent, h.retrying, len(h.due), h.open, h.inFlight, h.ending, h.sealing)
	}
	for k, l := range e.lanes {
		s += fmt.Sprintf("lane %v inflight %d fresh %d due %d waiting %d retries %d", k, l.inFlight, l.fresh, l.due, l.waiting, len(l.retries))
		for _, r := range l.retries {
			s += fmt.Sprintf(" (%d due %v cuts %d att %d)", r.i, r.due.Format("15:04:05.000"), r.requests[r.i].cuts, r.requests[r.i].attempts)
		}
		s += "\n"
	}
	for _, t := range e.sites {
		since, until, closed := t.gate.Closed()
		s += fmt.Sprintf("site idle %d alone %v pending %v gate limit %d inflight %d closed %v since %v until %v failing %d alarm %v\n", len(t.idle), t.alone, t.pending != nil, t.gate.Limit(), t.gate.InFlight(), closed, since.Format("15:04:05"), until.Format("15:04:05.000"), len(t.failing), e.alarmAt.Format("15:04:05.000"))
	}
	return s
}

// Miscount looks whether the counters of lanes, projects and batches say what there is, and returns
// what they do not.
func (e *Engine) Miscount() (wrong []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	check := func(what string, got, want tally) {
		if got != want {
			wrong = append(wrong, fmt.Sprintf("%s counts %+v, there is %+v", what, got, want))
		}
	}
	plus := func(a, b tally) tally { return tally{a.fresh + b.fresh, a.due + b.due, a.waiting + b.waiting} }
	for k, l := range e.lanes {
		var inLane tally
		for _, s := range l.shares {
			var inShare tally
			for _, q := range s.queues {
				var inQueue tally
				inRuns, unsent := 0, 0
				for _, h := range q.holds {
					t := tally{waiting: h.unsent + h.retrying + len(h.due)}
					if !h.frail || h.inFlight == 0 {
						t.fresh, t.due = h.unsent, len(h.due)
					}
					inQueue = plus(inQueue, t)
					if !h.frail {
						unsent += h.unsent
					}
				}
				check("batch "+q.batch, q.tally, inQueue)
				inShare = plus(inShare, q.tally)
				for _, f := range q.runs.free {
					inRuns += f.unsent()
				}
				for _, list := range q.runs.homed {
					for _, f := range list {
						inRuns += f.unsent()
					}
				}
				for _, f := range q.runs.begun {
					inRuns += f.unsent()
				}
				if inRuns != unsent {
					wrong = append(wrong, fmt.Sprintf("batch %s has %d requests in runs, not %d", q.batch, inRuns, unsent))
				}
			}
			check("project "+s.project, s.tally, inShare)
			inLane = plus(inLane, s.tally)
		}
		check("lane "+k.Model, l.tally, inLane)
	}
	return wrong
}
