package sched

import (
	"cmp"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Unix(1_789_000_000, 0)

const ms = time.Millisecond

// A script drives a gate by hand: calls are sent and end in an order that the test chooses.
type script struct {
	t       testing.TB
	g       *Gate
	now     time.Time
	tickets []int64
}

func newScript(t testing.TB, most int) *script {
	return &script{t: t, g: NewGate(GateConfig{Max: most}), now: epoch}
}

// send sends n calls.
func (s *script) send(n int) {
	s.t.Helper()
	for i := range n {
		if s.g.Room(s.now) == 0 {
			s.t.Fatalf("no room for call %d of %d: %s", i+1, n, s.state())
		}
		s.tickets = append(s.tickets, s.g.Send(s.now))
	}
}

// end ends the n calls that were sent first.
func (s *script) end(n int, o Outcome, retryAfter time.Duration) {
	s.t.Helper()
	for range n {
		s.g.Done(s.tickets[0], Report{Outcome: o, RetryAfter: retryAfter}, s.now)
		s.tickets = s.tickets[1:]
	}
}

// endLast ends the call that was sent last.
func (s *script) endLast(o Outcome, retryAfter time.Duration) {
	last := len(s.tickets) - 1
	s.g.Done(s.tickets[last], Report{Outcome: o, RetryAfter: retryAfter}, s.now)
	s.tickets = s.tickets[:last]
}

func (s *script) state() string {
	if _, until, closed := s.g.Closed(); closed {
		return fmt.Sprintf("closed for %v, in flight %d", until.Sub(s.now), s.g.InFlight())
	}
	return fmt.Sprintf("limit %d, in flight %d", s.g.Limit(), s.g.InFlight())
}

func (s *script) want(state string, room int) {
	s.t.Helper()
	if got := s.state(); got != state {
		s.t.Fatalf("gate is %s, want %s", got, state)
	}
	if got := s.g.Room(s.now); got != room {
		s.t.Fatalf("%s: room for %d, want %d", state, got, room)
	}
}

func TestGateStartsOpen(t *testing.T) {
	s := newScript(t, 64)
	s.want("limit 64, in flight 0", 64)
	s.send(64)
	s.want("limit 64, in flight 64", 0)
	s.end(64, Answered, 0)
	s.want("limit 64, in flight 0", 64)
	if s.g.Max() != 64 || s.g.Probing() {
		t.Errorf("max %d, probing %v; want 64, false", s.g.Max(), s.g.Probing())
	}
}

func TestThrottledCallTakesItsSlot(t *testing.T) {
	s := newScript(t, 64)
	s.send(64)
	s.end(10, Throttled, 0)
	s.want("limit 54, in flight 54", 0)
	s.end(1, Answered, 0)
	s.want("limit 54, in flight 53", 1)
}

func TestRefusedClosesAtOnce(t *testing.T) {
	s := newScript(t, 64)
	s.send(10)
	s.end(1, Refused, 0)
	s.want("closed for 250ms, in flight 9", 0)
	if since, _, _ := s.g.Closed(); !since.Equal(epoch) || !s.g.Probing() {
		t.Errorf("closed since %v, probing %v", since, s.g.Probing())
	}
	s.end(9, Refused, 0) // the others that were in flight say nothing new
	s.want("closed for 250ms, in flight 0", 0)
}

func TestFailuresInARowClose(t *testing.T) {
	for _, c := range []struct {
		max    int
		closes int // after how many failures
	}{{64, 64}, {5, 5}, {2, 5}, {1, 5}} {
		s := newScript(t, c.max)
		for i := 1; i < c.closes; i++ {
			s.send(1)
			s.end(1, Failed, 0)
			if s.g.Probing() {
				t.Errorf("max %d: closed after %d failures, want %d", c.max, i, c.closes)
			}
		}
		s.send(1)
		s.end(1, Failed, 0)
		s.want("closed for 250ms, in flight 0", 0)
	}
}

func TestAnswerEndsAStreak(t *testing.T) {
	s := newScript(t, 8)
	for range 20 {
		s.send(8)
		s.end(7, Failed, 0)
		s.end(1, Answered, 0)
	}
	s.want("limit 8, in flight 0", 8)
}

func TestThrottledCohortClosesForRetryAfter(t *testing.T) {
	for _, c := range []struct{ retryAfter, want time.Duration }{
		{0, 250 * ms}, {100 * ms, 250 * ms}, {20 * time.Second, 20 * time.Second}, {time.Hour, time.Hour},
	} {
		s := newScript(t, 64)
		s.send(64)
		s.end(64, Throttled, c.retryAfter)
		s.want(fmt.Sprintf("closed for %v, in flight 0", c.want), 0)
		s.now = s.now.Add(c.want - 1)
		if room := s.g.Room(s.now); room != 0 {
			t.Errorf("Retry-After %v: room for %d before that", c.retryAfter, room)
		}
		s.now = s.now.Add(1)
		if room := s.g.Room(s.now); room != 1 {
			t.Errorf("Retry-After %v: room for %d after that, want 1", c.retryAfter, room)
		}
	}
}

// An upstream that is away is asked again within a second, and the longer it stays away the seldomer.
func TestProbes(t *testing.T) {
	for _, o := range []Outcome{Refused, Failed, Throttled} {
		s := newScript(t, 64)
		s.send(1)
		s.end(1, Refused, 0)
		for i, want := range []time.Duration{250, 500, 1000, 1000, 1000, 1000} {
			s.want(fmt.Sprintf("closed for %v, in flight 0", want*ms), 0)
			s.now = s.now.Add(want * ms)
			s.want("closed for 0s, in flight 0", 1)
			s.send(1)
			s.want("closed for 0s, in flight 1", 0) // one at a time
			s.end(1, o, 0)
			if since, _, _ := s.g.Closed(); !since.Equal(epoch) {
				t.Fatalf("probe %d: closed since %v, want since it was closed first", i, since)
			}
		}
		for _, c := range []struct{ away, want time.Duration }{
			{time.Minute, time.Second}, {128 * time.Second, 2 * time.Second}, {time.Hour, 5 * time.Second},
		} {
			s.now = epoch.Add(c.away)
			s.send(1)
			s.end(1, o, 0)
			s.want(fmt.Sprintf("closed for %v, in flight 0", c.want), 0)
		}
		// A probe that we gave up says nothing: the next one may go at once.
		s.now = s.now.Add(5 * time.Second)
		s.send(1)
		s.end(1, Abandoned, time.Hour)
		s.want("closed for 0s, in flight 0", 1)
		// What the upstream asks for counts if it is longer.
		s.send(1)
		s.end(1, o, time.Minute)
		s.want("closed for 1m0s, in flight 0", 0)
		if until, ok := s.g.Throttled(); !ok || !until.Equal(s.now.Add(time.Minute)) {
			t.Errorf("asked to be left alone until %v, %v", until, ok)
		}
		s.now = s.now.Add(time.Minute)
		s.send(1)
		s.end(1, Answered, 0)
		s.want("limit 64, in flight 0", 2)
		// The next outage starts over.
		s.send(1)
		s.end(1, Refused, 0)
		s.want("closed for 250ms, in flight 0", 0)
	}
}

// With answers that come at once, twice as many calls go out after each.
func TestComesBackWithSlowStart(t *testing.T) {
	s := newScript(t, 64)
	s.send(1)
	s.end(1, Refused, 0)
	s.now = s.now.Add(time.Second)
	s.send(1)
	s.end(1, Answered, 0)
	for _, want := range []int{2, 4, 8, 16, 32, 64, 64} { // doubled with every round trip
		s.want("limit 64, in flight 0", want)
		s.send(want)
		s.end(want, Answered, 0)
	}
}

// With answers that take long, a call that is not refused is as good.
func TestComesBackBeforeAnswers(t *testing.T) {
	s := newScript(t, 64)
	s.send(1)
	s.end(1, Refused, 0)
	s.now = s.now.Add(time.Second)
	back := s.now
	for s.g.InFlight() < 64 {
		s.send(s.g.Room(s.now))
		if next := s.g.Next(s.now); !next.IsZero() {
			s.now = next
		}
	}
	if took := s.now.Sub(back); took > 2*time.Second {
		t.Errorf("64 calls in flight after %v", took)
	}
	if _, _, closed := s.g.Closed(); closed {
		t.Error("64 calls were let in, and it is closed")
	}
}

// Where calls fail slowly, it takes in proportion longer to believe that one is let in.
func TestComesBackFromHangingWithAnswers(t *testing.T) {
	s := newScript(t, 5)
	s.send(5)
	s.now = s.now.Add(20 * time.Second)
	s.end(5, Failed, 0)
	s.want("closed for 250ms, in flight 0", 0)
	s.now = s.now.Add(250 * ms)
	s.send(1)
	s.now = s.now.Add(39 * time.Second)
	s.want("closed for -39s, in flight 1", 0)
	s.end(1, Answered, 0)
	s.want("limit 5, in flight 0", 2)
}

// A gate that runs into a limit continues with what was let in.
func TestFloodLeavesWhatWasLetIn(t *testing.T) {
	s := newScript(t, 64)
	s.send(64)
	for range 48 { // an upstream that takes 16 throttles the rest at once
		s.endLast(Throttled, 0)
	}
	s.want("limit 16, in flight 16", 0)
	s.end(1, Answered, 0)
	s.want("limit 16, in flight 15", 1)
	s.send(1)
	// Later it is tried if there is more; not at once, and one call at first.
	if next := s.g.Next(s.now); !next.Equal(s.now.Add(time.Second)) {
		t.Fatalf("tries again at %v", next.Sub(s.now))
	}
	for _, c := range []struct {
		wait time.Duration
		more int
	}{{time.Second, 1}, {letIn, 2}, {letIn, 4}, {letIn, 8}} {
		s.now = s.now.Add(c.wait)
		if room := s.g.Room(s.now); room != c.more {
			t.Fatalf("%s: room for %d, want %d", s.g, room, c.more)
		}
		s.send(c.more)
	}
	s.endLast(Throttled, 0) // 30 are in flight
	for _, wait := range []time.Duration{2, 4, 8, 16, 30, 30} {
		if next := s.g.Next(s.now); !next.Equal(s.now.Add(wait * time.Second)) {
			t.Fatalf("%s: tries again after %v, want %v s", s.g, next.Sub(s.now), wait)
		}
		s.now = s.now.Add(wait * time.Second)
		s.send(1)
		s.endLast(Throttled, 0)
		s.want("limit 30, in flight 30", 0)
	}
}

// That old calls are still answered says nothing about new ones.
func TestOldAnswersDoNotOpen(t *testing.T) {
	s := newScript(t, 64)
	s.send(64)
	s.now = s.now.Add(time.Minute)
	for range 5 { // a slot is free, and who takes it is refused
		s.end(1, Answered, 0)
		s.send(1)
		s.endLast(Throttled, 0)
	}
	s.want("closed for 250ms, in flight 59", 0)
	s.end(20, Answered, 0)
	s.want("closed for 250ms, in flight 39", 0)
	if s.g.Limit() != 64 {
		t.Errorf("limit %d, want 64: that everybody was refused says nothing of how many would be too many", s.g.Limit())
	}
}

// The probe of an outage that is over must not keep the next outage from being probed.
func TestOldProbeBlocksNothing(t *testing.T) {
	s := newScript(t, 64)
	s.send(3)
	s.end(1, Refused, 0)
	s.now = s.now.Add(time.Second)
	s.send(1)             // the probe, which hangs
	s.end(1, Answered, 0) // of the calls that were sent after the one that was refused
	s.end(1, Refused, 0)  // down again
	s.now = s.now.Add(ms * 250)
	s.want("closed for 0s, in flight 1", 1)
	s.send(1)
	s.want("closed for 0s, in flight 2", 0)
	s.end(1, Refused, 0) // the old probe: nothing new
	s.want("closed for 0s, in flight 1", 0)
	s.end(1, Answered, 0)
	if s.g.Probing() {
		t.Errorf("after an answer the gate is %s, want open", s.state())
	}
}

func TestAbandonedSaysNothing(t *testing.T) {
	s := newScript(t, 8)
	s.send(8)
	s.end(3, Throttled, 0)
	s.end(1, Failed, 0)
	before := s.g.String()
	s.end(4, Abandoned, time.Hour)
	s.send(4)
	if after := s.g.String(); after != before {
		t.Errorf("four abandoned calls made it %s, want %s", after, before)
	}
}

// Promises of the gate, whatever happens in whatever order.
func TestGateKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		config := GateConfig{Max: rapid.IntRange(0, 20).Draw(t, "max"), Shared: rapid.Bool().Draw(t, "shared")}
		g, now := NewGate(config), epoch
		var inFlight []int64
		closing := int64(0) // calls sent when it closed last
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			wasClosed := g.Probing()
			step := rapid.SampledFrom([]string{"send", "send", "fill", "end", "end", "end", "wait", "next", "observe", "press"}).Draw(t, "step")
			switch {
			case step == "send" && g.Room(now) > 0:
				inFlight = append(inFlight, g.Send(now))
			case step == "fill":
				for g.Room(now) > 0 && len(inFlight) < 100 {
					inFlight = append(inFlight, g.Send(now))
				}
			case step == "end" && len(inFlight) > 0:
				i := rapid.IntRange(0, len(inFlight)-1).Draw(t, "call")
				ticket := inFlight[i]
				inFlight = append(inFlight[:i], inFlight[i+1:]...)
				r := Report{
					Outcome:    rapid.SampledFrom([]Outcome{Answered, Answered, Answered, Throttled, Failed, Refused, Abandoned}).Draw(t, "outcome"),
					RetryAfter: rapid.SampledFrom([]time.Duration{0, 0, 0, time.Second, time.Minute}).Draw(t, "retryAfter"),
					Work:       rapid.Int64Range(0, 1000).Draw(t, "work"),
				}
				limit := g.Limit()
				g.Done(ticket, r, now)
				_, until, closed := g.Closed()
				switch wait := until.Sub(now); {
				case r.Outcome == Answered && wasClosed && ticket > closing && closed:
					t.Fatal("closed after an answer to a call that was sent later")
				case r.Outcome == Refused && !closed:
					t.Fatal("open after a refusal")
				case r.Outcome == Abandoned && (closed != wasClosed || g.Limit() != limit):
					t.Fatal("an abandoned call changed the gate")
				case closed && !wasClosed && (wait < max(r.RetryAfter, firstWait) || wait > max(r.RetryAfter, mostWait)):
					t.Fatalf("closed for %v, with Retry-After %v", wait, r.RetryAfter)
				}
			case step == "wait":
				now = now.Add(time.Duration(rapid.IntRange(1, 10_000).Draw(t, "ms")) * ms)
			case step == "next":
				if next := g.Next(now); !next.IsZero() {
					if !next.After(now) {
						t.Fatalf("%s: something may happen %v ago", g, now.Sub(next))
					}
					now = next
				}
			case step == "observe":
				g.Observe(Load{rapid.IntRange(0, 30).Draw(t, "running"), rapid.IntRange(0, 30).Draw(t, "waiting")}, now)
			case step == "press":
				g.Press(rapid.Float64Range(0, 1).Draw(t, "press"))
			}
			_, until, closed := g.Closed()
			if closed && !wasClosed {
				closing = g.sent
			}
			room, next := g.Room(now), g.Next(now)
			switch {
			case g.InFlight() != len(inFlight):
				t.Fatalf("%d in flight, want %d", g.InFlight(), len(inFlight))
			case len(inFlight) > g.Max() || config.Max > 0 && g.Max() != config.Max:
				t.Fatalf("%d in flight, at most %d allowed", len(inFlight), g.Max())
			case g.Limit() < 1 || g.Limit() > g.Max():
				t.Fatalf("limit %d, want 1 to %d", g.Limit(), g.Max())
			case room < 0 || room+len(inFlight) > g.Max():
				t.Fatalf("%s: room for %d, at most %d allowed", g, room, g.Max())
			case closed && now.Before(until) && room != 0:
				t.Fatalf("closed until %v, room for %d", until.Sub(now), room)
			case len(inFlight) == 0 && room == 0 && next.IsZero():
				t.Fatalf("%s: it never lets anything through again", g)
			}
			// Whoever sleeps until Next misses nothing.
			later := now.Add(time.Duration(rapid.IntRange(1, 100_000).Draw(t, "later")) * ms)
			if !next.IsZero() && !later.Before(next) {
				later = next.Add(-1)
			}
			twin := *g
			if then := twin.Room(later); then > room {
				t.Fatalf("%s: room for %d, and %v later for %d, but next is %v", g, room, later.Sub(now), then, next.Sub(now))
			}
		}
	})
}

// A server is a simulated upstream: it says what becomes of a call that arrives while it works on
// busy others, and after how long.
type server func(now time.Time, busy int, r *rand.Rand) (o Outcome, latency, retryAfter time.Duration)

// latency of an answer: one second on average, between a half and one and a half.
func latency(r *rand.Rand) time.Duration { return 500*ms + time.Duration(r.Int64N(int64(time.Second))) }

// upTo answers n calls at a time and throttles the others at once.
func upTo(n int) server {
	return func(_ time.Time, busy int, r *rand.Rand) (Outcome, time.Duration, time.Duration) {
		if busy >= n {
			return Throttled, ms, 0
		}
		return Answered, latency(r), 0
	}
}

// A simulation runs an endless backlog through a gate against a server.
type simulation struct {
	g      *Gate
	server server
	r      *rand.Rand
	now    time.Time
	flying flights
	busy   int
	ends   [5]int // calls by outcome
	most   int    // in flight
	load   float64
}

type flight struct {
	at         time.Time
	ticket     int64
	outcome    Outcome
	retryAfter time.Duration
}

func simulate(most int, s server) *simulation {
	return &simulation{g: NewGate(GateConfig{Max: most}), server: s, r: rand.New(rand.NewPCG(1, 2)), now: epoch}
}

// run lets d pass and returns what happened in it.
func (s *simulation) run(d time.Duration) (answered, throttled int, load float64) {
	before := s.ends
	s.load = 0
	end := s.now.Add(d)
	for s.now.Before(end) {
		for s.g.Room(s.now) > 0 {
			o, latency, retryAfter := s.server(s.now, s.busy, s.r)
			if o == Answered {
				s.busy++
			}
			heap.Push(&s.flying, flight{s.now.Add(latency), s.g.Send(s.now), o, retryAfter})
			s.most = max(s.most, s.g.InFlight())
		}
		next := end
		if wake := s.g.Next(s.now); !wake.IsZero() && wake.Before(next) {
			next = wake
		}
		if len(s.flying) > 0 && !s.flying[0].at.After(next) {
			next = s.flying[0].at
		}
		s.load += float64(s.busy) * next.Sub(s.now).Seconds()
		s.now = next
		for len(s.flying) > 0 && !s.flying[0].at.After(s.now) {
			f := heap.Pop(&s.flying).(flight)
			if f.outcome == Answered {
				s.busy--
			}
			s.ends[f.outcome]++
			s.g.Done(f.ticket, Report{Outcome: f.outcome, RetryAfter: f.retryAfter}, s.now)
		}
	}
	return s.ends[Answered] - before[Answered], s.ends[Throttled] - before[Throttled], s.load / d.Seconds()
}

type flights []flight

func (f flights) Len() int { return len(f) }
func (f flights) Less(i, j int) bool {
	return cmp.Or(f[i].at.Compare(f[j].at), cmp.Compare(f[i].ticket, f[j].ticket)) < 0
}
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(v any)   { *f = append(*f, v.(flight)) }
func (f *flights) Pop() any {
	last := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return last
}

// One call in a hundred is throttled for no reason: that must not cost throughput.
func TestStrayThrottlesBarelyLowerTheLimit(t *testing.T) {
	for _, most := range []int{8, 64, 1000} {
		s := simulate(most, func(_ time.Time, _ int, r *rand.Rand) (Outcome, time.Duration, time.Duration) {
			if r.Float64() < 0.01 {
				return Throttled, ms, 0
			}
			return Answered, latency(r), 0
		})
		s.run(time.Minute)
		if _, _, load := s.run(3 * time.Minute); load < 0.95*float64(most) {
			t.Errorf("max %d: %.1f in flight on average", most, load)
		}
	}
}

// An upstream that takes n calls at a time gets n, and few more than that, soon and for good.
func TestSettlesAtWhatFits(t *testing.T) {
	for _, c := range []struct {
		n, max int
		load   float64 // least share of n that is used
		wasted float64 // most calls throttled per call answered
	}{
		{1, 64, 0.99, 1.1},
		{4, 64, 0.97, 0.5},
		{16, 64, 0.97, 0.15},
		{50, 64, 0.97, 0.08},
		{16, 1000, 0.97, 0.15},
		{200, 1000, 0.97, 0.08},
		{64, 64, 0.999, 0},
		{100, 64, 0.63, 0},
	} {
		s := simulate(c.max, upTo(c.n))
		if _, _, load := s.run(10 * time.Second); load < 0.8*min(float64(c.n), float64(c.max)) {
			t.Errorf("%d fit, max %d: %.1f in flight in the first ten seconds", c.n, c.max, load)
		}
		answered, throttled, load := s.run(10 * time.Minute)
		t.Logf("%d fit, max %d: %.2f in flight, %d answered, %d throttled", c.n, c.max, load, answered, throttled)
		if load < c.load*float64(c.n) {
			t.Errorf("%d fit, max %d: %.2f in flight, want %.2f", c.n, c.max, load, c.load*float64(c.n))
		}
		if float64(throttled) > c.wasted*float64(answered) {
			t.Errorf("%d fit, max %d: %d throttled for %d answered", c.n, c.max, throttled, answered)
		}
		if s.most > c.max {
			t.Errorf("%d fit: %d in flight, at most %d allowed", c.n, s.most, c.max)
		}
	}
}

// When room appears, because others leave the upstream, it is taken.
func TestGrowsWhenThereIsMore(t *testing.T) {
	n := 8
	s := simulate(256, func(now time.Time, busy int, r *rand.Rand) (Outcome, time.Duration, time.Duration) {
		return upTo(n)(now, busy, r)
	})
	s.run(time.Minute)
	n = 128
	start := s.now
	for s.busy < 100 && s.now.Sub(start) < 5*time.Minute {
		s.run(time.Second)
	}
	if took := s.now.Sub(start); took > time.Minute {
		t.Errorf("%d in flight %v after 128 fitted instead of 8", s.busy, took)
	}
}

// A quota of requests a minute: once it is used up everything is throttled until the next minute.
func TestWaitsForTheQuota(t *testing.T) {
	const quota = 500
	minute, used := time.Time{}, 0
	s := simulate(64, func(now time.Time, _ int, r *rand.Rand) (Outcome, time.Duration, time.Duration) {
		if m := now.Truncate(time.Minute); m != minute {
			minute, used = m, 0
		}
		if used++; used > quota {
			return Throttled, ms, minute.Add(time.Minute).Sub(now)
		}
		return Answered, latency(r), 0
	})
	s.run(time.Minute)
	answered, throttled, _ := s.run(10 * time.Minute)
	t.Logf("%d answered, %d throttled in ten minutes", answered, throttled)
	if answered < 9*quota {
		t.Errorf("%d answered in ten minutes, the quota is %d", answered, 10*quota)
	}
	if throttled > answered/4 {
		t.Errorf("%d calls throttled for %d answered", throttled, answered)
	}
}

// An upstream that is away is left alone but for a probe every few seconds, and found soon when it
// is back.
func TestOutage(t *testing.T) {
	away := false
	s := simulate(64, func(_ time.Time, _ int, r *rand.Rand) (Outcome, time.Duration, time.Duration) {
		if away {
			return Refused, ms, 0
		}
		return Answered, latency(r), 0
	})
	s.run(time.Minute)
	away = true
	s.run(2 * time.Second) // what was in flight is answered
	before := s.ends[Refused]
	s.run(time.Hour)
	if probes := s.ends[Refused] - before; probes < 700 || probes > 850 {
		t.Errorf("%d probes in an hour, want one every five seconds, and some more at first", probes)
	}
	away = false
	s.run(5*time.Second + 2*time.Second) // until the next probe, and as long as it may take
	if s.busy < 60 {
		t.Errorf("%d in flight 7 s after the upstream is back, want 64", s.busy)
	}
}
