package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/journal"
	"offpeak/internal/sched"
)

type segments interface {
	// Unclaimed lists work that nobody holds.
	Unclaimed(ctx context.Context) ([]batch.Work, error)
	// Claim takes the lowest segment of w that nobody holds; nil if there is none left.
	Claim(ctx context.Context, node string, w batch.Work) (*batch.Lease, error)
	Release(ctx context.Context, l batch.Lease) error
	// ReleaseStrays gives back what the node holds save under the known tokens: claims whose reply
	// was lost.
	ReleaseStrays(ctx context.Context, node string, known []string) error
	// Endings returns which of the batches are ending, and how.
	Endings(ctx context.Context, batches []string) (map[string]batch.Status, error)
	// Seal replaces a segment's journal by its parts, and reports whether it was the batch's last.
	// It may be repeated as it was. With batch.ErrSwept it asks for the parts to be written anew.
	Seal(ctx context.Context, l batch.Lease, output, errs batch.Part) (last bool, err error)
	ReserveBlob(ctx context.Context, key string) error
}

// A hold is a segment that this node holds, from claim to seal.
type hold struct {
	lane     *lane
	requests []request // in the order of lines
	order    []int32   // of those without a result, in which they are sent: equal prefixes next to each other
	bytes    int64     // of the window
	ctx      context.Context
	cancel   context.CancelCauseFunc

	// Guarded by recorder.mu, as only recording changes them.
	lease    batch.Lease
	groups   []*group         // to be recorded, oldest first
	lost     bool             // to another node
	kept     map[int64][]byte // groups that are recorded, by seq: see keptBytes
	released bool             // nothing is kept any more
	blob     string           // key that is reserved for one of its parts, unused; empty: none
	reserved time.Time        // when it was, by the wall clock alone

	// Guarded by Engine.mu.
	queue    *queue
	unsent   int     // requests that were never sent
	retrying int     // requests that wait to be due again, or for an upstream of their own
	due      []int32 // requests that are due again
	counted  tally   // what the counters above know of it
	open     int     // requests without a result
	inFlight int
	moved    time.Time    // when it was claimed, or got its last result
	frail    bool         // requests are sent one at a time
	ending   batch.Status // of the batch
	sealing  bool         // no more calls: to be sealed, or removed
	removed  bool
	grace    *time.Timer
}

// A request is one of a hold, with what its attempts have come to.
type request struct {
	batch.Request
	done     bool
	sent     int       // calls so far
	attempts int       // of them, those that count
	timeouts int       // of these, those that ran out of time
	cuts     int       // of them, those whose connection broke
	failed   time.Time // last; zero: never
	charged  time.Time // when an attempt was counted last, or when it failed first
	failedAt *site     // where its last call went wrong
	most     int64     // tokens that its answer may have, as it states; -1: it does not, 0: not looked up
}

// claimAgain is how long no claim is tried after one that failed.
const claimAgain = 250 * time.Millisecond

// claimAll claims segments while their lanes have room, and ends what is ending.
func (e *Engine) claimAll(ctx context.Context) {
	tick := time.NewTicker(e.cfg.poll)
	defer tick.Stop()
	for {
		e.weigh(time.Now())
		if e.member.isDeclared() {
			if err := e.rejoin(ctx); ctx.Err() == nil {
				e.outages.join.Note(err, "node", e.cfg.Node)
			}
		}
		err := errors.Join(e.checkEndings(ctx), e.claim(ctx))
		if ctx.Err() == nil {
			e.outages.claim.Note(err)
		}
		if err != nil { // each answer wakes us, and it would be as much in vain
			select {
			case <-time.After(claimAgain):
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-e.wakeClaim:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// unreadable is how long a batch is left alone of which a segment could not be read.
const unreadable = 5 * time.Second

// claim claims as many segments as there is room for.
func (e *Engine) claim(ctx context.Context) error {
	if !e.leased(time.Now()) {
		return nil // it would be taken from us at once
	}
	if !e.lookForBlobs(ctx) {
		return e.giveIdle(ctx)
	}
	node := e.member.self()
	if e.strays = e.member.audit.Swap(false) || e.strays; e.strays {
		if err := e.store.ReleaseStrays(ctx, node, e.held()); err != nil {
			return err
		}
		e.strays = false
	}
	if err := e.giveIdle(ctx); err != nil {
		return err
	}
	work, err := e.store.Unclaimed(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	maps.DeleteFunc(e.shunned, func(_ string, until time.Time) bool { return !now.Before(until) })
	skip := func(f func(batch.Work) bool) { work = slices.DeleteFunc(work, f) }
	skip(func(w batch.Work) bool { return !e.shunned[w.BatchID].IsZero() })
	e.noteWork(work)
	for len(work) > 0 && ctx.Err() == nil {
		i, sealRoom := e.pick(work)
		if i < 0 {
			return nil
		}
		w := work[i]
		if w.Ending != "" && !sealRoom {
			skip(func(w batch.Work) bool { return w.Ending != "" }) // we are woken when something is sealed
			continue
		}
		lease, err := e.store.Claim(ctx, node, w)
		if err != nil {
			e.strays = true
			return err
		}
		if lease == nil {
			e.noteNone(w)
			work = slices.Delete(work, i, i+1)
			continue
		}
		if err := e.hold(ctx, *lease, w); err != nil {
			if ctx.Err() == nil {
				e.log.Error("read segment", "batch", lease.BatchID, "segment", lease.ID, "err", err)
			}
			// Others go on meanwhile.
			e.shunned[w.BatchID] = now.Add(unreadable)
			skip(func(o batch.Work) bool { return o.BatchID == w.BatchID })
			if err := e.store.Release(context.WithoutCancel(ctx), *lease); err != nil {
				e.strays = true
				return err
			}
		}
	}
	return nil
}

// idle is how long a segment may be held of which nothing gets a result. It is less than it takes
// others to notice a death.
const idle = 15 * time.Second

// giveIdle gives back segments that get nowhere here, as other nodes may be able to do something with
// them: their upstreams are others, or are not cut off from them. Alone it would help nobody. What is
// recorded stays. So do segments with a request that has failed, since it is remembered only here how
// often; save where no upstream lets anything through, which may be so only here. That counts as a
// death: of what takes its upstream down with it, the third owner knows.
func (e *Engine) giveIdle(ctx context.Context) error {
	if e.member.live() == 1 {
		return nil
	}
	now := time.Now()
	e.mu.Lock()
	n := len(e.idleHolds(now))
	e.mu.Unlock()
	if n == 0 {
		return nil
	}
	if err := e.recorder.flush(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	given := e.idleHolds(now)
	for _, h := range given {
		e.recorder.lose(h)
		e.remove(h)
	}
	e.mu.Unlock()
	for _, h := range given {
		e.log.Info("segment given back, nothing of it gets anywhere here", "batch", h.lease.BatchID, "segment", h.lease.ID)
		e.shunned[h.lease.BatchID] = now.Add(4 * e.cfg.poll) // first others
		lease := e.recorder.lease(h)
		lease.Died = slices.ContainsFunc(h.requests, hasFailed)
		if err := e.store.Release(ctx, lease); err != nil && !errors.Is(err, batch.ErrLeaseLost) {
			e.strays = true
			return err
		}
	}
	return nil
}

func hasFailed(r request) bool { return !r.failed.IsZero() || r.cuts > 0 }

// idleHolds returns the segments that are to be given back. e.mu is held.
func (e *Engine) idleHolds(now time.Time) (stuck []*hold) {
	for _, h := range e.holds {
		if h.inFlight > 0 || h.sealing || h.ending != "" || now.Sub(h.moved) < idle {
			continue
		}
		if slices.ContainsFunc(h.requests, hasFailed) && (h.frail || e.capacity(h.lane.Lane).open) {
			continue
		}
		stuck = append(stuck, h)
	}
	return stuck
}

// held returns the tokens of the leases that this node knows of.
func (e *Engine) held() (tokens []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.holds {
		tokens = append(tokens, h.lease.Token)
	}
	return tokens
}

// work names what a batch has to do in a lane.
type work struct {
	batch string
	lane  batch.Lane
}

// noteWork notes what there is that nobody holds.
func (e *Engine) noteWork(open []batch.Work) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open = open
	clear(e.unserved)
	e.nodes = e.member.live()
	now := time.Now()
	more := make(map[work]int64, len(open))
	for _, w := range open {
		if w.Ending != "" {
			continue
		}
		k := work{w.BatchID, w.Lane}
		more[k] = max(w.Open, 1)
		if e.nodes > 1 && e.noticed[k].IsZero() {
			e.noticed[k] = now
		}
		if serves, _ := e.pool.Serves(w.Lane); !serves {
			e.unserved[w.BatchID] = w.Lane
		}
	}
	for k, l := range e.lanes {
		for _, s := range l.shares {
			for _, q := range s.queues {
				if q.more = more[work{q.batch, k}]; q.more > 0 {
					q.more = max(q.more-int64(len(q.holds)), 1)
				}
			}
		}
	}
	maps.DeleteFunc(e.noticed, func(k work, _ time.Time) bool { return more[k] == 0 })
	// How fast a batch is going is kept while it is held or waits to be.
	maps.DeleteFunc(e.paces, func(k work, _ *sched.Pace) bool {
		_, waits := more[k]
		return !waits && e.queue(k) == nil
	})
}

// noteNone notes that nothing is left of w.
func (e *Engine) noteNone(w batch.Work) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if q := e.queue(work{w.BatchID, w.Lane}); q != nil {
		q.more = 0
	}
}

// queue returns what is held of a batch in a lane, or nil. e.mu is held.
func (e *Engine) queue(k work) *queue {
	l := e.lanes[k.lane]
	if l == nil {
		return nil
	}
	for _, s := range l.shares {
		if q := s.queue(k.batch); q != nil {
			return q
		}
	}
	return nil
}

// batchesAtOnce is of how many batches of a project segments are held in a lane, that none of them
// has to wait for the others.
const batchesAtOnce = 8

// pick returns which of the work is to be claimed next, or -1, and whether there is room for
// segments that are only to be sealed.
func (e *Engine) pick(open []batch.Work) (i int, sealRoom bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ending := 0
	for _, h := range e.holds {
		if h.ending != "" {
			ending++
		}
	}
	// Whatever else is held, so many are always allowed that no sealer has to wait.
	sealRoom = e.loaded < e.cfg.Memory || ending < 2*sealers
	lanes := map[batch.Lane]capacity{}
	for _, w := range open {
		if w.Ending != "" {
			continue
		}
		c, ok := lanes[w.Lane]
		if !ok {
			c = e.capacity(w.Lane)
		}
		if c.here(w.Project) {
			lanes[w.Lane] = c
			continue
		}
		c.weight += float64(max(w.Weight, 1)) // of those who hold nothing yet
		c.came = append(c.came, w.Project)
		lanes[w.Lane] = c
	}
	return sched.Pick(open, func(w batch.Work) sched.Standing { return e.standing(w, lanes[w.Lane]) }), sealRoom
}

// A capacity is what the upstreams of a lane can do with.
type capacity struct {
	lane   *lane   // nil if nothing of it is held
	slots  int     // calls at a time
	open   bool    // some upstream takes calls now
	weight float64 // of all projects with work
	came   []string
}

func (c capacity) here(project string) bool {
	return c.lane != nil && c.lane.share(project) != nil || slices.Contains(c.came, project)
}

func (e *Engine) capacity(k batch.Lane) capacity {
	c := capacity{lane: e.lanes[k]}
	now := time.Now()
	for _, s := range e.sites {
		if serves, _ := s.up.Serves(k.Model); serves {
			c.slots += s.gate.Limit()
			c.open = c.open || s.useful(now) > 0 || !s.gate.Probing()
		}
	}
	if c.lane != nil {
		c.weight = c.lane.weight
	}
	return c
}

// standing tells how matters stand for w: whether there is room for more of it, and what is held.
// As much is wanted in hand as would keep its part of the slots busy twice over, so that nothing is
// hoarded and no slot waits for a claim. That part is what is its due, or more if others leave it.
func (e *Engine) standing(w batch.Work, c capacity) sched.Standing {
	st := sched.Standing{Room: c.open, Urgency: 1}
	l := c.lane
	if l == nil {
		return st // one segment of each lane is always allowed
	}
	st.Room = st.Room && e.loaded < e.cfg.Memory
	part := func(of, weight, all float64) float64 { return of * weight / max(all, weight) }
	due := part(float64(c.slots), float64(max(w.Weight, 1)), c.weight)
	left := float64(c.slots)
	for _, s := range l.shares {
		if s.project != w.Project {
			left -= min(part(float64(c.slots), s.weight, c.weight), float64(s.held()))
		}
	}
	s := l.share(w.Project)
	if s == nil {
		return st // and of each project
	}
	st.Project = s.held()
	q := s.queue(w.BatchID)
	if q == nil || q.held() == 0 {
		st.Room = st.Room && len(s.queues) < batchesAtOnce
	}
	due = max(due, left)
	if q == nil {
		return st
	}
	all, left := 0.0, due
	for _, o := range s.queues {
		all += o.weight
	}
	for _, o := range s.queues {
		if o != q {
			left -= min(part(due, o.weight, all), float64(o.held()))
		}
	}
	ahead := 2.0
	if e.hesitates(work{w.BatchID, w.Lane}) {
		ahead = 1
	}
	q.want = int(math.Ceil(ahead * max(part(due, q.weight, all), left)))
	st.Batch, st.Urgency = q.held(), q.weight
	st.Room = st.Room && q.held() < q.want
	return st
}

// hesitates reports whether no more of the work is to be claimed than has a slot waiting for it: other
// nodes, which look for work every now and then, have slots, too, and may not have seen it yet.
// e.mu is held.
func (e *Engine) hesitates(k work) bool {
	return e.nodes > 1 && time.Since(e.noticed[k]) < 2*e.cfg.poll
}

// hold reads a claimed segment: its window of the input, and from its journal which requests have
// a result already.
func (e *Engine) hold(ctx context.Context, lease batch.Lease, w batch.Work) error {
	h := &hold{lease: lease, ending: lease.Ending, frail: lease.Deaths >= frail}
	if err := e.reaching(ctx, func(ctx context.Context) error { return e.read(ctx, h) }); err != nil {
		return err
	}
	h.ctx, h.cancel = context.WithCancelCause(e.hard)
	e.enlist(h, w)
	return nil
}

// read reads what h has to do.
func (e *Engine) read(ctx context.Context, h *hold) error {
	lease := h.lease
	r := blob.Concat(ctx, e.blobs, lease.Input, lease.Offset, lease.Length)
	defer r.Close()
	window := make([]byte, lease.Length)
	if _, err := io.ReadFull(r, window); err != nil {
		return fmt.Errorf("window: %w", err)
	}
	h.requests = make([]request, 0, lease.Total)
	var p batch.Parser
	for line := range batch.SplitLines(window, lease.FirstLine) {
		if line.Blank() {
			continue
		}
		req, err := p.Request(line)
		if err != nil {
			return err
		}
		if req.Model == lease.Lane.Model {
			h.requests = append(h.requests, request{Request: req})
		}
	}
	if int64(len(h.requests)) != lease.Total {
		return fmt.Errorf("the window has %d requests of %s, not %d", len(h.requests), lease.Lane, lease.Total)
	}
	h.keepOwn(window)
	recorded, err := journal.Read(ctx, e.store, lease.ID, len(h.requests))
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	defer recorded.Close()
	for i := range h.requests {
		if h.requests[i].done = recorded.Has(i); !h.requests[i].done {
			h.order = append(h.order, int32(i))
		}
	}
	h.open = len(h.order)
	slices.SortFunc(h.order, func(a, b int32) int {
		return bytes.Compare(h.requests[a].Body, h.requests[b].Body)
	})
	return nil
}

// enlist adds h to what is worked on.
func (e *Engine) enlist(h *hold, w batch.Work) {
	e.mu.Lock()
	defer e.mu.Unlock()
	lease := h.lease
	if lost := e.holds[lease.ID]; lost != nil {
		e.recorder.lose(lost) // unnoticed so far: else we would not be given it again
		e.remove(lost)
	}
	now := time.Now()
	h.moved = now
	l := e.lanes[lease.Lane]
	if l == nil {
		l = &lane{Lane: lease.Lane}
		e.lanes[lease.Lane] = l
		e.route(l)
		join(&l.branch, others(slices.Collect(maps.Values(e.lanes)), l), now)
	}
	h.lane = l
	q := l.queue(w, now)
	if q.pace == nil {
		k := work{lease.BatchID, lease.Lane}
		if e.paces[k] == nil {
			e.paces[k] = &sched.Pace{}
		}
		q.pace = e.paces[k]
		q.more = w.Open
	}
	q.more = max(0, q.more-1)
	e.holds[lease.ID] = h
	e.loaded += h.bytes
	if h.ending != "" {
		h.order = nil
	}
	q.add(h, now)
	e.ready(h)
	e.feedAll()
}

// keepOwn sees to it that h does not keep a window in memory of which most is other lanes'.
func (h *hold) keepOwn(window []byte) {
	h.bytes = int64(len(window))
	own := 0
	for _, r := range h.requests {
		own += len(r.CustomID) + len(r.Body)
	}
	if own >= len(window)/2 {
		return
	}
	h.bytes = int64(own)
	kept := make([]byte, 0, own)
	keep := func(b []byte) []byte {
		kept = append(kept, b...)
		return kept[len(kept)-len(b) : len(kept) : len(kept)]
	}
	for i := range h.requests {
		r := &h.requests[i]
		r.CustomID, r.Body = keep(r.CustomID), keep(r.Body)
	}
}

// ready sends h to be sealed if no more results are going to come. e.mu is held.
func (e *Engine) ready(h *hold) {
	if h.sealing || h.inFlight > 0 || h.open > 0 && h.ending == "" {
		return
	}
	h.sealing = true
	e.recorder.finish(h)
}

// settled is called by the journal with holds of which every result is recorded and no more come,
// and with holds that are lost.
func (e *Engine) settled(ctx context.Context, h *hold, err error) {
	if err != nil {
		e.log.Warn("segment lost to another node", "batch", h.lease.BatchID, "segment", h.lease.ID)
		h.cancel(err)
		e.drop(h)
		return
	}
	select {
	case e.seals <- h:
	case <-ctx.Done():
	}
}

// drop forgets a hold, sealed or lost. Calls of a lost one may still be in flight.
func (e *Engine) drop(h *hold) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.remove(h)
}

// remove is drop for whoever holds e.mu.
func (e *Engine) remove(h *hold) {
	if h.removed {
		return
	}
	h.removed, h.sealing = true, true
	h.cancel(nil)
	e.recorder.release(h)
	e.loaded -= h.bytes
	if e.holds[h.lease.ID] == h {
		delete(e.holds, h.lease.ID)
	}
	if h.grace != nil {
		h.grace.Stop()
	}
	for _, s := range e.sites {
		s.forget(h)
	}
	l := h.lane
	l.remove(h, time.Now())
	if len(l.shares) == 0 && e.lanes[l.Lane] == l {
		delete(e.lanes, l.Lane)
		e.unroute(l)
	}
	e.feedAll()
	wake(e.wakeClaim)
}

// checkEndings looks whether batches that this node works on are ending.
func (e *Engine) checkEndings(ctx context.Context) error {
	e.mu.Lock()
	var ids []string
	for _, h := range e.holds {
		if h.ending == "" && !slices.Contains(ids, h.lease.BatchID) {
			ids = append(ids, h.lease.BatchID)
		}
	}
	e.mu.Unlock()
	endings, err := e.store.Endings(ctx, ids)
	if err != nil || len(endings) == 0 {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.holds {
		if ending := endings[h.lease.BatchID]; h.ending == "" && ending != "" {
			e.end(h, ending)
		}
	}
	return nil
}

// end stops sending requests of h. Calls in flight get a grace; what has no result afterwards is
// sealed as never executed. e.mu is held.
func (e *Engine) end(h *hold, ending batch.Status) {
	h.ending = ending
	h.queue.stop(h, time.Now())
	e.feedAll()
	h.grace = time.AfterFunc(e.cfg.Grace, func() { h.cancel(errGrace) })
	e.ready(h)
}

// errGrace is why calls end whose batch has ended.
var errGrace = errors.New("the batch has ended")
