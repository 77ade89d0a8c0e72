package engine

import (
	"time"

	"offpeak/internal/batch"
)

// Upstreams returns how the upstreams stand.
func (e *Engine) Upstreams() []batch.UpstreamState {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	states := make([]batch.UpstreamState, len(e.sites))
	for i, s := range e.sites {
		u := s.up.State()
		u.InFlight, u.Limit = s.inFlight(), s.gate.Limit()
		if g := s.allowance.grants[callLimit]; s.shared() && g.Nodes > 0 {
			u.Nodes, u.AllInFlight, u.AllLimit, u.Granted = g.Nodes, g.Others+int64(u.InFlight), g.Of, g.May
		}
		if until, ok := s.gate.Throttled(); ok {
			u.ThrottledUntil = until
		}
		if wait, _ := s.usedUp(now); wait > 0 {
			u.LimitedUntil = now.Add(wait)
		}
		if since, down := s.down(now); down {
			u.Healthy, u.Since = false, since
			if s.lastErr != nil {
				u.Why = s.lastErr.Error()
			}
		}
		states[i] = u
	}
	return states
}
