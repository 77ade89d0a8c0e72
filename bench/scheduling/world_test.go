// Package scheduling_test measures how full Offpeak keeps upstreams, in simulated time: the real
// engine, store and blobs against the simulated upstream, in a testing/synctest bubble. Hours pass
// in seconds and no noise of the machine gets in, so that what is a measurement elsewhere can be a
// test here.
//
//	go test ./bench/scheduling -v                  # the table, small
//	go test ./bench/scheduling -v -requests 20000  # as large as you have patience
package scheduling_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
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

const endpoint = "/v1/chat/completions"

// A world is a data folder with an engine on it and simulated upstreams around it.
type world struct {
	*testing.T
	store  *store.Store
	blobs  *blob.Dir
	ups    []*station
	engine *engine.Engine
	stop   func() // ends the engine and waits for it
}

// newWorld makes a world without upstreams. Nobody pulls the plug here, so its folder is in memory
// where there is such a place.
func newWorld(t *testing.T) *world {
	t.Helper()
	base := ""
	if _, err := os.Stat("/dev/shm"); err == nil {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "offpeak-scheduling-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{T: t}
	if w.store, err = store.Open(t.Context(), dir, store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close() })
	if w.blobs, err = blob.Open(filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	return w
}

// A station is a simulated upstream behind a network in memory, with instruments.
type station struct {
	*sim.Server
	*upstream.Upstream
	slots   int
	away    atomic.Bool // connections are refused
	refused atomic.Int64
	served  atomic.Int64
}

// upstream adds an upstream to the world.
func (w *world) upstream(cfg sim.Config, c upstream.Config) *station {
	w.Helper()
	s := &station{Server: sim.New(cfg), slots: cfg.Slots}
	conns := newPipes()
	server := &http.Server{
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			counted := &counter{ResponseWriter: rw}
			s.Server.ServeHTTP(counted, r)
			if r.Method != http.MethodPost {
				return
			}
			if counted.status >= 400 {
				s.refused.Add(1)
			} else {
				s.served.Add(1)
			}
		}),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(conns) })
	c.URL = fmt.Sprintf("http://up%d/v1", len(w.ups))
	c.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if s.away.Load() {
				return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
			}
			return conns.dial(ctx)
		},
		MaxIdleConnsPerHost: 4096,
	}
	var err error
	if s.Upstream, err = upstream.New(c); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		s.Upstream.Close()
		server.Close()
		serving.Wait()
	})
	w.ups = append(w.ups, s)
	return s
}

// A counter remembers the status that is written through it.
type counter struct {
	http.ResponseWriter
	status int
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

// Unwrap implements what http.ResponseController looks for.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// pipes is a listener whose connections are pipes.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func newPipes() pipes {
	done := make(chan struct{})
	return pipes{make(chan net.Conn), done, sync.OnceFunc(func() { close(done) })}
}

func (p pipes) dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p pipes) Close() error { p.close(); return nil }

// Addr implements net.Listener.
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// start starts the engine.
func (w *world) start() {
	w.Helper()
	var ups []*upstream.Upstream
	for _, s := range w.ups {
		ups = append(ups, s.Upstream)
	}
	w.engine = engine.New(engine.Config{
		Store: w.store, Blobs: w.blobs, Upstreams: upstream.NewPool(ups...), Node: "bench",
		Log: slog.New(slog.NewTextHandler(w.Output(), &slog.HandlerOptions{Level: slog.LevelError})),
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.engine.Run(ctx, context.Background()) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.Errorf("Run() = %v", err)
		}
	})
	w.Cleanup(func() { w.stop() })
}

// project makes a project of the given weight.
func (w *world) project(name string, weight int) string {
	w.Helper()
	p, err := w.store.CreateProject(w.Context(), name, weight)
	if err != nil {
		w.Fatal(err)
	}
	return p.ID
}

// create uploads the text and makes a batch of it, due within the window.
func (w *world) create(project string, text []byte, window time.Duration) string {
	w.Helper()
	key := blob.NewKey()
	if err := w.store.ReserveBlob(w.Context(), key); err != nil {
		w.Fatal(err)
	}
	bw, err := w.blobs.Create(w.Context(), key)
	if err != nil {
		w.Fatal(err)
	}
	bw.Write(text)
	n, err := bw.Commit()
	if err != nil {
		w.Fatal(err)
	}
	now := time.Now()
	f := batch.File{
		ID: batch.NewFileID(), Project: project, Purpose: batch.PurposeBatch, Filename: "in.jsonl",
		Bytes: n, CreatedAt: now, Parts: []batch.Part{{Key: key, Bytes: n}},
	}
	if err := w.store.CreateFile(w.Context(), f); err != nil {
		w.Fatal(err)
	}
	b := batch.Batch{
		ID: batch.NewBatchID(now), Project: project, Endpoint: endpoint, InputFileID: f.ID,
		OutputFileID: batch.NewFileID(), ErrorFileID: batch.NewFileID(), OutputExpiresAfter: batch.DefaultRetention,
		CompletionWindow: "24h", Status: batch.Validating, CreatedAt: now, ExpiresAt: now.Add(window),
	}
	if err := w.store.CreateBatch(w.Context(), b); err != nil {
		w.Fatal(err)
	}
	w.engine.Wake()
	return b.ID
}

func (w *world) look(project, id string) batch.Batch {
	w.Helper()
	b, err := w.store.Batch(w.Context(), project, id)
	if err != nil {
		w.Fatal(err)
	}
	return b
}

// patience is how long a batch may take before a scenario gives up on it.
const patience = 12 * time.Hour

// ends waits until the batch has ended, and wants every request of it to have succeeded. It calls
// each, if not nil, with every look.
func (w *world) ends(project, id string, every time.Duration, each func(batch.Batch)) batch.Batch {
	w.Helper()
	for start := time.Now(); ; time.Sleep(every) {
		b := w.look(project, id)
		if each != nil {
			each(b)
		}
		if b.Status.Terminal() {
			if b.Status != batch.Completed || b.Counts.Completed != b.Counts.Total {
				w.Errorf("the batch ended %s with %+v", b.Status, b.Counts)
			}
			return b
		}
		if time.Since(start) > patience {
			w.Fatalf("after %v the batch is %s with %+v", patience, b.Status, b.Counts)
		}
	}
}

// A gauge integrates how many slots of stations are busy, until it is stopped.
type gauge struct {
	mu   sync.Mutex
	busy float64 // slot-seconds
	done chan struct{}
}

// watch starts a gauge on the stations.
func watch(stations ...*station) *gauge {
	const every = 20 * time.Millisecond
	g := &gauge{done: make(chan struct{})}
	go func() {
		for {
			select {
			case <-g.done:
				return
			case <-time.After(every):
			}
			n := 0
			for _, s := range stations {
				running, _ := s.Server.Load()
				n += running
			}
			g.mu.Lock()
			g.busy += float64(n) * every.Seconds()
			g.mu.Unlock()
		}
	}()
	return g
}

// read returns the slot-seconds that were busy so far.
func (g *gauge) read() float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.busy
}

func (g *gauge) stop() { close(g.done) }

// ask sends a request to the station as a person's program does, beside Offpeak: again and again
// while it is throttled, as the SDKs do. It returns how long the answer took, and how many calls were
// throttled.
func (s *station) ask(body []byte) (took time.Duration, throttled int) {
	start := time.Now()
	for pause := 500 * time.Millisecond; ; pause = min(2*pause, 8*time.Second) {
		w := httptest.NewRecorder()
		s.Server.ServeHTTP(w, httptest.NewRequest(http.MethodPost, endpoint, bytes.NewReader(body)))
		if w.Code != http.StatusTooManyRequests {
			return time.Since(start), throttled
		}
		throttled++
		time.Sleep(pause)
	}
}

// line is an input line.
func line(i int, model string, messages ...string) []byte {
	return lineWith(i, map[string]any{"model": model, "messages": turns(messages)})
}

func turns(messages []string) []map[string]string {
	var out []map[string]string
	for i, m := range messages {
		out = append(out, map[string]string{"role": []string{"user", "assistant"}[i%2], "content": m})
	}
	return out
}

func lineWith(i int, body any) []byte {
	text, err := json.Marshal(map[string]any{
		"custom_id": fmt.Sprintf("r-%d", i), "method": "POST", "url": endpoint, "body": body,
	})
	if err != nil {
		panic(err)
	}
	return append(text, '\n')
}

// chat is an input of n different requests for a model.
func chat(n int, model, about string) []byte {
	var buf bytes.Buffer
	for i := range n {
		buf.Write(line(i, model, fmt.Sprintf("question %d about %s", i, about)))
	}
	return buf.Bytes()
}
