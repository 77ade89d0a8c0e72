// Package sched decides: how many calls an upstream gets, how long a retry waits, who goes next.
//
// Its functions are pure. Time, counts and random numbers are passed in, nothing is started and
// nothing is read, so every rule can be shown by a table or a simulation.
package sched

import (
	"time"
)

// An Outcome is what a call says about its upstream.
type Outcome int

// The outcomes of a call.
const (
	Answered  Outcome = iota // the upstream works, whatever it thinks of the request
	Throttled                // it has too much to do
	Failed                   // it failed this call; perhaps it fails others, too
	Refused                  // it is not there, or refuses everyone
	Abandoned                // we gave the call up; it says nothing
)

// A Report is what a call that ended says about its upstream.
type Report struct {
	Outcome    Outcome
	RetryAfter time.Duration // what the upstream asked for, if anything
	Work       int64         // what an answer came to: output tokens, else all tokens, else 1
}

// A Load is what an upstream says of itself: calls that it works on, and calls in its queue. It
// counts everybody's calls, not only ours.
type Load struct {
	Running, Waiting int
}

// A GateConfig says what is known of an upstream beforehand.
type GateConfig struct {
	Max    int  // most calls in flight; 0: as many as it can use, which is found out
	Shared bool // it serves people, too: take only what is free
}

// A Gate lets calls through to one upstream, as many at a time as the outcomes of the calls before
// suggest.
//
// A throttled call takes its own slot with it, and answers bring slots back. So an upstream that
// takes 16 calls and is sent 64 is down to 16 after one round trip, while a stray throttle among
// many answers costs next to nothing.
//
// When the upstream as a whole is down, the gate closes, and then lets single calls through to see,
// at growing intervals. Any answer opens it again.
type Gate struct {
	max    int
	limit  float64
	target float64 // what the limit may quickly return to: it was good before the gate closed
	clean  float64 // answers since the last throttled call

	inFlight int
	sent     int64 // calls let through so far

	streak int // calls in a row without an answer
	closed bool
	since  time.Time // when it closed
	until  time.Time // when the next probe may go
	rounds int       // probes in a row without an answer
	probe  int64     // ticket of the probe in flight; 0: none
}

// most is the most calls in flight at an upstream for which no limit is given.
const most = 4096

// start is how many calls such an upstream gets at first.
const start = 16

// NewGate returns an open gate.
func NewGate(c GateConfig) *Gate {
	if c.Max > 0 {
		return &Gate{max: c.Max, limit: float64(c.Max), target: float64(c.Max)}
	}
	return &Gate{max: most, limit: start, target: start}
}

const (
	// growth is the part of the limit that the first round trip without a throttled call brings;
	// it brings a slot at least. Where a lower part of the calls is throttled, the limit grows.
	growth = 1.0 / 32
	// patience is how many calls in a row may go without an answer before the upstream counts as
	// down, unless even more are in flight together.
	patience  = 5
	firstWait = 250 * time.Millisecond
	mostWait  = 5 * time.Second
)

// Room returns how many more calls may be sent at now.
func (g *Gate) Room(now time.Time) int {
	if g.closed {
		if g.probe != 0 || now.Before(g.until) {
			return 0
		}
		return 1
	}
	return max(0, int(g.limit)-g.inFlight)
}

// Probing reports whether the next call is to find out if the upstream is back.
func (g *Gate) Probing() bool { return g.closed }

// Closed returns since when the upstream is down and when the next probe may go, if it is.
func (g *Gate) Closed() (since, until time.Time, closed bool) { return g.since, g.until, g.closed }

// InFlight is how many calls are in flight.
func (g *Gate) InFlight() int { return g.inFlight }

// Limit is how many calls may be in flight.
func (g *Gate) Limit() int { return int(g.limit) }

// Max is the most that Limit can become.
func (g *Gate) Max() int { return g.max }

// Send notes that a call goes out, and returns its ticket for Done.
func (g *Gate) Send(now time.Time) int64 {
	g.inFlight++
	g.sent++
	if g.closed {
		g.probe = g.sent
	}
	return g.sent
}

// Next returns when Room may grow without any call ending; zero if it will not.
func (g *Gate) Next(now time.Time) time.Time {
	if g.closed && g.probe == 0 && g.until.After(now) {
		return g.until
	}
	return time.Time{}
}

// Throttled returns until when the upstream asked to be left alone, if it did.
func (g *Gate) Throttled() (until time.Time, ok bool) { return time.Time{}, false }

// Observe notes what the upstream says of itself.
func (g *Gate) Observe(l Load, now time.Time) {}

// Press says how urgent the work is that waits, from 0 to 1. At a shared upstream 0 takes only what
// is free, and 1 takes what there is.
func (g *Gate) Press(p float64) {}

// Done notes that the call with the ticket has ended at now.
func (g *Gate) Done(ticket int64, r Report, now time.Time) {
	g.inFlight--
	probed := ticket == g.probe && g.probe != 0
	if probed {
		g.probe = 0
	}
	switch r.Outcome {
	case Answered:
		g.streak, g.rounds = 0, 0
		if g.closed {
			g.open()
		}
		g.grow()
		return
	case Abandoned:
		return
	case Throttled:
		if !g.closed { // else it says nothing about how many would be too many
			g.limit = max(1, g.limit-1)
			g.target, g.clean = g.limit, 0
		}
	}
	g.streak++
	switch {
	case probed:
		g.rounds++
	case g.closed:
		return // of the calls that were in flight when it closed; nothing new
	case r.Outcome == Refused, g.streak >= max(patience, int(g.limit)):
		g.closed, g.since = true, now
	default:
		return
	}
	g.until = now.Add(max(r.RetryAfter, min(firstWait<<min(g.rounds, 10), mostWait)))
}

// open lets calls through again, one more than are in flight: what closed the gate may have been a
// flood. A probe that is still in flight is a call like any other now.
func (g *Gate) open() {
	g.closed, g.probe = false, 0
	g.limit = min(g.limit, float64(g.inFlight+1))
	g.clean = 0
}

// grow raises the limit for an answer: by one up to where it was good, which doubles it with every
// round trip, and from there carefully, but more with every round trip that goes well.
func (g *Gate) grow() {
	g.clean++
	step := 1.0
	if g.limit >= g.target {
		step = min(step, max(1/g.limit, growth)*(1+g.clean/g.limit))
	}
	g.limit = min(g.limit+step, float64(g.max))
	g.target = max(g.target, g.limit)
}
