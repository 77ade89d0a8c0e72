package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"offpeak/internal/batch"
)

// A node works as long as nobody takes it for dead. It sends heartbeats to the database, and others
// free what it holds once it has been silent for as long as a heartbeat lasts. So it reckons by its
// own clocks until when it is safe, and sends nothing after that; what comes back is recorded all the
// same, for the compare-and-set to decide whether it still counts. Where a process has the database
// to itself, the first heartbeat lasts for good, and is the only one.

type members interface {
	// Join makes this process a node. Where it has the data to itself, what a former one held is
	// free afterwards.
	Join(ctx context.Context, name string) (node string, err error)
	Leave(ctx context.Context, node string) error
	// Heartbeat tells the others that the node lives, or fails with batch.ErrDeclaredDead.
	Heartbeat(ctx context.Context, node string) (batch.Heartbeat, error)
	// Bury declares dead who has been silent for longer, and frees what the dead hold.
	Bury(ctx context.Context, node string, heard time.Time, silent time.Duration) (batch.Burial, error)
	// Tell tells the others what goes on at the node for batches.
	Tell(ctx context.Context, node string, now map[string]batch.Activity) error
}

const (
	beatEvery = 5 * time.Second
	beatAgain = time.Second // after one that failed
	// margin is how long before the others may take its segments a node stops sending: for the call
	// that is just being sent, and for clocks that do not go equally fast.
	margin = 2 * time.Second
	// heardAll is how long this node's own heartbeats have come through until whoever lives has been
	// heard, too: who gets no answer gives up after beatEvery, and tries again within beatAgain.
	heardAll = 2 * beatEvery
)

// An instant is a moment by both clocks of a machine. Of these, the wall clock may be set, and the
// monotonic one may stand still while the machine is suspended.
type instant struct {
	wall time.Duration // since 1970
	mono time.Duration // since the engine was made
}

func (e *Engine) instant(t time.Time) instant {
	return instant{time.Duration(t.UnixNano()), t.Sub(e.born)}
}

func (i instant) add(d time.Duration) instant { return instant{i.wall + d, i.mono + d} }

// before reports whether it is earlier than o by both clocks.
func (i instant) before(o instant) bool { return i.wall < o.wall && i.mono < o.mono }

// since is how long ago o was by the clock that says less, and whether the clocks agree on that.
func (i instant) since(o instant) (d time.Duration, agree bool) {
	wall, mono := i.wall-o.wall, i.mono-o.mono
	return min(wall, mono), (wall - mono).Abs() <= margin
}

// A membership is this process's standing among the nodes.
type membership struct {
	// end is when the lease ends, nil if it has; forGood is one that never does.
	end   atomic.Pointer[instant]
	audit atomic.Bool   // it is time to give back what the database says we hold and we do not know of
	again chan struct{} // of capacity 1: a heartbeat is wanted now

	mu       sync.Mutex
	node     string
	declared bool            // dead, by others
	renewed  chan struct{}   // closed with each renewal
	last     batch.Heartbeat // that succeeded
	sent     instant         // when that was sent
	took     time.Duration   // until it was answered
	unbroken instant         // when the first was sent of a row without a failure
	trusted  instant         // when the first was sent since which all clocks have gone on alike
	failing  bool            // the last one failed
}

var forGood = instant{1<<63 - 1, 1<<63 - 1}

func newMembership() *membership {
	return &membership{again: make(chan struct{}, 1), renewed: make(chan struct{})}
}

// self is the id under which this process is a node now.
func (m *membership) self() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}

// become notes under which id this process is a node.
func (m *membership) become(node string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node, m.declared = node, false
}

func (m *membership) isDeclared() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.declared
}

// live is how many nodes there are, as far as is known.
func (m *membership) live() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(m.last.Nodes, 1)
}

// leased reports whether at t nobody takes this node for dead. A process that was stopped for long
// asks this when it wakes up, before it sends anything.
func (e *Engine) leased(t time.Time) bool {
	end := e.member.end.Load()
	switch {
	case end == nil:
		return false
	case *end == forGood || e.instant(t).before(*end):
		return true
	}
	if e.member.end.CompareAndSwap(end, nil) {
		e.log.Warn("the lease has ended before a heartbeat could renew it; nothing is sent until one does")
		wake(e.member.again)
	}
	return false
}

// leaseLeft is for how long nobody takes this node for dead, whatever happens; not ok is for good.
func (e *Engine) leaseLeft(now time.Time) (left time.Duration, ok bool) {
	end := e.member.end.Load()
	switch {
	case end == nil:
		return 0, true
	case *end == forGood:
		return 0, false
	}
	left, _ = end.since(e.instant(now))
	return max(left, 0), true
}

// awaitLease waits until this node has its lease again, or ctx ends.
func (e *Engine) awaitLease(ctx context.Context) {
	for {
		e.member.mu.Lock()
		renewed := e.member.renewed
		e.member.mu.Unlock()
		if e.leased(time.Now()) {
			return
		}
		select {
		case <-renewed:
		case <-ctx.Done():
			return
		}
	}
}

// keepLease sends heartbeats until ctx ends, or one lasts for good.
func (e *Engine) keepLease(ctx context.Context) {
	m := e.member
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for began := time.Now(); ; {
		m.mu.Lock()
		wait, last := beatEvery, m.last.Lasts
		if m.failing {
			wait = beatAgain
		}
		m.mu.Unlock()
		if wait == beatEvery && last == 0 {
			return
		}
		timer.Reset(wait - time.Since(began)) // however long the last one took, and what came after it
		select {
		case <-timer.C:
		case <-m.again:
		case <-ctx.Done():
			return
		}
		began = time.Now()
		e.beat(ctx)
		e.tell(ctx)
	}
}

// beat sends a heartbeat.
func (e *Engine) beat(ctx context.Context) {
	node, sent := e.member.self(), e.instant(time.Now())
	answer, cancel := context.WithTimeout(ctx, beatEvery)
	h, err := e.store.Heartbeat(answer, node)
	cancel()
	switch {
	case err == nil:
		e.renew(node, sent, h)
	case errors.Is(err, batch.ErrDeclaredDead):
		e.deposed(node)
	case ctx.Err() == nil:
		e.member.mu.Lock()
		e.member.failing = true
		e.member.mu.Unlock()
	}
	if ctx.Err() == nil && !errors.Is(err, batch.ErrDeclaredDead) {
		e.outages.beat.Note(err, "node", e.cfg.Node)
	}
}

// renew notes that a heartbeat succeeded, and has sending go on if it had stopped.
func (e *Engine) renew(node string, sent instant, h batch.Heartbeat) {
	m := e.member
	if !m.note(node, sent, e.instant(time.Now()), h) {
		return
	}
	end := forGood
	if h.Lasts > 0 {
		end = sent.add(h.Lasts - margin)
		m.audit.Store(true)
	}
	lapsed := m.end.Swap(&end) == nil
	m.announce()
	e.mu.Lock()
	defer e.mu.Unlock()
	if h.Lasts > 0 {
		e.strayBatches = true
	}
	if lapsed {
		e.feedAll()
		wake(e.wakeClaim)
		wake(e.wakeAdmit)
	}
}

// note notes a heartbeat of the node that was sent and answered then, unless we are another by now.
func (m *membership) note(node string, sent, answered instant, h batch.Heartbeat) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.node != node {
		return false
	}
	passed, agree := sent.since(m.sent)
	took, _ := answered.since(sent)
	// By how much the database's clock went on differently from ours. A heartbeat is noted there
	// somewhere between its being sent and answered.
	theirs := h.At.Sub(m.last.At)
	off := max(theirs-passed-took, passed-theirs-m.took)
	if m.failing || passed > 2*beatEvery {
		m.unbroken = sent
	}
	if !agree || off > margin {
		m.trusted = sent
	}
	m.last, m.sent, m.took, m.failing = h, sent, took, false
	return true
}

// announce lets those go on who wait for the lease.
func (m *membership) announce() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.renewed)
	m.renewed = make(chan struct{})
}

// deposed notes that others have declared this node dead. What it holds is theirs.
func (e *Engine) deposed(node string) {
	m := e.member
	m.mu.Lock()
	current := m.node == node && !m.declared
	if current {
		m.declared, m.failing = true, true
	}
	m.mu.Unlock()
	if current {
		m.end.Store(nil)
		wake(e.wakeClaim)
	}
}

// rejoin makes this process a node again that was declared dead. Whoever claims calls it, so that no
// claim is under way under the former id. What the database may still take under the former claims is
// recorded before they are given up: everything they were for is free by now, or soon.
func (e *Engine) rejoin(ctx context.Context) error {
	if err := e.recorder.flush(ctx); err != nil {
		return err
	}
	node, err := e.store.Join(ctx, e.cfg.Node)
	if err != nil {
		return err
	}
	e.mu.Lock()
	lost := len(e.holds)
	for _, h := range e.holds {
		e.recorder.lose(h)
		e.remove(h)
	}
	e.forfeit()
	e.mu.Unlock()
	e.log.Warn("taken for dead, and joined anew", "node", e.cfg.Node, "segments", lost)
	e.member.become(node)
	wake(e.member.again)
	return nil
}

// buryAll declares dead who is silent, and frees what they hold.
func (e *Engine) buryAll(ctx context.Context) {
	tick := time.NewTicker(max(time.Second, e.cfg.poll))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		heard := e.member.heard() // before the question: one that is just arriving is not considered yet
		node, silent, ok := e.member.mayJudge(e.instant(time.Now()))
		if !ok {
			continue
		}
		b, err := e.store.Bury(ctx, node, heard, silent)
		if len(b.Nodes) > 0 {
			e.log.Warn("nodes were silent and are taken for dead", "nodes", b.Nodes, "silent", silent)
		}
		if b.Segments > 0 {
			e.metrics.freed.Add(float64(b.Segments))
			e.log.Info("work of dead nodes is free", "segments", b.Segments, "batches", b.Batches)
			wake(e.wakeClaim)
		}
		if b.Batches > 0 {
			wake(e.wakeAdmit)
		}
		if ctx.Err() == nil {
			e.outages.bury.Note(err)
		}
	}
}

// heard is when the last heartbeat was heard that has been taken notice of, by the database's clock.
func (m *membership) heard() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last.At
}

// mayJudge reports whether this node may take others for dead, and after what silence.
//
// After an outage it waits until everybody who lives has been heard again, and no longer: how long
// somebody was silent before is what the database says, and the lease of who was silent for so long has
// ended. After a clock was set, what the database says of the time before is void. Who had been heard
// just then, and nothing reaches any more, may send until its lease ends; so that is waited for.
func (m *membership) mayJudge(now instant) (node string, silent time.Duration, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last.Lasts == 0 || m.failing || m.declared {
		return "", 0, false
	}
	row, _ := now.since(m.unbroken)
	trust, _ := now.since(m.trusted)
	last, agree := now.since(m.sent)
	return m.node, m.last.Lasts, row >= heardAll && trust >= m.last.Lasts && agree && last < beatEvery+margin
}
