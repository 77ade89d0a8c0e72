package engine_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/store"
	"offpeak/internal/upstream"
)

// TestLostLeases takes the segments away from under a process that works on them, again and again.
// It may claim them anew, and does; what it did under its former claims counts as far as it was
// recorded before, and no further.
func TestLostLeases(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.9}, Faults: sim.Faults{Error: 0.1, Attempts: 1}},
			upstream.Config{MaxInFlight: 6})
		p := b.start(small(9))
		id := b.run(chat(90, "m", "n"))
		cancelled := b.run(chat(30))
		for i := range 15 {
			time.Sleep(time.Duration(i) * 137 * time.Millisecond)
			b.steal()
			b.wake()
			b.examine()
			if i == 7 {
				b.cancel(cancelled)
			}
		}
		b.want(b.ends(id), batch.Completed, 90, 90, 0)
		b.ends(cancelled)
		b.Logf("%d calls", u.Calls().Calls)
		p.drain()
	})
}

// TestLostInSilence takes a segment away while its calls hang, so that its owner does not notice
// before it is given the segment again.
func TestLostInSilence(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Faults: sim.Faults{Hang: 1, Attempts: 2}}, upstream.Config{MaxInFlight: 64, Timeout: 10 * time.Minute})
		p := b.start(small(5))
		id := b.run(chat(20))
		for range 2 {
			time.Sleep(time.Minute)
			b.steal()
		}
		b.want(b.ends(id), batch.Completed, 20, 20, 0)
		p.drain()
		b.wantFree()
	})
}

// robbedAt returns a hook that has a thief take everything before the first such operation, and the process
// look around for more.
func (b *bench) robbedAt(first string) func(op string, n int) {
	return func(op string, n int) {
		if op != first || n != 1 {
			return
		}
		if _, err := b.store.Join(b.Context(), "thief"); err != nil {
			b.Error(err)
		}
		b.wake()
	}
}

// TestLostAtTheEnd takes a segment away while its last results are recorded, so that its owner finds
// out when it is about to seal it.
func TestLostAtTheEnd(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 8})
		f := newFaults(nil)
		f.before = b.robbedAt("Record")
		p := b.start(f.in)
		b.want(b.ends(b.run(chat(5))), batch.Completed, 5, 5, 0)
		p.drain()
	})
}

// TestLostOnTheWay takes a segment away while its first results are recorded. Nothing more of it is sent
// under the old claim: of what is not recorded every request costs a call.
func TestLostOnTheWay(t *testing.T) {
	bubble(t, func(b *bench) {
		const lines, atATime = 200, 4
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: atATime})
		f := newFaults(nil)
		f.before = b.robbedAt("Record")
		p := b.start(f.in)
		b.want(b.ends(b.run(chat(lines))), batch.Completed, lines, lines, 0)
		if calls := u.Calls().Calls; calls > lines+3*atATime {
			b.Errorf("%d calls for %d requests, of which %d were in flight when they were lost", calls, lines, atATime)
		}
		p.drain()
	})
}

// TestLostWhileOthersAreRecorded takes everything away while results of one segment are recorded, again and
// again in vain, and those of another wait behind them. Its owner holds that one by a new claim before
// it comes to them: they are void, and cost the new claim nothing.
func TestLostWhileOthersAreRecorded(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 5})
		var stuck atomic.Bool
		stuck.Store(true)
		p := b.start(small(5), newFaults(func(op string, _, _ int) fate {
			if op == "Record" && stuck.Load() {
				return lost
			}
			return done
		}).in)
		text := chat(10)
		id := b.run(text)
		time.Sleep(2500 * time.Millisecond)
		b.steal()
		b.wake()
		time.Sleep(2500 * time.Millisecond) // both are answered again
		stuck.Store(false)
		b.want(b.ends(id), batch.Completed, 10, 10, 0)
		b.wantCalls(text, 2)
		p.drain()
	})
}

// TestLostWhileSealing takes a segment away between two attempts to seal it. The next owner is done
// with it before the former one looks again, and finds no journal.
func TestLostWhileSealing(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{})
		f := newFaults(func(op string, n, _ int) fate {
			if op == "blob.Create" && n == 1 {
				return lost
			}
			return done
		})
		f.before = b.robbedAt("blob.Create")
		p := b.start(f.in)
		b.want(b.ends(b.run(chat(5))), batch.Completed, 5, 5, 0)
		time.Sleep(time.Minute)
		p.drain()
	})
}

// TestStrayOfWhatWasLost takes a segment away while its calls hang, and loses the reply to the claim
// that takes it again. So the process holds by a claim that it does not know of what it believes to
// hold by another.
func TestStrayOfWhatWasLost(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Minute}}, upstream.Config{})
		var next atomic.Bool
		p := b.start(newFaults(func(op string, _, _ int) fate {
			if op == "Claim" && next.CompareAndSwap(true, false) {
				return untold
			}
			return done
		}).in)
		id := b.run(chat(5))
		time.Sleep(10 * time.Second)
		next.Store(true)
		b.steal()
		b.wake()
		b.want(b.ends(id), batch.Completed, 5, 5, 0)
		p.drain()
	})
}

// TestStrayBatchOfWhatWasLost is the same for a batch in validation.
func TestStrayBatchOfWhatWasLost(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{}, upstream.Config{})
		var next atomic.Bool
		f := newFaults(func(op string, n, _ int) fate {
			switch {
			case op == "blob.Read" && n == 1:
				return lost // it is to be tried again, a second later
			case op == "ClaimValidating" && next.CompareAndSwap(true, false):
				return untold
			}
			return done
		})
		p := b.start(f.in, func(c *engine.Config) { *c = c.WithPoll(100 * time.Millisecond) })
		id := b.run(chat(5))
		time.Sleep(10 * time.Millisecond)
		next.Store(true)
		b.steal()
		b.want(b.ends(id), batch.Completed, 5, 5, 0)
		p.drain()
	})
}

// TestUnreadableInput loses the bytes of some inputs for a while. Other batches do not feel it, and
// nothing is lost once the bytes are back.
func TestUnreadableInput(t *testing.T) {
	aboutFolders(t)
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 4})
		blobs, away := filepath.Join(b.dir, "blobs"), filepath.Join(b.dir, "away")
		hide := func(from, to string, input string) {
			f, err := b.store.File(b.Context(), batch.DefaultProject, input)
			if err != nil {
				b.Fatal(err)
			}
			for _, part := range f.Parts {
				name := filepath.Join(part.Key[:2], part.Key)
				if err := os.MkdirAll(filepath.Join(to, part.Key[:2]), 0o700); err != nil {
					b.Fatal(err)
				}
				if err := os.Rename(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
					b.Fatal(err)
				}
			}
		}
		p := b.start(small(5))
		running := b.upload(chat(60))
		first := b.create(running, time.Hour)
		b.recorded(first, 6)
		hide(blobs, away, running)
		var unread []string
		for range 5 { // more than are validated at a time
			input := b.upload(chat(4))
			hide(blobs, away, input)
			unread = append(unread, input)
		}
		var waiting []string
		for _, input := range unread {
			waiting = append(waiting, b.create(input, time.Hour))
		}
		start := time.Now()
		b.want(b.ends(b.run(chat(20))), batch.Completed, 20, 20, 0)
		if took := time.Since(start); took > 20*time.Second {
			b.Errorf("beside unreadable inputs a batch took %v", took)
		}
		b.cancel(waiting[0])
		hide(away, blobs, running)
		for _, input := range unread {
			hide(away, blobs, input)
		}
		b.want(b.ends(first), batch.Completed, 60, 60, 0)
		for _, id := range waiting[1:] {
			b.want(b.ends(id), batch.Completed, 4, 4, 0)
		}
		p.drain()
	})
}

// TestInputDeleted deletes inputs of batches: of one in validation, which fails, and of one that
// runs, which goes on.
func TestInputDeleted(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 4})
		running, waiting := b.upload(chat(40)), b.upload(chat(40))
		remove := func(id string) {
			if err := b.store.DeleteFile(b.Context(), batch.DefaultProject, id); err != nil {
				b.Error(err)
			}
		}
		f := newFaults(nil)
		var once atomic.Bool
		f.before = func(op string, n int) {
			if op == "Admit" && n == 2 && once.CompareAndSwap(false, true) {
				remove(waiting)
			}
		}
		p := b.start(f.in, small(5))
		first := b.create(running, time.Hour)
		b.recorded(first, 1)
		remove(running)
		x := b.ends(b.create(waiting, time.Hour))
		b.want(x, batch.Failed, 0, 0, 0)
		if len(x.Errors) != 1 || !strings.Contains(x.Errors[0].Message, waiting) {
			b.Errorf("errors %+v, want one about the file %s", x.Errors, waiting)
		}
		b.want(b.ends(first), batch.Completed, 40, 40, 0)
		for _, id := range []string{running, "file-none"} {
			x := b.ends(b.create(id, time.Hour))
			b.want(x, batch.Failed, 0, 0, 0)
		}
		p.drain()
	})
}

// TestPartsSwept keeps a segment from being sealed for so long that its parts are taken for
// abandoned. They are written anew.
func TestPartsSwept(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{}, upstream.Config{})
		f := newFaults(nil)
		f.before = func(op string, n int) {
			if op != "Seal" || n > 2 {
				return
			}
			b.ahead.Add(int64(store.PendingFor))
			if _, err := b.store.Sweep(b.Context()); err != nil {
				b.Error(err)
			}
			b.ahead.Add(-int64(store.PendingFor))
		}
		p := b.start(f.in)
		b.want(b.ends(b.run(chat(10))), batch.Completed, 10, 10, 0)
		if n := f.counts()["Seal"]; n != 3 {
			b.Errorf("it took %d seals, want 3", n)
		}
		p.drain()
	})
}

// TestClockStepsBack turns the store's clock back by an hour now and then.
func TestClockStepsBack(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 4})
		var log bytes.Buffer
		p := b.start(small(5), func(c *engine.Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		early := b.batch(b.upload(chat(3)), 24*time.Hour)
		early.CreatedAt = early.CreatedAt.Add(time.Hour) // by the clock as it was
		if err := b.store.CreateBatch(b.Context(), early); err != nil {
			b.Fatal(err)
		}
		b.owner[early.ID] = early.Project
		id, cancelled := b.run(chat(30)), b.run(chat(30))
		back := func() { b.ahead.Add(-int64(time.Hour)) }
		back()
		b.recorded(id, 3)
		back()
		b.recorded(cancelled, 3)
		b.cancel(cancelled)
		back()
		b.want(b.ends(id), batch.Completed, 30, 30, 0)
		b.ends(cancelled)
		b.want(b.ends(early.ID), batch.Completed, 3, 3, 0)
		p.drain()
		if took := regexp.MustCompile(`msg="batch ended".* dur=[^-]`).FindAllString(log.String(), -1); len(took) != 3 {
			b.Errorf("the log says of %d batches how long they took, want 3:\n%s", len(took), log.String())
		}
	})
}

// TestStopsWhileNothingWorks ends processes while one operation, or all of them, fail for good.
func TestStopsWhileNothingWorks(t *testing.T) {
	for i, op := range []string{"", "Seal", "blob.Commit", "Claim", "Finalize", "Admit", "Release", "Unclaimed"} {
		if sparing(i, 4) {
			continue
		}
		t.Run("without "+op, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.5}}, upstream.Config{MaxInFlight: 4})
				var broken atomic.Bool
				f := newFaults(func(o string, _, _ int) fate {
					if broken.Load() && (op == "" || o == op) {
						return lost
					}
					return done
				})
				p := b.start(f.in, small(5))
				id := b.run(chat(40))
				b.recorded(id, 7)
				broken.Store(true)
				b.create(b.upload(chat(3)), time.Hour)
				time.Sleep(10 * time.Second)
				start := time.Now()
				p.stop()
				<-p.ended
				if took := time.Since(start); took > 20*time.Second {
					b.Errorf("to end took %v", took)
				}
				b.examine()
				p = b.start()
				b.want(b.ends(id), batch.Completed, 40, 40, 0)
				p.drain()
			})
		})
	}
}

// TestResume wants work to go on within a second after a process died.
func TestResume(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: 10 * time.Second}}, upstream.Config{MaxInFlight: 4})
		p := b.start(small(5))
		id := b.run(chat(40))
		time.Sleep(time.Second)
		if n := u.Calls().Calls; n != 4 {
			b.Errorf("%d calls within a second, want 4", n)
		}
		b.recorded(id, 4)
		p.die()
		calls := u.Calls().Calls
		p = b.start(small(5))
		time.Sleep(time.Second)
		if n := u.Calls().Calls - calls; n != 4 {
			b.Errorf("%d calls within a second of the restart, want 4", n)
		}
		b.want(b.ends(id), batch.Completed, 40, 40, 0)
		p.drain()
	})
}

// TestSegments bounds segments by lines and by bytes.
func TestSegments(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{}, upstream.Config{Models: []string{"m", "n"}})
		u.away.Store(true)
		var text strings.Builder
		text.Write(chat(2500, "m", "n"))
		for i, mib := range []int{5, 5, 9, 3, 3} {
			text.WriteString(line(fmt.Sprintf("long-%d", i), "m", strings.Repeat("x", mib<<20)))
		}
		p := b.start()
		id := b.run([]byte(text.String()))
		b.until(id, "in progress", func(x batch.Batch) bool { return x.Status == batch.InProgress })
		if large := query[int64](b, "SELECT id FROM segments WHERE total > 1000 OR byte_length > 8 << 20 AND total > 1"); len(large) > 0 {
			b.Errorf("segments %v are too large", large)
		}
		if n := query[int64](b, "SELECT count(*) FROM segments WHERE batch_id = $1", id)[0]; n < 7 || n > 11 {
			b.Errorf("%d segments", n)
		}
		p.drain()
	})
}
