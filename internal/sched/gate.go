// Package sched decides: how many calls an upstream gets, how long a retry waits, who goes next.
//
// It knows no clock, starts nothing and reads nothing. Time, counts and random numbers are passed
// in, so every rule can be shown by a table or a simulation.
package sched

import (
	"cmp"
	"fmt"
	"math"
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

// A Gate lets calls through to one upstream, as many at a time as it can use: so many that it is
// never idle, and not many more. It puts together what four parts know.
//
//   - A climber finds out how many calls it takes until more of them bring no more throughput.
//   - A watch does the same, better and sooner, where the upstream says how many calls wait.
//   - A tolerance knows how many calls the upstream puts up with before it throttles some.
//   - An outage knows whether the upstream is there at all, and lets calls through to see.
type Gate struct {
	max  int
	auto bool    // want is found
	want float64 // calls in flight that are of use, on all nodes together

	// Where several nodes keep to one limit.
	nodes  float64 // by how much want is more than this node's share of it; else 1
	others int     // calls of theirs in flight
	led    bool    // one of them finds the limit

	climb     climber
	watch     watch
	tolerance tolerance
	before    tolerance // as it was before calls began to be throttled
	outage    outage

	inFlight int
	sent     int64 // calls let through so far
	calls    map[int64]sentCall
}

// A sentCall is a call in flight.
type sentCall struct {
	at    time.Time
	level int // calls in flight when it was sent, itself among them
}

const (
	// most is the most calls in flight at an upstream for which no limit is given.
	most = 4096
	// start is how many calls such an upstream gets at first.
	start = 16
	// letIn is how long a call must not have been refused to count as one that was let in. Who
	// throttles says so at once.
	letIn = 500 * time.Millisecond
)

// NewGate returns an open gate.
func NewGate(c GateConfig) *Gate {
	// With people on it, a limit is an upper bound, and not what is of use.
	g := &Gate{max: c.Max, auto: c.Max <= 0 || c.Shared, nodes: 1, calls: map[int64]sentCall{}}
	if c.Max <= 0 {
		g.max = most
	}
	if g.want = float64(g.max); g.auto {
		g.want = min(g.want, start)
	}
	g.tolerance = tolerance{shared: c.Shared, allow: float64(g.max)}
	g.climb.shared, g.watch.shared = c.Shared, c.Shared
	return g
}

// Room returns how many more calls may be sent at now.
func (g *Gate) Room(now time.Time) int {
	if g.outage.closed {
		return max(0, min(g.outage.room(now), g.max-g.inFlight))
	}
	share := g.share()
	if g.nodes > 1 {
		share = math.Ceil(share) // parts of a slot are for one node or another: it is told by what it is granted
	}
	n := min(share, g.tolerance.room(now))
	if g.outage.ramping() {
		n = min(n, g.outage.ramp(now))
	}
	resting, _ := g.tolerance.resting(now)
	return max(0, int(n)-g.inFlight-resting)
}

// Next returns when Room may grow without any call ending; zero if it will not.
func (g *Gate) Next(now time.Time) time.Time {
	if g.outage.closed {
		return g.outage.next(now)
	}
	var next time.Time
	if g.share() > g.tolerance.most() || g.tolerance.top > 0 {
		next = g.tolerance.next(now)
	}
	if _, until := g.tolerance.resting(now); !until.IsZero() && (next.IsZero() || until.Before(next)) {
		next = until
	}
	if g.outage.ramping() && g.outage.ramp(now) < g.share() {
		if step := g.outage.next(now); next.IsZero() || step.Before(next) {
			return step
		}
	}
	return next
}

// Probing reports whether the next call is to find out if the upstream is back.
func (g *Gate) Probing() bool { return g.outage.closed }

// Closed returns since when the upstream is down and when the next probe may go, if it is.
func (g *Gate) Closed() (since, until time.Time, closed bool) {
	return g.outage.since, g.outage.until, g.outage.closed
}

// Throttled returns until when the upstream asked to be left alone, if it did.
func (g *Gate) Throttled() (until time.Time, ok bool) {
	return g.outage.asked, g.outage.closed && !g.outage.asked.IsZero()
}

// InFlight is how many calls are in flight.
func (g *Gate) InFlight() int { return g.inFlight }

// Limit is how many calls may be in flight.
func (g *Gate) Limit() int { return max(1, int(min(g.share(), g.tolerance.most()))) }

// share is how many of the calls that are of use are for this node.
func (g *Gate) share() float64 {
	if g.nodes == 1 {
		return g.want
	}
	return max(1, g.want/g.nodes)
}

// Max is the most that Limit can become.
func (g *Gate) Max() int { return g.max }

// Press says how urgent the work is that waits, from 0 to 1. At a shared upstream 0 takes only what
// is free, and 1 takes what there is.
func (g *Gate) Press(p float64) {
	g.watch.press, g.climb.press = p, p
	g.tolerance.press = p / 2 // people who are refused do not even get into the queue
}

// Observe notes what the upstream says of itself. It counts the calls of all nodes.
func (g *Gate) Observe(l Load, now time.Time) {
	if g.outage.closed || !g.auto || g.led {
		return // down, or somebody else has said how many
	}
	want := g.watch.observe(l, g.inFlight+g.others, g.want, now)
	if g.watch.fresh(now) {
		g.setWant(want, now)
	}
}

func (g *Gate) setWant(want float64, now time.Time) {
	was := g.share()
	g.want = min(max(want, 1), float64(g.max))
	g.rise(was, now)
}

// rise has the share grow from what it was, not at once.
func (g *Gate) rise(was float64, now time.Time) {
	g.tolerance.rise(was, g.share())
	if g.share() > was && (!g.outage.ramping() || g.outage.ramp(now) >= was) {
		g.outage.rise(was, now)
	}
}

// Auto reports whether the limit is to be found, by this gate or another node's.
func (g *Gate) Auto() bool { return g.auto }

// Found is how many calls in flight are of use on all nodes together, as far as this gate knows.
func (g *Gate) Found() float64 { return g.want }

// Useful is how many calls in flight g could do with at now, had it no limit: those that the upstream
// puts up with, and a few to see if it is more.
func (g *Gate) Useful(now time.Time) int {
	if g.outage.closed {
		return g.inFlight + max(1, g.outage.room(now))
	}
	return int(g.tolerance.room(now)*5/4) + 1
}

// A Portion is what a gate gets of a limit that several nodes keep together.
type Portion struct {
	Of     int     // calls in flight that all nodes may have together
	Fair   float64 // of them, those that are for this node while it has work for them
	Nodes  int     // among whom they are divided
	Others int     // calls that the others have in flight
	Most   int     // that Of may ever be; 0: any number
	Leads  bool    // this gate is the one that finds out what Of is to be
	Found  float64 // what it had found when it asked
}

// Share has the gate keep to its portion. A gate that leads finds out how many calls are of use on all
// nodes together: how long its own take tells, as they stand in the same queue as the others'.
func (g *Gate) Share(p Portion, now time.Time) {
	was, wasLed := g.share(), g.led
	g.pass(now)
	g.nodes, g.others, g.led = max(1, float64(p.Of)/p.Fair), p.Others, !p.Leads
	g.max = cmp.Or(p.Most, most)
	switch {
	case !p.Leads || g.want == p.Found:
		fresh := wasLed || g.sent == 0 && g.want != float64(p.Of)
		if p.Leads && g.untried() {
			p.Of, fresh = start*p.Nodes, false
		}
		if g.want = min(float64(p.Of), float64(g.max)); p.Leads && fresh {
			g.climb.takeOver()
		}
	}
	if g.auto {
		g.rise(was, now)
	}
}

// untried reports whether everything is still as it was at first.
func (g *Gate) untried() bool {
	return g.auto && !g.led && len(g.climb.points) == 0 && !g.climb.settled && g.watch.at.IsZero()
}

// Send notes that a call goes out at now, and returns its ticket for Done.
func (g *Gate) Send(now time.Time) int64 {
	g.pass(now)
	g.inFlight++
	g.sent++
	g.calls[g.sent] = sentCall{now, g.inFlight}
	if g.outage.closed {
		g.outage.send(g.sent, g.Limit(), now)
	} else {
		g.tolerance.send(g.inFlight, now)
	}
	return g.sent
}

// pass lets time pass up to now, with as many calls in flight as there are.
func (g *Gate) pass(now time.Time) { g.climb.pass(g.inFlight+g.others, now) }

// Done notes that the call with the ticket has ended at now.
func (g *Gate) Done(ticket int64, r Report, now time.Time) {
	call := g.calls[ticket]
	delete(g.calls, ticket)
	g.pass(now)
	g.inFlight--
	known, wasClosed := false, g.outage.closed
	switch r.Outcome {
	case Answered:
		g.outage.answered(ticket, g.Limit(), now)
		g.tolerance.answered(call, g.share(), now)
		if g.auto && !g.led && !g.watch.fresh(now) {
			g.climb.nodes = g.nodes
			g.setWant(g.climb.answered(ticket, g.sent, float64(max(r.Work, 1)), now.Sub(call.at), g.want, now), now)
		}
		return
	case Abandoned:
		g.outage.abandoned(ticket)
		return
	case Throttled:
		if wasClosed {
			break // it says nothing about how many would be too many
		}
		if g.outage.rounds == 0 {
			g.before = g.tolerance
		}
		g.overtake(ticket)
		known = g.tolerance.throttled(call, g.calls, g.share(), now)
		known = known && call.level > 1 // if even one is too many, that is an outage
	}
	g.outage.failed(failure{r, ticket, now.Sub(call.at), g.sent, g.Limit(), g.inFlight, known}, now)
	if r.Outcome == Throttled && g.outage.closed && !wasClosed {
		g.tolerance = g.before // everybody was refused, not only those that were too many
	}
}

// overtake corrects how many calls were in flight when those were sent that came after the one with
// the ticket, which was not let in. Of very many calls it makes no difference.
func (g *Gate) overtake(ticket int64) {
	if len(g.calls) > 1000 {
		return
	}
	for t, c := range g.calls {
		if t > ticket {
			c.level--
			g.calls[t] = c
		}
	}
}

// String says how it stands, for tests that fail.
func (g *Gate) String() string {
	return fmt.Sprintf("want %.1f, tolerated %.1f (wall %d), in flight %d, closed %v, ramping %v", g.want, g.tolerance.allow, g.tolerance.wall, g.inFlight, g.outage.closed, g.outage.ramping())
}
