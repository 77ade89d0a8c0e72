package engine

import (
	"cmp"
	"math/rand/v2"
	"net/http"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/journal"
	"offpeak/internal/sched"
	"offpeak/internal/upstream"
)

// work is a worker: it makes one call after another, with buffers of its own.
func (e *Engine) work(s *site, c *call) {
	caller := s.up.NewCaller()
	defer caller.Release()
	wait := make(chan *call, 1)
	meter := e.metrics.meter(s.up)
	var line, entry []byte
	for ; c != nil; c = e.next(s, c, wait) {
		start := time.Now()
		if !e.leased(start) { // it ended between the choice and here
			e.awaitLease(c.ctx)
			start = time.Now()
		}
		a := caller.Call(c.ctx, c.lane.Endpoint, c.request().Body)
		meter.call(a.Class, time.Since(start))
		switch r, final := e.settle(s, c, a); {
		case !final:
		case len(r.Body) > largeBody:
			e.addLarge(c, r)
			e.metrics.result(r)
		default:
			line = r.AppendLine(line[:0], c.lease.BatchID, c.request().Request)
			entry = journal.AppendEntry(entry[:0], int(c.i), r.OK(), line)
			e.recorder.add(c.hold, r.OK(), r.Usage, entry)
			e.metrics.result(r)
			if cap(line) > 64<<10 {
				line = nil // of thousands of workers each would keep one
			}
			if cap(entry) > 64<<10 {
				entry = nil
			}
		}
		caller.Release()
	}
}

// largeBody is above how many bytes a result is recorded in groups of its own: each copy of its line
// would take as much as the answer.
const largeBody = 1 << 20

// addLarge has a large result recorded, without a copy of it. The worker packs it itself, so that others
// are recorded meanwhile.
func (e *Engine) addLarge(c *call, r batch.Result) {
	packer := journal.NewPacker(groupBytes)
	defer packer.Close()
	r.Compact()
	start, body, end := r.Line(nil, c.lease.BatchID, c.request().Request)
	for group, last := range packer.Groups(int(c.i), r.OK(), start, body, []byte(end)) {
		e.recorder.addPacked(c.hold, r.OK(), r.Usage, group, last)
	}
}

// next ends the worker's last call and returns its next one, or nil when it is to end.
func (e *Engine) next(s *site, last *call, wait chan *call) *call {
	e.mu.Lock()
	now := time.Now()
	last.inFlight--
	last.count(now)
	e.ready(last.hold)
	if q := last.queue; q.more > 0 && q.held() < q.want && e.loaded < e.cfg.Memory {
		wake(e.wakeClaim)
	}
	if e.draining || s.retired {
		s.busy--
		e.feedAll() // whoever follows an upstream that is no more may send another one
		e.mu.Unlock()
		return nil
	}
	c := e.take(s)
	if c == nil {
		s.busy--
		s.idle = append(s.idle, idler{wait, now})
		if len(e.open) > 0 && s.open(now) {
			wake(e.wakeClaim) // others have left a slot: what is wanted of the rest has become more
		}
	} else {
		e.feed(s) // the gate may have widened
	}
	if last.alone {
		e.feedAll() // others made room for it, too
	}
	e.mu.Unlock()
	if c == nil {
		c = <-wait
	}
	return c
}

// take chooses the call that s makes next, or returns nil if it can make none now. e.mu is held.
func (e *Engine) take(s *site) *call {
	now := time.Now()
	if e.draining || s.retired || s.alone || !e.leased(now) {
		return nil
	}
	if s.room(now) == 0 {
		if at := s.gate.Next(now); !at.IsZero() && s.hasWork() {
			e.ringAt(at)
		}
		if s.shared() && s.allowed() <= 0 && s.hasWork() {
			e.askMore(s)
		}
		return nil
	}
	if s.pending != nil && s.gate.InFlight() > 0 {
		return nil
	}
	for _, l := range s.lanes {
		if len(l.retries) > 0 {
			l.promote(now)
			e.arm(l)
		}
	}
	q, next, ok := e.choose(s, now)
	if !ok {
		return nil
	}
	tokens, lacks, stated := int64(0), int64(0), true
	if limit, l := s.tokens.Limit(), q.share.lane; limit > 0 {
		if tokens, stated = l.tokens.estimate(&next.requests[next.i], s.gate.InFlight()+1, limit); !stated {
			open, more := s.lacks(l, now)
			tokens, lacks = tokens+more, open
		}
	}
	s.allowance.needs = tokens
	if wait, _ := s.limited(tokens+lacks, now); wait > 0 {
		e.askMore(s)
		e.ringAt(now.Add(wait))
		return nil
	}
	c := s.pending
	if c == nil {
		e.metrics.prefix(q.pop(next, s))
		c = &call{hold: next.hold, i: next.i}
		if next.again >= 0 && c.request().cuts >= suspect {
			c.alone = true
			if s.gate.InFlight() > 0 { // it waits until the upstream is empty
				s.pending = c
				c.retrying++
				c.hold.count(now)
				return nil
			}
		}
	} else {
		s.pending = nil
		c.retrying--
	}
	s.requests.Take(1, now)
	s.tokens.Take(tokens, now)
	s.alone = c.alone
	c.sentAt, c.probe, c.ticket, c.reserved = now, s.gate.Probing(), s.gate.Send(now), tokens
	c.request().sent++
	c.inFlight++
	c.count(now)
	q.sent(now)
	q.share.sent(now)
	q.share.lane.sent(now)
	q.pace.Send(now)
	q.share.lane.pace.Send(now)
	if l := q.share.lane; len(l.sites) > 1 || s.tokens.Limit() > 0 {
		c.course = s.course(l)
		c.course.pace.Send(now)
		if c.unstated = !stated; c.unstated {
			c.course.open += tokens
		}
	}
	return c
}

// choose returns what s may send next, and of which queue: on each level of whoever has the least
// in flight for its weight. To an upstream that was away something fresh is sent first, whose
// failure says more than that of a request which has failed before. e.mu is held.
func (e *Engine) choose(s *site, now time.Time) (*queue, candidate, bool) {
	if c := s.pending; c != nil {
		return c.queue, candidate{hold: c.hold, i: c.i}, true
	}
	wishes := [2]wish{anything, freshOnly}
	if s.gate.Probing() {
		wishes = [2]wish{freshOnly, anything}
	}
	lanes := e.lanesFor(s, now)
	for _, w := range wishes {
		i := e.turn.of(len(lanes), func(i int) *branch { return &lanes[i].branch }, w, now)
		if i < 0 {
			continue
		}
		l := lanes[i]
		sh := l.shares[e.turn.of(len(l.shares), func(i int) *branch { return &l.shares[i].branch }, w, now)]
		q := sh.queues[e.turn.of(len(sh.queues), func(i int) *branch { return &sh.queues[i].branch }, w, now)]
		if c, ok := q.peek(s, w, &e.homes, now); ok {
			return q, c, true
		}
	}
	return nil, candidate{}, false
}

// maxAttempts is how often a request may fail at an upstream that answers others, beside the first
// time. A call that ran out of time costs too much for that many, and a 403 or 404 means what it
// says where others get a 2xx.
const (
	maxAttempts = 4
	maxTimeouts = 2
	maxDenials  = 2
)

// settle decides what the answer to c means: a final result, or another attempt later.
func (e *Engine) settle(s *site, c *call, a upstream.Answer) (r batch.Result, final bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	req := c.request()
	c.queue.ended(now)
	c.queue.share.ended(now)
	c.lane.ended(now)
	if c.alone {
		s.alone = false
	}
	outcome := sched.Answered
	switch a.Class {
	case upstream.OK:
		r, final = batch.Result{Status: a.Status, RequestID: a.RequestID, Body: a.Body, Usage: a.Usage}, true
		s.accepted = latest(s.accepted, c.sentAt)
		c.mend(now)
	case upstream.Permanent:
		// A refusal of this one request, unless nobody else fares better.
		if a.Denied {
			if s.blame(c, a, s.accepted, now) {
				req.charge(now)
			}
			if req.attempts < maxDenials {
				outcome = sched.Failed
				break
			}
		}
		final = true
		if a.TooLarge {
			r.Failure = batch.FailureLargeAnswer
			break
		}
		r = batch.Result{Status: a.Status, RequestID: a.RequestID, Body: a.Body}
	case upstream.Throttled:
		outcome = sched.Throttled
	case upstream.Refused:
		outcome = sched.Refused
	case upstream.Aborted:
		outcome = sched.Abandoned
	case upstream.Transient:
		outcome = sched.Failed
		r, final = e.failed(s, c, a, now)
	}
	if outcome == sched.Answered {
		s.answered, s.lastErr = latest(s.answered, c.sentAt), nil
		if c.sentAt.After(s.failed) {
			clear(s.failing)
		}
	} else if outcome != sched.Abandoned {
		s.lastErr = a.Err
		switch {
		case outcome == sched.Refused:
			s.refused = now
		case c.probe && req.sent == 1:
			s.outage = now
		}
	}
	e.report(s, c, a, outcome, now)
	took := now.Sub(c.sentAt)
	if final {
		c.queue.pace.Done(took, now)
		c.lane.pace.Done(took, now)
		if c.course != nil {
			c.course.pace.Done(took, now)
		}
		delete(s.failing, req)
		req.done, c.moved = true, now
		c.open--
		return r, true
	}
	c.queue.pace.Drop(took, now)
	c.lane.pace.Drop(took, now)
	if c.course != nil {
		c.course.pace.Drop(took, now)
	}
	if outcome == sched.Throttled && !s.gate.Probing() {
		a.RetryAfter = min(a.RetryAfter, patience)
		s.asked = latest(s.asked, now.Add(a.RetryAfter))
	}
	if c.ending == "" && !c.sealing && outcome != sched.Abandoned {
		wait := sched.Backoff(req.sent+1, a.RetryAfter, rand.Float64())
		switch outcome {
		case sched.Refused:
			wait = 0 // the gate is closed; it says when
		case sched.Throttled:
			// Another upstream may be less busy. If it is not, that is to be waited for.
			if (req.failedAt == nil || req.failedAt == s) && s.roomElsewhere(c.lane, now) {
				wait = 0
			}
		}
		req.failedAt = s
		e.metrics.retried.Inc()
		c.lane.retry(c, now.Add(wait), now)
		e.arm(c.lane)
		if wait == 0 {
			e.feedAll() // perhaps there is another upstream
		}
	}
	return r, false
}

// patience is for how long a request is left alone at most that was refused by an upstream which takes others:
// it has not asked everybody to wait.
const patience = time.Minute

// report tells the limits of s what came of c. e.mu is held.
func (e *Engine) report(s *site, c *call, a upstream.Answer, outcome sched.Outcome, now time.Time) {
	used := c.reserved
	switch {
	case a.Usage.Total > 0:
		used = a.Usage.Total
		c.lane.tokens.learn(c.request().Body, a.Usage)
	case a.Class == upstream.Throttled, a.Class == upstream.Refused, a.Class == upstream.Permanent:
		used = 0 // it was not worked on
	case s.tokens.Limit() > 0:
		// Nobody says what it came to, nor ever will: it may have been far more than the mean.
		used, _ = c.lane.tokens.estimate(c.request(), 1, s.tokens.Limit())
	}
	if c.unstated {
		c.course.open -= c.reserved
	}
	s.tokens.Settle(c.sentAt, c.reserved, used, now)
	wasClosed := s.gate.Probing()
	s.gate.Done(c.ticket, sched.Report{
		Outcome: outcome, RetryAfter: a.RetryAfter, Work: cmp.Or(a.Usage.Output, a.Usage.Total, 1),
	}, now)
	_, until, closed := s.gate.Closed()
	switch {
	case closed:
		e.ringAt(until)
		if !wasClosed {
			e.putBack(s)
			if _, down := s.down(now); down {
				e.log.Warn("upstream is down", "upstream", s.up.Name(), "err", a.Err)
			} else {
				e.log.Warn("upstream throttles", "upstream", s.up.Name(), "until", until, "err", a.Err)
			}
		}
	case wasClosed:
		e.log.Info("upstream is back", "upstream", s.up.Name())
		e.feedAll()
	}
}

// failed counts a transient failure of c and says whether it was the last.
func (e *Engine) failed(s *site, c *call, a upstream.Answer, now time.Time) (r batch.Result, final bool) {
	req := c.request()
	guilty := s.blame(c, a, s.answered, now)
	// Of a probe, a cut shows the outage that it was to look for, unless there is little else to send.
	if a.Cut && !(c.probe && (req.sent == 1 || len(s.failing) > few)) {
		req.cuts++
	}
	// A broken connection is no request's fault that was not alone when it broke.
	if guilty && (!a.Cut || c.alone) {
		req.charge(now)
		if a.Timeout {
			req.timeouts++
		}
	}
	if req.attempts < maxAttempts && req.timeouts < maxTimeouts {
		return batch.Result{}, false
	}
	switch {
	case a.Status != 0 && !(a.Status >= 200 && a.Status < 300) && !a.Cut:
		r = batch.Result{Status: a.Status, RequestID: a.RequestID, Body: a.Body}
	case a.Timeout:
		r.Failure = batch.FailureTimeout
	default:
		r.Failure = batch.FailureServer
	}
	return r, true
}

// Where nobody else is there to compare with, a request that fails is charged at most once in
// lonely, and only if few fail or there was something against it before; once in spoken, if it is the
// upstream itself that says it failed at this one, not a proxy in front of it or a broken connection, and
// nothing tells of an outage, for which this call was to look.
const (
	lonely = time.Minute
	spoken = 15 * time.Second
	few    = 4
)

// blame notes that c failed with a, and reports whether that is its request's own fault: since it was
// charged last, or failed first, another was sent that fared better (good is when the latest of
// those was sent), and there was no outage. With nobody to compare with, an upstream that once was
// good is given time between attempts. Otherwise it is taken for an outage, which costs nothing.
//
// If it was alone when its connection broke, it may be what brings the upstream down: that everyone is
// refused for a while then says nothing for it. Nor need anybody else have been answered by an
// upstream that has said what it serves.
func (s *site) blame(c *call, a upstream.Answer, good, now time.Time) bool {
	req := c.request()
	if !c.removed {
		s.failing[req] = true
	}
	alone, pause := a.Cut && c.alone, lonely
	if !c.probe && a.Status >= 500 && a.Status != http.StatusBadGateway && a.Status != http.StatusGatewayTimeout && !a.Cut {
		pause = spoken
	}
	first := req.failed.IsZero() || s.outage.After(req.charged) || s.refused.After(req.charged) && !alone
	s.failed, req.failed = now, now
	switch {
	case first:
		req.charged = now
		return false
	case good.After(req.charged):
		return true
	case now.Sub(req.charged) < pause, good.IsZero() && !(alone && s.listed()):
		return false
	}
	return len(s.failing) <= few || req.attempts > 0
}

// forget forgets the requests of h, which are not kept in memory for having failed.
func (s *site) forget(h *hold) {
	for i := range h.requests {
		delete(s.failing, &h.requests[i])
	}
}

func (r *request) charge(now time.Time) {
	r.attempts++
	r.charged = now
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// ringAt has ring called at t, or earlier. e.mu is held.
func (e *Engine) ringAt(t time.Time) {
	if e.alarmAt.IsZero() || t.Before(e.alarmAt) {
		e.alarmAt = t
		e.alarm.Reset(time.Until(t))
	}
}

// arm has the bell rung for the retry of l that is due first. e.mu is held.
func (e *Engine) arm(l *lane) {
	if len(l.retries) > 0 {
		e.ringAt(l.retries[0].due)
	}
}

// ring hands out retries that are due and what gates, limits and pauses have come to allow.
func (e *Engine) ring() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.alarmAt = time.Time{}
	now := time.Now() // before they are fed, who may see a moment more
	for _, l := range e.lanes {
		l.promote(now)
	}
	e.feedAll()
	for _, l := range e.lanes {
		e.arm(l)
	}
	for _, s := range e.sites {
		if _, until, closed := s.gate.Closed(); closed && until.After(now) {
			e.ringAt(until)
		}
	}
	wake(e.wakeClaim)
}
