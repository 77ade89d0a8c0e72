package crash

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver

	"offpeak/internal/blob"
	"offpeak/internal/client"
	"offpeak/internal/doctor"
	"offpeak/internal/lab"
)

// A cluster is some nodes, what they stand on, and relays between the two.
type cluster struct {
	t     *testing.T
	pg    *lab.Postgres // nil with SQLite
	s3    *lab.S3       // nil with a folder
	front *lab.PgBouncer
	u     *upstream
	w     *work
	o     clusterOptions
	dir   string
	nodes []*node
	wreck *wreck

	db     *sql.DB
	doctor *doctor.Doctor

	recorded map[string][32]byte // answers that were found recorded, by custom id
	found    map[string][32]byte // likewise, by the examination that is going on

	mu     sync.Mutex
	losses []loss
}

// clusterOptions say what a cluster consists of.
type clusterOptions struct {
	nodes   int
	limit   int      // of calls, of all nodes together
	rate    int      // of calls a minute, likewise; 0: none
	standby bool     // the database has one
	pooler  bool     // PgBouncer stands in front of it
	sqlite  bool     // there is none: a node has a folder
	folder  bool     // blobs are in one, too
	roles   []string // of nodes; those without one do everything
}

// A node is a place for a process, with relays of its own.
type node struct {
	c        *cluster
	name     string
	role     string
	database []*lab.Relay // to each of its servers
	blobs    *lab.Relay
	upstream *lab.Relay

	mu   sync.Mutex
	life int
	s    *server // nil: it is not to run
	key  string  // by which the upstream knows it
	up   bool    // it is ready
}

// A loss is a process that was killed.
type loss struct {
	key string
	at  time.Time
}

// newCluster starts what a cluster stands on, and no node yet.
func newCluster(t *testing.T, u *upstream, o clusterOptions) *cluster {
	t.Helper()
	l := newLab(t)
	c := &cluster{t: t, u: u, w: newWork(), o: o, dir: t.TempDir(), recorded: map[string][32]byte{},
		wreck: &wreck{broken: map[target]bool{}, mended: map[target]time.Time{}}}
	u.event(func() { u.limit = o.limit })
	var err error
	var databases []string
	if !o.sqlite {
		c.pg, err = l.Postgres(o.standby)
		installed(t, err)
		databases = c.pg.Addrs
		c.db, err = sql.Open("pgx", lab.DSN(databases...))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.db.Close() })
	}
	if o.pooler {
		c.front, err = l.PgBouncer(databases[0], 20)
		installed(t, err)
		databases = []string{c.front.Addr}
	}
	if !o.folder {
		c.s3, err = l.S3()
		installed(t, err)
	}
	for i := range o.nodes {
		n := &node{c: c, name: fmt.Sprintf("n%d", i+1), role: "all", upstream: newRelay(t, u.listener.Addr().String())}
		if i < len(o.roles) {
			n.role = o.roles[i]
		}
		if !o.folder {
			n.blobs = newRelay(t, c.s3.Addr)
		}
		for _, addr := range databases {
			n.database = append(n.database, newRelay(t, addr))
		}
		c.nodes = append(c.nodes, n)
		t.Cleanup(n.kill)
	}
	c.doctor = c.newDoctor()
	return c
}

func (c *cluster) newDoctor() *doctor.Doctor {
	c.t.Helper()
	o := doctor.Options{
		NothingDeleted: true,
		Input:          c.w.inputOf,
		Recorded:       c.note,
		Calls:          func(body []byte) int { calls, _ := c.u.times(string(body)); return calls },
	}
	var blobs doctor.Blobs = blob.NewView(c.path("blobs"))
	if !c.o.folder {
		blobs = objects(c.s3.Dir)
	}
	if c.o.sqlite {
		return doctor.OpenWith(c.path("data"), blobs, o)
	}
	return doctor.New(c.db, blobs, o)
}

// objects reads the blobs that an S3 server keeps in a folder, which is a lot faster than to ask it:
// they are looked at after each round.
type objects string

func (o objects) Open(_ context.Context, key string, off, n int64) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(string(o), key))
	if err != nil {
		return nil, err
	}
	if n < 0 {
		n = math.MaxInt64
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, n), f}, nil
}

func (o objects) Size(_ context.Context, key string) (int64, error) {
	fi, err := os.Stat(filepath.Join(string(o), key))
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (o objects) List(context.Context) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		list, err := os.ReadDir(string(o))
		if err != nil {
			yield(blob.Info{}, err)
			return
		}
		for _, e := range list {
			fi, err := e.Info()
			if err != nil || blob.CheckKey(e.Name()) != nil {
				continue // gone meanwhile, or the server's own
			}
			if !yield(blob.Info{Key: e.Name(), Size: fi.Size()}, nil) {
				return
			}
		}
	}
}

// path names something that all nodes see.
func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

// storage returns the flags of whoever reaches the database and the blobs by these addresses.
func (c *cluster) storage(databases []string, blobs string) []string {
	args := []string{"--blobs", c.path("blobs")}
	if !c.o.folder {
		args[1] = lab.S3URL(blobs)
	}
	if c.o.sqlite {
		return append(args, "--data", c.path("data"))
	}
	return append(args, "--database", lab.DSN(databases...))
}

// newLab makes a lab for one test.
func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	for _, s := range lab.S3Env { // the same for all
		name, value, _ := strings.Cut(s, "=")
		os.Setenv(name, value)
	}
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// installed skips a test that lacks a program, which CI installs.
func installed(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, lab.ErrMissing) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newRelay(t *testing.T, addr string) *lab.Relay {
	t.Helper()
	r, err := lab.NewRelay(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// start starts the node's process, and again if that ends before it serves, as whoever runs it would.
func (n *node) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.c.t
	n.life++
	n.key, n.up = fmt.Sprintf("%s.%d", n.name, n.life), false
	config := filepath.Join(n.c.dir, n.key+".yaml")
	rate := ""
	if n.c.o.rate > 0 {
		rate = fmt.Sprintf(", requests_per_minute: %d", n.c.o.rate)
	}
	if err := os.WriteFile(config, fmt.Appendf(nil, "upstreams:\n  - {name: gpu, url: 'http://%s/v1', key: %s, max_in_flight: %d%s}\n",
		n.upstream.Addr, n.key, n.c.o.limit, rate), 0o600); err != nil {
		t.Error(err)
	}
	var databases []string
	for _, r := range n.database {
		databases = append(databases, r.Addr)
	}
	var blobs string
	if n.blobs != nil {
		blobs = n.blobs.Addr
	}
	args := append([]string{"serve", "--listen", "127.0.0.1:0", "--config", config, "--node", n.name, "--role", n.role}, n.c.storage(databases, blobs)...)
	n.s = &server{process: startCommand(t, exec.Command(offpeak, args...))}
	go n.follow(n.s)
}

// follow waits for a process to serve, and for its end.
func (n *node) follow(s *server) {
	if s.ready() {
		n.mu.Lock()
		n.up = n.s == s
		n.mu.Unlock()
	}
	<-s.ended
	n.mu.Lock()
	alone, served := n.s == s, n.up
	if alone {
		n.up = false
	}
	n.mu.Unlock()
	if text := s.text(); strings.Contains(text, "panic:") || strings.Contains(text, "goroutine ") {
		n.c.t.Errorf("%s:\n%s", n.name, lastLines(text, 60))
	}
	if !alone || n.c.t.Context().Err() != nil {
		return
	}
	if served {
		n.c.t.Errorf("%s ended by itself: %v\n%s", n.name, s.cmd.ProcessState, lastLines(s.text(), 10))
	}
	time.Sleep(500 * time.Millisecond) // as systemd does
	n.mu.Lock()
	again := n.s == s
	n.mu.Unlock()
	s.well = true
	if again {
		n.start()
	}
}

// take takes the process from the node: it is not to run any more.
func (n *node) take() (s *server, key string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, n.s, n.up = n.s, nil, false
	return s, n.key
}

// kill kills the node's process.
func (n *node) kill() {
	s, key := n.take()
	if s == nil {
		return
	}
	at := s.kill()
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.c.losses = append(n.c.losses, loss{key, at})
}

// stop asks the node's process to stop. It may say that it could not do that in order (1), or not record
// every answer (3), if the database is not there.
func (n *node) stop() {
	s, _ := n.take()
	if s == nil {
		return
	}
	s.signal(syscall.SIGTERM)
	select {
	case <-s.ended:
		code := s.cmd.ProcessState.ExitCode()
		if code != 0 && (code != 1 && code != 3 || !n.c.wreck.lately(theDatabase, 20*time.Second)) {
			n.c.t.Errorf("%s was asked to stop: %v\n%s", n.name, s.cmd.ProcessState, lastLines(s.text(), 10))
		}
		s.well = true
	case <-time.After(patience):
		n.c.t.Errorf("%s does not stop within %s:\n%s", n.name, patience, lastLines(s.text(), 10))
		s.kill()
	}
}

// signal sends a signal to the node's process, if there is one.
func (n *node) signal(s syscall.Signal) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.s != nil {
		n.s.signal(s)
	}
}

// client returns the API of a node that is up and has one; else nil.
func (n *node) client() *client.Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.up || n.role == "worker" {
		return nil
	}
	return n.s.api
}

func (n *node) isUp() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.up
}

// startAll starts all nodes, and waits until those that execute something know of each other.
func (c *cluster) startAll() {
	c.t.Helper()
	work := 0
	for _, n := range c.nodes {
		n.start()
		if n.role != "api" {
			work++
		}
	}
	c.awaitAll()
	if c.o.sqlite {
		return
	}
	for _, n := range c.nodes {
		if n.role != "api" {
			poll(c.t, n.name+" to know of all", func() bool { return n.metric("offpeak_nodes") == work })
		}
	}
}

// metric returns the value of one of a node's metrics.
func (n *node) metric(name string) int {
	resp, err := http.Get(strings.TrimSuffix(n.s.url, "/v1") + "/metrics")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return int(v)
		}
	}
	return -1
}

// awaitAll waits until all nodes are up.
func (c *cluster) awaitAll() {
	c.t.Helper()
	for _, n := range c.nodes {
		poll(c.t, n.name, n.isUp)
	}
}

// mend ends whatever was done to the nodes, and starts those that do not run.
func (c *cluster) mend() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.cut(lab.Pass, true, true, true)
		n.signal(syscall.SIGCONT)
		n.mu.Lock()
		runs := n.s != nil
		n.mu.Unlock()
		if !runs {
			n.start()
		}
	}
	c.awaitAll()
}

// cut has some of the node's relays go another way.
func (n *node) cut(w lab.Way, database, blobs, upstream bool) {
	relays := []*lab.Relay{}
	if database {
		relays = append(relays, n.database...)
	}
	if blobs && n.blobs != nil {
		relays = append(relays, n.blobs)
	}
	if upstream {
		relays = append(relays, n.upstream)
	}
	for _, r := range relays {
		if err := r.Set(w); err != nil {
			n.c.t.Error(err)
		}
	}
}

// busy has the cluster do things until ctx ends: what goes wrong meanwhile is asked of another node.
// No more than so many requests are open at a time.
func (c *cluster) busy(ctx context.Context, r *rand.Rand, open int) {
	for ctx.Err() == nil {
		api := c.nodes[r.IntN(len(c.nodes))].client()
		if api == nil || c.open() > open {
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		if c.w.keepBusy(try, api, r, 1, 0) != nil {
			time.Sleep(100 * time.Millisecond) // as clients do
		}
		cancel()
	}
}

// open returns how many requests wait, of batches that were acknowledged and not cancelled.
func (c *cluster) open() (n int) {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	runs := map[string]bool{}
	for id, name := range c.w.batches {
		if _, cancelled := c.w.cancels[id]; !cancelled {
			runs[strings.TrimSuffix(name, ".jsonl")] = true
		}
	}
	for id, body := range c.w.bodies {
		if name, _, _ := strings.Cut(id, "/"); runs[name] && len(c.u.byBody[body]) == 0 {
			n++
		}
	}
	return n
}

// note is told of every answer that is recorded.
func (c *cluster) note(r doctor.Recorded) {
	if _, ok := c.found[r.CustomID]; ok {
		// A file may have been made two batches of, if nobody learned of the first.
		return
	}
	sum := sha256.Sum256(r.Response)
	c.found[r.CustomID] = sum
	if before, ok := c.recorded[r.CustomID]; ok && before != sum {
		c.t.Errorf("the answer to %s has changed", r.CustomID)
	}
	if status, answer := c.u.answer(string(r.Request)); status != r.Status || sha256.Sum256(answer) != sum {
		c.t.Errorf("%s was answered %d %s, and %d %s is recorded", r.CustomID, status, answer, r.Status, r.Response)
	}
}

// examine looks whether everything is sound, and whatever was recorded before still is, and was not
// sent again.
func (c *cluster) examine() {
	c.t.Helper()
	var report *doctor.Report
	var err error
	for range 5 { // a connection may be of before the last breakage
		c.found = map[string][32]byte{}
		ctx, cancel := context.WithTimeout(c.t.Context(), patience)
		report, err = c.doctor.Examine(ctx)
		cancel()
		if err == nil {
			break
		}
	}
	if err != nil {
		c.t.Fatalf("the doctor is at a loss: %v", err)
	}
	for _, f := range report.Findings[:min(len(report.Findings), 10)] {
		c.t.Error(f)
	}
	for id := range c.recorded {
		if _, ok := c.found[id]; !ok {
			c.t.Errorf("%s was recorded, and is not any more", id)
		}
	}
	c.recorded = c.found
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	for _, what := range c.u.beyond[:min(len(c.u.beyond), 5)] {
		c.t.Errorf("more than %d at a time: %s", c.o.limit, what)
	}
	c.u.beyond = nil
}

// finish has all nodes work, waits for the end of everything, and holds it against what is known.
func (c *cluster) finish() {
	c.t.Helper()
	c.mend()
	api := c.nodes[0].client()
	var left []string
	for late := time.Now().Add(2 * patience); ; time.Sleep(50 * time.Millisecond) {
		left = nil
		for b, err := range api.Batches(c.t.Context()) {
			if err != nil {
				c.t.Fatal(err)
			}
			if !ended(b) {
				left = append(left, fmt.Sprintf("%s %s %+v", b.ID, b.Status, b.RequestCounts))
			}
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(late) {
			c.t.Fatalf("waited in vain for the end of %s", strings.Join(left, ", "))
		}
	}
	c.w.finish(c.t, api, c.u)
	c.w.checkBodies(c.t, c.u)
	c.examine()
}

// examineByCommand has the binary examine a cluster at rest.
func (c *cluster) examineByCommand() {
	c.t.Helper()
	var databases []string
	if c.pg != nil {
		databases = c.pg.Addrs
	}
	var blobs string
	if c.s3 != nil {
		blobs = c.s3.Addr
	}
	out, err := exec.Command(offpeak, append([]string{"doctor"}, c.storage(databases, blobs)...)...).CombinedOutput()
	if err != nil {
		c.t.Errorf("offpeak doctor: %v\n%s", err, out)
	}
}

// takeovers returns how long it took after each loss until another process sent again what the lost
// one had in hand; a loss that left nothing in hand is not among them.
func (c *cluster) takeovers() (took map[string]time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	took = map[string]time.Duration{}
	for _, l := range c.losses {
		for _, calls := range c.u.byBody {
			for i, call := range calls[1:] {
				if calls[i].key != l.key || call.key == l.key || call.begun.Before(l.at) {
					continue
				}
				if d, known := took[l.key]; !known || call.begun.Sub(l.at) < d {
					took[l.key] = call.begun.Sub(l.at)
				}
			}
		}
	}
	return took
}

// repeats returns how many calls were made more than once.
func (c *cluster) repeats() (n int) {
	c.u.mu.Lock()
	defer c.u.mu.Unlock()
	for _, calls := range c.u.byBody {
		n += len(calls) - 1
	}
	return n
}

// report prints what it has cost.
func (c *cluster) report() {
	c.t.Helper()
	took := c.takeovers()
	list := slices.Collect(maps.Values(took))
	c.t.Logf("%d requests, %d calls made again; %d processes killed; takeover of %d: median %s, max %s",
		len(c.w.bodies), c.repeats(), len(c.losses), len(list), middle(list), top(list))
}

// inputOf returns an uploaded file, also of one that was deleted.
func (w *work) inputOf(file string) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inputs[w.files[file]]
}
