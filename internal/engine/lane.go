package engine

import (
	"container/heap"
	"slices"
	"time"

	"offpeak/internal/batch"
)

// A lane is the work that this node holds for one model and endpoint. Engine.mu guards it.
type lane struct {
	batch.Lane
	holds    []*hold
	retries  retries
	inFlight int
}

// A call is one request of a hold on its way to an upstream.
type call struct {
	*hold
	i      int32
	sentAt time.Time
	ticket int64 // of the upstream's gate
	probe  bool  // it is to find out whether the upstream is back
	alone  bool  // nothing else is in flight there
}

func (c *call) request() *request { return &c.requests[c.i] }

// suspect is how many broken connections it takes for a request to be sent alone, so that one
// which brings its upstream down is told from those that happened to be there.
const suspect = 2

// frail is how many owners of a segment may die in a row, with nothing of it recorded, before its
// requests are sent one at a time: one of them may be what they die of.
const frail = 3

// take removes the request to be sent next, or returns nil. With probing a fresh request is
// preferred, whose failure says more about the upstream than that of one which has failed before.
// While the upstream is busy with others, a suspect has to wait.
func (l *lane) take(now time.Time, probing, busy bool) *call {
	due := len(l.retries) > 0 && !l.retries[0].due.After(now)
	if due && !probing {
		return l.takeRetry(busy)
	}
	for _, h := range l.holds {
		if h.next == len(h.order) || h.frail && h.inFlight > 0 {
			continue
		}
		h.next++
		return &call{hold: h, i: h.order[h.next-1]}
	}
	if due {
		return l.takeRetry(busy)
	}
	return nil
}

// hasWork reports whether there is a request that may be sent now.
func (l *lane) hasWork(now time.Time) bool {
	if len(l.retries) > 0 && !l.retries[0].due.After(now) {
		return true
	}
	for _, h := range l.holds {
		if h.next < len(h.order) && (!h.frail || h.inFlight == 0) {
			return true
		}
	}
	return false
}

func (l *lane) takeRetry(busy bool) *call {
	c := l.retries[0].call
	c.alone = c.request().cuts >= suspect
	if c.alone && busy {
		return nil
	}
	heap.Pop(&l.retries)
	return c
}

func (l *lane) retry(c *call, due time.Time) {
	heap.Push(&l.retries, retry{c, due})
}

func (l *lane) dropRetries(h *hold) {
	l.retries = slices.DeleteFunc(l.retries, func(r retry) bool { return r.hold == h })
	heap.Init(&l.retries)
}

func (l *lane) remove(h *hold) {
	l.dropRetries(h)
	l.holds = slices.DeleteFunc(l.holds, func(o *hold) bool { return o == h })
}

// held is how many requests are in flight or wait here.
func (l *lane) held() int {
	n := l.inFlight + len(l.retries)
	for _, h := range l.holds {
		n += len(h.order) - h.next
	}
	return n
}

// stuck reports whether all there is to do is to wait for other attempts.
func (l *lane) stuck() bool { return len(l.retries) > 0 && l.held() == len(l.retries) }

// A retry is a request that waits for its next attempt. It holds no slot.
type retry struct {
	*call
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
