package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
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
	order    []int32   // in which they are sent: equal prefixes next to each other
	bytes    int64     // of the window
	ctx      context.Context
	cancel   context.CancelCauseFunc
	meter    *sched.Meter // of results; one for all holds of a batch, guarded by Engine.mu

	// Guarded by recorder.mu, as only recording changes them.
	lease batch.Lease
	group *group
	lost  bool // to another node

	// Guarded by Engine.mu.
	next     int // into order: what has not been sent yet
	open     int // requests without a result
	inFlight int
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
	cuts     int       // of them, those whose connection broke
	failed   time.Time // last; zero: never
	charged  time.Time // when an attempt was counted last, or when it failed first
}

// claimAll claims segments while their lanes have room, and ends what is ending.
func (e *Engine) claimAll(ctx context.Context) {
	tick := time.NewTicker(e.cfg.poll)
	defer tick.Stop()
	for {
		if err := errors.Join(e.checkEndings(ctx), e.claim(ctx)); err != nil && ctx.Err() == nil {
			e.log.Error("claim segments", "err", err)
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
	if e.strays {
		if err := e.store.ReleaseStrays(ctx, e.node, e.held()); err != nil {
			return err
		}
		e.strays = false
	}
	work, err := e.store.Unclaimed(ctx)
	if err != nil {
		return err
	}
	e.allClaimed.Store(len(work) == 0)
	now := time.Now()
	maps.DeleteFunc(e.shunned, func(_ string, until time.Time) bool { return !now.Before(until) })
	skip := func(f func(batch.Work) bool) { work = slices.DeleteFunc(work, f) }
	skip(func(w batch.Work) bool { return !e.shunned[w.BatchID].IsZero() })
	e.noteUnserved(work)
	for len(work) > 0 && ctx.Err() == nil {
		running, room, sealRoom := e.load()
		i := sched.Pick(work, running, room)
		if i < 0 {
			return nil
		}
		w := work[i]
		if w.Ending != "" && !sealRoom {
			skip(func(w batch.Work) bool { return w.Ending != "" }) // we are woken when something is sealed
			continue
		}
		lease, err := e.store.Claim(ctx, e.node, w)
		if err != nil {
			e.strays = true
			return err
		}
		if lease == nil {
			work = slices.Delete(work, i, i+1)
			continue
		}
		if err := e.hold(ctx, *lease); err != nil {
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

// held returns the tokens of the leases that this node knows of.
func (e *Engine) held() (tokens []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.holds {
		tokens = append(tokens, h.lease.Token)
	}
	return tokens
}

// noteUnserved notes which batches have work for which no upstream is known, for Activity.
func (e *Engine) noteUnserved(work []batch.Work) {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.unserved)
	for _, w := range work {
		if serves, _ := e.pool.Serves(w.Lane); !serves && w.Ending == "" {
			e.unserved[w.BatchID] = w.Lane
		}
	}
}

// load returns what this node has running, which lanes can take more, and whether there is room
// for segments that are only to be sealed.
func (e *Engine) load() (running map[sched.Share]int, room func(batch.Lane) bool, sealRoom bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	running = map[sched.Share]int{}
	ending := 0
	for _, h := range e.holds {
		running[sched.Share{Project: h.lease.Project, Lane: h.lane.Lane}]++
		if h.ending != "" {
			ending++
		}
	}
	// Whatever else is held, so many are always allowed that no sealer has to wait.
	sealRoom = e.loaded < e.cfg.Memory || ending < 2*sealers
	return running, func(k batch.Lane) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		l := e.lanes[k]
		if l != nil && e.loaded >= e.cfg.Memory {
			return false
		}
		slots, open := 0, false
		now := time.Now()
		for _, s := range e.sites {
			if serves, _ := s.up.Serves(k.Model); serves {
				slots += s.gate.Limit()
				open = open || s.gate.Room(now) > 0 || !s.gate.Probing()
			}
		}
		return open && (l == nil || l.held() < 2*slots)
	}, sealRoom
}

// hold reads a claimed segment: its window of the input, and from its journal which requests have
// a result already.
func (e *Engine) hold(ctx context.Context, lease batch.Lease) error {
	h := &hold{lease: lease, ending: lease.Ending, frail: lease.Deaths >= frail}
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
	h.ctx, h.cancel = context.WithCancelCause(e.hard)

	e.mu.Lock()
	defer e.mu.Unlock()
	if lost := e.holds[lease.ID]; lost != nil {
		e.recorder.lose(lost) // unnoticed so far: else we would not be given it again
		e.remove(lost)
	}
	l := e.lanes[lease.Lane]
	if l == nil {
		l = &lane{Lane: lease.Lane}
		e.lanes[lease.Lane] = l
	}
	h.lane = l
	h.meter = e.meter(lease.BatchID)
	l.holds = append(l.holds, h)
	e.holds[lease.ID] = h
	e.loaded += h.bytes
	if h.ending != "" {
		h.next = len(h.order)
	}
	e.ready(h)
	e.feedAll()
	return nil
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

// meter returns the meter of a batch. e.mu is held.
func (e *Engine) meter(batchID string) *sched.Meter {
	for _, h := range e.holds {
		if h.lease.BatchID == batchID {
			return h.meter
		}
	}
	return &sched.Meter{}
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
	l.remove(h)
	e.feedAll()
	e.arm(l, time.Now())
	if len(l.holds) == 0 && e.lanes[l.Lane] == l {
		delete(e.lanes, l.Lane)
	}
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
	h.next = len(h.order)
	h.lane.dropRetries(h)
	e.feedAll()
	e.arm(h.lane, time.Now())
	h.grace = time.AfterFunc(e.cfg.Grace, func() { h.cancel(errGrace) })
	e.ready(h)
}

// errGrace is why calls end whose batch has ended.
var errGrace = errors.New("the batch has ended")
