package engine_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// A tap sees every call that an upstream gets.
type tap struct {
	mu    sync.Mutex
	calls []*tapped
}

type tapped struct {
	body       string
	begin, end time.Time // end is zero while the call is in flight
}

// tap puts a tap before whatever answers calls at u.
func (u *up) tap() *tap {
	t, behind := &tap{}, *u.handler.Load()
	u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			behind.ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		c := &tapped{body: string(body), begin: time.Now()}
		t.mu.Lock()
		t.calls = append(t.calls, c)
		t.mu.Unlock()
		defer func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			c.end = time.Now()
		}()
		behind.ServeHTTP(w, r)
	}))
	return t
}

// each calls f with every call whose body has the text in it.
func (t *tap) each(text string, f func(c tapped)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.calls {
		if strings.Contains(c.body, text) {
			f(*c)
		}
	}
}

// last is when the last call ended whose body has the text in it.
func (t *tap) last(text string) (at time.Time) {
	t.each(text, func(c tapped) {
		if c.end.After(at) {
			at = c.end
		}
	})
	return at
}

// inFlight is how many calls were in flight at that moment.
func (t *tap) inFlight(text string, at time.Time) (n int) {
	t.each(text, func(c tapped) {
		if !c.begin.After(at) && (c.end.IsZero() || c.end.After(at)) {
			n++
		}
	})
	return n
}

// slots is how much of slots was used from one moment to the other, in slot seconds.
func (t *tap) slots(text string, from, to time.Time) (sum float64) {
	t.each(text, func(c tapped) {
		begin, end := c.begin, c.end
		if begin.Before(from) {
			begin = from
		}
		if end.IsZero() || end.After(to) {
			end = to
		}
		if end.After(begin) {
			sum += end.Sub(begin).Seconds()
		}
	})
	return sum
}

// TestFastBesideSlow runs a model that answers at once beside one that takes 3 s: in the same batch,
// in two batches, at upstreams of their own and at the same. The fast one ends as if it were alone.
func TestFastBesideSlow(t *testing.T) {
	slow := &sim.Timing{Latency: 3 * time.Second}
	fast := &sim.Timing{Latency: 20 * time.Millisecond}
	const n = 2000
	for i, test := range []struct {
		name           string
		alone, batches bool
		shared         bool // the upstream
	}{
		{name: "alone", alone: true},
		{name: "in one batch"},
		{name: "in two batches", batches: true},
		{name: "in one batch at one upstream", shared: true},
		{name: "in two batches at one upstream", shared: true, batches: true},
	} {
		if sparing(i, 3) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				var tap *tap
				if test.shared {
					// Twice the slots: half of them are the due of each.
					u := b.upstream(sim.Config{Models: []sim.Model{{ID: "slow", Timing: slow}, {ID: "fast", Timing: fast}}, Slots: 32}, upstream.Config{MaxInFlight: 32})
					tap = u.tap()
				} else {
					u := b.upstream(sim.Config{Models: []sim.Model{{ID: "fast", Timing: fast}}, Slots: 16}, upstream.Config{MaxInFlight: 16})
					b.upstream(sim.Config{Models: []sim.Model{{ID: "slow", Timing: slow}}, Slots: 16}, upstream.Config{MaxInFlight: 16})
					tap = u.tap()
				}
				p := b.start(small(100))
				time.Sleep(time.Second) // until the lists are read
				start := time.Now()
				var ids []string
				switch {
				case test.alone:
					ids = append(ids, b.run(chat(n, "fast")))
				case test.batches:
					ids = append(ids, b.run(chat(n, "slow")), b.run(chat(n, "fast")))
				default:
					ids = append(ids, b.run(chat(2*n, "slow", "fast")))
				}
				for _, id := range ids {
					x := b.ends(id)
					b.want(x, batch.Completed, x.Counts.Total, x.Counts.Total, 0)
				}
				// At 16 at a time it takes 2.5 s of work.
				took := tap.last(`"fast"`).Sub(start)
				b.Logf("the fast model took %v", took)
				most := 2750 * time.Millisecond
				if test.shared && (test.batches || *clustered) {
					// The slow one came first and had all slots; calls are not cut. That can be in one
					// batch, too, where a claim takes a moment.
					most += 3 * time.Second
				}
				if took > most {
					b.Errorf("the fast model took %v, want %v at most", took, most)
				}
				p.drain()
			})
		})
	}
}

// TestLeastLoaded gives each of two upstreams as much as it has slots free.
func TestLeastLoaded(t *testing.T) {
	bubble(t, func(b *bench) {
		timing := sim.Timing{Latency: 10 * time.Second}
		one := b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 8}).tap()
		two := b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 24}).tap()
		p := b.start()
		time.Sleep(time.Second)
		want := func(n, m int) {
			b.Helper()
			time.Sleep(time.Second)
			if x, y := one.inFlight("", time.Now()), two.inFlight("", time.Now()); x != n || y != m {
				b.Errorf("%d and %d calls in flight, want %d and %d", x, y, n, m)
			}
		}
		first := b.run(chat(16))
		if !*clustered { // among nodes, slots that nobody has asked for count as taken
			want(4, 12)
		}
		second := b.run(chat(40))
		want(8, 24)
		b.ends(first)
		b.ends(second)
		p.drain()
	})
}

// TestRetriesElsewhere sends what failed at one upstream to another, and leaves what is throttled at
// one to another that is not.
func TestRetriesElsewhere(t *testing.T) {
	for _, test := range []struct {
		status int
		most   int // calls of a request where it fails: again if that is free and the other is not
	}{{500, 2}, {404, 2}, {429, 5}, {401, 5}} {
		t.Run(fmt.Sprint(test.status), func(t *testing.T) {
			bubble(t, func(b *bench) {
				timing := sim.Timing{Latency: time.Second}
				one := b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 8})
				two := b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 8})
				one.handle(front(one, func([]byte) int { return test.status }))
				tap := one.tap()
				p := b.start()
				time.Sleep(time.Second)
				text := mixed(160, 10, "wrong")
				x := b.ends(b.run(text))
				b.want(x, batch.Completed, 160, 160, 0)
				if took := x.CompletedAt.Sub(x.InProgressAt); took > 30*time.Second {
					b.Errorf("it took %v", took)
				}
				seen := map[string]int{}
				tap.each("wrong", func(c tapped) { seen[c.body]++ })
				for body, n := range seen {
					if n > test.most {
						b.Errorf("%s was sent %d times to where it failed", body, n)
					}
				}
				if n := two.Calls().Answered; n < 80 {
					b.Errorf("the upstream that is well answered %d calls", n)
				}
				p.drain()
			})
		})
	}
}

// TestComingAndGoing lets three upstreams come and go, now and then all of them at once. It costs no
// request.
func TestComingAndGoing(t *testing.T) {
	bubble(t, func(b *bench) {
		var ups []*up
		for range 3 {
			ups = append(ups, b.upstream(sim.Config{Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.9}}, upstream.Config{MaxInFlight: 8}))
		}
		p := b.start(small(50))
		id := b.run(chat(1500))
		for i := range 20 {
			b.recorded(id, int64(40*i))
			for j, u := range ups {
				switch away := (i>>j)&1 == 1; i % 3 {
				case 0:
					u.SetDown(away)
				case 1:
					u.away.Store(away)
				case 2:
					u.SetDown(false)
					u.away.Store(false)
				}
			}
			time.Sleep(3 * time.Second)
			for _, u := range ups[:1+i%3] {
				u.SetDown(false)
				u.away.Store(false)
			}
		}
		for _, u := range ups {
			u.SetDown(false)
			u.away.Store(false)
		}
		b.want(b.ends(id), batch.Completed, 1500, 1500, 0)
		p.drain()
	})
}

// get asks the simulator itself, past everything before it.
func (u *up) get(path string) []byte {
	w := httptest.NewRecorder()
	u.Server.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Body.Bytes()
}

// TestWeights gives an upstream more that can do more, as long as there is not enough for all.
func TestWeights(t *testing.T) {
	bubble(t, func(b *bench) {
		timing := sim.Timing{Latency: 10 * time.Second}
		one := b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 16}).tap()
		two := b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 16, Weight: 3}).tap()
		p := b.start()
		time.Sleep(time.Second)
		id := b.run(chat(16))
		time.Sleep(time.Second)
		if n, m := one.inFlight("", time.Now()), two.inFlight("", time.Now()); n != 4 || m != 12 {
			b.Errorf("%d and %d calls in flight, want 4 and 12", n, m)
		}
		b.ends(id)
		p.drain()
	})
}

// TestLimitIsFound runs answers with a long tail at an upstream with 64 slots and a queue of which
// nobody says anything. Soon all slots are in use, and they stay so.
func TestLimitIsFound(t *testing.T) {
	unraced(t)
	bubble(t, func(b *bench) {
		// Of 2 s in the middle; one in a hundred takes 30 s.
		u := b.upstream(sim.Config{Timing: sim.Timing{Decode: 62500 * time.Microsecond}, MedianTokens: 32, P99Tokens: 480, Slots: 64}, upstream.Config{MetricsURL: "none"})
		p := b.start()
		id := b.run(chat(5000))
		time.Sleep(time.Minute)
		busy, waiting, looks := 0.0, 0.0, 0.0
		for range 120 {
			time.Sleep(time.Second)
			busy += u.metric(b, "vllm:num_requests_running")
			waiting += u.metric(b, "vllm:num_requests_waiting")
			looks++
		}
		b.Logf("%.1f of 64 slots were busy, %.1f waited", busy/looks, waiting/looks)
		if busy/looks < 0.98*64 || waiting/looks > 32 {
			b.Errorf("%.1f of 64 slots were busy, %.1f waited", busy/looks, waiting/looks)
		}
		b.want(b.ends(id), batch.Completed, 5000, 5000, 0)
		p.drain()
	})
}
