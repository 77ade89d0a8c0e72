package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
)

// Limits of an upstream hold for all nodes together. Each node holds a share of them on record, and asks
// for another one when it comes to want more, when it has more than it uses, and now and then anyway.
// Until it is answered it keeps to what it has; so nothing that becomes of a question brings all nodes
// together above a limit. A node that has the data to itself has its limits a minute on record, too, for
// who comes after it within that minute.

type limits interface {
	// Share grants the node its shares of limits, as divide decides.
	Share(ctx context.Context, node string, claims []batch.Claim, divide func(batch.Division) (batch.Grant, batch.Search)) ([]batch.Grant, error)
}

// How long after the last question the next one is due.
const (
	askSoonest = 50 * time.Millisecond  // whatever happens
	askSpare   = 250 * time.Millisecond // while something is held that is not used
	askHungry  = 500 * time.Millisecond // while more is wanted than there is
	askBusy    = time.Second            // while anything is used
	askIdle    = 5 * time.Second
)

// The limits of a site.
const (
	callLimit = iota
	requestLimit
	tokenLimit
	limitsOfSite
)

// An allowance is what this node holds of an upstream's limits. Engine.mu guards it.
type allowance struct {
	grants [limitsOfSite]batch.Grant
	found  float64             // that others have been told of
	short  bool                // more has come to be wanted than there is
	capped [limitsOfSite]bool  // others know that more of the limit is wanted, and left less
	lower  [limitsOfSite]int64 // limits of others, lower than ours, that the log has been told of
	needs  int64               // tokens of the request that was next, last time
}

// alone reports whether this process has the data to itself.
func (m *membership) alone() bool {
	end := m.end.Load()
	return end != nil && *end == forGood
}

// shared reports whether the limits of s are other nodes', too.
func (s *site) shared() bool { return s.member != nil && !s.member.alone() }

// hungry reports whether others know that more is wanted than there is.
func (a *allowance) hungry() bool { return slices.Contains(a.capped[:], true) }

// bucket keeps one of the limits a minute.
func (s *site) bucket(limit int) *sched.Bucket {
	if limit == requestLimit {
		return s.requests
	}
	return s.tokens
}

// limitsAMinute reports whether s has any.
func (s *site) limitsAMinute() bool { return s.requests.Limit() > 0 || s.tokens.Limit() > 0 }

// recorded reports whether s takes of its limits only what is on record.
func (s *site) recorded() bool { return s.shared() || s.member != nil && s.limitsAMinute() }

// askMore has more of the limits asked for, of which s has come to want more than it holds, unless
// others know that already. e.mu is held.
func (e *Engine) askMore(s *site) {
	if s.recorded() && !s.allowance.hungry() {
		s.allowance.short = true
		wake(e.wakeShare)
	}
}

// shareAll asks for shares of limits until ctx ends.
func (e *Engine) shareAll(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var asked time.Time
	failed := false
	for {
		due, asks := e.shareIn()
		if !asks {
			select {
			case <-e.wakeShare:
				continue
			case <-ctx.Done():
				return
			}
		}
		if failed {
			due = askHungry
		}
		wait := due - time.Since(asked)
		if wait <= 0 {
			asked = time.Now()
			err := e.share(ctx)
			if ctx.Err() == nil && !errors.Is(err, batch.ErrDeclaredDead) {
				e.outages.share.Note(err)
			}
			failed = err != nil
			continue
		}
		if due != askIdle {
			wait = min(wait, askSpare) // things change
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-e.wakeShare:
		case <-ctx.Done():
			return
		}
	}
}

// shareIn returns how long after the last question the next one is due, as things stand, if there is
// anything to ask for.
func (e *Engine) shareIn() (wait time.Duration, asks bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now, wait := time.Now(), askIdle
	for _, s := range e.sites {
		if !s.recorded() {
			continue
		}
		asks = true
		a := &s.allowance
		if a.short || s.shared() && s.gate.Auto() && s.gate.Found() != a.found {
			return askSoonest, true
		}
		for k, g := range a.grants {
			if k == callLimit && !s.shared() {
				continue
			}
			uses := s.uses(k, now)
			switch {
			case g.Holds > max(uses, g.May):
				wait = min(wait, askSpare)
			case a.hungry():
				wait = min(wait, askHungry)
			case uses > 0 || g.Holds > 0:
				wait = min(wait, askBusy)
			}
		}
	}
	return wait, asks
}

// share asks for this node's shares of all limits once.
func (e *Engine) share(ctx context.Context) error {
	node := e.member.self()
	var claims []batch.Claim
	found := map[string]float64{}
	e.mu.Lock()
	now := time.Now()
	for _, s := range e.sites {
		if !s.recorded() {
			continue
		}
		s.allowance.short = false
		found[s.up.Name()] = s.gate.Found()
		claims = append(claims, s.claims(e.draining, now)...)
	}
	e.mu.Unlock()
	answer, cancel := context.WithTimeout(ctx, beatEvery)
	defer cancel()
	grants, err := e.store.Share(answer, node, claims, sched.Divide)
	if errors.Is(err, batch.ErrDeclaredDead) {
		e.deposed(node)
	}
	if err == nil && e.member.self() == node {
		e.granted(claims, grants, found)
	}
	return err
}

// shareLast leaves on record what this node has spent in the last minute, and nothing more: it counts
// until that is past.
func (e *Engine) shareLast(ctx context.Context) {
	e.mu.Lock()
	e.forfeit()
	recorded := slices.ContainsFunc(e.sites, (*site).recorded)
	e.mu.Unlock()
	if !recorded {
		return
	}
	if err := e.share(ctx); err != nil {
		e.log.Warn("give back the limits of upstreams", "err", err)
	}
}

// uses is how much of a limit s uses now.
func (s *site) uses(limit int, now time.Time) int64 {
	if limit == callLimit {
		return int64(s.inFlight())
	}
	return s.bucket(limit).Spent(now)
}

// claims tells what s uses of its limits, and what it could use.
func (s *site) claims(draining bool, now time.Time) []batch.Claim {
	// What more there is than can be counted here is as much as anybody can want.
	const plenty = 1 << 40
	waiting := int64(0)
	for _, l := range s.lanes {
		waiting += int64(l.fresh + l.due)
		if l.more() {
			waiting = plenty
		}
	}
	if s.pending != nil {
		waiting++
	}
	if draining {
		waiting = 0
	}
	claim := func(limit int, name batch.Limit, stated int) batch.Claim {
		uses := s.uses(limit, now)
		return batch.Claim{
			Upstream: s.up.Name(), Limit: name, Stated: int64(stated),
			Keeps: max(uses, s.allowance.grants[limit].May), Uses: uses, Wants: uses, Least: 1,
		}
	}
	calls := claim(callLimit, batch.LimitCalls, s.up.MaxInFlight())
	calls.Auto = s.gate.Auto()
	calls.Wants = max(calls.Uses, min(calls.Uses+waiting, int64(s.gate.Useful(now))))
	if calls.Auto && s.gate.Found() != s.allowance.found {
		calls.Found = int64(s.gate.Found())
	}

	limits := s.up.Limits()
	requests := claim(requestLimit, batch.LimitRequests, limits.RequestsPerMinute)
	tokens := claim(tokenLimit, batch.LimitTokens, limits.TokensPerMinute)
	if each := max(s.allowance.needs, firstAnswer); !draining {
		requests.Wants += s.spends(waiting, 1, requests.Uses, s.requests.Limit())
		tokens.Wants += s.spends(min(waiting, plenty/each)*each, each, tokens.Uses, s.tokens.Limit())
		if waiting > 0 {
			tokens.Least = each
		}
	}
	if !s.shared() {
		return []batch.Claim{requests, tokens}
	}
	return []batch.Claim{calls, requests, tokens}
}

// spends is how much more than it spent in the last minute s wants to be allowed to, where so much
// waits and each call comes to so much. There is no use in holding what calls in flight leave no room
// for. And a little is held in advance, for not every call is to wait for an answer of the database.
func (s *site) spends(waiting, each, spent, limit int64) int64 {
	ahead := limit / 16
	more := min(waiting, spent+each*int64(s.gate.Limit())+ahead)
	if spent > 0 {
		more = max(more, ahead)
	}
	return more
}

// more reports whether l could do with more than what is in hand.
func (l *lane) more() bool {
	for _, sh := range l.shares {
		for _, q := range sh.queues {
			if q.more > 0 {
				return true
			}
		}
	}
	return false
}

// granted has the sites keep to what they are granted; found is what their gates had found when the
// claims were made.
func (e *Engine) granted(claims []batch.Claim, grants []batch.Grant, found map[string]float64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	for _, s := range e.sites {
		found, ok := found[s.up.Name()]
		if !ok {
			continue // it is new, and has not asked
		}
		for i, g := range grants {
			if g.Upstream == s.up.Name() {
				s.grant(g, claims[i], found, now)
				e.sayLower(s, g, claims[i])
			}
		}
	}
	e.feedAll()
	wake(e.wakeClaim) // it may be that there is room for more
}

// grant has s keep to a grant.
func (s *site) grant(g batch.Grant, c batch.Claim, found float64, now time.Time) {
	a := &s.allowance
	capped := g.Of > 0 && c.Wants > g.May
	switch g.Limit {
	case batch.LimitCalls:
		a.grants[callLimit], a.capped[callLimit], a.found = g, capped, found
		s.gate.Share(sched.Portion{
			Of: int(g.Of), Fair: g.Fair, Nodes: g.Nodes, Others: int(g.Others), Most: int(g.Stated), Leads: g.Leads, Found: found,
		}, now)
		if !g.Leads {
			a.found = s.gate.Found()
		}
	case batch.LimitRequests:
		a.grants[requestLimit], a.capped[requestLimit] = g, capped
		s.requests.Share(g.Of, g.May)
	case batch.LimitTokens:
		a.grants[tokenLimit], a.capped[tokenLimit] = g, capped
		s.tokens.Share(g.Of, g.May)
	}
}

// sayLower says once that another node states a lower limit than this one does.
func (e *Engine) sayLower(s *site, g batch.Grant, c batch.Claim) {
	if c.Stated == 0 || g.Stated >= c.Stated {
		return
	}
	for k := range s.allowance.grants {
		if s.allowance.grants[k].Limit == g.Limit && s.allowance.lower[k] != g.Stated {
			s.allowance.lower[k] = g.Stated
			e.log.Warn("another node's settings have a lower limit for this upstream, and the lowest counts",
				"upstream", s.up.Name(), "limit", string(g.Limit), "here", c.Stated, "lowest", g.Stated)
		}
	}
}

// forfeit has this node hold nothing any more, as it was taken for dead. What it has in flight ends.
// e.mu is held.
func (e *Engine) forfeit() {
	for _, s := range e.sites {
		s.allowance.grants, s.allowance.short = [limitsOfSite]batch.Grant{}, true
	}
}

// allowed is how many more calls the other nodes leave to s.
func (s *site) allowed() int { return int(s.allowance.grants[callLimit].May) - s.inFlight() }
