package engine

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
)

// Activity returns what goes on for b on this node.
func (e *Engine) Activity(b batch.Batch) batch.Activity {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	held := e.queuesOf(b.ID)
	a, stuck := e.goingOn(b, held, now)
	if b.Status == batch.InProgress && !stuck {
		a.ETA = e.eta(b, held, now)
		a.AtRisk = !a.ETA.IsZero() && a.ETA.After(b.ExpiresAt)
	}
	return a
}

// goingOn returns what goes on for b, of which this node has held in hand, except when it will be done;
// and whether nobody can tell that, since nothing moves. e.mu is held.
func (e *Engine) goingOn(b batch.Batch, held []*queue, now time.Time) (a batch.Activity, stuck bool) {
	if _, waits := e.waiting[b.ID]; waits {
		a.WaitingFor = e.pool.Trouble() // as it is now: it was perhaps not known when the wait began
	}
	if lane, ok := e.unserved[b.ID]; ok {
		a.WaitingFor = cmp.Or(e.pool.Trouble(), "no upstream serves the model "+lane.Model)
	}
	for _, q := range held {
		a.InFlight += q.inFlight
	}
	if b.Status != batch.InProgress {
		return a, false
	}
	for _, q := range held {
		a.Rate += q.pace.Rate(now)
	}
	if a.WaitingFor != "" {
		return a, true
	}
	a.WaitingFor, stuck = e.waitingFor(b, held, now)
	return a, stuck
}

// Node returns under which id this process is a node.
func (e *Engine) Node() string { return e.member.self() }

// queuesOf returns what is held of a batch. e.mu is held.
func (e *Engine) queuesOf(batchID string) (held []*queue) {
	for _, l := range e.lanes {
		for _, s := range l.shares {
			if q := s.queue(batchID); q != nil {
				held = append(held, q)
			}
		}
	}
	slices.SortFunc(held, func(a, b *queue) int { return cmp.Compare(a.share.lane.String(), b.share.lane.String()) })
	return held
}

// remaining is how many requests of its batch have no result, as far as that is known in the lane.
func (q *queue) remaining() int64 {
	open, all := int64(0), int64(0)
	for _, h := range q.holds {
		open += int64(h.open)
		all += int64(len(h.requests))
	}
	if len(q.holds) == 0 {
		return 0
	}
	return open + q.more*all/int64(len(q.holds)) // segments are much the same
}

// eta returns when the last lane of b is done, or zero if that cannot be told of some. e.mu is held.
func (e *Engine) eta(b batch.Batch, held []*queue, now time.Time) (last time.Time) {
	for _, w := range e.open {
		if w.BatchID == b.ID && e.queue(work{b.ID, w.Lane}) == nil {
			return time.Time{} // something waits, who knows for how long
		}
	}
	left, known := b.Counts.Total-b.Counts.Completed-b.Counts.Failed, int64(0)
	for _, q := range held {
		known += q.remaining()
	}
	// Lanes at the same upstreams leave their slots to each other as they end, so it takes them all
	// together as long as it takes each on average over the slots that it has.
	type together struct{ took, slots float64 }
	all := map[string]together{}
	for _, q := range held {
		n := q.remaining()
		if n == 0 {
			continue
		}
		soonest, sure := q.soonest(now)
		last = latest(last, soonest)
		if sure {
			continue
		}
		at := q.eta(max(1, n*max(left, 1)/known), now)
		if at.IsZero() {
			return at
		}
		key := ""
		for _, s := range q.share.lane.sites {
			key += s.up.Name() + "\n"
		}
		t, slots := all[key], float64(max(q.inFlight, 1))
		all[key] = together{t.took + at.Sub(now).Seconds()*slots, t.slots + slots}
	}
	for _, t := range all {
		last = latest(last, now.Add(time.Duration(t.took/t.slots*float64(time.Second))))
	}
	return last
}

// told is what a queue's pace has told.
type told struct {
	eta, at time.Time
	left    int64
}

// eta returns when that much of q is done. To find that out takes the time of some requests, and
// somebody may ask a thousand times a second: within a tenth of one the answer stays as it is,
// unless the question is another. e.mu is held.
func (q *queue) eta(left int64, now time.Time) time.Time {
	since := now.Sub(q.told.at)
	if q.told.eta.IsZero() || since < 0 || since > 100*time.Millisecond || 100*abs(left-q.told.left) > left {
		q.told = told{eta: q.pace.ETA(left, now), at: now, left: left}
	}
	return q.told.eta
}

func abs(n int64) int64 { return max(n, -n) }

// waitingFor tells what holds b, or some lane of it, up; nothing if all of it moves. It is stuck if
// nobody can tell for how long. e.mu is held.
func (e *Engine) waitingFor(b batch.Batch, held []*queue, now time.Time) (why string, stuck bool) {
	moving := false
	for _, q := range held {
		l := q.share.lane
		if q.inFlight > 0 && !l.down() {
			moving = true
			continue
		}
		if q.inFlight+q.waiting == 0 {
			continue // all that is held has its result, and is about to be sealed
		}
		if why, stuck := e.trouble(l, q, now); why != "" {
			return fmt.Sprintf("lane %s: %s", l.Model, why), stuck
		}
	}
	behind := ""
	for _, w := range e.open {
		if w.BatchID != b.ID || e.queue(work{b.ID, w.Lane}) != nil {
			continue
		}
		if why, stuck := e.laneTrouble(w.Lane, now); why != "" {
			return fmt.Sprintf("lane %s: %s", w.Lane.Model, why), stuck
		}
		behind = cmp.Or(behind, e.behind(b, w.Lane))
	}
	if moving {
		return "", false
	}
	for _, q := range held {
		if q.pace.Rate(now) > 0 {
			return "", false // it takes turns with others
		}
		if q.fresh+q.due > 0 {
			return cmp.Or(behind, e.behind(b, q.share.lane.Lane)), false
		}
	}
	return behind, behind != ""
}

// down reports whether every upstream of l is down: what is in flight there is to find out if one is
// back. e.mu is held.
func (l *lane) down() bool {
	return len(l.sites) > 0 && !slices.ContainsFunc(l.sites, func(s *site) bool { return !s.gate.Probing() })
}

// behind tells behind whom b waits. Of other projects it tells nothing but that they are there.
// e.mu is held.
func (e *Engine) behind(b batch.Batch, k batch.Lane) string {
	l := e.lanes[k]
	if l == nil {
		return ""
	}
	n := 0
	if s := l.share(b.Project); s != nil {
		for _, q := range s.queues {
			if q.batch != b.ID && q.held() > 0 {
				n++
			}
		}
	}
	switch n {
	case 0:
		return fmt.Sprintf("lane %s: busy with other work", k.Model)
	case 1:
		return "behind another batch of this project"
	}
	return fmt.Sprintf("behind %d batches of this project", n)
}

// trouble tells why nothing of q can be sent, or nothing if something can. e.mu is held.
func (e *Engine) trouble(l *lane, q *queue, now time.Time) (why string, stuck bool) {
	if why, stuck = e.laneTrouble(l.Lane, now); why != "" || !q.stuck() {
		return why, stuck
	}
	for _, s := range l.sites {
		if s.asked.After(now) {
			return throttledBy(s, s.asked), true
		}
		if s.lastErr != nil {
			return fmt.Sprintf("upstream %s fails, trying again: %v", s.up.Name(), s.lastErr), true
		}
	}
	return "", false
}

// laneTrouble tells why no upstream takes calls of the lane, or nothing if one does, or is only
// busy. e.mu is held.
func (e *Engine) laneTrouble(k batch.Lane, now time.Time) (why string, stuck bool) {
	var down, throttled, limited *site
	downs := 0
	var newest, until time.Time
	for _, s := range e.sites {
		if serves, _ := s.up.Serves(k.Model); !serves {
			continue
		}
		since, isDown := s.down(now)
		asked, throttles := s.gate.Throttled()
		wait, _ := s.usedUp(now)
		switch {
		case isDown:
			if downs++; down == nil || since.After(newest) { // until then one was up
				down, newest = s, since
			}
		case throttles:
			if throttled == nil || asked.Before(until) {
				throttled, until = s, asked
			}
		case wait > 0:
			limited = s
		default:
			return "", false
		}
	}
	switch {
	case limited != nil:
		_, by := limited.usedUp(now)
		limits := limited.up.Limits()
		most := limits.RequestsPerMinute
		if by == batch.LimitTokens {
			most = limits.TokensPerMinute
		}
		return fmt.Sprintf("limit of %d %s a minute at %s", most, by, limited.up.Name()), false
	case throttled != nil:
		return throttledBy(throttled, until), true
	case downs > 1:
		return fmt.Sprintf("all upstreams unreachable since %s%s", clock(newest, now), down.lastSaid()), true
	case downs == 1:
		return fmt.Sprintf("upstream %s down since %s%s", down.up.Name(), clock(newest, now), down.lastSaid()), true
	}
	return "no upstream serves it", true
}

// lastSaid is why the last call was not answered, behind a colon, if that is known.
func (s *site) lastSaid() string {
	if s.lastErr == nil {
		return ""
	}
	return fmt.Sprintf(": %v", s.lastErr)
}

// clock writes t as a time of the day, with the day if that is another than now's.
func clock(t, now time.Time) string {
	if t, now = t.Local(), now.Local(); t.YearDay() != now.YearDay() || t.Year() != now.Year() {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("15:04:05")
}

func throttledBy(s *site, until time.Time) string {
	return fmt.Sprintf("throttled by %s until %s", s.up.Name(), until.Format("15:04:05"))
}

// weigh finds out how urgent each batch is, and how hard upstreams that are shared with people are
// to be pressed.
func (e *Engine) weigh(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	press := map[*site]float64{}
	for _, l := range e.lanes {
		slots, used, each, short := 0.0, 0.0, l.pace.PerRequest(now), 0.0
		for _, s := range l.sites {
			n := float64(max(s.gate.Limit(), s.running))
			slots += n
			used += min(n, s.sustains(l, each))
		}
		for _, s := range l.shares {
			all := used * s.weight / l.weight
			fair, saves := s.fair(all, each, now), false
			for _, q := range s.queues {
				q.weight = sched.Urgency(q.remaining(), each, fair, q.left(each, now))
				saves = saves || q.weight > 1 && q.needs(each, now) <= all
			}
			for _, q := range s.queues {
				if saves {
					q.weight = sched.Concede(q.weight, q.needs(each, now)/all)
				}
				if q.needs(each, now) > q.pace.Rate(now)*each.Seconds() {
					short += q.needs(each, now)
				}
			}
		}
		// What a batch lacks to be in time, as a part of all there is: nothing while what is free
		// suffices, all of it when there is no more time than it takes.
		for _, s := range l.sites {
			press[s] = max(press[s], min(1, short/max(slots, 1)))
		}
	}
	for _, s := range e.sites {
		s.pressure = press[s]
		s.gate.Press(s.pressure)
	}
}

// left is how much time q has to send what it has.
func (q *queue) left(each time.Duration, now time.Time) time.Duration {
	return q.deadline.Sub(now)*19/20 - each // the last call has to end, too
}

// needs is how many slots q takes to be in time.
func (q *queue) needs(each time.Duration, now time.Time) float64 {
	return float64(q.remaining()) * each.Seconds() / max(q.left(each, now).Seconds(), 1)
}

// fair is how many slots each batch of s has that is in no hurry, once those that are have what they
// need; a slot at least, or a quarter of what each would have.
func (s *share) fair(slots float64, each time.Duration, now time.Time) float64 {
	fair := slots / float64(len(s.queues))
	least := min(1, fair/4)
	for range len(s.queues) {
		left, calm := slots, 0
		for _, q := range s.queues {
			if needs := q.needs(each, now); needs > fair {
				left -= needs
			} else {
				calm++
			}
		}
		if calm == 0 || left/float64(calm) >= fair {
			break
		}
		fair = max(left/float64(calm), 0)
	}
	return max(fair, least)
}
