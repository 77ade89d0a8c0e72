package engine_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// wantNever checks that n requests of the batch were never executed, and that the results say so.
func (b *bench) wantNever(x batch.Batch, n int64) {
	b.Helper()
	never := int64(0)
	for _, r := range b.results(x.ID) {
		if r.never() {
			never++
		}
	}
	if never != n || x.Counts.Completed+x.Counts.Failed+never != x.Counts.Total {
		b.Errorf("%d lines tell of requests that were not executed, want %d; counts %+v", never, n, x.Counts)
	}
}

// TestCancel cancels a batch with calls in flight. Those that end within the grace are recorded,
// the others are cut, and nothing more is sent.
func TestCancel(t *testing.T) {
	for _, test := range []struct {
		latency time.Duration
		within  time.Duration
		done    int64
	}{
		{time.Second, 3 * time.Second, 16},
		{2 * time.Minute, 3 * time.Minute, 8},
		{time.Hour, 6 * time.Minute, 0},
	} {
		t.Run(test.latency.String(), func(t *testing.T) {
			t.Parallel()
			bubble(t, func(b *bench) {
				u := b.upstream(sim.Config{Timing: sim.Timing{Latency: test.latency}}, upstream.Config{MaxInFlight: 8})
				p := b.start(small(10))
				id := b.run(chat(100))
				time.Sleep(1500 * time.Millisecond)
				b.cancel(id)
				if x := b.look(id); x.Status != batch.Cancelling {
					b.Fatalf("the batch is %s", x.Status)
				}
				x := b.ends(id)
				b.want(x, batch.Cancelled, 100, test.done, 0)
				b.wantNever(x, 100-test.done)
				if took := x.CancelledAt.Sub(x.CancellingAt); took > test.within {
					b.Errorf("it took %v, want %v at most", took, test.within)
				}
				if calls := u.Calls().Calls; calls > int(test.done)+8 {
					b.Errorf("%d calls for %d answers", calls, test.done)
				}
				p.drain()
			})
		})
	}
}

// TestCancelAnytime cancels batches at many moments of their life.
func TestCancelAnytime(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: 100 * time.Millisecond, Jitter: 0.9}}, upstream.Config{MaxInFlight: 8})
		p := b.start(small(4))
		input := b.upload(chat(24, "m", "n"))
		seen := map[batch.Status]int{}
		step := 10 * time.Millisecond
		if race {
			step *= 8
		}
		for after := time.Duration(0); after < 450*time.Millisecond; after += step {
			id := b.create(input, time.Hour)
			time.Sleep(after)
			x := b.look(id)
			seen[x.Status]++
			if !x.Status.Terminal() {
				b.cancel(id)
			}
			if x = b.ends(id); x.Status != batch.Cancelled && x.Status != batch.Completed {
				b.Errorf("cancelled after %v the batch is %s", after, x.Status)
			}
		}
		b.Logf("cancelled when it was: %v", seen)
		p.drain()
	})
}

// TestCancelWhileClaimed cancels a batch between the moments at which its segment is claimed and
// at which its requests could be sent.
func TestCancelWhileClaimed(t *testing.T) {
	for _, op := range []string{"blob.Open", "blob.Read", "JournalSeqs", "Record", "Seal"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(b *bench) {
				u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{})
				id := b.create(b.upload(chat(10)), time.Hour)
				f := newFaults(nil)
				var once atomic.Bool
				f.before = func(o string, _ int) {
					if o != op || once.Load() {
						return
					}
					x, err := b.store.Batch(b.Context(), batch.DefaultProject, id)
					if err != nil || x.Status != batch.InProgress || !once.CompareAndSwap(false, true) {
						return
					}
					if _, err := b.store.CancelBatch(b.Context(), batch.DefaultProject, id); err != nil {
						b.Error(err)
					}
				}
				p := b.start(f.in, small(5))
				x := b.ends(id)
				if x.Status != batch.Cancelled || !once.Load() {
					b.Errorf("the batch is %s; cancelled: %v", x.Status, once.Load())
				}
				if op == "Seal" && u.Calls().Calls != 10 {
					b.Errorf("%d calls were made", u.Calls().Calls)
				}
				p.drain()
			})
		})
	}
}

// TestCancelWhileFinalizing turns a completion into a cancellation in its last moment. Every
// answer is there all the same.
func TestCancelWhileFinalizing(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{}, upstream.Config{})
		var free atomic.Bool
		f := newFaults(func(op string, _, _ int) fate {
			if op == "Finalize" && !free.Load() {
				return lost
			}
			return done
		})
		p := b.start(f.in)
		id := b.run(chat(10))
		b.until(id, "finalizing", func(x batch.Batch) bool { return x.Status == batch.Finalizing })
		b.cancel(id)
		time.Sleep(time.Second)
		free.Store(true)
		x := b.ends(id)
		b.want(x, batch.Cancelled, 10, 10, 0)
		b.wantNever(x, 0)
		p.drain()
	})
}

// TestDeadline lets the deadline pass in every situation. The batch is terminal within minutes.
func TestDeadline(t *testing.T) {
	for i, test := range []struct {
		name   string
		sim    sim.Config
		up     upstream.Config
		before func(b *bench, id string, u *up) // done before the deadline, a minute after the start
		status batch.Status
		ran    bool
		within time.Duration // after the deadline
	}{
		{"in the middle", sim.Config{Timing: sim.Timing{Latency: 20 * time.Second}}, upstream.Config{}, nil, batch.Expired, true, time.Minute},
		{"with calls that hang", sim.Config{Faults: sim.Faults{Hang: 0.5}}, upstream.Config{}, nil, batch.Expired, true, 6 * time.Minute},
		{"while the upstream is away", sim.Config{Timing: sim.Timing{Latency: 20 * time.Second}}, upstream.Config{},
			func(_ *bench, _ string, u *up) { u.away.Store(true) }, batch.Expired, true, time.Minute},
		{"while it refuses", sim.Config{Timing: sim.Timing{Latency: 20 * time.Second}}, upstream.Config{},
			func(_ *bench, _ string, u *up) { u.refuse(401) }, batch.Expired, true, time.Minute},
		{"while it throttles", sim.Config{Faults: sim.Faults{Throttle: 1}, RetryAfter: time.Hour}, upstream.Config{}, nil, batch.Expired, true, time.Minute},
		{"cancelled before", sim.Config{Timing: sim.Timing{Latency: time.Hour}}, upstream.Config{},
			func(b *bench, id string, _ *up) { time.Sleep(90 * time.Second); b.cancel(id) }, batch.Cancelled, true, 6 * time.Minute},
	} {
		if sparing(i, 2) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(b *bench) {
				test.up.MaxInFlight, test.up.Models = 4, []string{"m"}
				u := b.upstream(test.sim, test.up)
				p := b.start(small(10))
				input := b.upload(chat(40))
				id := b.create(input, 3*time.Minute)
				deadline := time.Now().Add(3 * time.Minute)
				time.Sleep(time.Minute)
				if test.before != nil {
					test.before(b, id, u)
				}
				x := b.ends(id)
				if x.Status != test.status {
					b.Errorf("the batch is %s, want %s", x.Status, test.status)
				}
				b.wantNever(x, 40-x.Counts.Completed-x.Counts.Failed)
				if late := time.Since(deadline); late < 0 || late > test.within {
					b.Errorf("the batch ended %v after its deadline, want at most %v", late, test.within)
				}
				p.drain()
			})
		})
	}
}

// TestCancelAfterDeadline wants a cancel to change nothing once the deadline has passed.
func TestCancelAfterDeadline(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: 2 * time.Minute}}, upstream.Config{MaxInFlight: 4})
		p := b.start(small(5))
		id := b.create(b.upload(chat(20)), time.Minute)
		b.until(id, "finalizing", func(x batch.Batch) bool { return x.Status == batch.Finalizing })
		b.cancel(id)
		x := b.ends(id)
		b.want(x, batch.Expired, 20, 4, 0)
		b.wantNever(x, 16)
		p.drain()
	})
}

// TestExpireBeforeStart lets deadlines pass while no process runs.
func TestExpireBeforeStart(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: 10 * time.Second}}, upstream.Config{MaxInFlight: 4})
		p := b.start(small(5))
		half := b.create(b.upload(chat(20)), time.Hour)
		b.recorded(half, 4)
		p.drain()
		calls := u.Calls().Calls
		unseen := b.create(b.upload(chat(20)), time.Hour)
		time.Sleep(2 * time.Hour)
		p = b.start()
		x := b.ends(half)
		b.want(x, batch.Expired, 20, 8, 0)
		b.wantNever(x, 12)
		b.want(b.ends(unseen), batch.Expired, 0, 0, 0)
		if n := u.Calls().Calls; n != calls {
			b.Errorf("%d calls were made after the deadline", n-calls)
		}
		p.drain()
	})
}

// TestEndingIsBounded cancels a batch of many segments, and wants only a few of them in memory at
// a time.
func TestEndingIsBounded(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{}, upstream.Config{Models: []string{"m"}})
		u.away.Store(true)
		var claimed, sealed, most atomic.Int64
		f := newFaults(nil)
		f.before = func(op string, _ int) {
			switch op {
			case "Claim":
				claimed.Add(1)
				most.Store(max(most.Load(), claimed.Load()-sealed.Load()))
			case "Seal":
				sealed.Add(1)
			}
		}
		p := b.start(f.in, small(5), func(c *engine.Config) { c.Memory = 1 })
		id := b.run(chat(200))
		b.until(id, "in progress", func(x batch.Batch) bool { return x.Status == batch.InProgress })
		b.cancel(id)
		x := b.ends(id)
		b.want(x, batch.Cancelled, 200, 0, 0)
		b.wantNever(x, 200)
		if n := most.Load(); n > 8 {
			b.Errorf("%d segments were held at a time", n)
		}
		if took := x.CancelledAt.Sub(x.CancellingAt); took > 30*time.Second {
			b.Errorf("it took %v", took)
		}
		p.drain()
	})
}

// TestManyLanes runs an input of which every line has a model of its own: the memory it takes does
// not grow with that.
func TestManyLanes(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 4})
		var models []string
		for i := range 60 {
			models = append(models, fmt.Sprintf("m%d", i))
		}
		p := b.start(small(30))
		id := b.run(chat(60, models...))
		b.want(b.ends(id), batch.Completed, 60, 60, 0)
		p.drain()
	})
}
