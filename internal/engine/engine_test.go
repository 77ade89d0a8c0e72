package engine_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/doctor"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/store"
	"offpeak/internal/upstream"
)

// template is a data folder in which nothing happened yet. To copy it is faster than to make one.
var template string

func TestMain(m *testing.M) {
	// Nobody pulls the plug here, so there is no need to wait for a disk.
	if _, err := os.Stat("/dev/shm"); err == nil {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	var err error
	if template, err = os.MkdirTemp("", "offpeak"); err != nil {
		panic(err)
	}
	s, err := store.Open(context.Background(), template, store.Options{})
	if err != nil {
		panic(err)
	}
	if err := s.Close(); err != nil {
		panic(err)
	}
	flag.Parse()
	if race {
		// Two threads that run timers of one bubble share what the detector knows of it, and now and then
		// crash in it (Go 1.26: timer.unlockAndRun takes bubble.timers.raceCtx). What is unordered it finds
		// on one thread as well; and without it these tests run on all.
		runtime.GOMAXPROCS(1)
	}
	if *clustered { // idle connections of S3's client are nobody's leak
		code := m.Run()
		for _, end := range slices.Backward(servers.ends) {
			end()
		}
		os.RemoveAll(template)
		os.Exit(code)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(template)
		os.Exit(code)
	}))
}

// sparing reports whether the ith of many alike tests may be spared: with the race detector everything
// takes ten times as long, and one in so many tells as much. With PostgreSQL and S3 it takes three times
// as long, and one in three of the largest heaps is run, unless all are asked for.
func sparing(i, one int) bool {
	if *clustered && one >= 5 && !*everyFault {
		one = 3
	} else if !race {
		return false
	}
	return i%one != 0
}

// unraced leaves a test to the runs without the race detector, of which .ci/test has one on each kind of
// storage.
func unraced(t *testing.T) {
	t.Helper()
	if race {
		t.Skip("its answers say nothing about races that others do not, and take long")
	}
}

// A bench is a data folder with upstreams around it, on which one process works after another.
// What they leave is examined whenever one of them ends.
type bench struct {
	*testing.T
	dir      string // empty: what is kept is in no folder
	storage  storage
	store    *store.Store
	blobs    blobs
	doctor   *doctor.Doctor
	ups      []*up
	truth    *sim.Server             // answers as the upstreams do, and never fails
	running  atomic.Pointer[process] // the latest
	ahead    atomic.Int64            // by how much the store's clock is ahead of ours
	patience time.Duration           // how long is waited for what must happen
	project  string                  // whose files and batches are made; empty: the default project's
	owner    map[string]string       // of batches, their project
	seen     map[string]batch.Batch  // every batch, as it was when it was last looked at
	inputs   map[string][]byte       // files as they were uploaded, by id, for the time when they are gone
	wrong    int                     // answers that the examination found wrong
	thief    bool                    // see steal
	shared   bool                    // several processes work on the folder, as nodes do
	deletes  bool                    // result files are deleted, too
	unswept  bool                    // there was no time for a sweep
	foreign  bool                    // answers were recorded from other upstreams than ours
	repeats  bool                    // bodies may be sent again: there are equal ones, or two processes at work
}

// bubble runs a test on a bench where time passes only while everybody waits for it.
func bubble(t *testing.T, f func(b *bench)) {
	t.Helper()
	if *clustered {
		prepare(t)
	}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.patience = 2 * time.Hour
		f(b)
		b.examine()
	})
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{
		T: t, patience: time.Minute, owner: map[string]string{}, seen: map[string]batch.Batch{}, inputs: map[string][]byte{},
	}
	if *clustered {
		b.storage = newShared(t)
	} else {
		f := newFolder(t)
		b.dir, b.storage = string(f), f
	}
	b.open()
	b.doctor = b.newDoctor()
	return b
}

func (b *bench) open() {
	b.Helper()
	s, blobs, err := b.storage.open(b.Context(), store.Options{
		Now: func() time.Time { return time.Now().Add(time.Duration(b.ahead.Load())) }, Shared: b.shared,
	})
	if s != nil {
		b.Cleanup(func() { s.Close() })
	}
	if err != nil {
		b.Fatal(err)
	}
	b.store, b.blobs = s, blobs
}

// reopen opens what is kept anew, as the process does that follows one that died.
func (b *bench) reopen() {
	b.Helper()
	b.store.Close()
	b.open()
}

// answer is what an upstream answers to body when nothing goes wrong.
func (b *bench) answer(endpoint string, body []byte) []byte {
	w := httptest.NewRecorder()
	b.truth.ServeHTTP(w, httptest.NewRequest("POST", endpoint, bytes.NewReader(body)))
	return w.Body.Bytes()
}

// calls is how often body was sent, to all upstreams together.
func (b *bench) calls(body []byte) (n int) {
	for _, u := range b.ups {
		calls, _ := u.CallsOf(body)
		n += calls
	}
	return n
}

// wantCalls checks that every request of the input was sent n times.
func (b *bench) wantCalls(input []byte, n int) {
	b.Helper()
	var parser batch.Parser
	for line := range batch.SplitLines(input, 1) {
		req, err := parser.Request(line)
		if err != nil {
			b.Fatal(err)
		}
		if calls := b.calls(req.Body); calls != n {
			b.Errorf("line %d was sent %d times, want %d", line.Number, calls, n)
		}
	}
}

// An up is a simulated upstream behind a network in memory.
type up struct {
	*sim.Server
	*upstream.Upstream
	config  upstream.Config // of which any number of others can be made for the same server
	handler atomic.Pointer[http.Handler]
	away    atomic.Bool // connections are refused
}

// upstream starts an upstream. It serves any model unless cfg names some.
func (b *bench) upstream(cfg sim.Config, c upstream.Config) *up {
	b.Helper()
	cfg.CountCalls = true
	b.truth = sim.New(sim.Config{Seed: cfg.Seed, MedianTokens: cfg.MedianTokens, P99Tokens: cfg.P99Tokens, Context: cfg.Context})
	u := &up{Server: sim.New(cfg)}
	u.handle(u.Server)
	conns := make(pipes)
	server := &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*u.handler.Load()).ServeHTTP(w, r) }),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(conns) })
	c.URL = fmt.Sprintf("http://up%d/v1", len(b.ups))
	c.Dialer = &dialer{u, conns}
	u.config = c
	var err error
	if u.Upstream, err = upstream.New(c); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		u.Upstream.Close()
		server.Close()
		conns.Close()
		serving.Wait()
	})
	b.ups = append(b.ups, u)
	return u
}

// A dialer connects to an upstream in memory.
type dialer struct {
	u     *up
	conns pipes
}

func (d *dialer) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	if d.u.away.Load() {
		return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	}
	ours, theirs := net.Pipe()
	select {
	case d.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// handle puts h before the upstream.
func (u *up) handle(h http.Handler) { u.handler.Store(&h) }

// refuse makes the upstream answer every call with the status, until it is undone.
func (u *up) refuse(status int) (undo func()) {
	u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/models") {
			u.Server.ServeHTTP(w, r)
			return
		}
		http.Error(w, `{"error":{"message":"refused"}}`, status)
	}))
	return func() { u.handle(u.Server) }
}

// pipes is a listener whose connections are pipes.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error {
	defer func() { recover() }() // closed already
	close(p)
	return nil
}

func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// A process runs an engine.
type process struct {
	*engine.Engine
	b     *bench
	pool  *upstream.Pool
	stop  context.CancelFunc
	abort context.CancelFunc
	ended chan error // of capacity 1
}

// start starts a process that works on the bench.
func (b *bench) start(change ...func(*engine.Config)) *process {
	b.Helper()
	c := engine.Config{
		Store: b.store, Blobs: b.blobs, Log: slog.New(slog.NewTextHandler(b.Output(), nil)), Node: "test",
	}
	var ups []*upstream.Upstream
	for _, u := range b.ups {
		if u.Upstream != nil {
			ups = append(ups, u.Upstream)
		}
	}
	c.Upstreams = upstream.NewPool(ups...)
	c = c.WithPoll(3 * time.Second)
	for _, f := range change {
		f(&c)
	}
	p := &process{Engine: engine.New(c), b: b, pool: c.Upstreams, ended: make(chan error, 1)}
	var ctx, abort context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	abort, p.abort = context.WithCancel(context.Background())
	b.running.Store(p)
	go func() { p.ended <- p.Run(ctx, abort) }()
	b.Cleanup(func() { // whatever became of the test
		p.stop()
		p.abort()
	})
	return p
}

// drain asks the process to end, waits for that, and has the folder examined. A process without
// work ends at once and keeps nothing.
func (p *process) drain() {
	p.b.Helper()
	busy := false
	for _, x := range p.b.seen {
		busy = busy || !x.Status.Terminal()
	}
	start := time.Now()
	p.stop()
	if err := <-p.ended; err != nil {
		p.b.Errorf("Run() = %v", err)
	}
	if took := time.Since(start); !busy && (took > time.Second || !p.Idle()) {
		p.b.Errorf("without work, to end took %v and left:\n%s", took, p.Dump())
	}
	p.b.examine()
}

// die ends the process at once and opens the folder for the next.
func (p *process) die() {
	p.b.Helper()
	p.stop()
	p.abort()
	<-p.ended
	p.b.reopen()
	p.b.examine()
}

// small makes segments of few lines.
func small(lines int) func(*engine.Config) {
	return func(c *engine.Config) { *c = c.WithSegmentLines(lines) }
}

const endpoint = "/v1/chat/completions"

// upload makes an input file of the text, in one part or in parts of the given size.
func (b *bench) upload(text []byte, part ...int) string {
	b.Helper()
	f := batch.File{
		ID: batch.NewFileID(), Project: cmp.Or(b.project, batch.DefaultProject), Purpose: batch.PurposeBatch, Filename: "in.jsonl",
		Bytes: int64(len(text)), CreatedAt: time.Now(),
	}
	size := max(len(text), 1)
	if len(part) > 0 && part[0] > 0 {
		size = part[0]
	}
	for chunk := range slices.Chunk(text, size) {
		key := blob.NewKey()
		if err := b.store.ReserveBlob(b.Context(), key); err != nil {
			b.Fatal(err)
		}
		w, err := b.blobs.Create(b.Context(), key)
		if err != nil {
			b.Fatal(err)
		}
		w.Write(chunk)
		n, err := w.Commit()
		if err != nil {
			b.Fatal(err)
		}
		f.Parts = append(f.Parts, batch.Part{Key: key, Bytes: n})
	}
	if err := b.store.CreateFile(b.Context(), f); err != nil {
		b.Fatal(err)
	}
	b.inputs[f.ID] = text
	return f.ID
}

// batch describes a batch of the input, due within the window.
func (b *bench) batch(input string, window time.Duration) batch.Batch {
	now := time.Now()
	return batch.Batch{
		ID: batch.NewBatchID(now), Project: cmp.Or(b.project, batch.DefaultProject), Endpoint: endpoint, InputFileID: input,
		OutputFileID: batch.NewFileID(), ErrorFileID: batch.NewFileID(), OutputExpiresAfter: batch.DefaultRetention,
		CompletionWindow: "24h", Status: batch.Validating, CreatedAt: now, ExpiresAt: now.Add(window),
	}
}

// create makes a batch of the input, due within the window.
func (b *bench) create(input string, window time.Duration) string {
	b.Helper()
	return b.enter(b.batch(input, window))
}

// enter is create for a batch that is made already.
func (b *bench) enter(x batch.Batch) string {
	b.Helper()
	if err := b.store.CreateBatch(b.Context(), x); err != nil {
		b.Fatal(err)
	}
	b.owner[x.ID] = x.Project
	b.wake()
	b.look(x.ID)
	return x.ID
}

// wake tells the engine that something has changed, as the API does.
func (b *bench) wake() {
	if p := b.running.Load(); p != nil {
		p.Wake()
	}
}

// run makes a batch of the text, due within a day.
func (b *bench) run(text []byte) string {
	b.Helper()
	return b.create(b.upload(text), 24*time.Hour)
}

func (b *bench) cancel(id string) {
	b.Helper()
	if _, err := b.store.CancelBatch(b.Context(), cmp.Or(b.owner[id], batch.DefaultProject), id); err != nil {
		b.Fatal(err)
	}
	b.wake()
	b.look(id)
}

// look returns a batch as it is, and checks that it could come to be so from what it was.
func (b *bench) look(id string) batch.Batch {
	b.Helper()
	now, err := b.store.Batch(b.Context(), cmp.Or(b.owner[id], batch.DefaultProject), id)
	if err != nil {
		b.Fatal(err)
	}
	if p := b.running.Load(); p != nil {
		for _, wrong := range p.Miscount() {
			b.Error(wrong)
		}
	}
	was, ok := b.seen[id]
	b.seen[id] = now
	if !ok {
		return now
	}
	if was.Status.Terminal() && fmt.Sprint(was) != fmt.Sprint(now) {
		b.Errorf("promise 6: %+v was terminal and becomes %+v", was, now)
	}
	rank := func(s batch.Status) int { return slices.Index(batch.Statuses, s) }
	if !was.Status.Terminal() && rank(now.Status) < rank(was.Status) {
		b.Errorf("promise 6: %s was %s and becomes %s", id, was.Status, now.Status)
	}
	if now.Counts.Completed < was.Counts.Completed || now.Counts.Failed < was.Counts.Failed ||
		was.Counts.Total != 0 && now.Counts.Total != was.Counts.Total {
		b.Errorf("promise 2: counts of %s were %+v and become %+v", id, was.Counts, now.Counts)
	}
	for _, at := range [][2]time.Time{
		{was.CreatedAt, now.CreatedAt}, {was.ExpiresAt, now.ExpiresAt}, {was.InProgressAt, now.InProgressAt},
		{was.FinalizingAt, now.FinalizingAt}, {was.CancellingAt, now.CancellingAt},
	} {
		if !at[0].IsZero() && !at[0].Equal(at[1]) {
			b.Errorf("promise 6: a timestamp of %s was %v and becomes %v", id, at[0], at[1])
		}
	}
	return now
}

// until looks at the batch until the condition holds.
func (b *bench) until(id, what string, holds func(batch.Batch) bool) batch.Batch {
	b.Helper()
	start := time.Now()
	for pause := 5 * time.Millisecond; ; pause = min(pause*5/4, time.Second) {
		x := b.look(id)
		if holds(x) {
			return x
		}
		if x.Status.Terminal() || time.Since(start) > b.patience {
			if p := b.running.Load(); p != nil {
				b.Log(p.Dump())
			}
			b.Fatalf("after %v the batch is not %s but %+v", time.Since(start), what, x)
		}
		time.Sleep(pause)
	}
}

func (b *bench) ends(id string) batch.Batch {
	b.Helper()
	return b.until(id, "terminal", func(x batch.Batch) bool { return x.Status.Terminal() })
}

// recorded waits until n requests of the batch are recorded.
func (b *bench) recorded(id string, n int64) batch.Batch {
	b.Helper()
	return b.until(id, fmt.Sprintf("%d requests on", n), func(x batch.Batch) bool { return x.Counts.Completed+x.Counts.Failed >= n })
}

// want checks how a batch ended.
func (b *bench) want(x batch.Batch, status batch.Status, total, completed, failed int64) {
	b.Helper()
	if want := (batch.Counts{Total: total, Completed: completed, Failed: failed}); x.Status != status || x.Counts != want {
		b.Errorf("the batch is %s with %+v, want %s with %+v", x.Status, x.Counts, status, want)
	}
}

// line is an input line. Text makes it what it is.
func line(customID, model, text string) string {
	quote := func(s string) string {
		q, _ := json.Marshal(s)
		return string(q)
	}
	return fmt.Sprintf(`{"custom_id":%s,"method":"POST","url":%s,"body":{"model":%s,"messages":[{"role":"user","content":%s}]}}`+"\n",
		quote(customID), quote(endpoint), quote(model), quote(text))
}

// chat is an input of n requests, for the models in turn or for m. Bodies differ from those of
// every other call.
func chat(n int, models ...string) []byte {
	if len(models) == 0 {
		models = []string{"m"}
	}
	return questions(n, inputs.Add(1), models)
}

// chatAgain is an input of n requests for m, the same in each run: how long an answer is, and how long it takes,
// depends on the words.
func chatAgain(n int) []byte { return questions(n, 0, []string{"m"}) }

func questions(n int, run int64, models []string) []byte {
	var buf bytes.Buffer
	for i := range n {
		buf.WriteString(line(fmt.Sprintf("r-%d", i), models[i%len(models)], fmt.Sprintf("question %d of %d", i, run)))
	}
	return buf.Bytes()
}

var inputs atomic.Int64
