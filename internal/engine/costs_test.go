package engine_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/engine"
	"offpeak/internal/journal"
	"offpeak/internal/store"
	"offpeak/internal/upstream"
)

// Costs is what it takes to run batches, counted. None of it depends on how fast the machine is.
type costs struct {
	allocations  int64
	transactions int64
	journal      int64 // bytes handed to it
	parts        int64 // bytes written to them
	results      int64 // bytes of the lines that were recorded
}

// TestCosts bounds what a request costs beside its call, and what is written of its result. What a
// batch costs once is taken out by comparing a large one with a small one.
//
// Where this fails after a change, the change made every request dearer: bounds are raised only for a
// reason.
func TestCosts(t *testing.T) {
	const few, many = 2000, 12_000
	a, b := costsOf(t, few), costsOf(t, many)
	each := func(large, small int64) float64 { return float64(large-small) / (many - few) }
	for _, c := range []struct {
		what      string
		got, most float64
	}{
		{"allocations for a request", each(b.allocations, a.allocations), 6.5},
		{"transactions for 1,000 requests", 1000 * each(b.transactions, a.transactions), 6},
		{"bytes of the journal for a byte of results", each(b.journal, a.journal) / each(b.results, a.results), 0.15},
	} {
		t.Logf("%.3f %s", c.got, c.what)
		if c.got > c.most && !race { // with the race detector more is allocated
			t.Errorf("%.3f %s, want %.3f at most", c.got, c.what, c.most)
		}
	}
	if a.parts != a.results || b.parts != b.results {
		t.Errorf("%d and %d bytes of parts were written of results of %d and %d: want each byte once", a.parts, b.parts, a.results, b.results)
	}
}

// costsOf runs a batch of n requests at an upstream that answers at once, and says what it took.
func costsOf(t *testing.T, n int) (c costs) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.patience = time.Hour
		b.store.Close()
		var transactions, packed, results, parts atomic.Int64
		s, err := store.Open(t.Context(), b.dir, store.Options{Fault: func(string) (bool, error) {
			transactions.Add(1)
			return false, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		b.store = s
		if b.blobs, err = blob.Open(filepath.Join(b.dir, "blobs")); err != nil {
			t.Fatal(err)
		}
		const body = `{"id":"chatcmpl-1","object":"chat.completion","created":1789000000,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"The answer to this question is forty-two, as everybody knows who has read the book."},"finish_reason":"stop"}],"usage":{"prompt_tokens":31,"completion_tokens":18,"total_tokens":49}}`
		u, err := upstream.New(upstream.Config{
			URL: "http://host", Models: []string{"m"}, MaxInFlight: 64, MetricsURL: upstream.NoMetrics, Dialer: answering([]byte(body)),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		b.ups = []*up{{Upstream: u}}
		input := b.upload(chat(n))
		p := b.start(func(c *engine.Config) {
			c.Store = &countingStore{c.Store, journal.NewUnpacker(), &packed, &results}
			c.Blobs = &countingBlobs{c.Blobs, &parts}
		})
		synctest.Wait()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		transactions.Store(0)
		x := b.ends(b.create(input, 24*time.Hour))
		runtime.ReadMemStats(&after)
		b.want(x, batch.Completed, int64(n), int64(n), 0)
		c = costs{
			allocations: int64(after.Mallocs - before.Mallocs), transactions: transactions.Load(),
			journal: packed.Load(), parts: parts.Load(), results: results.Load(),
		}
		p.stop()
		if err := <-p.ended; err != nil {
			t.Error(err)
		}
	})
	return c
}

// An instantDialer connects to an upstream that gives this answer before it is asked.
type instantDialer []byte

// answering returns a dialer for a body.
func answering(body []byte) instantDialer {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func (d instantDialer) DialContext(context.Context, string, string) (net.Conn, error) {
	return &instant{answer: d}, nil
}

type instant struct {
	net.Conn
	answer, unread []byte
}

func (i *instant) Write(p []byte) (int, error) {
	i.unread = i.answer
	return len(p), nil
}

func (i *instant) Read(p []byte) (int, error) {
	if len(i.unread) == 0 {
		return 0, os.ErrDeadlineExceeded // nothing was asked
	}
	n := copy(p, i.unread)
	i.unread = i.unread[n:]
	return n, nil
}

func (*instant) Close() error                     { return nil }
func (*instant) SetDeadline(time.Time) error      { return nil }
func (*instant) SetReadDeadline(time.Time) error  { return nil }
func (*instant) SetWriteDeadline(time.Time) error { return nil }

// A countingStore counts what goes into the journal.
type countingStore struct {
	engine.Store
	unpacker        *journal.Unpacker
	packed, results *atomic.Int64
}

func (s *countingStore) Record(ctx context.Context, groups []batch.Group) ([]int64, error) {
	for _, g := range groups {
		s.packed.Add(int64(len(g.Data)))
		data, err := s.unpacker.Unpack(g.Data)
		if err != nil {
			return nil, err
		}
		for e, err := range journal.Entries(data) {
			if err != nil {
				return nil, err
			}
			s.results.Add(int64(len(e.Line)))
		}
	}
	return s.Store.Record(ctx, groups)
}

// countingBlobs count what goes into parts.
type countingBlobs struct {
	engine.Blobs
	bytes *atomic.Int64
}

func (s *countingBlobs) Create(ctx context.Context, key string) (blob.Writer, error) {
	w, err := s.Blobs.Create(ctx, key)
	return &countingWriter{w, s.bytes}, err
}

type countingWriter struct {
	blob.Writer
	bytes *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.bytes.Add(int64(n))
	return n, err
}
