package sched

import (
	"math"
	"time"
)

// A tolerance is how many calls in flight an upstream puts up with, as far as its throttling tells.
//
// A throttled call takes its slot with it at once, so that nobody else runs into the same refusal,
// and answers bring slots back. Where one in twelve calls is throttled, both are equal: less than
// that is stray and costs nothing, more takes from the limit what share of the calls was throttled.
//
// Throttling that begins at a certain number in flight is a wall. It is remembered, and tried
// seldom: a try that is refused makes the next one later, one that is let in brings the next, larger
// one at once.
//
// Where people are served, too, they are not to run into the wall. It stays well below, tries only
// now and then, gives way by a part of its calls to every refusal, and comes back slowly. And it
// leaves a place that an answer has made free alone for a breath: who always takes it at once never
// hears that others want it, while they are refused all the time.
type tolerance struct {
	shared bool    // with people
	press  float64 // unless the work is as urgent as that, from 0 to 1

	took    float64     // seconds of an answer, on average
	answers float64     // that it is the average of
	freed   []time.Time // when answers came, of the last breath

	allow float64 // calls in flight
	clean float64 // answers since the last throttled call

	wall  int // a call that was sent with so many in flight was refused; 0: none
	wait  time.Duration
	tryAt time.Time // when calls may go beyond the wall
	step  int       // how many
	top   int       // how far the present try has gone; 0: there is none
	tried time.Time // when it began

	seen [2]struct { // the most in flight with which calls were let in, lately
		from  time.Time
		level int
	}
}

const (
	// stray is the share of throttled calls for which answers bring back just as many slots. It is
	// more than the one in twenty that is to cost nothing, as such calls come in crowds.
	stray = 1.0 / 12
	// nearly is the part of the calls of use from which on refusals count as stray, and not as what keeps
	// calls from being more.
	nearly = 0.9
	// shortly is for how long it says something about now that a call was let in.
	shortly = 5 * time.Second

	firstTry = time.Second
	lastTry  = 30 * time.Second

	// The same where people are refused whenever a try goes too far.
	firstSharedTry = 15 * time.Second
	lastSharedTry  = 5 * time.Minute
	// below is the part of a wall that is used where people are served.
	below = 0.75
	// giveWay is the part of the calls that a refusal costs there, and comeBack what an answer brings.
	giveWay  = 0.05
	comeBack = 1.0 / 32
	// longestBreath is how long a place stays free there after an answer, at most, and shortBreath
	// the part of an answer's time that it is at most.
	longestBreath = 50 * time.Millisecond
	shortBreath   = 0.02
)

// most returns how many calls may be in flight, tries aside.
func (t *tolerance) most() float64 {
	if t.wall == 0 {
		return t.allow
	}
	n := float64(t.wall - 1)
	if t.shared {
		n = math.Floor((below + (0.9-below)*t.press) * n)
	}
	return max(1, min(t.allow, n))
}

// tries returns how long to wait for the first try beyond a wall, and for any later one at most.
func (t *tolerance) tries() (first, last time.Duration) {
	if t.shared {
		return firstSharedTry, lastSharedTry
	}
	return firstTry, lastTry
}

// breath is for how long a place is left alone after an answer.
func (t *tolerance) breath() time.Duration {
	if !t.shared || t.wall == 0 {
		return 0
	}
	return time.Duration((1 - t.press) * min(shortBreath*t.took, longestBreath.Seconds()) * float64(time.Second))
}

// resting returns how many places are left alone at now, and until when the first of them is.
func (t *tolerance) resting(now time.Time) (n int, until time.Time) {
	b := t.breath()
	for i, at := range t.freed {
		if at.Add(b).After(now) {
			return len(t.freed) - i, at.Add(b)
		}
	}
	return 0, time.Time{}
}

// room returns how many calls may be in flight at now.
func (t *tolerance) room(now time.Time) float64 {
	t.pass(now)
	n := t.most()
	if t.wall > 0 && t.allow >= float64(t.wall-1) && (t.top > 0 || !now.Before(t.tryAt)) {
		n = float64(t.wall - 1 + t.step)
	}
	return n
}

// next returns when room may grow, if it will.
func (t *tolerance) next(now time.Time) time.Time {
	switch {
	case t.top > 0:
		return t.tried.Add(letIn)
	case t.wall == 0 || t.allow < float64(t.wall-1):
		return time.Time{}
	case t.tryAt.After(now):
		return t.tryAt
	}
	return time.Time{}
}

// pass lets time pass: a try that was not refused by now was let in.
func (t *tolerance) pass(now time.Time) {
	if t.top > 0 && now.Sub(t.tried) >= letIn {
		t.widen(t.top, now)
	}
}

// widen notes that calls are let in with level in flight, beyond the wall.
func (t *tolerance) widen(level int, now time.Time) {
	t.wall, t.allow = level+1, max(t.allow, float64(level))
	t.wait, _ = t.tries()
	t.top, t.tryAt = 0, now
	t.step = min(2*t.step, level)
}

func (t *tolerance) send(level int, now time.Time) {
	t.pass(now)
	if t.wall > 0 && level >= t.wall {
		if t.top == 0 {
			t.tried = now
		}
		t.top = max(t.top, level)
	}
}

// rise has what stray refusals have cost stay the part that it was when the calls that are of use grow
// from one number to another: that the upstream puts up with no more than there were is not known.
func (t *tolerance) rise(was, want float64) {
	if !t.shared && t.wall == 0 && want > was && t.allow >= nearly*was {
		t.allow = max(t.allow, min(t.allow/was, 1)*want)
	}
}

// answered notes that a call was let in that was sent with level in flight, of want that are of
// use.
func (t *tolerance) answered(call sentCall, want float64, now time.Time) {
	t.pass(now)
	if now.Sub(call.at) < shortly {
		if now.Sub(t.seen[0].from) > shortly {
			t.seen[1], t.seen[0].from, t.seen[0].level = t.seen[0], now, 0
		}
		t.seen[0].level = max(t.seen[0].level, call.level)
	}
	if t.wall > 0 && call.level >= t.wall && t.top > 0 && !call.at.Before(t.tried) {
		t.widen(call.level, now)
	}
	t.clean++
	if t.shared {
		t.took += (now.Sub(call.at).Seconds() - t.took) / min(t.answers+1, 100)
		t.answers++
		rest, _ := t.resting(now)
		t.freed = append(t.freed[len(t.freed)-rest:], now)
		t.allow = min(t.allow+comeBack, max(t.allow, want))
		return
	}
	if t.allow < want {
		t.allow = min(t.allow+stray*(1+t.clean/t.allow), want)
	}
}

// throttled notes that a call was refused, while others are in flight, of want that are of use. It
// reports whether that was known before.
//
// How many were in flight when it reached the upstream is not known exactly, as calls overtake each
// other. Those that are left say it best: of a burst, each refusal leaves one less, and what is left
// at the end was let in.
func (t *tolerance) throttled(call sentCall, others map[int64]sentCall, want float64, now time.Time) (known bool) {
	t.pass(now)
	level := len(others) + 1
	first, last := t.tries()
	switch {
	case t.top > 0 && call.level >= t.wall && !call.at.Before(t.tried):
		t.top, t.step = 0, 1
		t.wait = min(2*t.wait, last)
		t.tryAt = now.Add(t.wait)
		t.wall = max(t.wall, level)
		t.allow = max(t.allow, float64(t.wall-1)) // the others were let in
		return true
	case t.wall > 0 && level >= t.wall:
		return true
	case !t.lately(level, others, now):
		if t.wall == 0 {
			t.wait = first
		}
		t.wall, t.step, t.top = level, 1, 0
		t.tryAt = now.Add(t.wait)
		t.allow = max(1, min(t.allow, float64(level-1)))
	case t.shared:
		t.allow = min(t.allow, want, t.most())
		t.allow = max(1, t.allow-max(1, (1-t.press)*giveWay*t.allow))
		t.tryAt = latest(t.tryAt, now.Add(t.wait))
		t.clean = 0
	default:
		t.allow = max(1, min(t.allow, want)-1)
		t.clean = 0
	}
	return false
}

// lately reports whether a call was let in lately with at least level in flight.
func (t *tolerance) lately(level int, others map[int64]sentCall, now time.Time) bool {
	for _, s := range t.seen {
		if s.level >= level && now.Sub(s.from) < 2*shortly {
			return true
		}
	}
	for _, o := range others {
		if age := now.Sub(o.at); o.level >= level && age >= letIn && age < shortly {
			return true
		}
	}
	return false
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
