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
