package sched

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// A model is an inference server in virtual time: slots, a queue behind them, and calls whose
// lengths are heavy-tailed. It knows ours and, on a shared server, those of people.
type model struct {
	slots func(t float64) int    // how many calls it works on at a time
	speed func(busy int) float64 // of each of so many calls at a time; 1: a slot second a second

	now      float64
	busy     []*job  // a heap, the first to finish first
	clock    float64 // slot seconds that each call worked on has got so far
	queue    []*job
	ours     int     // calls of ours in slots and in the queue
	oursBusy int     // of them, in slots
	used     float64 // slot seconds of ours
	worked   float64 // slot seconds of slots that were busy
	idle     float64 // slot seconds of slots that were not
	minute   float64 // of a quota
	calls    int     // in it
	ended    []*job
}

// A job is a call as the server sees it.
type job struct {
	id      int
	foreign bool
	work    float64 // slot seconds
	tokens  int64
	sent    float64
	ends    float64 // on the server's clock
	ticket  int64
	outcome Outcome
	after   time.Duration
	tries   int
}

func alike(int) float64 { return 1 }

// soft is a server as vLLM is one: the more calls it works on, the slower is each.
func soft(half float64) func(int) float64 {
	return func(busy int) float64 { return 1 / (1 + float64(busy)/half) }
}

func always(n int) func(float64) int { return func(float64) int { return n } }

func (m *model) Len() int           { return len(m.busy) }
func (m *model) Less(i, j int) bool { return m.busy[i].ends < m.busy[j].ends }
func (m *model) Swap(i, j int)      { m.busy[i], m.busy[j] = m.busy[j], m.busy[i] }
func (m *model) Push(v any)         { m.busy = append(m.busy, v.(*job)) }
func (m *model) Pop() any {
	last := len(m.busy) - 1
	v := m.busy[last]
	m.busy = m.busy[:last]
	return v
}

// arrive takes a call in.
func (m *model) arrive(c *job) {
	if !c.foreign {
		m.ours++
	}
	m.queue = append(m.queue, c)
	m.fill()
}

func (m *model) fill() {
	for len(m.queue) > 0 && len(m.busy) < m.slots(m.now) {
		c := m.queue[0]
		m.queue = m.queue[1:]
		c.ends = m.clock + c.work
		if !c.foreign {
			m.oursBusy++
		}
		heap.Push(m, c)
	}
}

// next returns when the next call finishes.
func (m *model) next() float64 {
	if len(m.busy) == 0 {
		return math.Inf(1)
	}
	return m.now + (m.busy[0].ends-m.clock)/m.speed(len(m.busy))
}

// pass lets time pass up to t, which is not after next, and collects what has ended.
func (m *model) pass(t float64) {
	d := t - m.now
	m.worked += d * float64(len(m.busy))
	m.idle += d * float64(max(m.slots(m.now)-len(m.busy), 0))
	m.used += d * float64(m.oursBusy)
	m.clock += d * m.speed(len(m.busy))
	m.now = t
	for len(m.busy) > 0 && m.busy[0].ends <= m.clock+1e-9 {
		c := heap.Pop(m).(*job)
		if !c.foreign {
			m.ours--
			m.oursBusy--
		}
		m.ended = append(m.ended, c)
	}
	m.fill()
}

// over reports whether one more call would be more than wall.
func (m *model) over(wall int) bool { return wall > 0 && len(m.busy)+len(m.queue) >= wall }

// drop cuts every call off, as when the server dies.
func (m *model) drop() []*job {
	gone := append(m.busy, m.queue...)
	m.busy, m.queue, m.ours, m.oursBusy = nil, nil, 0, 0
	return gone
}

// lengths draws the work of n calls: median 2 s, p99 30 s.
func lengths(n int, r *rand.Rand) []float64 {
	work := make([]float64, n)
	for i := range work {
		work[i] = length(r)
	}
	return work
}

// sigma makes the p99 fifteen times the median.
var sigma = math.Log(15) / 2.3263478740408408

func length(r *rand.Rand) float64 {
	return min(2*math.Exp(sigma*r.NormFloat64()), 60)
}

// A limiter says how many calls may be in flight: the gate, or a fixed number to compare with.
type limiter interface {
	Room(now time.Time) int
	Send(now time.Time) int64
	Done(ticket int64, r Report, now time.Time)
	Observe(l Load, now time.Time)
	Next(now time.Time) time.Time
}

// fixed is a client that knows nothing but a number.
type fixed struct{ n, inFlight int }

func (f *fixed) Room(time.Time) int            { return f.n - f.inFlight }
func (f *fixed) Send(time.Time) int64          { f.inFlight++; return 0 }
func (f *fixed) Done(int64, Report, time.Time) { f.inFlight-- }
func (f *fixed) Observe(Load, time.Time)       {}
func (f *fixed) Next(time.Time) time.Time      { return time.Time{} }

// A scenario is a server, and what happens to it.
type scenario struct {
	name    string
	n       int // requests
	slots   func(t float64) int
	speed   func(busy int) float64
	refuses func(m *model, t float64, r *rand.Rand) (o Outcome, took float64, retryAfter time.Duration)
	lost    [2]float64 // from when to when it is away, with the calls it had
	metrics float64    // a reading every so many seconds; 0: none
	blind   bool       // answers do not say how much work they were
	even    bool       // all answers are about as long
	uncut   bool       // the longest may take minutes
	people  func(r *rand.Rand) []*job
	wall    int // calls in flight, of whomever, above which more are refused; 0: any number
	pace    *Pace
	eta     []float64 // shares of the requests at which times of arrival are told
	seed    uint64
}

// A run is what came of it.
type run struct {
	makespan  float64
	full      float64 // when 64 requests were left
	idle      float64 // share of slot seconds before the last 64 requests
	idleLater float64 // the same without the first 20 s
	refused   int
	spare     float64   // of the slot seconds that people left, the part that we used
	waits     []float64 // of people: latency
	arrived   []float64
	pushed    int // calls of people that were refused
	most      int
	told      []arrival
}

// An arrival is what is told at a time.
type arrival struct{ at, eta, byRate float64 }

// drive runs the scenario's requests through a limiter.
func (s scenario) drive(l limiter) run {
	r := rand.New(rand.NewPCG(s.seed, 7))
	work := lengths(s.n, r)
	if s.uncut {
		for i := range work {
			work[i] = 2 * math.Exp(sigma*r.NormFloat64())
		}
	}
	if s.even {
		for i := range work {
			work[i] = 0.5 + r.Float64()
		}
	}
	noise := rand.New(rand.NewPCG(s.seed, 13))
	m := &model{slots: s.slots, speed: s.speed}
	if m.speed == nil {
		m.speed = alike
	}
	at := func(t float64) time.Time { return epoch.Add(time.Duration(t * float64(time.Second))) }
	var meter Meter
	var (
		out      run
		fails    events // refusals on their way to us
		retries  events
		again    events // people who come, or come back as their programs do
		people   []*job
		next     int // request to be sent
		done     int
		reading  = s.metrics
		latest   float64
		cut      = s.lost[1] == 0
		measured bool
		tail     bool
		idle20   float64
		work20   float64
	)
	if s.people != nil {
		people = s.people(rand.New(rand.NewPCG(s.seed, 11)))
	}
	end := func(c *job) {
		rep := Report{Outcome: c.outcome, RetryAfter: c.after}
		if c.outcome == Answered {
			rep.Work = 1
			if !s.blind {
				rep.Work = c.tokens
			}
			done++
		} else {
			out.refused++
			c.tries++
			wait := Backoff(c.tries+1, c.after, r.Float64()).Seconds()
			if c.outcome == Refused {
				wait = 0
				if _, ok := l.(*fixed); ok {
					wait = 1
				}
			}
			heap.Push(&retries, eventAt{m.now + wait, c})
		}
		l.Done(c.ticket, rep, at(m.now))
		if s.pace != nil {
			if c.outcome == Answered {
				s.pace.Done(at(m.now).Sub(at(c.sent)), at(m.now))
				meter.Add(at(m.now))
			} else {
				s.pace.Drop(at(m.now).Sub(at(c.sent)), at(m.now))
			}
			for len(s.eta) > 0 && float64(done) >= s.eta[0]*float64(s.n) {
				s.eta = s.eta[1:]
				left, now := int64(s.n-done), at(m.now)
				out.told = append(out.told, arrival{m.now, s.pace.ETA(left, now).Sub(epoch).Seconds(), ETA(left, meter.Rate(now), now).Sub(epoch).Seconds()})
			}
		}
	}
	send := func(c *job) {
		c.sent, c.outcome = m.now, Answered
		c.ticket = l.Send(at(m.now))
		if s.pace != nil {
			s.pace.Send(at(m.now))
		}
		var took float64
		if m.now >= s.lost[0] && m.now < s.lost[1] {
			c.outcome, took, c.after = Refused, 0.001, 0
		} else if m.over(s.wall) {
			c.outcome, took, c.after = Throttled, 0.002, 0
		} else if s.refuses != nil {
			c.outcome, took, c.after = s.refuses(m, m.now, r)
		}
		if c.outcome != Answered {
			heap.Push(&fails, eventAt{m.now + took, c})
			return
		}
		m.arrive(c)
	}
	for done < s.n {
		for l.Room(at(m.now)) > 0 {
			if len(retries) > 0 && retries[0].at <= m.now {
				c := heap.Pop(&retries).(eventAt).c
				send(c)
			} else if next < s.n {
				next++
				// What an answer came to tells its duration only roughly.
				w := work[next-1]
				send(&job{id: next, work: w + 0.1, tokens: int64(w*50*math.Exp(0.15*noise.NormFloat64())) + 1})
			} else {
				break
			}
			out.most = max(out.most, m.ours)
		}
		t := m.next()
		if len(fails) > 0 {
			t = min(t, fails[0].at)
		}
		if len(retries) > 0 && retries[0].at > m.now {
			t = min(t, retries[0].at)
		}
		if s.metrics > 0 {
			t = min(t, reading)
		}
		if n := l.Next(at(m.now)); !n.IsZero() {
			t = min(t, max(n.Sub(epoch).Seconds(), m.now+0.0005))
		}
		if len(people) > 0 {
			t = min(t, people[0].sent)
		}
		if len(again) > 0 {
			t = min(t, again[0].at)
		}
		if !cut {
			t = min(t, s.lost[0])
		}
		if m.now < s.lost[1] && m.now >= s.lost[0] {
			t = min(t, s.lost[1])
		}
		if !measured && m.now < 20 {
			t = min(t, 20)
		}
		if math.IsInf(t, 1) {
			panic(fmt.Sprintf("%s: nothing happens any more at %.1f s, %d of %d done", s.name, m.now, done, s.n))
		}
		if t > 1e6 {
			panic(fmt.Sprintf("%s: takes too long", s.name))
		}
		lost := m.now >= s.lost[0] && m.now < s.lost[1]
		idleBefore := m.idle
		m.pass(t)
		if lost {
			m.idle = idleBefore
		}
		if !measured && t >= 20 {
			measured, idle20, work20 = true, m.idle, m.worked
		}
		if !cut && t >= s.lost[0] {
			cut = true
			for _, c := range m.drop() {
				c.outcome, c.after = Failed, 0
				end(c)
			}
		}
		for len(people) > 0 && people[0].sent <= t {
			heap.Push(&again, eventAt{t, people[0]})
			people = people[1:]
		}
		for len(again) > 0 && again[0].at <= t {
			c := heap.Pop(&again).(eventAt).c
			if m.over(s.wall) {
				out.pushed++
				heap.Push(&again, eventAt{t + min(0.5*float64(int(1)<<min(c.tries, 4)), 8), c})
				c.tries++
				continue
			}
			m.arrive(c)
		}
		if s.metrics > 0 && t >= reading {
			reading += s.metrics
			if !lost {
				l.Observe(Load{Running: len(m.busy), Waiting: len(m.queue)}, at(t))
			}
		}
		for len(fails) > 0 && fails[0].at <= t {
			end(heap.Pop(&fails).(eventAt).c)
		}
		for _, c := range m.ended {
			if c.foreign {
				out.waits = append(out.waits, t-c.sent)
				out.arrived = append(out.arrived, c.sent)
				continue
			}
			end(c)
			latest = t
		}
		m.ended = m.ended[:0]
		if !tail && done >= s.n-64 {
			tail = true
			out.full = t
			out.spare = m.used / (m.used + m.idle)
			out.idle = m.idle / (m.idle + m.worked)
			out.idleLater = (m.idle - idle20) / (m.idle - idle20 + m.worked - work20)
		}
	}
	out.makespan = latest
	return out
}

type eventAt struct {
	at float64
	c  *job
}

type events []eventAt

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].c.id < e[j].c.id
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(v any)   { *e = append(*e, v.(eventAt)) }
func (e *events) Pop() any {
	last := len(*e) - 1
	v := (*e)[last]
	*e = (*e)[:last]
	return v
}
