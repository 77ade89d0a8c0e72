package engine_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/store"
	"offpeak/internal/upstream"
)

// TestRecordedSoon wants an answer recorded within the moment for which answers are gathered.
func TestRecordedSoon(t *testing.T) {
	bubble(t, func(b *bench) {
		tap := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 1}).tap()
		p := b.start()
		id := b.run(chat(10))
		for tap.inFlight("", time.Now()) == 0 { // among nodes the first call waits for its share of the limit
			time.Sleep(time.Millisecond)
		}
		time.Sleep(59 * time.Millisecond)
		for n := range int64(9) {
			time.Sleep(time.Second)
			if got := b.look(id).Counts.Completed; got != n+1 {
				b.Errorf("60 ms after answer %d, %d are recorded", n+1, got)
			}
		}
		b.ends(id)
		p.drain()
	})
}

// TestWindowsAreBounded leaves so little memory for input that each lane holds one segment.
func TestWindowsAreBounded(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.5}}, upstream.Config{MaxInFlight: 20})
		p := b.start(small(5), func(c *engine.Config) { c.Memory = 1 })
		id := b.run(chat(100, "m", "n"))
		most := 0
		x := b.until(id, "done", func(x batch.Batch) bool {
			most = max(most, len(query[int64](b, "SELECT id FROM segments WHERE sealed_at IS NULL AND token IS NOT NULL")))
			return x.Status.Terminal()
		})
		b.want(x, batch.Completed, 100, 100, 0)
		// One that is being sealed counts no more for its lane and may still be claimed.
		if most > 4 {
			b.Errorf("%d segments were held at a time, want one in each of two lanes", most)
		}
		p.drain()
	})
}

// TestSlowDatabase lets no result be recorded for a while. Sending stops, and goes on afterwards.
func TestSlowDatabase(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}, MedianTokens: 30_000, P99Tokens: 30_000, Context: 1 << 20},
			upstream.Config{MaxInFlight: 10})
		back := time.Now().Add(3 * time.Minute)
		p := b.start(newFaults(func(op string, _, _ int) fate {
			if op == "Record" && time.Now().Before(back) {
				return lost
			}
			return done
		}).in)
		text := chat(100)
		id := b.run(text)
		time.Sleep(2 * time.Minute)
		var parser batch.Parser
		var size int
		for l := range batch.SplitLines(text, 1) {
			req, err := parser.Request(l)
			if err != nil {
				b.Fatal(err)
			}
			size = len(b.answer(endpoint, req.Body))
			break
		}
		// 4 MiB wait, and a group is on its way to the database; each worker has one answer in hand.
		if n, most := u.Calls().Calls, (4<<20+256<<10)/size+2*10; n > most || n < most/2 {
			b.Errorf("%d calls while nothing was recorded, want %d at most", n, most)
		}
		b.want(b.ends(id), batch.Completed, 100, 100, 0)
		b.wantCalls(text, 1)
		p.drain()
	})
}

// TestCancelWhileWaiting cancels a batch with a request that waits for its next attempt while others
// are in flight. It is not sent again.
func TestCancelWhileWaiting(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: 3 * time.Minute}}, upstream.Config{MaxInFlight: 8})
		var refused atomic.Int64
		u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if bytes.Contains(body, []byte("question 0 of")) {
				refused.Add(1)
				http.Error(w, `{"error":{"message":"not now"}}`, 500)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			u.Server.ServeHTTP(w, r)
		}))
		p := b.start()
		id := b.run(chat(4))
		time.Sleep(10 * time.Second)
		before := refused.Load()
		b.cancel(id)
		x := b.ends(id)
		b.want(x, batch.Cancelled, 4, 3, 0)
		b.wantNever(x, 1)
		if n := refused.Load() - before; n != 0 {
			b.Errorf("the request that waited was sent %d times more", n)
		}
		p.drain()
	})
}

// TestFrail kills three processes over a segment of which nothing was recorded. The fourth sends
// its requests one at a time, since one of them may be what processes die of.
func TestFrail(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Minute}}, upstream.Config{MaxInFlight: 8})
		id := b.run(chat(8))
		for range 3 {
			f := newFaults(nil)
			p := b.start(f.in)
			time.Sleep(10 * time.Second)
			f.die()
			p.die()
		}
		before := u.Calls().Calls
		p := b.start()
		time.Sleep(30 * time.Second)
		if n := u.Calls().Calls - before; n != 1 {
			b.Errorf("%d requests of a segment that killed three are in flight, want 1", n)
		}
		b.recorded(id, 1)
		time.Sleep(30 * time.Second)
		if n := u.Calls().Calls - before; n <= 2 {
			b.Errorf("%d calls, though the first ended well", n)
		}
		b.want(b.ends(id), batch.Completed, 8, 8, 0)
		p.drain()
	})
}

// TestRetention keeps the bytes of a deleted file for seven days after they were swept, as a backup
// of the database may still name them.
func TestRetention(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{}, upstream.Config{})
		id := b.upload([]byte("old"))
		f, err := b.store.File(b.Context(), batch.DefaultProject, id)
		if err != nil {
			b.Fatal(err)
		}
		if err := b.store.DeleteFile(b.Context(), batch.DefaultProject, id); err != nil {
			b.Fatal(err)
		}
		b.ahead.Add(int64(store.PendingFor + time.Minute))
		p := b.start()
		for _, step := range []struct {
			ahead time.Duration
			there bool
		}{{0, true}, {7*24*time.Hour - 10*time.Minute, true}, {15 * time.Minute, false}} {
			b.ahead.Add(int64(step.ahead))
			time.Sleep(3 * time.Minute)
			if _, err := b.blobs.Size(b.Context(), f.Parts[0].Key); errors.Is(err, blob.ErrNotFound) == step.there {
				b.Errorf("%v later: %v, want the bytes there: %v", step.ahead, err, step.there)
			}
			b.examine()
		}
		p.drain()
	})
}
