package engine_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
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
	read         int64 // groups of it that were read back
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
	a, b := costsOf(t, chat(few), answer), costsOf(t, chat(many), answer)
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
		if c.got > c.most && !race && !*clustered { // what is allocated there, and how often nodes write, is not the engine's
			t.Errorf("%.3f %s, want %.3f at most", c.got, c.what, c.most)
		}
	}
	if a.parts != a.results || b.parts != b.results {
		t.Errorf("%d and %d bytes of parts were written of results of %d and %d: want each byte once", a.parts, b.parts, a.results, b.results)
	}
}

// TestCostsOfEmbeddings bounds the same for answers of many numbers, which are large: the journal takes
// hardly more than half of them, and none of it is read back.
func TestCostsOfEmbeddings(t *testing.T) {
	const few, many = 200, 600 // all of which have room in memory
	body := []byte(`{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5`)
	r := rand.New(rand.NewPCG(1, 2))
	for range 3071 {
		body = strconv.AppendFloat(append(body, ','), r.NormFloat64()/50, 'g', 8, 64)
	}
	body = append(body, `]}],"model":"m","usage":{"prompt_tokens":31,"total_tokens":31}}`...)
	texts := func(n int) []byte {
		var input []byte
		for i := range n {
			input = fmt.Appendf(input, `{"custom_id":"r-%d","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"text %d"}}`+"\n", i, i*i)
		}
		return input
	}
	a, b := costsOf(t, texts(few), string(body)), costsOf(t, texts(many), string(body))
	each := func(large, small int64) float64 { return float64(large-small) / (many - few) }
	for _, c := range []struct {
		what      string
		got, most float64
	}{
		{"allocations for a request", each(b.allocations, a.allocations), 12},
		{"transactions for 1,000 requests", 1000 * each(b.transactions, a.transactions), 80}, // each of 256 KiB or more
		{"bytes of the journal for a byte of results", each(b.journal, a.journal) / each(b.results, a.results), 0.51},
		{"groups read back", float64(a.read + b.read), 0},
	} {
		t.Logf("%.3f %s", c.got, c.what)
		if c.got > c.most && !race && !*clustered {
			t.Errorf("%.3f %s, want %.3f at most", c.got, c.what, c.most)
		}
	}
	if a.parts != a.results || b.parts != b.results {
		t.Errorf("%d and %d bytes of parts were written of results of %d and %d: want each byte once", a.parts, b.parts, a.results, b.results)
	}
}

// costsOf runs a batch of an input at an upstream that answers at once, and says what it took.
func costsOf(t *testing.T, text []byte, answer string) (c costs) {
	n := bytes.Count(text, []byte("\n"))
	if *clustered {
		prepare(t)
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.patience = time.Hour
		b.store.Close()
		var transactions, packed, read, results, parts atomic.Int64
		s, blobs, err := b.storage.open(t.Context(), store.Options{Fault: func(string) (bool, error) {
			transactions.Add(1)
			return false, nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		b.store, b.blobs = s, blobs
		u, err := upstream.New(upstream.Config{
			URL: "http://host", Models: []string{"m"}, MaxInFlight: 64, MetricsURL: upstream.NoMetrics, Dialer: answering([]byte(answer)),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		b.ups = []*up{{Upstream: u}}
		input := b.upload(text)
		p := b.start(func(c *engine.Config) {
			c.Store = &countingStore{c.Store, journal.NewUnpacker(), &packed, &read, &results}
			c.Blobs = &countingBlobs{c.Blobs, &parts}
		})
		synctest.Wait()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		transactions.Store(0)
		made := b.batch(input, 24*time.Hour)
		if bytes.Contains(text, []byte("/v1/embeddings")) {
			made.Endpoint = "/v1/embeddings"
		}
		x := b.ends(b.enter(made))
		runtime.ReadMemStats(&after)
		b.want(x, batch.Completed, int64(n), int64(n), 0)
		c = costs{
			allocations: int64(after.Mallocs - before.Mallocs), transactions: transactions.Load(),
			journal: packed.Load(), read: read.Load(), parts: parts.Load(), results: results.Load(),
		}
		p.stop()
		if err := <-p.ended; err != nil {
			t.Error(err)
		}
	})
	return c
}

// answer is a usual one.
const answer = `{"id":"chatcmpl-1","object":"chat.completion","created":1789000000,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"The answer to this question is forty-two, as everybody knows who has read the book."},"finish_reason":"stop"}],"usage":{"prompt_tokens":31,"completion_tokens":18,"total_tokens":49}}`

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
	unpacker              *journal.Unpacker
	packed, read, results *atomic.Int64
}

func (s *countingStore) JournalGroup(ctx context.Context, segment, seq int64) ([]byte, error) {
	s.read.Add(1)
	return s.Store.JournalGroup(ctx, segment, seq)
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
