package engine_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/journal"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// A tallyStore wants every group to bring as many results as it counts.
type tallyStore struct {
	engine.Store
	t testing.TB

	mu       sync.Mutex
	unpacker *journal.Unpacker
	recorded map[int64]int64 // results, by segment
	large    int             // lines of more than 1 MiB
	pieces   int             // groups with a piece of one, not the last
}

func (s *tallyStore) Record(ctx context.Context, groups []batch.Group) ([]int64, error) {
	lost, err := s.Store.Record(ctx, groups)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range groups {
		data, unpackErr := s.unpacker.Unpack(g.Data)
		if err != nil || len(lost) > 0 || unpackErr != nil {
			continue // it is repeated, or nothing of it counts
		}
		for e, err := range journal.Entries(data) {
			if err != nil {
				s.t.Error(err)
				break
			}
			if e.More {
				s.pieces++
				continue
			}
			s.recorded[g.Lease.ID]++
			if e.At+len(e.Line) > 1<<20 {
				s.large++
			}
		}
		if n := g.Tally.Completed + g.Tally.Failed; n != s.recorded[g.Lease.ID] {
			s.t.Errorf("a group of segment %d counts %d results, %d are recorded", g.Lease.ID, n, s.recorded[g.Lease.ID])
		}
	}
	return lost, err
}

// TestLargeAnswers runs a batch whose answers are of some 1 MiB, half of them more and half less: those
// in groups of their own, some in several, these in common ones. Some transactions fail, and some replies get lost.
func TestLargeAnswers(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.9}, MedianTokens: 180_000, P99Tokens: 4_000_000, Context: 1 << 23},
			upstream.Config{MaxInFlight: 20})
		s := &tallyStore{t: t, unpacker: journal.NewUnpacker(), recorded: map[int64]int64{}}
		defer s.unpacker.Close()
		f := newFaults(func(op string, n, _ int) fate {
			if op == "Record" {
				return []fate{done, lost, done, untold, done}[n%5]
			}
			return done
		})
		var text []byte // the same whenever this runs, as what is large hangs on it
		lines := 30
		if race {
			lines = 12
		}
		for i := range lines {
			text = append(text, line(fmt.Sprintf("r-%d", i), "m", fmt.Sprintf("large question %d", i))...)
		}
		p := b.start(small(12), f.in, func(c *engine.Config) { s.Store, c.Store = c.Store, s })
		id := b.run(text)
		b.want(b.ends(id), batch.Completed, int64(lines), int64(lines), 0)
		b.wantCalls(text, 1)
		p.drain()
		if s.large < lines/6 || s.large > lines*5/6 || s.pieces < 3 && !race {
			b.Errorf("%d answers were large, in %d pieces, want about half", s.large, s.pieces)
		}
	})
}

// TestDeathWithinAnAnswer has a process die while it records the pieces of a large answer. The next one
// sends that request again, and what there is of the former answer is in nobody's way.
func TestDeathWithinAnAnswer(t *testing.T) {
	for piece := 1; piece < 3; piece++ {
		if sparing(piece, 2) {
			continue
		}
		bubble(t, func(b *bench) {
			b.repeats = true
			u := b.upstream(sim.Config{}, upstream.Config{MaxInFlight: 1, Models: []string{"m"}})
			body := []byte(`{"choices":"` + strings.Repeat("a long answer ", 10<<20/14) + `"}`) // in three pieces
			u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(body) }))
			b.foreign = true // these are not the simulator's answers
			f := newFaults(nil)
			f.before = func(op string, n int) {
				if op == "Record" && n == 3+piece { // this one takes effect
					f.die()
				}
			}
			p := b.start(f.in)
			id := b.run(chat(3))
			time.Sleep(time.Second)
			p.die()
			if n := b.look(id).Counts.Completed; n != 1 {
				b.Errorf("%d are completed, want 1", n)
			}
			p = b.start()
			b.want(b.ends(id), batch.Completed, 3, 3, 0)
			p.drain()
		})
	}
}

// TestIdleWorkersKeepNoTurn has one large answer come, and nothing after it, so that whoever got it has
// nothing to do. Of the next ones none waits for that worker to be needed, or to end.
func TestIdleWorkersKeepNoTurn(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{}, upstream.Config{MaxInFlight: 4, Models: []string{"m"}})
		body := []byte(`{"choices":"` + strings.Repeat("a long answer ", 2<<20/14) + `"}`)
		u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(body) }))
		b.foreign = true // these are not the simulator's answers
		p := b.start()
		b.want(b.ends(b.run(chat(1))), batch.Completed, 1, 1, 0)
		time.Sleep(5 * time.Second)
		start := time.Now()
		b.want(b.ends(b.run(chat(2))), batch.Completed, 2, 2, 0)
		if took := time.Since(start); took > 2*time.Second {
			b.Errorf("two large answers took %v", took)
		}
		p.drain()
	})
}

// TestLargeAnswersTakeLittle bounds what is allocated for an answer of 32 MiB: the memory that it is read
// into, unless that of the one before it is still there, and little else.
func TestLargeAnswersTakeLittle(t *testing.T) {
	unraced(t)
	const size, few, many = 32 << 20, 2, 6
	allocated := func(n int) (bytes int64) {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			b.patience = time.Hour
			body := append([]byte(`{"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2},"choices":"`), make([]byte, size)...)
			for i := len(body) - size; i < len(body); i++ {
				body[i] = "etaoin shrdlu, "[i%15]
			}
			body = append(body, `"}`...)
			u, err := upstream.New(upstream.Config{
				URL: "http://host", Models: []string{"m"}, MaxInFlight: 4, MetricsURL: upstream.NoMetrics, Dialer: answering(body),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			b.ups = []*up{{Upstream: u}}
			var written atomic.Int64
			p := b.start(func(c *engine.Config) { c.Blobs = &countingBlobs{c.Blobs, &written} })
			synctest.Wait()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			id := b.run(chat(n))
			for query[int](b, "SELECT count(*) FROM batches WHERE id = $1 AND completed_at IS NULL", id)[0] > 0 {
				time.Sleep(time.Second)
			}
			runtime.ReadMemStats(&after)
			b.want(b.ends(id), batch.Completed, int64(n), int64(n), 0)
			bytes = int64(after.TotalAlloc - before.TotalAlloc)
			if written.Load() < int64(n)*size {
				t.Errorf("%d bytes were written", written.Load())
			}
			p.stop()
			if err := <-p.ended; err != nil {
				t.Error(err)
			}
		})
		return bytes
	}
	each := (allocated(many) - allocated(few)) / (many - few)
	t.Logf("%d KiB for an answer", each>>10)
	if each > size+8<<20 {
		t.Errorf("%d MiB were allocated for an answer of %d MiB: something is copied", each>>20, size>>20)
	}
}
