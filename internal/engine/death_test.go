package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// TestDrain ends processes in the middle of their work. Calls in flight end, and nothing is sent
// twice.
func TestDrain(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: 5 * time.Second, Jitter: 0.9}}, upstream.Config{MaxInFlight: 8})
		text := chat(100, "m", "n")
		id := b.run(text)
		for n := int64(1); n < 100; n += 23 {
			p := b.start(small(15))
			b.recorded(id, n)
			start := time.Now()
			p.drain()
			if took := time.Since(start); took > 11*time.Second {
				b.Errorf("to drain took %v", took)
			}
			b.wantFree()
		}
		p := b.start(small(15))
		b.want(b.ends(id), batch.Completed, 100, 100, 0)
		b.wantCalls(text, 1)
		p.drain()
	})
}

// wantFree checks that nobody holds a segment, and that nobody is said to have died over one.
func (b *bench) wantFree() {
	b.Helper()
	if held := query[int64](b, "SELECT id FROM segments WHERE sealed_at IS NULL AND (token IS NOT NULL OR deaths > 0)"); len(held) > 0 {
		b.Errorf("segments are held or have seen deaths: %v", held)
	}
	if held := query[string](b, "SELECT id FROM batches WHERE status = 'validating' AND token IS NOT NULL"); len(held) > 0 {
		b.Errorf("batches are held: %v", held)
	}
}

// TestDrainTimeout ends a process with calls that take longer than anybody wants to wait.
func TestDrainTimeout(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(p *process)
		most time.Duration
	}{
		{"drain", func(p *process) { p.stop() }, 31 * time.Second},
		{"abort", func(p *process) { p.stop(); time.Sleep(time.Second); p.abort() }, 2 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.upstream(sim.Config{Timing: sim.Timing{Latency: 2 * time.Minute}}, upstream.Config{MaxInFlight: 4})
				p := b.start(small(5))
				text := chat(8)
				id := b.run(text)
				time.Sleep(time.Minute)
				start := time.Now()
				test.end(p)
				if err := <-p.ended; err != nil {
					b.Errorf("Run() = %v", err)
				}
				if took := time.Since(start); took > test.most {
					b.Errorf("it took %v, want %v at most", took, test.most)
				}
				b.examine()
				b.wantFree()
				p = b.start()
				b.want(b.ends(id), batch.Completed, 8, 8, 0)
				p.drain()
			})
		})
	}
}

// TestDrainWithoutDatabase ends a process while the database fails and more waits to be recorded
// than is allowed to. It ends all the same.
func TestDrainWithoutDatabase(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}, MedianTokens: 30_000, P99Tokens: 30_000, Context: 1 << 20}, upstream.Config{MaxInFlight: 20})
		id := b.create(b.upload(chat(80)), 24*time.Hour)
		f := newFaults(func(op string, n, _ int) fate {
			if op == "Record" {
				return lost
			}
			return done
		})
		p := b.start(f.in, func(c *engine.Config) { c.Drain = 20 * time.Second })
		time.Sleep(time.Minute)
		start := time.Now()
		p.stop()
		<-p.ended
		if took := time.Since(start); took > time.Minute {
			b.Errorf("to end took %v", took)
		}
		b.examine()
		b.wantFree()
		p = b.start()
		b.want(b.ends(id), batch.Completed, 80, 80, 0)
		p.drain()
	})
}

// TestStopWithoutDatabase takes the database away for a minute, from the moment that answers wait to be
// recorded, and then stops the process: it says how many answers it could not record. Its log says of
// each thing that it fails, every ten seconds at most.
func TestStopWithoutDatabase(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.9}}, upstream.Config{MaxInFlight: 40})
		text := chat(200)
		id := b.run(text)
		var away atomic.Bool
		f := newFaults(func(op string, _, _ int) fate {
			if away.Load() {
				return lost
			}
			return done
		})
		log := &lineCounter{lines: map[string]int{}}
		p := b.start(f.in, small(10), func(c *engine.Config) { c.Log = slog.New(log) })
		b.recorded(id, 40)
		away.Store(true)
		before := b.look(id).Counts.Completed
		time.Sleep(time.Minute)
		start := time.Now()
		p.stop()
		unrecorded, ok := errors.AsType[*engine.UnrecordedError](<-p.ended)
		if !ok || int64(unrecorded.Results) != int64(u.Calls().Calls)-before || !errors.Is(unrecorded, errFault) {
			b.Errorf("Run() = %v, with %d of %d answers recorded", unrecorded, before, u.Calls().Calls)
		}
		if took := time.Since(start); took > 20*time.Second {
			b.Errorf("to end took %v", took)
		}
		log.mu.Lock()
		if log.lines["claim segments"] < 6 || log.lines["record results; sending stops until that works"] < 3 {
			b.Errorf("the log does not tell what fails: %v", log.lines)
		}
		for line, n := range log.lines {
			if n > 1+int(80*time.Second/(10*time.Second)) {
				b.Errorf("in 80 s it is logged %d times: %s", n, line)
			}
		}
		log.mu.Unlock()
		b.examine()
		p = b.start(small(10))
		b.want(b.ends(id), batch.Completed, 200, 200, 0)
		p.drain()
	})
}

// TestStopWithoutBlobs stops a process that cannot seal, since the blobs are away. What it holds is given back.
func TestStopWithoutBlobs(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 4})
		text := chat(12)
		p := b.start(small(5), newFaults(func(op string, _, _ int) fate {
			if op == "blob.Create" {
				return lost
			}
			return done
		}).in)
		id := b.run(text)
		b.recorded(id, 12)
		p.stop()
		if err := <-p.ended; err != nil {
			b.Errorf("Run() = %v", err)
		}
		b.examine()
		b.wantFree()
		p = b.start(small(5))
		b.want(b.ends(id), batch.Completed, 12, 12, 0)
		b.wantCalls(text, 1)
		p.drain()
	})
}

// A lineCounter counts lines of a log by their message.
type lineCounter struct {
	mu    sync.Mutex
	lines map[string]int
}

func (c *lineCounter) Handle(_ context.Context, r slog.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines[r.Message]++
	return nil
}

func (*lineCounter) Enabled(context.Context, slog.Level) bool { return true }
func (c *lineCounter) WithAttrs([]slog.Attr) slog.Handler     { return c }
func (c *lineCounter) WithGroup(string) slog.Handler          { return c }

// TestDeaths kills one process after the other, each at some operation on its store or its blobs
// that takes effect or does not. What was recorded is never asked for again.
func TestDeaths(t *testing.T) {
	const runs = 40
	seed := uint64(time.Now().UnixNano())
	for i := range runs {
		if sparing(i, 10) {
			continue
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			bubble(t, func(b *bench) {
				b.Logf("seed %d", seed)
				dice := rand.New(rand.NewPCG(seed, uint64(i)))
				u := b.upstream(sim.Config{
					Seed: uint64(i), Timing: sim.Timing{Latency: time.Second, Jitter: 0.9},
					Faults: sim.Faults{Error: 0.05, Throttle: 0.05, Cut: 0.02, Attempts: 2}, Always400: "wrong",
				}, upstream.Config{MaxInFlight: 4})
				text := mixed(60, 10, "wrong")
				id := b.run(append(text, []byte(line("n", "n", "x"))...))
				other := b.run(chat(10))
				deaths := 0
				for !b.look(id).Status.Terminal() || !b.look(other).Status.Terminal() {
					f := newFaults(nil)
					last := 1 + dice.IntN(60)
					if deaths > 12 {
						last = 1 << 30 // enough
					}
					end := fate(1 + dice.IntN(2))
					dead := make(chan struct{})
					f.decide = func(op string, _, all int) fate {
						if all != last {
							return done
						}
						b.Logf("%d dies at operation %d, %s, %v", deaths, all, op, end == untold)
						f.die()
						close(dead)
						return end
					}
					p := b.start(f.in, small(8))
					ended := false
					for !ended {
						select {
						case <-dead:
							ended = true
						case <-time.After(time.Second):
							ended = b.look(id).Status.Terminal() && b.look(other).Status.Terminal()
						}
					}
					p.die()
					deaths++
				}
				b.want(b.look(id), batch.Completed, 61, 55, 6)
				b.want(b.look(other), batch.Completed, 10, 10, 0)
				b.Logf("%d processes, %d calls", deaths, u.Calls().Calls)
			})
		})
	}
}

// history is what a folder goes through in TestFaults: batches of every ending, a file that goes,
// and a restart.
func (b *bench) history(f *faults) {
	b.Helper()
	b.upstream(sim.Config{Timing: sim.Timing{Latency: 500 * time.Millisecond, Jitter: 0.5}, Always400: "wrong"},
		upstream.Config{MaxInFlight: 4, Models: []string{"m", "n", "q"}})
	late := b.upstream(sim.Config{Models: []sim.Model{{ID: "of late"}}}, upstream.Config{MaxInFlight: 1})
	late.away.Store(true)
	b.upload([]byte("old"))
	old := b.upload([]byte("older"))
	time.Sleep(25 * time.Hour)
	if err := b.store.DeleteFile(b.Context(), batch.DefaultProject, old); err != nil {
		b.Fatal(err)
	}
	text := mixed(24, 6, "wrong")
	long := b.run(append(text, []byte(line("n", "n", "x"))...))
	bad := b.run([]byte("nonsense\n"))
	cancelled := b.run(chat(40))
	expired := b.create(b.upload(chat(40, "q")), 5*time.Second)
	waiting := b.run(chat(2, "of late"))
	change := []func(*engine.Config){f.in, small(7), func(c *engine.Config) {
		c.KeepDeleted, c.KeepBatches = time.Second, 24*time.Hour
	}}
	p := b.serve(change...)
	time.Sleep(2 * time.Second)
	b.cancel(cancelled)
	time.Sleep(500 * time.Millisecond)
	p.end()
	late.away.Store(false)
	p = b.serve(change...)
	for id, status := range map[string]batch.Status{
		long: batch.Completed, bad: batch.Failed, cancelled: batch.Cancelled, expired: batch.Expired,
		waiting: batch.Completed,
	} {
		if x := b.ends(id); x.Status != status {
			b.Errorf("a batch is %s, want %s", x.Status, status)
		}
	}
	time.Sleep(time.Second) // of what was deleted, the second process removes the bytes
	p.end()
	b.want(b.look(long), batch.Completed, 25, 21, 4)
}

// A server starts one process after another, should one fail, as init does.
type server struct {
	b    *bench
	stop chan struct{}
	done chan struct{}
}

func (b *bench) serve(change ...func(*engine.Config)) *server {
	s := &server{b, make(chan struct{}), make(chan struct{})}
	go func() {
		defer close(s.done)
		for {
			p := b.start(change...)
			select {
			case <-p.ended:
				time.Sleep(100 * time.Millisecond)
			case <-s.stop:
				p.stop()
				<-p.ended
				return
			}
		}
	}()
	return s
}

func (s *server) end() {
	close(s.stop)
	<-s.done
	s.b.examine()
}

// TestFaults makes each operation fail once, the first time, the second and the third, with its
// effect and without. Nothing comes of it but a delay.
func TestFaults(t *testing.T) {
	ops := operations()
	called := map[string]int{}
	t.Run("none", func(t *testing.T) {
		bubble(t, func(b *bench) {
			f := newFaults(nil)
			b.history(f)
			called = f.counts()
		})
	})
	t.Log(called)
	for i, op := range ops {
		for _, how := range []fate{lost, untold} {
			for nth := 1; nth <= 3; nth++ {
				if strings.HasPrefix(op, "ReleaseStray") || op == "CountBatches" || op == "Validating" || op == "Bury" || op == "Share" || op == "Tell" {
					continue // only after another fault, beside other nodes, or never
				}
				if called[op] == 0 {
					t.Errorf("%s is never called", op)
				}
				if nth > called[op] || sparing(6*i+3*int(how)+nth, 13) {
					continue
				}
				t.Run(fmt.Sprintf("%s %d %s", op, nth, []string{"", "lost", "untold"}[how]), func(t *testing.T) {
					t.Parallel()
					bubble(t, func(b *bench) {
						struck := false
						b.history(newFaults(func(o string, n, _ int) fate {
							if o == op && n == nth {
								struck = true
								return how
							}
							return done
						}))
						if !struck {
							b.Log("this time it was not called so often")
						}
					})
				})
			}
		}
	}
}

// TestFaultsPass makes each write fail once while a single process runs from the beginning to the
// end, and wants it to come round by itself.
func TestFaultsPass(t *testing.T) {
	for i, op := range []string{
		"ClaimValidating", "Admit", "Reject", "Claim", "Record", "ReserveBlob", "blob.Create", "blob.Commit", "Seal", "Finalize",
	} {
		for _, how := range []fate{lost, untold} {
			for nth := 1; nth <= 2; nth++ {
				if sparing(4*i+2*int(how)+nth, 7) {
					continue
				}
				t.Run(fmt.Sprintf("%s %d %s", op, nth, []string{"", "lost", "untold"}[how]), func(t *testing.T) {
					t.Parallel()
					bubble(t, func(b *bench) {
						b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 4})
						p := b.start(small(5), newFaults(func(o string, n, _ int) fate {
							if o == op && n == nth {
								return how
							}
							return done
						}).in)
						text := chat(14)
						id, bad := b.run(text), b.run([]byte("nonsense\n"))
						start := time.Now()
						b.want(b.ends(id), batch.Completed, 14, 14, 0)
						b.want(b.ends(bad), batch.Failed, 0, 0, 0)
						b.wantCalls(text, 1)
						if took := time.Since(start); took > time.Minute {
							b.Errorf("it took %v", took)
						}
						p.drain()
					})
				})
			}
		}
	}
}
