package sched

import (
	"math"
	"time"
)

// An outage knows whether an upstream is there. It closes when the upstream refuses everyone, or
// when calls fail one after the other, and then lets a single call through to see, at intervals. One
// that is not refused within half a second opens it a little, and more with every quarter of a
// second in which nothing is refused; so the upstream is in full use within two seconds, however
// long its answers take. Where the outage shows by hanging calls, that takes in proportion longer.
//
// Only what becomes of calls counts that were sent later than the first one that failed: that old
// ones are still answered says nothing.
type outage struct {
	streak int           // calls in a row that failed
	rounds int           // throttled calls in a row of which each was sent after the one before had ended
	first  int64         // ticket of the first of either
	quick  time.Duration // that the quickest of either took to fail
	ended  int64         // calls sent before the last of the rounds had ended

	closed  bool
	since   time.Time
	until   time.Time     // when the next probe may go
	asked   time.Time     // until when the upstream asked to be left alone
	probe   int64         // ticket of the first call since then; 0: none
	probed  time.Time     // when it was sent
	flying  int           // calls in flight since then
	probes  int           // so far
	slowest time.Duration // that a call of this outage took to fail

	slope  float64 // calls that may be in flight as it opens; 0: any number
	sloped time.Time
}

const (
	// patience is how many calls in a row may go without an answer before the upstream counts as
	// down, unless even more are in flight together.
	patience  = 5
	firstWait = 250 * time.Millisecond
	mostWait  = 5 * time.Second
	// doubling is how long it takes, at least, until twice as many calls are let through.
	doubling = 250 * time.Millisecond
	steps    = 8
)

// room returns how many more calls may be sent at now, while it is closed.
func (o *outage) room(now time.Time) int {
	switch {
	case now.Before(o.until):
		return 0
	case o.probe == 0:
		return 1
	}
	return max(0, int(o.allowance(now))-o.flying)
}

// allowance is how many calls may be in flight that were sent since the last probe.
func (o *outage) allowance(now time.Time) float64 {
	later := now.Sub(o.probed) - o.verdict()
	if later < 0 {
		return 1
	}
	return 4 * o.growth(later)
}

// growth is by how much more calls may be in flight after d, in small steps, so that of too many
// only a few are refused.
func (o *outage) growth(d time.Duration) float64 {
	return math.Exp2(min(float64(d/(o.doubling()/steps))/steps, 20))
}

// verdict is after what time a call counts as one that was let in.
func (o *outage) verdict() time.Duration { return max(letIn, 2*o.slowest) }

func (o *outage) doubling() time.Duration { return max(doubling, o.slowest) }

func (o *outage) ramping() bool { return !o.closed && o.slope > 0 }

// ramp is how many calls may be in flight as it opens.
func (o *outage) ramp(now time.Time) float64 {
	return o.slope * o.growth(now.Sub(o.sloped))
}

// next returns when room or ramp grows.
func (o *outage) next(now time.Time) time.Time {
	after := func(t time.Time) time.Time { // and then at every step
		step := o.doubling() / steps
		if d := now.Sub(t); d >= 0 {
			return t.Add((d/step + 1) * step)
		}
		return t
	}
	switch {
	case !o.closed:
		return after(o.sloped.Add(o.doubling() / steps))
	case o.probe == 0 && o.until.After(now):
		return o.until
	case o.probe == 0:
		return time.Time{}
	}
	return after(o.probed.Add(o.verdict()))
}

// send notes that a call goes out while it is closed; limit calls may be in flight when it is open.
func (o *outage) send(ticket int64, limit int, now time.Time) {
	if o.probe == 0 {
		o.probe, o.probed, o.flying = ticket, now, 0
	}
	o.flying++
	if o.allowance(now) >= float64(limit) {
		o.open(now)
	}
}

// rise lets what may be in flight grow from so many, not at once: of too many only a few are refused.
func (o *outage) rise(from float64, now time.Time) { o.slope, o.sloped, o.slowest = from, now, 0 }

func (o *outage) open(now time.Time) {
	if o.probe != 0 {
		o.slope = o.allowance(now)
	}
	o.slope, o.sloped = max(o.slope, float64(o.flying+1)), now
	o.closed, o.asked = false, time.Time{}
	o.probe, o.flying, o.streak, o.rounds = 0, 0, 0, 0
}

// answered notes that a call was answered; limit calls may be in flight.
func (o *outage) answered(ticket int64, limit int, now time.Time) {
	if o.closed && o.probe != 0 && ticket >= o.probe {
		o.flying--
	}
	if ticket > o.first {
		o.streak, o.rounds = 0, 0
		if o.closed {
			o.open(now)
		}
	}
	if o.ramping() {
		// An answer is as good as time: it brings a slot at least.
		o.slope, o.sloped = o.ramp(now)+1, now
		if o.slope >= float64(limit) {
			o.slope = 0
		}
	}
}

func (o *outage) abandoned(ticket int64) {
	if o.closed && o.probe != 0 && ticket >= o.probe {
		if o.flying--; o.flying == 0 {
			o.probe = 0
		}
	}
}

// A failure is a call that was not answered.
type failure struct {
	Report
	ticket   int64
	took     time.Duration
	sent     int64 // calls sent so far
	limit    int   // calls that may be in flight
	inFlight int
	known    bool // that so many are too many is no news
}

// failed notes a failure.
func (o *outage) failed(f failure, now time.Time) {
	if o.closed {
		if o.probe != 0 && f.ticket >= o.probe {
			o.slowest = max(o.slowest, f.took)
			o.wait(f, now)
		}
		return // else of the calls that were in flight when it closed: nothing new
	}
	if f.known {
		return
	}
	if o.streak == 0 && o.rounds == 0 {
		o.first, o.ended, o.quick = f.ticket, 0, f.took
	}
	o.quick = min(o.quick, f.took)
	down := f.Outcome == Refused
	if f.Outcome == Throttled {
		if f.ticket > o.ended {
			o.rounds++
			o.ended = f.sent
		}
		o.streak++
		rounds := patience
		if f.RetryAfter >= time.Second {
			rounds = 2 // it says how long; no need to ask again
		}
		mostly := int64(2*o.streak) > f.sent-o.first // of the calls that were sent since the first
		down = mostly && o.rounds >= rounds || f.inFlight == 0 && o.streak >= patience
	} else {
		o.streak++
		down = down || o.streak >= max(patience, f.limit)
	}
	if down {
		o.closed, o.since, o.slowest, o.probes = true, now, o.quick, 0
		o.asked = time.Time{}
		o.first = min(o.first, f.ticket)
		o.wait(f, now)
	}
}

// wait sets when the next probe may go: within a second, and later after a small part of the time
// that it was closed.
func (o *outage) wait(f failure, now time.Time) {
	soon := min(firstWait<<min(o.probes, 10), time.Second)
	o.until = now.Add(max(f.RetryAfter, min(max(soon, now.Sub(o.since)/64), mostWait)))
	o.probes++
	if f.RetryAfter > 0 {
		o.asked = o.until
	}
	o.probe, o.flying, o.slope = 0, 0, 0
}
