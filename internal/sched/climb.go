package sched

import (
	"math"
	"time"
)

// A climber finds the knee: how many calls in flight it takes until more of them bring no more
// throughput.
//
// How long a call takes says nothing, as it is the length of its answer. How much work comes out of
// a second in which a call is in flight does: while the upstream has slots to spare that does not
// depend on how many calls there are, and beyond the knee it falls as they wait for each other. So
// throughput is calls in flight × work ÷ time, measured over the calls of a stint, in which the
// limit does not change.
//
// A limit that is too low costs slots, one that is too high costs next to nothing where there is a
// queue. So what is in doubt is decided upwards: the limit doubles until throughput certainly stays
// the same. Then it goes down to a little above the knee. Where some answers are much longer than
// others, what calls take beside their work tells how many of them wait; where they are alike, it is
// tried how few calls bring as much. From then on it is tried now and then if more calls bring more,
// too, and a trial that brought less is taken back.
type climber struct {
	shared bool    // the upstream serves people, too: rather a few slots less
	press  float64 // unless the work is as urgent as that, from 0 to 1

	nodes   float64 // among so many the calls are divided; answers are known of one of them
	stint   stint
	points  []point // found on the way up
	settled bool

	work, answers float64 // of an answer, on average; answers so far

	goal   point         // the throughput to be kept
	from   point         // what the present trial is compared with
	back   float64       // limit before the trial; 0: there is none
	beside float64       // what a call takes that is neither its work nor the queue, in work
	known  bool          // that is; it may well be next to nothing
	downAt time.Time     // when less may be tried again
	rest   time.Duration // until the next trial
	tryAt  time.Time
}

// A stint is a time in which the limit does not change, and what its calls came to.
type stint struct {
	want             float64
	first            int64 // ticket of its first call
	from, at         time.Time
	slots            float64 // seconds that calls were in flight
	n                float64 // answers
	w, d             float64 // their work; their durations in seconds
	ww, wd, dd       float64
	quick, quickWork float64 // duration of the quickest answer, and its work
}

// A point is what a stint found: a call takes wait + pace × its work, whatever of that is spent in
// the queue. Knowing both tells how long a call of average work takes, though a stint sees more of
// the short ones, which end in it.
type point struct {
	level float64 // calls in flight, on average
	wait  float64 // seconds
	pace  float64 // seconds per work
	least float64 // wait of the quickest
	err   float64 // standard error of the duration of a call of average work, as a part of it
}

// throughput is in calls of average work per second.
func (p point) throughput(work float64) float64 { return p.level / (p.wait + p.pace*work) }

// gain is by what part throughput grows from a to p per part of calls in flight: 1 where the
// upstream has slots to spare, 0 beyond the knee.
func (p point) gain(a point, work float64) (gain, err float64) {
	span := math.Log(p.level / a.level)
	if span == 0 {
		return 0, math.Inf(1)
	}
	return p.change(a, work) / span, math.Hypot(p.err, a.err) / math.Abs(span)
}

// change is the logarithm of how much the throughput of p is of that of a.
func (p point) change(a point, work float64) float64 {
	return math.Log(p.throughput(work) / a.throughput(work))
}

// point fits a line through the answers of the stint.
func (s *stint) point(work float64) point {
	p := point{level: s.slots / s.at.Sub(s.from).Seconds()}
	w, d := s.w/s.n, s.d/s.n
	vw, vd, cov := s.ww/s.n-w*w, s.dd/s.n-d*d, s.wd/s.n-w*d
	if vw > w*w/4 && cov*cov > vw*vd/4 { // else answers are too much alike, or their work says too little
		p.pace = min(max(cov/vw, 0), d/w)
	}
	p.wait = d - p.pace*w
	rest := max(0, vd-2*p.pace*cov+p.pace*p.pace*vw) // variance beside the line
	if p.pace > 0 {
		rest *= 1 + (work-w)*(work-w)/vw
	}
	p.least = max(0, s.quick-p.pace*s.quickWork)
	p.err = math.Sqrt(rest/s.n) / (p.wait + p.pace*work)
	if p.pace > 0 {
		// The queue is as long as those in it had it happen to be.
		p.err = math.Hypot(p.err, p.wait/(p.wait+p.pace*work)*math.Sqrt(vw/s.n)/w)
	}
	return p
}

// queue is the part of the calls in flight that wait for a slot, when calls have so much else to
// do beside their work.
func (p point) queue(work, beside float64) float64 {
	if p.pace == 0 {
		return 0
	}
	return max(0, p.wait-beside*p.pace) / (p.wait + p.pace*work)
}

const (
	// enough is the gain that is worth more calls in flight.
	enough = 0.15
	// loss is the part of throughput that does not matter.
	loss = 0.04
	// horizon is over how many answers work is averaged.
	horizon   = 5000
	firstRest = 30 * time.Second
	lastRest  = 10 * time.Minute
)

// pass lets time pass up to now, with so many calls in flight.
func (c *climber) pass(inFlight int, now time.Time) {
	if s := &c.stint; !s.at.IsZero() {
		s.slots += float64(inFlight) * now.Sub(s.at).Seconds()
	}
	c.stint.at = now
}

func (c *climber) begin(want float64, sent int64, now time.Time) {
	c.stint = stint{want: want, first: sent + 1, from: now, at: now}
}

// takeOver has the climber go on from a limit that another one has found.
func (c *climber) takeOver() {
	*c = climber{shared: c.shared, press: c.press, work: c.work, answers: c.answers, settled: true, rest: firstRest}
}

// perSlot is how many answers of the stint there are for each call in flight.
func (c *climber) perSlot(want float64) float64 { return c.stint.n * c.nodes / want }

// answered notes an answer, and returns the limit from now on.
func (c *climber) answered(ticket, sent int64, work float64, took time.Duration, want float64, now time.Time) float64 {
	s := &c.stint
	c.answers = min(c.answers+1, horizon)
	c.work += (work - c.work) / c.answers
	if s.want != want {
		c.begin(want, sent, now)
		return want
	}
	if ticket < s.first {
		return want
	}
	d := max(took, time.Microsecond).Seconds()
	s.n++
	s.w += work
	s.d += d
	if s.n == 1 || d < s.quick {
		s.quick, s.quickWork = d, work
	}
	s.ww += work * work
	s.wd += work * d
	s.dd += d * d
	if s.n < 16 || c.perSlot(want) < 0.5 || !now.After(s.from) {
		return want
	}
	p := s.point(c.work)
	if p.pace == 0 && (s.n < 48 || c.perSlot(want) < 2) {
		return want // it takes more answers to tell
	}
	if p.level < 0.93*want { // there is less to do, or less is allowed
		c.begin(want, sent, now)
		return want
	}
	if p.pace > 0 && (!c.known || p.least/p.pace < c.beside) {
		c.beside, c.known = p.least/p.pace, true
	}
	var next float64
	if c.settled && c.shared && p.pace > 0 {
		next = c.yield(p, want)
	} else if c.settled {
		next = c.keep(p, want, now)
	} else {
		next = c.ascend(p, want, now)
	}
	if next == 0 {
		return want // this stint goes on
	}
	c.begin(next, sent, now)
	return next
}

// ascend returns the next limit on the way up, or 0 if it is too early to tell.
func (c *climber) ascend(p point, want float64, now time.Time) float64 {
	if len(c.points) == 0 {
		c.points = append(c.points, p)
		return 2 * want
	}
	last := c.points[len(c.points)-1]
	gain, err := p.gain(last, c.work)
	n := c.perSlot(want)
	switch {
	case c.shared && p.queue(c.work, c.beside) > 2*loss: // people wait
		c.points = append(c.points, p)
		return c.settle(now)
	case gain-err > 2*enough, n > 4 && gain+1.5*err > 2*enough && gain > 0:
		c.points = append(c.points, p)
		return 2 * want
	case n > 2 && gain+1.5*err < 2*enough, n > 4:
		c.points = append(c.points, p)
		return c.settle(now)
	}
	return 0
}

// settle returns the limit at the knee, after the way up.
func (c *climber) settle(now time.Time) float64 {
	top := c.points[0]
	for _, p := range c.points {
		if p.change(top, c.work) > 0 {
			top = p
		}
	}
	c.settled, c.back, c.goal = true, 0, top
	c.rest = firstRest
	c.tryAt = now.Add(c.rest)
	below := -1 // the last point below the knee
	for i, p := range c.points {
		if p.change(top, c.work) < -2*loss {
			below = i
		}
	}
	last := c.points[len(c.points)-1]
	knee := c.points[min(below+1, len(c.points)-1)].level
	if below >= 0 {
		// Where throughput has grown with calls in flight so far, it does so up to the knee.
		b := c.points[below]
		straight := true
		if below > 0 {
			gain, _ := b.gain(c.points[below-1], c.work)
			straight = gain > 0.8
		}
		if straight {
			knee = min(knee, b.level*math.Exp(top.change(b, c.work)))
		}
	}
	// Until long calls have ended, the queue seems longer than it is.
	knee = min(knee, 1.1*last.level*(1-last.queue(c.work, c.beside)))
	c.points = c.points[:0]
	return max(min(c.at(knee), last.level), lower(last.level))
}

// yield returns the next limit where people are served, too: what they leave changes from moment to
// moment, so there is no time for trials.
func (c *climber) yield(p point, want float64) float64 {
	if queue := p.queue(c.work, c.beside); queue > 0.05+c.press/4 {
		return max(1, math.Floor(want*(1-queue)))
	}
	return want + max(2, math.Floor(want/10))
}

// at is the limit for a knee: a little above, so that there is always a call that waits for a slot,
// or, where people are served, below, so that there is a slot that waits for a call.
func (c *climber) at(knee float64) float64 {
	if c.shared {
		return max(1, math.Floor((0.9+0.2*c.press)*knee))
	}
	return math.Ceil(knee + max(1, knee/10))
}

// more is the limit for a trial with more calls.
func (c *climber) more(want, by float64) float64 {
	if c.shared {
		by = 1.15
	}
	return math.Ceil(want * by)
}

// lower is how far a limit goes down at once: the shorter a queue is, the better is known how long.
func lower(level float64) float64 { return math.Ceil(0.7 * level) }

// keep returns the next limit once the knee was found, or 0 to stay.
func (c *climber) keep(p point, want float64, now time.Time) float64 {
	n := c.perSlot(want)
	if n < 2 || n < 6 && p.err > 0.03 {
		return 0
	}
	if c.goal.level == 0 { // it has taken over
		c.goal, c.tryAt = p, now.Add(c.rest)
	}
	if c.back > 0 {
		back := c.back
		c.back = 0
		gain, err := p.gain(c.from, c.work)
		change := p.change(c.from, c.work)
		err *= math.Abs(math.Log(p.level / c.from.level))
		switch {
		case want < back && change < -loss-err: // less brings less: what looked like a queue was none
			if c.from.pace > 0 {
				c.beside = max(c.beside, c.from.wait/c.from.pace)
			}
			c.downAt = now.Add(lastRest)
			return back
		case want < back:
			c.goal = p
			c.rest, c.tryAt = firstRest, now.Add(firstRest)
			return want
		case gain > enough && change > err: // more brings more
			c.goal = p
			if gain > 0.5 {
				c.settled, c.points = false, append(c.points[:0], c.from, p)
				return 2 * want
			}
			c.tryAt = now
			return want
		}
		fell := c.from.change(c.goal, c.work)
		c.goal = c.from
		c.rest = min(2*c.rest, lastRest)
		c.tryAt = now.Add(c.rest)
		if fell < -5*loss {
			// The knee has come down. What lies above it is only queue.
			c.back = back
			return max(c.at(back*math.Exp(fell)), lower(back))
		}
		if queue := p.queue(c.work, c.beside); queue > 0.03 {
			return min(max(back, c.at(p.level*(1-queue))), want)
		}
		return back
	}
	change := p.change(c.goal, c.work)
	queue := p.queue(c.work, c.beside)
	least := c.at(p.level * (1 - queue))
	switch {
	case want > 1.1*least && want > least+1 && !now.Before(c.downAt):
		c.back, c.from = want, p
		return max(least, lower(want))
	case queue > 0.03:
		c.goal = p
	case p.pace == 0 && change <= loss+p.err && !now.Before(c.tryAt) && !now.Before(c.downAt):
		// A queue does not show where all answers are the same work. It shows by less bringing as much.
		c.goal = p
		c.back, c.from = want, p
		return math.Ceil(0.8 * want)
	case change < -loss-p.err:
		c.back, c.from = want, p
		return c.more(want, 1.25)
	case change > loss+p.err, !now.Before(c.tryAt):
		if change > 0 {
			c.goal = p
		}
		c.back, c.from = want, p
		return c.more(want, 1.5)
	}
	if n > 8 {
		return want
	}
	return 0
}
