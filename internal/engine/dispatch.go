package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
	"offpeak/internal/upstream"
)

// A site is an upstream as the engine sees it. Engine.mu guards it.
type site struct {
	up    *upstream.Upstream
	gate  *sched.Gate
	idle  []chan *call // workers that wait for a call, the most recent last
	alone bool         // a suspect is in flight: see call.alone

	// What is known of the upstream. An answer counts by when its call was sent: that one of before
	// is still answered says nothing about calls of today.
	answered time.Time         // the latest call that was answered, with whatever, was sent then
	accepted time.Time         // likewise, with a 2xx
	failed   time.Time         // the last failure
	outage   time.Time         // the last failure that was certainly not the request's
	failing  map[*request]bool // open requests that have failed and not been compared with any other
	lastErr  error             // of the last call that was not answered
}

// work is a worker: it makes one call after another, with buffers of its own.
func (e *Engine) work(s *site) {
	caller := s.up.NewCaller()
	wait := make(chan *call, 1)
	var line []byte
	var last *call
	for {
		c := e.next(s, last, wait)
		if c == nil {
			return
		}
		last = c
		start := time.Now()
		a := caller.Call(c.ctx, c.lane.Endpoint, c.request().Body)
		e.metrics.call(s.up, a.Class, time.Since(start))
		if r, final := e.settle(s, c, a); final {
			line = r.AppendLine(line[:0], c.lease.BatchID, c.request().Request)
			e.recorder.add(c.hold, int(c.i), r.OK(), r.Usage, line)
			e.metrics.result(r)
			if cap(line) > 1<<20 {
				line = nil
			}
		}
	}
}

// next ends the worker's last call and returns its next one, or nil when it is to end.
func (e *Engine) next(s *site, last *call, wait chan *call) *call {
	e.mu.Lock()
	if last != nil {
		last.inFlight--
		e.ready(last.hold)
		if !e.allClaimed.Load() && last.lane.held() < 2*s.gate.Limit() {
			wake(e.wakeClaim)
		}
	}
	if e.draining {
		e.mu.Unlock()
		return nil
	}
	c := e.take(s)
	if c == nil {
		s.idle = append(s.idle, wait)
	} else if len(s.idle) > 0 {
		e.feed(s) // the gate may have widened
	}
	if last != nil && last.alone {
		e.feedAll() // others made room for it, too
	}
	e.mu.Unlock()
	if c == nil {
		c = <-wait
	}
	return c
}

// feed gives idle workers of s what there is for them. e.mu is held.
func (e *Engine) feed(s *site) {
	for len(s.idle) > 0 {
		c := e.take(s)
		if c == nil {
			return
		}
		last := len(s.idle) - 1
		s.idle[last] <- c // has room: its worker waits for just this
		s.idle = s.idle[:last]
	}
}

// feedAll feeds every site, the one with the most room first. e.mu is held.
func (e *Engine) feedAll() {
	now := time.Now()
	for _, s := range slices.SortedFunc(slices.Values(e.sites), func(a, b *site) int {
		return b.gate.Room(now) - a.gate.Room(now)
	}) {
		e.feed(s)
	}
}

// followLists gives upstreams work as it becomes known what they serve.
func (e *Engine) followLists(ctx context.Context) {
	for ctx.Err() == nil {
		changed := e.pool.Changed()
		e.mu.Lock()
		e.feedAll()
		e.mu.Unlock()
		wake(e.wakeClaim)
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// take chooses the call that s makes next, or returns nil if it can make none now: of the lanes it
// serves, the one with the least in flight. e.mu is held.
func (e *Engine) take(s *site) *call {
	now := time.Now()
	if e.draining || s.alone || s.gate.Room(now) == 0 {
		return nil
	}
	var best *lane
	for _, l := range e.lanes {
		if best != nil && l.inFlight >= best.inFlight || !l.hasWork(now) {
			continue
		}
		if serves, _ := s.up.Serves(l.Model); serves {
			best = l
		}
	}
	if best == nil {
		return nil
	}
	c := best.take(now, s.gate.Probing(), s.gate.InFlight() > 0)
	if c == nil {
		return nil // a suspect waits until the upstream is empty
	}
	e.arm(best, now)
	s.alone = c.alone
	c.sentAt, c.probe, c.ticket = now, s.gate.Probing(), s.gate.Send(now)
	c.request().sent++
	c.hold.inFlight++
	best.inFlight++
	return c
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
	c.lane.inFlight--
	if c.alone {
		s.alone = false
	}
	outcome := sched.Answered
	switch a.Class {
	case upstream.OK:
		r, final = batch.Result{Status: a.Status, RequestID: a.RequestID, Body: a.Body, Usage: a.Usage}, true
		s.accepted = latest(s.accepted, c.sentAt)
		c.frail = false
	case upstream.Permanent:
		// A refusal of this one request, unless nobody else fares better.
		if a.Denied {
			if s.blame(c, s.accepted, now) {
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
		if outcome == sched.Refused || c.probe && req.sent == 1 {
			s.outage = now
		}
	}
	wasClosed := s.gate.Probing()
	s.gate.Done(c.ticket, sched.Report{Outcome: outcome, RetryAfter: a.RetryAfter, Work: a.Usage.Output}, now)
	if _, until, closed := s.gate.Closed(); closed {
		e.ringAt(until)
		if !wasClosed {
			e.log.Warn("upstream is down", "upstream", s.up.Name(), "err", a.Err)
		}
	} else if wasClosed {
		e.log.Info("upstream is back", "upstream", s.up.Name())
		e.feedAll()
	}
	switch {
	case final:
		delete(s.failing, req)
		req.done = true
		c.open--
		c.meter.Add(now)
	case c.ending == "" && !c.sealing && outcome != sched.Abandoned:
		wait := sched.Backoff(req.sent+1, a.RetryAfter, rand.Float64())
		if outcome == sched.Refused {
			wait = 0 // the gate is closed; it says when
		}
		e.metrics.retried.Inc()
		c.lane.retry(c, now.Add(wait))
		e.arm(c.lane, now)
		if wait == 0 {
			e.feedAll() // perhaps there is another upstream
		}
	}
	return r, final
}

// failed counts a transient failure of c and says whether it was the last.
func (e *Engine) failed(s *site, c *call, a upstream.Answer, now time.Time) (r batch.Result, final bool) {
	req := c.request()
	if a.Cut && !c.probe { // of a probe, it shows the outage that it was to look for
		req.cuts++
	}
	// A broken connection is no request's fault that was not alone when it broke.
	if s.blame(c, s.answered, now) && (!a.Cut || c.alone) {
		req.charge(now)
	}
	if req.attempts < maxAttempts && !(a.Timeout && req.attempts >= maxTimeouts) {
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
// lonely, and only if few fail or there was something against it before.
const (
	lonely = time.Minute
	few    = 4
)

// blame notes that c failed, and reports whether that is its request's own fault: since it was
// charged last, or failed first, another was sent that fared better (good is when the latest of
// those was sent), and there was no outage. With nobody to compare with, an upstream that once was
// good is given a minute between attempts. Otherwise it is taken for an outage, which costs nothing.
func (s *site) blame(c *call, good, now time.Time) bool {
	req := c.request()
	if !c.removed {
		s.failing[req] = true
	}
	first := req.failed.IsZero() || s.outage.After(req.charged)
	s.failed, req.failed = now, now
	switch {
	case first:
		req.charged = now
		return false
	case good.After(req.charged):
		return true
	case good.IsZero() || now.Sub(req.charged) < lonely:
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

// arm has the bell rung for the retry of l that is due first, unless it was due by now: that one is
// for the next worker that ends a call, or for a gate that opens. So arm is called whenever another
// retry comes to be the first. e.mu is held.
func (e *Engine) arm(l *lane, now time.Time) {
	if len(l.retries) > 0 && l.retries[0].due.After(now) {
		e.ringAt(l.retries[0].due)
	}
}

// ring hands out retries that are due and probes of gates that open.
func (e *Engine) ring() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.alarmAt = time.Time{}
	now := time.Now() // before they are fed, who may see a moment more
	e.feedAll()
	for _, l := range e.lanes {
		e.arm(l, now)
	}
	for _, s := range e.sites {
		if _, until, closed := s.gate.Closed(); closed && until.After(now) {
			e.ringAt(until)
		}
	}
	wake(e.wakeClaim)
}

// trouble tells why nothing of the lane can be sent, or nothing if something can. e.mu is held.
func (e *Engine) trouble(l *lane) string {
	served, text := false, ""
	for _, s := range e.sites {
		if serves, _ := s.up.Serves(l.Model); !serves {
			continue
		}
		served = true
		since, _, closed := s.gate.Closed()
		if !closed && (s.lastErr == nil || !l.stuck()) {
			return ""
		}
		switch {
		case text != "":
		case closed:
			text = fmt.Sprintf("upstream %s down since %s: %v", s.up.Name(), since.Format("15:04:05"), s.lastErr)
		default:
			text = fmt.Sprintf("upstream %s fails, trying again: %v", s.up.Name(), s.lastErr)
		}
	}
	if !served {
		return fmt.Sprintf("no upstream serves the model %s", l.Model)
	}
	return text
}
