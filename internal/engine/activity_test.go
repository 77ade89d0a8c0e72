package engine_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// waitsFor checks what the batch waits for, as a pattern.
func (p *process) waitsFor(id, pattern string) {
	p.b.Helper()
	a := p.Activity(p.b.look(id))
	if !regexp.MustCompile("^" + pattern + "$").MatchString(a.WaitingFor) {
		p.b.Errorf("it waits for %q, want %q", a.WaitingFor, pattern)
	}
	if pattern != "" && !strings.Contains(pattern, "limit") && !a.ETA.IsZero() {
		p.b.Errorf("it waits for %q, and is done at %v", a.WaitingFor, a.ETA)
	}
}

const clock = `\d\d:\d\d:\d\d`

// TestWaitingFor has batches wait for everything that there is to wait for.
func TestWaitingFor(t *testing.T) {
	second := sim.Config{Timing: sim.Timing{Latency: time.Second}}
	for _, test := range []struct {
		name string
		run  func(b *bench)
	}{
		{"nothing", func(b *bench) {
			b.upstream(second, upstream.Config{MaxInFlight: 4})
			p := b.start()
			id := b.run(chat(100))
			time.Sleep(5 * time.Second)
			p.waitsFor(id, "")
		}},
		{"its upstream", func(b *bench) {
			u := b.upstream(second, upstream.Config{MaxInFlight: 4, Models: []string{"m"}})
			u.away.Store(true)
			p := b.start()
			id := b.run(chat(10))
			time.Sleep(5 * time.Second)
			p.waitsFor(id, `lane m: upstream http://up0/v1 down since `+clock+`: .*connection refused`)
			u.away.Store(false)
		}},
		{"an answer of its upstream", func(b *bench) {
			u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Minute}}, upstream.Config{MaxInFlight: 1, Models: []string{"m"}})
			u.away.Store(true)
			p := b.start()
			id := b.run(chat(10))
			time.Sleep(5 * time.Second)
			u.away.Store(false)
			time.Sleep(30 * time.Second)
			p.waitsFor(id, `lane m: upstream http://up0/v1 down since `+clock+`: .*connection refused`)
			if a := p.Activity(b.look(id)); a.InFlight != 1 {
				b.Errorf("%d in flight, want the one that is to find out", a.InFlight)
			}
			time.Sleep(time.Minute)
			p.waitsFor(id, "")
		}},
		{"all upstreams", func(b *bench) {
			one := b.upstream(second, upstream.Config{MaxInFlight: 4, Models: []string{"m"}})
			two := b.upstream(second, upstream.Config{MaxInFlight: 4, Models: []string{"m"}})
			one.away.Store(true)
			p := b.start()
			id := b.run(chat(100))
			time.Sleep(5 * time.Second)
			p.waitsFor(id, "") // the other one does it
			two.SetDown(true)
			time.Sleep(5 * time.Second)
			p.waitsFor(id, `lane m: all upstreams unreachable since `+clock+`: .*`)
			two.SetDown(false)
			one.away.Store(false)
		}},
		{"one of its lanes", func(b *bench) {
			b.upstream(second, upstream.Config{MaxInFlight: 4, Models: []string{"m"}})
			dead := b.upstream(second, upstream.Config{MaxInFlight: 4, Models: []string{"dead"}})
			dead.away.Store(true)
			p := b.start()
			id := b.run(chat(100, "m", "dead"))
			time.Sleep(5 * time.Second)
			p.waitsFor(id, `lane dead: upstream http://up1/v1 down since `+clock+`: .*connection refused`)
			dead.away.Store(false)
		}},
		{"a model that nobody serves any more", func(b *bench) {
			u := b.upstream(second, upstream.Config{MaxInFlight: 1, Models: []string{"m"}})
			other := b.upstream(second, upstream.Config{MaxInFlight: 4, Models: []string{"n"}})
			p := b.start()
			id := b.run(chat(100))
			b.recorded(id, 3)
			p.pool.Replace(other.Upstream)
			time.Sleep(5 * time.Second)
			p.waitsFor(id, `lane m: no upstream serves it`)
			p.pool.Replace(u.Upstream)
		}},
		{"another attempt", func(b *bench) {
			u := b.upstream(second, upstream.Config{MaxInFlight: 1, Models: []string{"m"}})
			u.handle(front(u, func([]byte) int { return 500 }))
			p := b.start()
			id := b.run(append([]byte(line("a", "m", "right")), line("b", "m", "wrong")...))
			b.recorded(id, 1)
			for a := p.Activity(b.look(id)); a.WaitingFor == ""; a = p.Activity(b.look(id)) {
				time.Sleep(10 * time.Millisecond)
			}
			p.waitsFor(id, `lane m: upstream http://up0/v1 fails, trying again: .*500.*`)
			u.handle(u.Server)
		}},
		{"throttling", func(b *bench) {
			u := b.upstream(sim.Config{Faults: sim.Faults{Throttle: 1}, RetryAfter: time.Minute}, upstream.Config{MaxInFlight: 4, Models: []string{"m"}})
			p := b.start()
			id := b.run(chat(20))
			time.Sleep(10 * time.Second)
			p.waitsFor(id, `lane m: throttled by http://up0/v1 until `+clock)
			if n := u.Calls().Calls; n > 8 {
				b.Errorf("%d calls while it asks everybody to wait for a minute", n)
			}
			if s := p.Upstreams()[0]; !s.ThrottledUntil.After(time.Now()) || !s.Healthy {
				b.Errorf("the upstream throttles until %v, healthy %v", s.ThrottledUntil, s.Healthy)
			}
			u.handle(sim.New(sim.Config{}))
		}},
		{"its limit", func(b *bench) {
			b.upstream(second, upstream.Config{MaxInFlight: 50, Models: []string{"m"}, Limits: upstream.Limits{RequestsPerMinute: 10}})
			p := b.start()
			id := b.run(chat(25))
			time.Sleep(30 * time.Second)
			p.waitsFor(id, `lane m: limit of 10 requests a minute at http://up0/v1`)
		}},
		{"its limit of tokens", func(b *bench) {
			b.upstream(second, upstream.Config{MaxInFlight: 50, Models: []string{"m"}, Limits: upstream.Limits{TokensPerMinute: 2000}})
			p := b.start()
			id := b.run(stating(chat(60)))
			time.Sleep(30 * time.Second)
			p.waitsFor(id, `lane m: limit of 2000 tokens a minute at http://up0/v1`)
			if s := p.Upstreams()[0]; !s.LimitedUntil.After(time.Now()) || !s.Healthy {
				b.Errorf("the upstream is limited until %v, healthy %v", s.LimitedUntil, s.Healthy)
			}
		}},
		{"other batches", func(b *bench) {
			b.upstream(sim.Config{Timing: sim.Timing{Latency: 10 * time.Second}}, upstream.Config{MaxInFlight: 1, Models: []string{"m"}})
			p := b.start()
			first := b.run(chat(3))
			time.Sleep(time.Second)
			second := b.run(chat(3))
			time.Sleep(time.Second)
			p.waitsFor(first, "")
			p.waitsFor(second, `behind another batch of this project`)
			for range 9 {
				b.run(chat(1))
			}
			last := b.run(chat(1))
			time.Sleep(time.Second)
			p.waitsFor(last, `behind 8 batches of this project`)
			b.as("another", 1)
			foreign := b.run(chat(1))
			time.Sleep(time.Second)
			p.waitsFor(foreign, `lane m: busy with other work`)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				test.run(b)
				for id := range b.seen {
					b.ends(id)
					if a := b.running.Load().Activity(b.look(id)); a != (batch.Activity{}) {
						b.Errorf("at its end there is %+v", a)
					}
				}
				b.running.Load().drain()
			})
		})
	}
}

// TestETA asks at a tenth, at half and at nine tenths of a batch of answers with a long tail when it
// is going to end, while another batch comes and goes.
func TestETA(t *testing.T) {
	for i, test := range []struct {
		name  string
		other int // requests of another batch, which starts with it
		text  []byte
	}{
		{"alone", 0, chat(2000)},
		{"beside another", 3000, chat(2000)},
		{"two models", 0, chat(2000, "m", "slow")},
	} {
		if sparing(i, 3) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				// Of 32 tokens and 50 ms for each; one in a hundred takes 15 times that.
				slow := &sim.Timing{Decode: 150 * time.Millisecond}
				b.upstream(sim.Config{
					Timing: sim.Timing{Decode: 50 * time.Millisecond}, MedianTokens: 32, P99Tokens: 480, Slots: 32,
					Models: []sim.Model{{ID: "m"}, {ID: "slow", Timing: slow}},
				}, upstream.Config{MaxInFlight: 32})
				p := b.start(small(200))
				time.Sleep(time.Second)
				id := b.run(test.text)
				if test.other > 0 {
					b.run(chat(test.other))
				}
				b.recorded(id, 1)
				start := time.Now()
				etas := map[int64]time.Time{}
				asked := map[int64]time.Time{}
				for _, percent := range []int64{10, 50, 90} {
					b.recorded(id, 20*percent)
					a := p.Activity(b.look(id))
					etas[percent], asked[percent] = a.ETA, time.Now()
					if a.AtRisk {
						b.Errorf("at %d %% it is at risk", percent)
					}
				}
				x := b.ends(id)
				for percent, eta := range etas {
					miss := eta.Sub(x.CompletedAt)
					share := miss.Seconds() / x.CompletedAt.Sub(start).Seconds()
					b.Logf("at %d %%: off by %v, %.0f %% of the whole, %.0f %% of what was left", percent, miss.Round(time.Second), 100*share,
						100*miss.Seconds()/x.CompletedAt.Sub(asked[percent]).Seconds())
					// What 200 of these answers come to on average is off by 12 % of what all do, as a rule.
					most := 0.25
					if percent == 10 {
						most = 3 * 0.12
					}
					if max(share, -share) > most {
						b.Errorf("at %d %% the estimate is off by %v of %v", percent, miss, x.CompletedAt.Sub(start))
					}
				}
				for other := range b.seen {
					b.ends(other)
				}
				p.drain()
			})
		})
	}
}

// TestETAWithinLimits: where a limit a minute is what holds a batch up, that is when it will be done.
func TestETAWithinLimits(t *testing.T) {
	for i, test := range []struct {
		name   string
		limits upstream.Limits
		other  int // requests of another batch
		weight int // of the project that this is of; 0: of the same
	}{
		{"requests", upstream.Limits{RequestsPerMinute: 60}, 0, 0},
		{"tokens", upstream.Limits{TokensPerMinute: 6000}, 0, 0},
		{"beside another", upstream.Limits{RequestsPerMinute: 60}, 300, 0},
		{"beside one of more weight", upstream.Limits{RequestsPerMinute: 60}, 1500, 3},
	} {
		if sparing(i, 2) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}, MedianTokens: 50, P99Tokens: 100}, upstream.Config{MaxInFlight: 50, Limits: test.limits})
				p := b.start()
				start := time.Now()
				id := b.create(b.upload(stating(chat(600))), 3*time.Minute+24*time.Hour)
				if test.other > 0 {
					if test.weight > 0 {
						b.as("other", test.weight)
					}
					b.run(stating(chat(test.other)))
				}
				told := map[time.Duration]time.Time{}
				for _, at := range []time.Duration{5 * time.Second, 50 * time.Second, 90 * time.Second, 200 * time.Second} {
					time.Sleep(at - time.Since(start))
					told[at] = p.Activity(b.look(id)).ETA
				}
				x := b.ends(id)
				for at, eta := range told {
					took := x.CompletedAt.Sub(start)
					if miss := eta.Sub(x.CompletedAt).Abs(); miss > max(time.Minute, took/5) {
						b.Errorf("after %v it is off by %v of %v", at, miss, took)
					}
				}
				for other := range b.seen {
					b.ends(other)
				}
				p.drain()
			})
		})
	}
}

// TestAtRisk tells that a batch is going to miss its deadline.
func TestAtRisk(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 4})
		p := b.start()
		late := b.create(b.upload(chat(1000)), time.Minute)
		time.Sleep(10500 * time.Millisecond) // between two answers
		x := b.look(late)
		if a := p.Activity(x); !a.AtRisk || !a.ETA.After(x.ExpiresAt) || a.InFlight != 4 || fmt.Sprintf("%.0f", a.Rate) != "4" {
			b.Errorf("the batch takes 250 s and has 60: %+v", a)
		}
		b.ends(late)
		p.drain()
	})
}
