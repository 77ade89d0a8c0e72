package engine

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/journal"
	"offpeak/internal/outage"
)

type journals interface {
	// Record records groups of different segments in one transaction, and returns the segments
	// whose lease is lost; of those nothing is recorded. It may be repeated as it was.
	Record(ctx context.Context, groups []batch.Group) (lost []int64, err error)
	// Vacuum makes room for what is recorded next.
	Vacuum(ctx context.Context) error
	journal.Store
}

// A recorder makes results durable: it gathers them and records them in groups, one transaction
// for all segments together.
type recorder struct {
	store   journals
	outage  *outage.Log
	metrics *Metrics
	wake    chan struct{} // of capacity 1
	commits atomic.Int64  // transactions that recorded something

	mu       sync.Mutex
	space    sync.Cond
	groups   []*hold // with groups to record
	finished []*hold // of which nothing more comes
	bytes    int     // in groups
	oldest   time.Time
	urgent   bool // somebody waits for what is in groups
	hurried  bool // workers are to end and wait for nothing
	closed   bool
	flushes  []chan struct{} // closed once what is in groups is recorded
	given    int             // results that were given up
	why      error           // they were
	spare    [][]byte        // memory of groups that are packed, for the next ones
	spared   int             // bytes of that
	kept     int             // bytes of groups in holds
}

// A group is what is to be recorded of one hold in one transaction.
type group struct {
	data   []byte
	n      int
	packed bool        // data is; nothing is added to it
	tally  batch.Tally // of the hold, with this group
}

const (
	groupDelay = 50 * time.Millisecond
	groupBytes = 256 << 10
	// pendingBytes bounds what waits to be recorded; beyond it workers wait, too.
	pendingBytes = 4 << 20
	// keptBytes bounds the groups that are kept in memory after they were recorded, until their segment
	// is sealed, so that they need not be read again. Those with few results for their size are worth it.
	keptBytes   = 12 << 20
	largeResult = 2 << 10
)

func newRecorder(s journals, o *outage.Log, m *Metrics) *recorder {
	r := &recorder{store: s, outage: o, metrics: m, wake: make(chan struct{}, 1)}
	r.space.L = &r.mu
	return r
}

// add takes the entry of one result. It blocks while too much waits to be recorded, unless hurried. Of
// a segment that is lost it takes nothing.
func (r *recorder) add(h *hold, ok bool, u batch.Usage, entry []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.room(h) {
		return
	}
	g := h.lastGroup()
	if g == nil || g.packed {
		g = r.newGroup(h)
		if last := len(r.spare) - 1; last >= 0 {
			g.data, r.spare = r.spare[last], r.spare[:last]
			r.spared -= cap(g.data)
		}
	}
	if room := cap(g.data) - len(g.data); room < len(entry) {
		g.data = slices.Grow(g.data, max(len(entry), len(g.data))) // more are going to follow
	}
	g.data = append(g.data, entry...)
	r.count(h, g, ok, u)
	r.added(len(entry))
}

// addPacked is add of a result that is packed already, in one or more groups. The result counts with the
// last of them.
func (r *recorder) addPacked(h *hold, ok bool, u batch.Usage, data []byte, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.room(h) {
		return
	}
	g := r.newGroup(h)
	g.data, g.packed = data, true
	if last {
		r.count(h, g, ok, u)
	}
	r.added(len(data))
}

// room waits until there is room for a result, and reports whether it is to be recorded. r.mu is held.
func (r *recorder) room(h *hold) bool {
	for r.bytes > pendingBytes && !r.hurried {
		r.space.Wait()
	}
	return !h.lost
}

// lastGroup returns the group that h was given last, if it is still to be recorded.
func (h *hold) lastGroup() *group {
	if len(h.groups) == 0 {
		return nil
	}
	return h.groups[len(h.groups)-1]
}

// newGroup gives h another group. r.mu is held.
func (r *recorder) newGroup(h *hold) *group {
	if len(h.groups) == 0 {
		r.groups = append(r.groups, h)
	}
	g := &group{tally: h.lease.Tally}
	h.groups = append(h.groups, g)
	return g
}

// count counts a result that the last group of h has. r.mu is held.
func (r *recorder) count(h *hold, g *group, ok bool, u batch.Usage) {
	if ok {
		h.lease.Tally.Completed++
		h.lease.Tally.Usage.Add(u)
	} else {
		h.lease.Tally.Failed++
	}
	g.n++
	g.tally = h.lease.Tally
}

// added notes that so many bytes more wait to be recorded. r.mu is held.
func (r *recorder) added(n int) {
	if r.bytes == 0 {
		r.oldest = time.Now()
		wake(r.wake)
	}
	if r.bytes += n; r.bytes >= groupBytes {
		wake(r.wake)
	}
}

// finish announces that no more results of h come. Once all are recorded, it is settled.
func (r *recorder) finish(h *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finished = append(r.finished, h)
	r.urgent = true
	wake(r.wake)
}

// hurry makes add wait no more. A worker that waits while the database is away would never end.
func (r *recorder) hurry() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hurried = true
	r.space.Broadcast()
}

// close makes run return once everything is recorded. Nothing is added from then on.
func (r *recorder) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed, r.urgent = true, true
	wake(r.wake)
}

// flush returns once everything added before is recorded, as far as its segment is ours.
func (r *recorder) flush(ctx context.Context) error {
	flushed := make(chan struct{})
	r.mu.Lock()
	r.flushes, r.urgent = append(r.flushes, flushed), true
	r.mu.Unlock()
	wake(r.wake)
	select {
	case <-flushed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lose notes that h is lost: nothing more of it is recorded.
func (r *recorder) lose(h *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.lost = true
}

func (r *recorder) isLost(h *hold) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return h.lost
}

// freshFor is how long a key that is reserved may be used. It is less by far than after what time it is
// swept, and forgotten in the end, as may happen while a machine is suspended.
const freshFor = time.Hour

// takeBlob returns the key that is reserved for a part of h, once; empty if none is.
func (r *recorder) takeBlob(h *hold) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := h.blob
	h.blob = ""
	if age := time.Now().Round(0).Sub(h.reserved); age < 0 || age > freshFor {
		return ""
	}
	return key
}

// lease returns the lease of h as it is after the last write.
func (r *recorder) lease(h *hold) batch.Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	return h.lease
}

// run records groups until closed and empty, or until ctx ends. It calls settled with every
// finished hold whose results are recorded, and, with an error, with every hold that is lost.
func (r *recorder) run(ctx context.Context, settled func(context.Context, *hold, error)) {
	packer := journal.NewPacker(groupBytes)
	defer packer.Close()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next, wait := r.collect()
		if wait >= 0 {
			timer.Reset(wait)
			select {
			case <-r.wake:
			case <-timer.C:
			case <-ctx.Done():
				return
			}
			continue
		}
		groups := make([]batch.Group, len(next.groups))
		for i, h := range next.groups {
			if !h.packed {
				data := packer.Pack(h.data)
				r.reuse(h.data)
				h.data = data
			}
			groups[i] = batch.Group{Lease: h.lease, Tally: h.lease.Tally, Data: h.data, Blob: h.blob}
		}
		lost, err := r.record(ctx, groups)
		if err != nil {
			r.forget(next.groups, err)
			return // asked to end; whatever is unrecorded is sent again another time
		}
		for _, h := range r.recorded(next.groups, lost) {
			settled(ctx, h, batch.ErrLeaseLost)
		}
		for _, h := range next.finished {
			if !r.isLost(h) {
				settled(ctx, h, nil)
			}
		}
		for _, flushed := range next.flushes {
			close(flushed)
		}
		if next.closed && len(next.groups) == 0 {
			return
		}
	}
}

// forget notes that groups are given up that could not be recorded.
func (r *recorder) forget(groups []taken, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range groups {
		if !h.hold.lost {
			r.given += h.n
		}
	}
	r.why = err
}

// forgotten tells of what was added and never recorded, once run has returned.
func (r *recorder) forgotten() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.given
	for _, h := range r.groups {
		if !h.lost {
			for _, g := range h.groups {
				n += g.n
			}
		}
	}
	if n == 0 {
		return nil
	}
	return &UnrecordedError{n, r.why}
}

// taken is a group of a hold on its way to the store, with the lease as it was at that moment, but for
// its tally, which is that with the group. With the last one of a hold a blob is reserved for what it is
// sealed into: that has no commit of its own to wait for.
type taken struct {
	*hold
	*group
	lease batch.Lease
	blob  string
}

// A round is what is recorded in one transaction, and who waits for that.
type round struct {
	groups   []taken
	finished []*hold
	flushes  []chan struct{}
	closed   bool
}

// collect takes everything that is to be recorded, or says how long to wait before that.
func (r *recorder) collect() (next round, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.urgent && !r.closed && r.bytes < groupBytes {
		if r.bytes == 0 {
			return round{}, time.Hour
		}
		if age := time.Since(r.oldest); age < groupDelay {
			return round{}, groupDelay - age
		}
	}
	next.closed = r.closed
	left, bytes := r.groups[:0], 0
	for _, h := range r.groups {
		if h.lost { // its segment may be in another hold by now
			h.groups = nil
			continue
		}
		t := taken{hold: h, group: h.groups[0], lease: h.lease}
		t.lease.Tally = t.group.tally
		next.groups = append(next.groups, t)
		if h.groups = h.groups[1:]; len(h.groups) > 0 {
			left = append(left, h)
			for _, g := range h.groups {
				bytes += len(g.data)
			}
		}
	}
	clear(r.groups[len(left):])
	r.groups, r.bytes, r.urgent = left, bytes, len(left) > 0
	if len(left) == 0 {
		next.flushes, r.flushes = r.flushes, nil
	}
	waiting := r.finished
	r.finished = nil
	for _, h := range waiting {
		if len(h.groups) > 0 {
			r.finished = append(r.finished, h)
		} else {
			next.finished = append(next.finished, h)
			if i := slices.IndexFunc(next.groups, func(t taken) bool { return t.hold == h }); i >= 0 {
				next.groups[i].blob = blob.NewKey()
			}
		}
	}
	r.space.Broadcast()
	return next, -1
}

// spareGroups is of how many groups the memory is kept, and pendingBytes how much at most.
const spareGroups = 4

// reuse keeps the memory of a group that is packed.
func (r *recorder) reuse(data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.spare) < spareGroups && r.spared+cap(data) <= pendingBytes {
		r.spare = append(r.spare, data[:0])
		r.spared += cap(data)
	}
}

// keep keeps a group that is recorded in memory, if it is worth it. r.mu is held.
func (r *recorder) keep(h *hold, seq int64, group []byte, results int) {
	if h.released || len(group) < results*largeResult || r.kept+len(group) > keptBytes {
		return
	}
	if h.kept == nil {
		h.kept = map[int64][]byte{}
	}
	h.kept[seq] = group
	r.kept += len(group)
}

// release gives up what is kept of h, for good.
func (r *recorder) release(h *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, group := range h.kept {
		r.kept -= len(group)
	}
	h.kept, h.released = nil, true
}

// journalOf returns the journal for who reads what is recorded of h.
func (r *recorder) journalOf(h *hold) journal.Store { return heldJournal{r.store, r, h} }

// A heldJournal is the journal with the groups of one hold that are in memory. Which there are is for
// the database to say: a group that it has is never changed, but all of them are gone once the segment
// is sealed, by whomever.
type heldJournal struct {
	journal.Store
	r *recorder
	h *hold
}

func (j heldJournal) JournalGroup(ctx context.Context, segment, seq int64) ([]byte, error) {
	j.r.mu.Lock()
	group := j.h.kept[seq]
	j.r.mu.Unlock()
	if group != nil {
		return group, nil
	}
	return j.Store.JournalGroup(ctx, segment, seq)
}

// record has the groups recorded, for as long as that takes. It repeats a failed transaction as it
// was: perhaps only its reply was lost.
func (r *recorder) record(ctx context.Context, groups []batch.Group) (lost []int64, err error) {
	if len(groups) == 0 {
		return nil, nil
	}
	start := time.Now()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		lost, err = r.store.Record(ctx, groups)
		if ctx.Err() == nil {
			r.outage.Note(err)
		}
		if err == nil {
			r.commits.Add(1)
			r.metrics.commit(len(groups), time.Since(start))
			return lost, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// recorded notes that the groups of holds are recorded, save the lost ones, which it returns.
func (r *recorder) recorded(holds []taken, lost []int64) (gone []*hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := map[int64]bool{}
	for _, id := range lost {
		ids[id] = true
	}
	for _, h := range holds {
		r.metrics.journalled.Add(float64(h.n))
		if ids[h.lease.ID] {
			h.hold.lost = true
			gone = append(gone, h.hold)
		} else {
			h.hold.lease.Seq++
			if h.blob != "" {
				h.hold.blob, h.hold.reserved = h.blob, time.Now().Round(0)
			}
			if !h.packed { // else it has a large line, which is read back piece by piece
				r.keep(h.hold, h.hold.lease.Seq, h.data, h.n)
			}
		}
	}
	return gone
}
