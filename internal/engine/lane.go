package engine

import (
	"container/heap"
	"slices"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
)

// The work that this node holds is a tree: lane, project, batch, segment. Each call goes down from
// the lane to the request, and on each level to whoever has the least in flight for its weight.
// Counters on the way tell what there is below, so that nobody is asked in vain and nothing is
// counted per call. Engine.mu guards all of it.

// A branch is a lane, a project's share of it, or a batch's queue in that share.
type branch struct {
	sched.Account
	tally
	weight   float64
	deadline time.Time // the earliest below
	age      int64
	inFlight int
}

// A tally is what waits to be sent.
type tally struct {
	fresh   int // was never sent, and may be sent now
	due     int // is to be sent again, and may be sent now
	waiting int // waits at all
}

// A wish says what is looked for.
type wish int

const (
	anything  wish = iota // what is due again before what is fresh
	freshOnly             // what was never sent
)

func (b *branch) has(w wish) bool { return b.fresh > 0 || w == anything && b.due > 0 }

func (b *branch) contender(now time.Time) sched.Contender {
	c := b.Contender(b.weight, now)
	c.Deadline, c.Age = b.deadline, b.age
	return c
}

// held is how many requests are in flight or wait.
func (b *branch) held() int { return b.inFlight + b.waiting }

// stuck reports whether all there is to do is to wait for other attempts.
func (b *branch) stuck() bool { return b.inFlight == 0 && b.waiting > 0 && b.fresh+b.due == 0 }

// busy reports whether b has anything to do.
func (b *branch) busy() bool { return b.fresh+b.due+b.inFlight > 0 }

func (b *branch) sent(now time.Time) {
	b.Send(now)
	b.inFlight++
}

func (b *branch) ended(now time.Time) {
	b.Done(now)
	b.inFlight--
}

// count changes what waits below, and reports whether b has come to have something to send.
func (b *branch) count(from, to tally) (woke bool) {
	idle := !b.busy()
	b.fresh += to.fresh - from.fresh
	b.due += to.due - from.due
	b.waiting += to.waiting - from.waiting
	return idle && b.fresh+b.due > 0
}

// A lane is the work that this node holds for one model and endpoint.
type lane struct {
	batch.Lane
	branch
	shares  []*share
	sites   []*site // that serve it
	retries retries // that are not due
	tokens  tokens
	pace    sched.Pace
}

// A share is what a project has of a lane.
type share struct {
	branch
	lane    *lane
	project string
	queues  []*queue
}

// A queue is what a batch has of a share.
type queue struct {
	branch
	share *share
	batch string
	holds []*hold
	runs  runs
	pace  *sched.Pace

	// Noted when segments were claimed last.
	more int64 // segments that nobody held
	want int   // how much it is to have in hand

	told told
}

// A call is one request of a hold on its way to an upstream.
type call struct {
	*hold
	i        int32
	sentAt   time.Time
	ticket   int64   // of the upstream's gate
	reserved int64   // tokens
	unstated bool    // nobody says how long the answer may be
	course   *course // nil: nobody wants to know
	probe    bool    // it is to find out whether the upstream is back
	alone    bool    // nothing else is in flight there
}

func (c *call) request() *request { return &c.requests[c.i] }

// suspect is how many broken connections it takes for a request to be sent alone, so that one
// which brings its upstream down is told from those that happened to be there.
const suspect = 2

// frail is how many owners of a segment may die in a row, with nothing of it recorded, before its
// requests are sent one at a time: one of them may be what they die of.
const frail = 3

// queue returns the queue of a batch, and makes one if there is none.
func (l *lane) queue(w batch.Work, now time.Time) *queue {
	s := l.share(w.Project)
	if s == nil {
		s = &share{lane: l, project: w.Project}
		join(&s.branch, l.shares, now)
		l.shares = append(l.shares, s)
	}
	s.weight = float64(max(w.Weight, 1))
	q := s.queue(w.BatchID)
	if q == nil {
		q = &queue{share: s, batch: w.BatchID}
		q.weight, q.deadline, q.age = 1, w.Deadline, w.Age
		join(&q.branch, s.queues, now)
		s.queues = append(s.queues, q)
	}
	l.settleWeights()
	return q
}

func (l *lane) share(project string) *share {
	for _, s := range l.shares {
		if s.project == project {
			return s
		}
	}
	return nil
}

func (s *share) queue(batchID string) *queue {
	for _, q := range s.queues {
		if q.batch == batchID {
			return q
		}
	}
	return nil
}

// settleWeights brings up to date what follows from who is there. A lane weighs as much as its
// projects: with two of them it is to have twice of what a lane with one has.
func (l *lane) settleWeights() {
	l.weight = 0
	for _, s := range l.shares {
		l.weight += s.weight
		for i, q := range s.queues {
			if i == 0 || q.deadline.Before(s.deadline) {
				s.deadline, s.age = q.deadline, q.age
			}
		}
	}
}

// join has b begin, or begin again, beside those that are there.
func join[B interface {
	standing(time.Time) (sched.Contender, bool)
}](b *branch, others []B, now time.Time) {
	var there []sched.Contender
	for _, o := range others {
		if c, ok := o.standing(now); ok {
			there = append(there, c)
		}
	}
	b.Join(there)
}

// standing returns how b stands, and whether it has anything to do.
func (b *branch) standing(now time.Time) (sched.Contender, bool) {
	return b.contender(now), b.busy()
}

// A turn decides whose turn it is. It keeps the memory that it takes.
type turn struct {
	contenders []sched.Contender
	at         []int // of each of them among the branches
}

// of returns which of n branches is next that have what is wished for, or -1.
func (t *turn) of(n int, branch func(int) *branch, w wish, now time.Time) int {
	t.contenders, t.at = t.contenders[:0], t.at[:0]
	last := -1
	for i := range n {
		b := branch(i)
		if !b.has(w) {
			continue
		}
		if last >= 0 {
			if len(t.at) == 0 {
				t.contenders, t.at = append(t.contenders, branch(last).contender(now)), append(t.at, last)
			}
			t.contenders, t.at = append(t.contenders, b.contender(now)), append(t.at, i)
		}
		last = i
	}
	if len(t.at) == 0 {
		return last // the only one, or none
	}
	mean := sched.Mean(t.contenders)
	for _, i := range t.at {
		branch(i).Settle(mean)
	}
	return t.at[sched.Next(t.contenders)]
}

// count brings the counters above h up to date.
func (h *hold) count(now time.Time) {
	is := tally{waiting: h.unsent + h.retrying + len(h.due)}
	if !h.frail || h.inFlight == 0 {
		is.fresh, is.due = h.unsent, len(h.due)
	}
	if is == h.counted {
		return
	}
	q := h.queue
	s := q.share
	// Whoever had nothing to do has missed nothing.
	if q.branch.count(h.counted, is) {
		join(&q.branch, others(s.queues, q), now)
	}
	if s.branch.count(h.counted, is) {
		join(&s.branch, others(s.lane.shares, s), now)
	}
	s.lane.branch.count(h.counted, is)
	h.counted = is
}

func others[B comparable](all []B, but B) []B {
	return slices.DeleteFunc(slices.Clone(all), func(b B) bool { return b == but })
}

// add makes h part of the queue.
func (q *queue) add(h *hold, now time.Time) {
	h.queue = q
	q.holds = append(q.holds, h)
	h.unsent = len(h.order)
	if !h.frail {
		q.runs.add(h)
	}
	h.count(now)
}

// mend has h be sent like any other from now on: its requests are nothing to die of.
func (h *hold) mend(now time.Time) {
	if !h.frail {
		return
	}
	h.frail = false
	if h.order = h.order[len(h.order)-h.unsent:]; !h.removed {
		h.queue.runs.add(h)
	}
	h.count(now)
}

// stop takes from the queue what has not been sent of h: nothing of it is going to be.
func (q *queue) stop(h *hold, now time.Time) {
	l := q.share.lane
	if h.retrying > 0 {
		l.retries = slices.DeleteFunc(l.retries, func(r retry) bool { return r.hold == h })
		heap.Init(&l.retries)
	}
	for _, s := range l.sites {
		if s.pending != nil && s.pending.hold == h {
			s.pending = nil
		}
	}
	q.runs.remove(h)
	h.unsent, h.retrying, h.due = 0, 0, nil
	h.count(now)
}

// remove takes h out of the lane.
func (l *lane) remove(h *hold, now time.Time) {
	q := h.queue
	s := q.share
	q.stop(h, now)
	q.holds = slices.DeleteFunc(q.holds, func(o *hold) bool { return o == h })
	if len(q.holds) == 0 {
		s.queues = slices.DeleteFunc(s.queues, func(o *queue) bool { return o == q })
	}
	if len(s.queues) == 0 {
		l.shares = slices.DeleteFunc(l.shares, func(o *share) bool { return o == s })
	}
	l.settleWeights()
}

// retry has the request of c sent again once it is due.
func (l *lane) retry(c *call, due, now time.Time) {
	heap.Push(&l.retries, retry{c.hold, c.i, due})
	c.retrying++
	c.hold.count(now)
}

// promote hands to the queues what has become due.
func (l *lane) promote(now time.Time) {
	for len(l.retries) > 0 && !l.retries[0].due.After(now) {
		r := heap.Pop(&l.retries).(retry)
		r.retrying--
		r.hold.due = append(r.hold.due, r.i)
		r.count(now)
	}
}

// A candidate is a request that may be the next one.
type candidate struct {
	*hold
	i     int32
	again int // where it stands in hold.due; -1: it is fresh
}

// mostTried is at how many requests that are due again is looked to find one that did not go wrong at
// the same upstream.
const mostTried = 64

// failedTwice reports whether the request failed more than once. What made it wait otherwise, such as
// a 429, has nothing to do with it.
func (r *request) failedTwice() bool { return !r.failed.IsZero() && r.sent > 1 }

// peek returns what s is to send next of the queue. What went wrong at s is left to other upstreams
// as long as s has something fresh to do, or they have room, or it went wrong there twice.
func (q *queue) peek(s *site, w wish, homes *homes, now time.Time) (candidate, bool) {
	last := candidate{again: -1}
	if w == anything && q.due > 0 {
		l := q.share.lane
		others := s.othersFor(l)
		for _, h := range q.holds {
			if h.frail && h.inFlight > 0 {
				continue
			}
			for k, i := range h.due[:min(len(h.due), mostTried)] {
				if h.requests[i].failedAt != s || !others {
					return candidate{h, i, k}, true
				}
				if last.hold == nil && !h.requests[i].failedTwice() {
					last = candidate{h, i, k}
				}
			}
		}
		if last.hold != nil && s.roomElsewhere(l, now) {
			last.hold = nil
		}
	}
	if q.fresh == 0 {
		return last, last.hold != nil
	}
	if h, i, ok := q.runs.next(s, homes); ok {
		return candidate{h, i, -1}, true
	}
	for _, h := range q.holds {
		if h.frail && h.inFlight == 0 && h.unsent > 0 {
			return candidate{h, h.order[len(h.order)-h.unsent], -1}, true
		}
	}
	return candidate{}, false
}

// pop takes c out of the queue from which it was peeked for s.
func (q *queue) pop(c candidate, s *site) choice {
	if c.again >= 0 {
		c.due = slices.Delete(c.due, c.again, c.again+1)
		return single
	}
	c.unsent--
	if c.frail {
		return single
	}
	return q.runs.advance(s)
}

// A retry is a request that waits for its next attempt. It holds no slot.
type retry struct {
	*hold
	i   int32
	due time.Time
}

// retries is a heap, the earliest due first.
type retries []retry

func (r retries) Len() int           { return len(r) }
func (r retries) Less(i, j int) bool { return r[i].due.Before(r[j].due) }
func (r retries) Swap(i, j int)      { r[i], r[j] = r[j], r[i] }
func (r *retries) Push(v any)        { *r = append(*r, v.(retry)) }
func (r *retries) Pop() any {
	last := len(*r) - 1
	v := (*r)[last]
	(*r)[last] = retry{}
	*r = (*r)[:last]
	return v
}
