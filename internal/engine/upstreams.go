package engine

import "offpeak/internal/batch"

// Upstreams returns how the upstreams stand.
func (e *Engine) Upstreams() []batch.UpstreamState {
	e.mu.Lock()
	defer e.mu.Unlock()
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
		if since, _, closed := s.gate.Closed(); closed {
			u.Healthy, u.Since = false, since
			if s.lastErr != nil {
				u.Why = s.lastErr.Error()
			}
		}
		states[i] = u
	}
	return states
}
