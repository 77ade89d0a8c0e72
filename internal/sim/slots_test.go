package sim

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// prompt is a chat request that differs from others by i alone.
func prompt(i int) string {
	return fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"question %d"}]}`, i)
}

// An outcome is how a call ended, and when after its test began.
type outcome struct {
	status int
	after  time.Duration
}

// A crowd makes calls at the same time. Its calls begin in order.
type crowd struct {
	server   *Server
	start    time.Time
	wg       sync.WaitGroup
	outcomes []*outcome
}

func newCrowd(cfg Config) *crowd { return &crowd{server: New(cfg), start: time.Now()} }

// send makes a call, which ends with ctx, and returns once it waits for something.
func (c *crowd) send(ctx context.Context, body string) *outcome {
	o := new(outcome)
	c.outcomes = append(c.outcomes, o)
	c.wg.Go(func() {
		r := httptest.NewRequestWithContext(ctx, "POST", "/v1/chat/completions", strings.NewReader(body))
		o.status, _ = do(c.server, r)
		o.after = time.Since(c.start)
	})
	synctest.Wait()
	return o
}

// expect waits for all calls and compares how they ended.
func (c *crowd) expect(t *testing.T, want ...outcome) {
	t.Helper()
	c.wg.Wait()
	for i, w := range want {
		if got := *c.outcomes[i]; got != w {
			t.Errorf("call %d: status %d after %v, want %d after %v", i, got.status, got.after, w.status, w.after)
		}
	}
	if busy, waiting := c.server.slots.busy, c.server.slots.queue.Len(); busy != 0 || waiting != 0 {
		t.Errorf("at the end %d slots are busy and %d calls wait", busy, waiting)
	}
	if n := c.server.inFlight.Load(); n != 0 {
		t.Errorf("at the end %d calls are in flight", n)
	}
}

func TestQueueIsFirstInFirstOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(Config{Slots: 2, Timing: Timing{Latency: time.Second}})
		for i := range 5 {
			c.send(t.Context(), prompt(i))
		}
		c.expect(t, outcome{200, 1 * time.Second}, outcome{200, 1 * time.Second},
			outcome{200, 2 * time.Second}, outcome{200, 2 * time.Second}, outcome{200, 3 * time.Second})
	})
}

func TestQueueLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(Config{Slots: 1, QueueLimit: 1, QueueStatus: 503, Timing: Timing{Latency: time.Second}})
		for i := range 3 {
			c.send(t.Context(), prompt(i))
		}
		c.expect(t, outcome{200, 1 * time.Second}, outcome{200, 2 * time.Second}, outcome{503, 0})
	})
}

func TestMaxInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(Config{Slots: 1, MaxInFlight: 2, Timing: Timing{Latency: time.Second}})
		for i := range 3 {
			c.send(t.Context(), prompt(i))
		}
		c.expect(t, outcome{200, 1 * time.Second}, outcome{200, 2 * time.Second}, outcome{429, 0})
	})
}

// A client that leaves gives its slot, or its place in the queue, to those behind it.
func TestClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(Config{Slots: 1, Timing: Timing{Latency: time.Second}})
		running, leaveSlot := context.WithCancel(t.Context())
		waiting, leaveQueue := context.WithCancel(t.Context())
		c.send(running, prompt(0))
		c.send(waiting, prompt(1))
		c.send(t.Context(), prompt(2))

		time.Sleep(100 * time.Millisecond)
		leaveQueue()
		time.Sleep(100 * time.Millisecond)
		leaveSlot()
		c.expect(t, outcome{0, 200 * time.Millisecond}, outcome{0, 100 * time.Millisecond}, outcome{200, 1200 * time.Millisecond})
	})
}

// A slot that is handed to a call just as the call ends goes on to the next.
func TestSlotIsNotLost(t *testing.T) {
	for range 200 {
		s := slots{limit: 1}
		left := make(chan struct{})
		s.try()
		var wg sync.WaitGroup
		wg.Go(func() {
			if s.wait(ends{client: left}) == nil {
				s.give()
			}
		})
		wg.Go(func() { close(left) })
		wg.Go(s.give)
		wg.Wait()
		if s.busy != 0 || s.queue.Len() != 0 {
			t.Fatalf("%d slots are busy and %d calls wait, though nobody is left", s.busy, s.queue.Len())
		}
	}
}

func TestTiming(t *testing.T) {
	body := fmt.Sprintf(`{"model":"m","max_tokens":10,"messages":[{"role":"user","content":"%s"}]}`,
		strings.Repeat("abcd", 1996)) // 2,000 tokens with the message's own four
	timing := Timing{Latency: time.Second, Prefill: 3 * time.Second, Decode: 20 * time.Millisecond}
	const all = 1*time.Second + 2*3*time.Second + 10*20*time.Millisecond
	long := Config{MedianTokens: 1000, P99Tokens: 1000}
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   time.Duration
	}{
		{"all models", func(c *Config) { c.Timing = timing }, all},
		{"one model", func(c *Config) { c.Models = []Model{{ID: "other"}, {ID: "m", Timing: &timing}} }, all},
		{"another model", func(c *Config) { c.Models = []Model{{ID: "m"}, {ID: "other", Timing: &timing}} }, 0},
		{"slow first byte", func(c *Config) { c.Faults = Faults{Slow: 1, SlowBy: time.Minute} }, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := long
				c.change(&cfg)
				crowd := newCrowd(cfg)
				crowd.send(t.Context(), body)
				crowd.expect(t, outcome{200, c.want})
			})
		})
	}
}

func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(Config{Slots: 100, Timing: Timing{Latency: time.Second, Jitter: 0.2}})
		for i := range 100 {
			c.send(t.Context(), prompt(i))
		}
		c.wg.Wait()
		var low, high time.Duration = time.Hour, 0
		for _, o := range c.outcomes {
			low, high = min(low, o.after), max(high, o.after)
		}
		if low < 800*time.Millisecond || low > 820*time.Millisecond || high < 1180*time.Millisecond || high > 1200*time.Millisecond {
			t.Errorf("calls took %v to %v, want 800ms to 1.2s", low, high)
		}
	})
}

func TestOutage(t *testing.T) {
	for _, c := range []struct{ downStatus, want int }{{0, 0}, {503, 503}} {
		synctest.Test(t, func(t *testing.T) {
			crowd := newCrowd(Config{Slots: 1, CountCalls: true, DownStatus: c.downStatus, Timing: Timing{Latency: time.Second}})
			s := crowd.server
			crowd.send(t.Context(), prompt(0))
			crowd.send(t.Context(), prompt(1))
			time.Sleep(500 * time.Millisecond)
			s.SetDown(true)
			s.SetDown(true)
			crowd.send(t.Context(), prompt(2))
			if status, _ := get(s, "/health"); status != c.want {
				t.Errorf("health during the outage: %d, want %d", status, c.want)
			}
			if status, _ := get(s, "/sim/calls"); status != 200 {
				t.Errorf("/sim/calls during the outage: %d", status)
			}
			time.Sleep(500 * time.Millisecond)
			s.SetDown(false)
			s.SetDown(false)
			crowd.send(t.Context(), prompt(3))
			const half = 500 * time.Millisecond
			crowd.expect(t, outcome{0, half}, outcome{0, half}, outcome{c.want, half}, outcome{200, 2 * time.Second})
			if got := s.Calls(); got.Calls != 3 || got.Answered != 1 {
				t.Errorf("counted %+v, want 3 calls and 1 answer", got)
			}
		})
	}
}

// A poisoned call cuts the others too, if it is said to crash the engine.
func TestPoison(t *testing.T) {
	for _, crashes := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			crowd := newCrowd(Config{Poison: "question 1", PoisonCrashes: crashes, Timing: Timing{Latency: time.Second}})
			crowd.send(t.Context(), prompt(0))
			crowd.send(t.Context(), prompt(1))
			crowd.send(t.Context(), prompt(2))
			first := outcome{200, time.Second}
			if crashes {
				first = outcome{0, 0}
			}
			crowd.expect(t, first, outcome{0, 0}, outcome{200, time.Second})
		})
	}
}

func TestHangEndsWithItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(Config{Slots: 1, Faults: Faults{Hang: 1, Attempts: 1}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		c.send(ctx, prompt(0))
		c.send(ctx, prompt(0)) // its second attempt, which is spared, finds the slot free
		c.expect(t, outcome{0, time.Hour}, outcome{200, 0})
	})
}
