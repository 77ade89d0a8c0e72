package engine

import (
	"cmp"
	"math"
	"slices"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
)

// A tokens tells what requests of a lane come to in tokens, from what others came to. It is for
// limits of tokens per minute, and tells rather too much than too little: what was reserved and not
// used comes back, what was used and not reserved is gone.
type tokens struct {
	perByte float64         // of a prompt
	answer  sched.Estimator // of tokens of an answer
	all     sched.Estimator // of tokens that were used
	bodies  batch.BodyParser
}

const (
	// firstPerByte and firstAnswer are where nothing is known; firstAnswer at least, and no less than
	// this part of the limit: so many are sent until the first is answered.
	firstPerByte = 1.0 / 3
	firstAnswer  = 512
	firstPart    = 1.0 / 16
)

// estimate returns what r may come to, which is one of so many in flight that share a limit of so many
// tokens per minute; and whether it says itself what its answer may.
func (t *tokens) estimate(r *request, inFlight int, limit int64) (n int64, stated bool) {
	perByte, answer := t.perByte, t.answer.Reserve(inFlight)
	if perByte == 0 {
		perByte = firstPerByte
	}
	if !t.answer.Known() {
		answer = max(firstAnswer, firstPart*float64(limit))
	}
	if r.most == 0 {
		r.most = cmp.Or(t.bodies.MostTokens(r.Body), -1)
	}
	if r.most > 0 {
		answer = float64(r.most)
	}
	return int64(perByte*float64(len(r.Body))+answer) + 1, r.most > 0
}

// lacks is how much more than was set aside calls of l in flight at s may come to, and what one more may come to
// beyond its estimate: answers that go on are longer than those that have ended. The more they are, the less
// is known, and up to a quarter of the limit is kept back.
func (s *site) lacks(l *lane, now time.Time) (open, next int64) {
	c, answer := s.course(l), &l.tokens.answer
	all, each := c.pace.Open(now)
	longer := max(0, each-1)
	open = max(0, int64(all*answer.Mean())-c.open) + int64(min(1, longer)*float64(s.tokens.Limit())/4)
	return open, int64(longer * answer.Reserve(s.gate.InFlight()+1))
}

// learn notes what a request with the body came to.
func (t *tokens) learn(body []byte, u batch.Usage) {
	if u.Input > 0 && len(body) > 0 {
		upper(&t.perByte, float64(u.Input)/float64(len(body)))
	}
	if u.Output > 0 {
		t.answer.Learn(float64(u.Output))
	}
	t.all.Learn(float64(u.Total))
}

// upper has q follow what only a few values lie above.
func upper(q *float64, v float64) {
	if *q == 0 {
		*q = v
	} else if v > *q {
		*q += (v - *q) / 2
	} else {
		*q += (v - *q) / 64
	}
}

// limited returns how long s has to wait for its limit of requests or tokens a minute, and which of
// them it is, before it may be sent something that comes to n tokens.
func (s *site) limited(n int64, now time.Time) (wait time.Duration, by batch.Limit) {
	if w := s.requests.Wait(1, now); w > 0 {
		wait, by = w, batch.LimitRequests
	}
	if w := s.tokens.Wait(n, now); w > wait {
		wait, by = w, batch.LimitTokens
	}
	return wait, by
}

// sustains is how many calls of l that take so long s can have in flight on average, by its limits a
// minute, which all nodes have the same of that want them.
func (s *site) sustains(l *lane, each time.Duration) float64 {
	n := math.Inf(1)
	for _, k := range []struct {
		limit int64
		fair  float64
		each  float64 // call comes to so much
	}{
		{s.requests.Limit(), s.allowance.grants[requestLimit].Fair, 1},
		{s.tokens.Limit(), s.allowance.grants[tokenLimit].Fair, l.tokens.all.Mean()},
	} {
		if k.limit > 0 && k.each > 0 {
			n = min(n, min(float64(k.limit), cmp.Or(k.fair, float64(k.limit)))/k.each*each.Minutes())
		}
	}
	return n
}

// soonest returns when the last of q is done at the soonest, by the limits a minute of the upstreams of its
// lane; zero if these let everything through. Until then everybody who waits there has as much of them as
// q has for each unit of weight, or all that they want. It is sure if a limit is nearly used up: then that
// is what holds q up, and how many calls are in flight, in bursts, says nothing.
func (q *queue) soonest(now time.Time) (at time.Time, sure bool) {
	l := q.share.lane
	if !slices.ContainsFunc(l.sites, (*site).limitsAMinute) {
		return time.Time{}, false // as nearly always: who waits there need not be counted
	}
	calls, tokens, left := 0.0, 0.0, float64(q.remaining())
	for _, o := range l.beside() {
		for _, sh := range o.shares {
			for _, other := range sh.queues {
				n := min(max(float64(other.remaining()-int64(other.inFlight)), 0), left*other.part()/q.part())
				calls += n
				tokens += n * o.tokens.all.Mean()
			}
		}
	}
	for _, by := range []struct {
		limit int
		units int64
	}{{requestLimit, int64(calls)}, {tokenLimit, int64(tokens)}} {
		limit, free, wait := int64(0), int64(0), time.Duration(0)
		for _, s := range l.sites {
			b := s.bucket(by.limit)
			if b.Limit() == 0 {
				limit = 0
				break
			}
			rest := max(b.Limit()-b.Spent(now), 0)
			if s.allowance.capped[by.limit] {
				rest = b.Free(now) // others have the rest, or had it within the minute
			}
			next := time.Minute // after what is free is taken
			if rest < b.Limit() {
				next = b.Wait(rest+1, now)
			}
			limit, free, wait = limit+b.Limit(), free+rest, max(wait, next)
		}
		if limit == 0 || by.units <= free {
			continue
		}
		minutes := (by.units - free - 1) / limit
		at = latest(at, now.Add(wait+time.Duration(minutes)*time.Minute+l.pace.PerRequest(now)))
		sure = sure || 5*free <= limit
	}
	return at, sure
}

// part is the weight of q beside all that wait for the same: its part of its project's.
func (q *queue) part() float64 {
	all := 0.0
	for _, o := range q.share.queues {
		if o == q || o.remaining() > 0 {
			all += max(o.weight, 1)
		}
	}
	return q.share.weight * max(q.weight, 1) / all
}

// beside returns the lanes that share an upstream with l, and l.
func (l *lane) beside() (all []*lane) {
	for _, s := range l.sites {
		for _, o := range s.lanes {
			if !slices.Contains(all, o) {
				all = append(all, o)
			}
		}
	}
	return all
}

// heldUp is limited for what s was to send last, or anything.
func (s *site) heldUp(now time.Time) (wait time.Duration, by batch.Limit) {
	return s.limited(max(1, s.allowance.needs), now)
}

// usedUp is heldUp, save where nobody has said yet that there is no more of the limit to be had.
func (s *site) usedUp(now time.Time) (wait time.Duration, by batch.Limit) {
	wait, by = s.heldUp(now)
	if s.recorded() && !s.allowance.capped[requestLimit] && !s.allowance.capped[tokenLimit] {
		return 0, ""
	}
	return wait, by
}
