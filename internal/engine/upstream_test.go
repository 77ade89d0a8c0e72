package engine_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// mixed is an input of n requests, of which one in so many says word.
func mixed(n, one int, word string) []byte {
	text := chat(n)
	var out bytes.Buffer
	i := 0
	for l := range bytes.Lines(text) {
		if i%one == one-1 {
			l = bytes.Replace(l, []byte(" of "), []byte(" "+word+" of "), 1)
		}
		out.Write(l)
		i++
	}
	return out.Bytes()
}

// TestFailures runs batches at upstreams that do wrong in one way or another. What passes when it
// is tried again does not fail, and what does not pass fails alone.
func TestFailures(t *testing.T) {
	second := sim.Timing{Latency: time.Second, Jitter: 0.5}
	status := func(n int) func(result) bool {
		return func(r result) bool { return r.Response != nil && r.Response.Status == n }
	}
	code := func(f batch.Failure) func(result) bool {
		return func(r result) bool { return r.Error != nil && r.Error.Code == f.Code }
	}
	for i, test := range []struct {
		name   string
		sim    sim.Config
		up     upstream.Config
		front  func(body []byte) int // status of what does not reach the upstream
		one    int                   // of how many goes wrong; 0: 10
		failed func(result) bool     // what becomes of it; nil: it passes
		most   int                   // calls of a request
		within time.Duration         // of the batch; a fault may not hold up the others
	}{
		{name: "nothing", most: 1, within: 15 * time.Second},
		{name: "400", sim: sim.Config{Always400: "wrong"}, failed: status(400), most: 1, within: 15 * time.Second},
		{name: "500", sim: sim.Config{Always500: "wrong"}, failed: status(500), most: 40, within: 10 * time.Minute},
		{name: "404", front: func(body []byte) int { return 404 }, failed: status(404), most: 20, within: 4 * time.Minute},
		{name: "413", front: func(body []byte) int { return 413 }, failed: status(413), most: 1, within: 15 * time.Second},
		{name: "some 429", sim: sim.Config{Faults: sim.Faults{Throttle: 0.2}, RetryAfter: 2 * time.Second}, most: 20, within: 5 * time.Minute},
		{name: "too few slots", sim: sim.Config{MaxInFlight: 3, RetryAfter: time.Second}, most: 60, within: 10 * time.Minute},
		{name: "some 500", sim: sim.Config{Faults: sim.Faults{Error: 0.3, Attempts: 3}}, most: 4, within: 5 * time.Minute},
		{name: "some 503", sim: sim.Config{Faults: sim.Faults{Error: 0.2, ErrorStatus: 503}}, most: 20, within: 5 * time.Minute},
		{name: "some hang", sim: sim.Config{Faults: sim.Faults{Hang: 0.1, Attempts: 1}}, up: upstream.Config{Timeout: 20 * time.Second}, most: 2, within: 5 * time.Minute},
		{name: "some cut", sim: sim.Config{Faults: sim.Faults{Cut: 0.1, Drop: 0.1, Attempts: 2}}, most: 3, within: 5 * time.Minute},
		{name: "some pages", sim: sim.Config{Faults: sim.Faults{HTML: 0.1, Text: 0.1, Attempts: 2}}, most: 3, within: 5 * time.Minute},
		{name: "some redirects", sim: sim.Config{Faults: sim.Faults{Redirect: 0.1, Attempts: 2}}, most: 3, within: 10 * time.Minute},
		{name: "poison", sim: sim.Config{Poison: "wrong", PoisonCrashes: true}, one: 40, failed: code(batch.FailureServer), most: 30, within: time.Hour},
		{name: "long answers", sim: sim.Config{MedianTokens: 400, P99Tokens: 400}, up: upstream.Config{MaxAnswer: 100}, failed: code(batch.FailureLargeAnswer), most: 1, within: 15 * time.Second},
	} {
		if sparing(i, 3) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(b *bench) {
				test.sim.Timing = second
				if test.up.MaxInFlight == 0 {
					test.up.MaxInFlight = 16
				}
				u := b.upstream(test.sim, test.up)
				if test.front != nil {
					u.handle(front(u, test.front))
				}
				if test.one == 0 {
					test.one = 10
				}
				text := mixed(100, test.one, "wrong")
				p := b.start(small(40))
				id := b.run(text)
				start := time.Now()
				x := b.ends(id)
				failed := int64(0)
				switch {
				case test.name == "long answers":
					failed = 100
				case test.failed != nil:
					failed = int64(100 / test.one)
				}
				b.want(x, batch.Completed, 100, 100-failed, failed)
				for id, r := range b.results(id) {
					if !r.ok && !test.failed(r) {
						b.Errorf("%s failed with %+v", id, r)
					}
				}
				if took := time.Since(start); took > test.within {
					b.Errorf("it took %v, want %v at most", took, test.within)
				}
				if calls := u.Calls(); calls.MaxPerRequest > test.most {
					b.Errorf("some request was sent %d times, want %d at most", calls.MaxPerRequest, test.most)
				}
				p.drain()
			})
		})
	}
}

// front answers bodies that say "wrong" with a status, and hands the others on.
func front(u *up, status func(body []byte) int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if bytes.Contains(body, []byte("wrong")) {
			http.Error(w, `{"error":{"message":"no"}}`, status(body))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		u.Server.ServeHTTP(w, r)
	})
}

// TestOutages lets an upstream be away in every way, at the start, in the middle and again and
// again: requests wait, and none fails.
func TestOutages(t *testing.T) {
	outages := []struct {
		name  string
		sim   sim.Config
		begin func(u *up) (end func())
		dear  bool // a request may fail but twice with it where others do not
	}{
		{"cut", sim.Config{}, down, false},
		{"500", sim.Config{DownStatus: 500}, down, false},
		{"502", sim.Config{DownStatus: 502}, down, false},
		{"503", sim.Config{DownStatus: 503}, down, false},
		{"unreachable", sim.Config{}, func(u *up) func() { u.away.Store(true); return func() { u.away.Store(false) } }, false},
		{"401", sim.Config{}, func(u *up) func() { return u.refuse(401) }, false},
		{"402", sim.Config{}, func(u *up) func() { return u.refuse(402) }, false},
		{"403", sim.Config{}, func(u *up) func() { return u.refuse(403) }, true},
		{"404", sim.Config{}, func(u *up) func() { return u.refuse(404) }, true},
		{"302", sim.Config{}, func(u *up) func() { return u.refuse(302) }, false},
		{"429", sim.Config{}, func(u *up) func() { return u.refuse(429) }, false},
		{"504", sim.Config{}, func(u *up) func() { return u.refuse(504) }, true},
		{"captive portal", sim.Config{}, func(u *up) func() {
			u.handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>Sign in</html>") }))
			return func() { u.handle(u.Server) }
		}, false},
	}
	for i, o := range outages {
		for j, when := range []string{"first", "in the middle", "again and again"} {
			if sparing(2*i+j, 5) {
				continue
			}
			t.Run(o.name+" "+when, func(t *testing.T) {
				t.Parallel()
				bubble(t, func(b *bench) {
					o.sim.Timing = sim.Timing{Latency: 3 * time.Second, Jitter: 0.9}
					u := b.upstream(o.sim, upstream.Config{Models: []string{"m"}, MaxInFlight: 8, Timeout: time.Minute})
					var end func()
					if when == "first" {
						end = o.begin(u)
					}
					p := b.start(small(20))
					id := b.run(chat(60))
					switch when {
					case "first":
						time.Sleep(8 * time.Minute)
						end()
					case "in the middle":
						b.recorded(id, 10)
						end := o.begin(u)
						time.Sleep(8 * time.Minute)
						end()
					case "again and again":
						times := 4
						if o.dear {
							times = 2
						}
						for i := range times {
							b.recorded(id, int64(10*i+5))
							end := o.begin(u)
							time.Sleep(time.Duration(i+1) * 10 * time.Second)
							end()
						}
					}
					back := time.Now()
					b.want(b.ends(id), batch.Completed, 60, 60, 0)
					if took := time.Since(back); took > 3*time.Minute {
						b.Errorf("back again, it took %v", took)
					}
					p.drain()
				})
			})
		}
	}
}

func down(u *up) (end func()) {
	u.SetDown(true)
	return func() { u.SetDown(false) }
}

// TestDyingOff lets an upstream go as one does behind a load balancer: new calls are refused while
// long ones, sent before, are still answered. Those answers say nothing for it.
func TestDyingOff(t *testing.T) {
	for i, status := range []int{403, 404, 500, 502} {
		if sparing(i, 4) {
			continue
		}
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			bubble(t, func(b *bench) {
				u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Minute, Jitter: 0.9}}, upstream.Config{MaxInFlight: 32})
				p := b.start(small(50))
				id := b.run(chat(100))
				b.recorded(id, 1)
				end := u.refuse(status)
				time.Sleep(10 * time.Minute)
				end()
				b.want(b.ends(id), batch.Completed, 100, 100, 0)
				p.drain()
			})
		})
	}
}

// TestLanesApart wants a lane not to feel that another is down, slow or full.
func TestLanesApart(t *testing.T) {
	bubble(t, func(b *bench) {
		dead := b.upstream(sim.Config{}, upstream.Config{Models: []string{"dead"}})
		dead.away.Store(true)
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Hour}}, upstream.Config{Models: []string{"slow"}, MaxInFlight: 2})
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{Models: []string{"fast"}, MaxInFlight: 4})
		p := b.start(small(5))
		mixed := b.run(chat(60, "dead", "slow", "fast"))
		b.recorded(mixed, 20)
		start := time.Now()
		b.want(b.ends(b.run(chat(40, "fast"))), batch.Completed, 40, 40, 0)
		if took := time.Since(start); took > 15*time.Second {
			b.Errorf("the fast lane took %v", took)
		}
		p.drain()
	})
}

// TestPeopleInTheWay has people queue at an upstream, so that it has nothing free, while a batch ends
// there, while nobody looks, and while the next one comes. That one goes on as soon as they are gone,
// whatever the last reading was, and meanwhile it does not sleep either.
func TestPeopleInTheWay(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 16, Shared: true})
		var people atomic.Int64
		u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if n := people.Load(); r.URL.Path == "/metrics" && n > 0 {
				fmt.Fprintf(w, "vllm:num_requests_running %d\nvllm:num_requests_waiting %d\n", 16, n)
				return
			}
			u.Server.ServeHTTP(w, r)
		}))
		p := b.start(small(20))
		first := b.run(chat(100))
		b.recorded(first, 40)
		people.Store(30)
		b.want(b.ends(first), batch.Completed, 100, 100, 0)
		time.Sleep(time.Minute)
		second := b.run(chat(100))
		time.Sleep(20 * time.Second)
		switch x := b.look(second); {
		case x.Counts.Completed == 0:
			b.Errorf("nothing is done for 20 s, it waits for %q", p.Activity(x).WaitingFor)
		case x.Counts.Completed > 22:
			b.Errorf("%d requests in 20 s while people wait, want one at a time", x.Counts.Completed)
		}
		people.Store(0)
		start := time.Now()
		b.want(b.ends(second), batch.Completed, 100, 100, 0)
		if took := time.Since(start); took > 20*time.Second {
			b.Errorf("with the people gone, what was left took %v", took)
		}
		p.drain()
	})
}

// TestLonePoison sends nothing but a request that brings its upstream down, which takes half a minute
// to come back. It fails in the end: nobody else was sent meanwhile, but the upstream was there.
func TestLonePoison(t *testing.T) {
	for _, slots := range []int{0, 1, 16} {
		t.Run(fmt.Sprintf("max in flight %d", slots), func(t *testing.T) {
			bubble(t, func(b *bench) {
				u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}, Models: []sim.Model{{ID: "m"}}}, upstream.Config{MaxInFlight: slots})
				u.handle(front(u, func([]byte) int {
					u.away.Store(true)
					time.AfterFunc(30*time.Second, func() { u.away.Store(false) })
					panic(http.ErrAbortHandler)
				}))
				p := b.start()
				start := time.Now()
				x := b.ends(b.run([]byte(line("bad", "m", "wrong"))))
				b.want(x, batch.Completed, 1, 0, 1)
				if r := b.results(x.ID)["bad"]; r.Error == nil || r.Error.Code != batch.FailureServer.Code {
					b.Errorf("it failed with %+v", r)
				}
				if took := time.Since(start); took < 4*time.Minute || took > 20*time.Minute {
					b.Errorf("it took %v", took)
				}
				p.drain()
			})
		})
	}
}

// TestSharedUpstream runs two lanes at one upstream with few slots: neither starves.
func TestSharedUpstream(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 2})
		p := b.start(small(10))
		first := b.run(chat(200, "a"))
		b.recorded(first, 5)
		second := b.run(chat(20, "b"))
		b.want(b.ends(second), batch.Completed, 20, 20, 0)
		if n := b.look(first).Counts.Completed; n > 60 {
			b.Errorf("the lane that came first has %d answers when 20 of the other are there", n)
		}
		b.ends(first)
		p.drain()
	})
}

// TestTwoUpstreams spreads one lane over two upstreams, of which one comes and goes.
func TestTwoUpstreams(t *testing.T) {
	bubble(t, func(b *bench) {
		timing := sim.Timing{Latency: 2 * time.Second, Jitter: 0.5}
		one := b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 4})
		two := b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 4})
		p := b.start(small(25))
		id := b.run(chat(200))
		b.recorded(id, 40)
		two.SetDown(true)
		b.recorded(id, 100)
		two.SetDown(false)
		b.recorded(id, 140)
		one.SetDown(true)
		b.want(b.ends(id), batch.Completed, 200, 200, 0)
		if n, m := one.Calls().Answered, two.Calls().Answered; n < 40 || m < 40 {
			b.Errorf("the upstreams answered %d and %d calls", n, m)
		}
		p.drain()
	})
}

// TestSlowBesideFast has an upstream that is ten times slower than another: near the end it leaves to that one
// what is left, instead of having everybody wait for it. It takes it back when the other is gone.
func TestSlowBesideFast(t *testing.T) {
	for i, test := range []struct {
		slots  int // of the slow one
		lost   bool
		within time.Duration
	}{
		{64, false, 39 * time.Second}, // the fast one alone would take 40 s, both together 36 at least
		{8, false, 42 * time.Second},
		{64, true, 90 * time.Second}, // 500 calls are left to the slow one, which does 10 a second
	} {
		if sparing(i, 3) {
			continue
		}
		bubble(t, func(b *bench) {
			fast := b.upstream(sim.Config{Timing: sim.Timing{Latency: 640 * time.Millisecond, Jitter: 0.5}}, upstream.Config{MaxInFlight: 64})
			slow := b.upstream(sim.Config{Timing: sim.Timing{Latency: 6400 * time.Millisecond, Jitter: 0.5}}, upstream.Config{MaxInFlight: test.slots})
			p := b.start()
			start := time.Now()
			id := b.run(chatAgain(4000))
			if test.lost {
				b.recorded(id, 3500)
				fast.SetDown(true)
			}
			b.want(b.ends(id), batch.Completed, 4000, 4000, 0)
			took := time.Since(start)
			b.Logf("%+v: took %v; %d calls at the fast one, %d at the slow one", test, took, fast.Calls().Answered, slow.Calls().Answered)
			if took > test.within {
				b.Errorf("it took %v, want %v at most", took, test.within)
			}
			p.drain()
		})
	}
}

// TestSuspectsHoldUpNobody lets a poisonous request bring one of two upstreams down. While it is
// tried alone at one of them, the other goes on with the rest.
func TestSuspectsHoldUpNobody(t *testing.T) {
	bubble(t, func(b *bench) {
		config := sim.Config{Timing: sim.Timing{Latency: time.Second}, Poison: "wrong"}
		one := b.upstream(config, upstream.Config{MaxInFlight: 4})
		two := b.upstream(config, upstream.Config{MaxInFlight: 4})
		text := append([]byte(line("bad", "m", "wrong")), chat(400)...)
		p := b.start()
		x := b.ends(b.run(text))
		b.want(x, batch.Completed, 401, 400, 1)
		if took := x.CompletedAt.Sub(x.InProgressAt); took > 10*time.Minute {
			b.Errorf("it took %v", took)
		}
		if n, m := one.Calls().Answered, two.Calls().Answered; n < 130 || m < 130 {
			b.Errorf("the upstreams answered %d and %d calls", n, m)
		}
		p.drain()
	})
}

// TestLateUpstream gives an upstream work as soon as it is known what it serves.
func TestLateUpstream(t *testing.T) {
	bubble(t, func(b *bench) {
		timing := sim.Timing{Latency: 10 * time.Second}
		b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 4})
		late := b.upstream(sim.Config{Timing: timing}, upstream.Config{MaxInFlight: 4})
		late.away.Store(true)
		p := b.start()
		id := b.run(chat(100))
		b.recorded(id, 8)
		late.away.Store(false)
		time.Sleep(3 * time.Second)
		if n := late.Calls().Calls; n != 4 {
			b.Errorf("3 s after it came it has had %d calls, want 4", n)
		}
		b.want(b.ends(id), batch.Completed, 100, 100, 0)
		p.drain()
	})
}

// TestUnknownModel keeps a batch waiting whose model may be one of an upstream that was not heard
// of yet, and no longer than that.
func TestUnknownModel(t *testing.T) {
	for _, test := range []struct {
		name   string
		models []sim.Model
		then   func(b *bench, id string, u *up)
		want   batch.Status
	}{
		{"it serves the model", []sim.Model{{ID: "m"}}, func(_ *bench, _ string, u *up) { u.away.Store(false) }, batch.Completed},
		{"it does not", []sim.Model{{ID: "n"}}, func(_ *bench, _ string, u *up) { u.away.Store(false) }, batch.Failed},
		{"it serves any", nil, func(_ *bench, _ string, u *up) { u.away.Store(false) }, batch.Completed},
		{"cancelled meanwhile", nil, func(b *bench, id string, _ *up) { b.cancel(id) }, batch.Cancelled},
		{"expired meanwhile", nil, func(*bench, string, *up) {}, batch.Expired},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.upstream(sim.Config{Models: []sim.Model{{ID: "other"}}}, upstream.Config{})
				late := b.upstream(sim.Config{Models: test.models}, upstream.Config{})
				late.away.Store(true)
				p := b.start()
				var ids []string
				input := b.upload(chat(10))
				for range 6 { // more than are validated at a time
					ids = append(ids, b.create(input, 8*time.Minute))
				}
				other := b.run(chat(5, "other"))
				b.want(b.ends(other), batch.Completed, 5, 5, 0) // it need not wait with them
				time.Sleep(5 * time.Minute)
				for _, id := range ids {
					x := b.look(id)
					if a := p.Activity(x); x.Status != batch.Validating || !strings.Contains(a.WaitingFor, late.Name()) {
						b.Errorf("the batch is %s and waits for %q", x.Status, a.WaitingFor)
					}
				}
				for _, id := range ids {
					test.then(b, id, late)
				}
				for _, id := range ids {
					if x := b.ends(id); x.Status != test.want {
						b.Errorf("the batch is %s, want %s", x.Status, test.want)
					}
				}
				time.Sleep(time.Minute)
				for _, id := range ids {
					if a := p.Activity(b.look(id)); a.WaitingFor != "" {
						b.Errorf("the batch has ended and waits for %q", a.WaitingFor)
					}
				}
				p.drain()
			})
		})
	}
}

// TestStrayRetryAfter has an upstream that takes everything refuse one call, and ask for an hour. It is asked
// again before that, as it has taken others all the time.
func TestStrayRetryAfter(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 16})
		var calls atomic.Int64
		u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) == 10 {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			u.Server.ServeHTTP(w, r)
		}))
		p := b.start()
		start := time.Now()
		b.want(b.ends(b.run(chat(100))), batch.Completed, 100, 100, 0)
		if took := time.Since(start); took > 2*time.Minute {
			b.Errorf("it took %v, want 2 minutes at most", took)
		}
		p.drain()
	})
}
