package engine

import (
	"cmp"
	"context"
	"slices"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
	"offpeak/internal/upstream"
)

// A site is an upstream as the engine sees it. Engine.mu guards it.
type site struct {
	up       *upstream.Upstream
	gate     *sched.Gate
	requests *sched.Bucket // of the limit per minute, if there is one
	tokens   *sched.Bucket // likewise
	lanes    []*lane       // that it serves
	idle     []idler       // workers that wait for a call, the most recent last
	busy     int           // workers that make a call, or have an answer that they cannot get rid of
	alone    bool          // a suspect is in flight: see call.alone
	pending  *call         // a suspect that waits for the upstream to be empty
	retired  bool          // it is not configured any more, and gets no calls
	former   *site         // that was configured for the same upstream before, while it has calls in flight
	asked    time.Time     // until when the upstream asked somebody to wait
	observed time.Time     // of the upstream's last reading that the gate was told
	running  int           // whoever's calls the upstream worked on then
	pressure float64       // how hard it is pressed, where people use it, too

	member    *membership // this node's; nil if it is nobody's
	allowance allowance   // of limits, if other nodes have to do with it, too

	// What is known of the upstream. An answer counts by when its call was sent: that one of before
	// is still answered says nothing about calls of today.
	answered time.Time         // the latest call that was answered, with whatever, was sent then
	accepted time.Time         // likewise, with a 2xx
	failed   time.Time         // the last failure
	refused  time.Time         // the last call that was refused, as all were
	outage   time.Time         // the last other failure that was certainly not the request's
	failing  map[*request]bool // open requests that have failed and not been compared with any other
	lastErr  error             // of the last call that was not answered
	listed   func() bool       // it has said what it serves
	courses  map[batch.Lane]*course
}

// An idler is a worker that waits for a call.
type idler struct {
	calls chan *call // of capacity 1; closed to end the worker
	since time.Time
}

// spare is how long a worker waits for a call before it ends.
const spare = time.Minute

func newSite(u *upstream.Upstream, m *membership) *site {
	s := &site{
		up:       u,
		member:   m,
		gate:     sched.NewGate(sched.GateConfig{Max: u.MaxInFlight(), Shared: u.Shared()}),
		requests: &sched.Bucket{},
		tokens:   &sched.Bucket{},
		failing:  map[*request]bool{},
		courses:  map[batch.Lane]*course{},
		listed:   u.Listed,
	}
	s.keepLimits()
	return s
}

// keepLimits has s keep to its limits a minute as they are configured now, as far as it holds them.
func (s *site) keepLimits() {
	limits, a := s.up.Limits(), &s.allowance
	for k, limit := range map[int]int{requestLimit: limits.RequestsPerMinute, tokenLimit: limits.TokensPerMinute} {
		s.bucket(k).Share(int64(limit), min(int64(limit), a.grants[k].May))
	}
	a.short = true
}

// room is how many calls s may get now, whatever they come to in tokens.
func (s *site) room(now time.Time) int {
	room := s.useful(now)
	if s.shared() {
		room = min(room, s.allowed())
	}
	return max(room, 0)
}

// useful is how many calls s could do with now, if other nodes leave them to it.
func (s *site) useful(now time.Time) int {
	room := s.gate.Room(now)
	if s.former != nil {
		before := s.former.inFlight()
		if before == 0 {
			s.former = nil
		}
		room = min(room, s.gate.Limit()-s.gate.InFlight()-before)
	}
	return max(room, 0)
}

// inFlight counts those of whom s follows, too.
func (s *site) inFlight() int {
	if s.former == nil {
		return s.gate.InFlight()
	}
	return s.gate.InFlight() + s.former.inFlight()
}

// open reports whether s could do with a call now.
func (s *site) open(now time.Time) bool {
	if s.retired || s.alone || s.pending != nil || s.room(now) == 0 {
		return false
	}
	wait, _ := s.heldUp(now)
	return wait == 0
}

// down reports whether the upstream is away or fails, and since when. One that asks to be left alone for
// a while is not.
func (s *site) down(now time.Time) (since time.Time, down bool) {
	since, _, closed := s.gate.Closed()
	until, asked := s.gate.Throttled()
	return since, closed && !(asked && until.After(now))
}

// othersFor reports whether l has another upstream that is up.
func (s *site) othersFor(l *lane) bool {
	for _, o := range l.sites {
		if o != s && !o.gate.Probing() {
			return true
		}
	}
	return false
}

// roomElsewhere reports whether another upstream could do with a call of l now.
func (s *site) roomElsewhere(l *lane, now time.Time) bool {
	for _, o := range l.sites {
		if o != s && o.open(now) {
			return true
		}
	}
	return false
}

// hasWork reports whether there is something that s may send once it has room.
func (s *site) hasWork() bool {
	return s.pending != nil || slices.ContainsFunc(s.lanes, func(l *lane) bool { return l.has(anything) })
}

// followPool has the sites be those of the pool, and gives them work as it becomes known what they
// serve.
func (e *Engine) followPool(ctx context.Context) {
	for ctx.Err() == nil {
		changed := e.pool.Changed()
		e.mu.Lock()
		e.adoptPool()
		e.feedAll()
		e.mu.Unlock()
		wake(e.wakeClaim)
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// adoptPool brings the sites, and which lanes they serve, up to date. e.mu is held.
func (e *Engine) adoptPool() {
	ups := e.pool.All()
	old := e.sites
	e.sites = make([]*site, 0, len(ups))
	for _, u := range ups {
		i := slices.IndexFunc(old, func(s *site) bool { return s.up == u })
		if i >= 0 {
			e.sites = append(e.sites, old[i])
			continue
		}
		s := newSite(u, e.member)
		if o := e.predecessor(u, old, ups); o != nil {
			s.succeed(o)
			e.gone = slices.DeleteFunc(e.gone, func(g *site) bool { return g == o })
		}
		e.sites = append(e.sites, s)
	}
	now := time.Now()
	for _, s := range old {
		if !slices.Contains(e.sites, s) {
			e.retire(s)
			if !slices.ContainsFunc(e.sites, func(o *site) bool { return o.former == s }) {
				e.gone = append(e.gone, s)
			}
		}
	}
	e.gone = slices.DeleteFunc(e.gone, func(s *site) bool {
		return s.inFlight() == 0 && s.requests.Spent(now) == 0 && s.tokens.Spent(now) == 0
	})
	for _, l := range e.lanes {
		e.route(l)
	}
	wake(e.wakeShare) // of limits that are new
}

// predecessor returns what u was before with other settings, among the sites so far and those that went
// lately: it has to do with the calls of then, which count. That is the one of its name, or else the only
// one at its URL that is not configured any more. e.mu is held.
func (e *Engine) predecessor(u *upstream.Upstream, old []*site, ups []*upstream.Upstream) *site {
	if i := slices.IndexFunc(old, func(s *site) bool { return s.up.Name() == u.Name() }); i >= 0 {
		return old[i]
	}
	var found []*site
	for _, s := range slices.Concat(old, e.gone) {
		stays := slices.ContainsFunc(ups, func(o *upstream.Upstream) bool { return o != u && o.Name() == s.up.Name() })
		if !stays && (s.up.Same(u) || s.up.Name() == u.Name()) {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return nil
	}
	return found[0]
}

// succeed takes over what limits are kept by.
func (s *site) succeed(o *site) {
	s.former, s.allowance = o, o.allowance
	s.requests, s.tokens = o.requests, o.tokens // what was spent in the last minute counts
	s.keepLimits()
}

// A course is how calls of a lane go at one upstream. It is kept where there are others, and where tokens
// are limited.
type course struct {
	pace sched.Pace
	open int64 // tokens set aside for calls in flight of which nobody says how long the answer may be
}

// course is how calls of l go at s.
func (s *site) course(l *lane) *course {
	if s.courses[l.Lane] == nil {
		s.courses[l.Lane] = &course{}
	}
	return s.courses[l.Lane]
}

// lanesFor returns the lanes of which s may be sent something, but those of which others would have done what
// is left before s has done one more.
func (e *Engine) lanesFor(s *site, now time.Time) []*lane {
	e.taken = e.taken[:0]
	for _, l := range s.lanes {
		if !s.leaves(l, now) {
			e.taken = append(e.taken, l)
		}
	}
	if len(e.taken) < len(s.lanes) {
		e.ringAt(now.Add(time.Second)) // how fast others are changes
	}
	return e.taken
}

// leaves reports whether what is left of l is better left to its other upstreams.
func (s *site) leaves(l *lane, now time.Time) bool {
	if len(l.sites) < 2 || l.fresh == 0 || l.due > 0 || l.more() {
		return false
	}
	var others []sched.Rival
	for _, o := range l.sites {
		if o == s || o.gate.Probing() {
			continue
		}
		if wait, _ := o.heldUp(now); wait > 0 {
			continue
		}
		each := o.course(l).pace.PerRequest(now)
		others = append(others, sched.Rival{Each: each, Slots: o.slots(l, each)})
	}
	return sched.Later(s.course(l).pace.PerRequest(now), l.fresh, others)
}

// slots is how many calls of l that take so long s has in flight, when all lanes use it that can.
func (s *site) slots(l *lane, each time.Duration) float64 {
	n, lanes := s.gate.Limit(), 0
	if s.shared() {
		n = min(n, int(s.allowance.grants[callLimit].May))
	}
	for _, o := range s.lanes {
		if o == l || o.busy() {
			lanes++
		}
	}
	return min(float64(n)/float64(max(lanes, 1)), s.sustains(l, each))
}

// retire has s get no more calls. Those in flight go on. e.mu is held.
func (e *Engine) retire(s *site) {
	s.retired = true
	e.putBack(s)
	for _, w := range s.idle {
		close(w.calls)
	}
	s.idle = nil
	for _, l := range s.lanes {
		l.sites = slices.DeleteFunc(l.sites, func(o *site) bool { return o == s })
		l.leave(s)
	}
	s.lanes = nil
}

// putBack leaves to others the suspect that waits for s to be empty. e.mu is held.
func (e *Engine) putBack(s *site) {
	if c := s.pending; c != nil {
		s.pending = nil
		c.retrying--
		c.hold.due = append(c.hold.due, c.i)
		c.hold.count(time.Now())
	}
}

// leave has s, which does not serve l any more, leave to others what it was about to send.
func (l *lane) leave(s *site) {
	for _, sh := range l.shares {
		for _, q := range sh.queues {
			q.runs.leave(s)
		}
	}
}

// route finds out which sites serve l. e.mu is held.
func (e *Engine) route(l *lane) {
	l.sites = l.sites[:0]
	for _, s := range e.sites {
		serves, _ := s.up.Serves(l.Model)
		had := slices.Contains(s.lanes, l)
		switch {
		case serves:
			l.sites = append(l.sites, s)
			if !had {
				s.lanes = append(s.lanes, l)
			}
		case had:
			if s.pending != nil && s.pending.lane == l {
				e.putBack(s)
			}
			s.lanes = slices.DeleteFunc(s.lanes, func(o *lane) bool { return o == l })
			l.leave(s)
		}
	}
}

// unroute takes out a lane that has nothing left. e.mu is held.
func (e *Engine) unroute(l *lane) {
	for _, s := range l.sites {
		s.lanes = slices.DeleteFunc(s.lanes, func(o *lane) bool { return o == l })
	}
	l.sites = nil
}

// feed gives s what there is for it, in workers that are idle or new. e.mu is held.
func (e *Engine) feed(s *site) {
	for e.feedOne(s) {
	}
}

func (e *Engine) feedOne(s *site) bool {
	// While the database is away workers wait with their answers: more would be more answers. But now
	// and then the gate tries if more calls than its limit are let in.
	if s.busy >= max(s.gate.Limit(), s.gate.InFlight()+s.gate.Room(time.Now())) {
		return false
	}
	c := e.take(s)
	if c == nil {
		return false
	}
	s.busy++
	last := len(s.idle) - 1
	if last < 0 {
		e.workers.Go(func() { e.work(s, c) })
		return true
	}
	s.idle[last].calls <- c // has room: its worker waits for just this
	s.idle = s.idle[:last]
	return true
}

// feedAll feeds every site, a call at a time to the one that has the most of its slots free.
// e.mu is held.
func (e *Engine) feedAll() {
	if len(e.sites) == 1 {
		e.feed(e.sites[0])
		return
	}
	now := time.Now()
	e.hungry = append(e.hungry[:0], e.sites...)
	for len(e.hungry) > 0 {
		i := 0
		for j := range e.hungry {
			if freer(e.hungry[j], e.hungry[i], now) {
				i = j
			}
		}
		if !e.feedOne(e.hungry[i]) {
			e.hungry = slices.Delete(e.hungry, i, i+1)
		}
	}
}

// freer reports whether a call does better at a than at b: at the one of whose slots the smaller part
// is taken, for its weight.
func freer(a, b *site, now time.Time) bool {
	room, other := a.room(now), b.room(now)
	if (room == 0) != (other == 0) {
		return room > 0
	}
	taken := func(s *site, room int) float64 {
		return float64(s.gate.Limit()-room) / float64(s.gate.Limit()) / float64(max(s.up.Weight(), 1))
	}
	return cmp.Or(cmp.Compare(taken(b, other), taken(a, room)), cmp.Compare(a.up.Weight(), b.up.Weight())) > 0
}

// dismiss ends workers that had nothing to do for long: what an upstream can do with changes.
func (e *Engine) dismiss(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.sites {
		n := 0 // those that wait for the longest come first
		for n < len(s.idle) && now.Sub(s.idle[n].since) > spare {
			close(s.idle[n].calls)
			n++
		}
		s.idle = slices.Delete(s.idle, 0, n)
	}
}

// followLoads tells gates what their upstreams say of themselves.
func (e *Engine) followLoads(ctx context.Context) {
	for ctx.Err() == nil {
		observed := e.pool.Observed()
		e.mu.Lock()
		now := time.Now()
		for _, s := range e.sites {
			if s.gate.InFlight() == 0 && !s.hasWork() {
				continue // nobody wants to know
			}
			if l, ok := s.up.Load(); ok && l.At.After(s.observed) {
				s.observed, s.running = l.At, l.Running
				s.gate.Observe(sched.Load{Running: l.Running, Waiting: l.Waiting}, now)
			}
		}
		e.feedAll()
		e.mu.Unlock()
		select {
		case <-observed:
		case <-ctx.Done():
		}
	}
}
