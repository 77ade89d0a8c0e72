package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/api"
	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/store"
	"offpeak/internal/upstream"
)

var everyFault = flag.Bool("every-fault", false, "TestMatrix strikes every single write, not the first, the last and one other of each kind; and nothing is spared with -cluster")

// What may become of a write, beside what the fates of one operation are.
const (
	diesBefore fate = untold + 1 + iota // the process dies, and the write has no effect
	diesAfter                           // the write has its effect, and then the process dies
)

var fates = map[fate]string{lost: "lost", untold: "untold", diesBefore: "dies before", diesAfter: "dies after"}

// A strike is the fate of one write: the nth of a kind in a history.
type strike struct {
	point string // the method of the store that writes, or "blob" and the step on the disk
	n     int
	fate  fate
}

// An ordeal is a bench on which a server runs, API and engine, whose writes may be struck. Whenever
// the process dies the next one is started, as init does. The bench's own store is a guest's, which
// outlives processes and is not struck.
type ordeal struct {
	*bench
	strike  strike
	weather map[strike]bool // what strikes in every run, so that what mends it is reached too
	profile func(*engine.Config)

	mu     sync.Mutex
	count  map[string]int // writes so far, by point
	struck bool
	life   *life // nil: none
	deaths int

	inputs  [][]byte                // of batches
	files   map[string]string       // acknowledged files that must be there: id to content
	gone    []string                // files whose deletion was acknowledged
	batches map[string]batch.Status // acknowledged batches, and how they must end
	keys    map[string]bool         // acknowledged keys, and whether they must be good
}

// A life is one process.
type life struct {
	o       *ordeal
	store   *store.Store
	blobs   *blob.Dir
	handler http.Handler
	died    chan struct{}
	dead    bool // guarded by ordeal.mu: nothing it writes has an effect any more
}

// fault is what a write of l comes to.
func (l *life) fault(point string) (apply bool, err error) {
	o := l.o
	o.mu.Lock()
	defer o.mu.Unlock()
	if l.dead {
		return false, errFault
	}
	o.count[point]++
	s := o.strike
	if s.point != point || s.n != o.count[point] {
		s = strike{point, o.count[point], done}
		for _, f := range []fate{lost, untold} {
			if w := (strike{point, s.n, f}); o.weather[w] {
				s = w
			}
		}
	} else {
		o.struck = true
	}
	switch s.fate {
	case done:
		return true, nil
	case diesBefore, diesAfter:
		l.dead = true
		o.deaths++
		close(l.died)
	}
	return s.fate == untold || s.fate == diesAfter, errFault
}

// boot opens the folder as a process does that starts, again should that fail.
func (o *ordeal) boot() *life {
	for ; ; time.Sleep(100 * time.Millisecond) {
		l := &life{o: o, died: make(chan struct{})}
		var err error
		if l.store, err = store.Open(context.Background(), o.dir, store.Options{
			Fault: func(op string) (bool, error) { return l.fault(op) }, Shared: o.shared,
		}); err != nil {
			o.Errorf("open the store: %v", err)
			continue
		}
		l.blobs, err = blob.Open(filepath.Join(o.dir, "blobs"), blob.WithFault(func(op blob.Op, _ string) (bool, error) {
			return l.fault("blob " + string(op))
		}))
		if err != nil {
			l.store.Close()
			continue
		}
		return l
	}
}

// A host runs one process after another until it is stopped.
type host struct {
	o    *ordeal
	stop func()
	told chan struct{} // closed by stop
	done chan struct{}
}

func (o *ordeal) serve() *host {
	h := &host{o: o, told: make(chan struct{}), done: make(chan struct{})}
	h.stop = sync.OnceFunc(func() { close(h.told) })
	go func() {
		defer close(h.done)
		for h.one() {
			time.Sleep(100 * time.Millisecond)
		}
	}()
	o.Cleanup(func() { // whatever became of the test
		h.stop()
		<-h.done
	})
	return h
}

// one runs one process to its end and reports whether there shall be another.
func (h *host) one() (again bool) {
	o := h.o
	l := o.boot()
	defer l.store.Close()
	p := o.start(o.profile, func(c *engine.Config) { c.Store, c.Blobs = l.store, l.blobs })
	l.handler = api.New(api.Config{Store: l.store, Blobs: l.blobs, Keys: l.store.Keys(false), Wake: p.Wake, Activity: p.Activity})
	o.live(l)
	defer o.live(nil)
	defer func() {
		p.stop()
		p.abort()
	}()
	select {
	case err := <-p.ended:
		if !errors.Is(err, errFault) {
			o.Errorf("Run() = %v", err)
		}
		return true
	case <-l.died:
		p.stop()
		p.abort()
		<-p.ended
		return true
	case <-h.told:
	}
	p.stop()
	select {
	case <-l.died:
		p.abort()
		<-p.ended
	case <-p.ended:
	}
	return false
}

func (o *ordeal) live(l *life) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.life = l
}

// end stops the server, and has what it left examined.
func (h *host) end() {
	h.o.Helper()
	h.stop()
	<-h.done
	h.o.examine()
}

// try does something with the process that is there, until it is acknowledged.
func (o *ordeal) try(what string, do func(l *life) error) {
	o.Helper()
	var err error
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(50 * time.Millisecond) {
		o.mu.Lock()
		l := o.life
		o.mu.Unlock()
		if l == nil {
			continue
		}
		err = do(l)
		o.mu.Lock()
		answered := !l.dead
		o.mu.Unlock()
		if err == nil && answered { // a process that is dead has told nobody
			return
		}
	}
	o.Fatalf("%s: %v", what, err)
}

// errStatus is an answer of the API that is none of the wanted.
type errStatus struct {
	status int
	body   string
}

func (e errStatus) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.body) }

// call asks the API of l and decodes its answer.
func (l *life) call(method, path string, body io.Reader, into any, headers ...string) error {
	r := httptest.NewRequest(method, path, body)
	r.Host = "localhost" // without a key, only what calls the server so is let in
	r.Header.Set("Authorization", "Bearer any")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	l.handler.ServeHTTP(w, r)
	if w.Code != 200 {
		return errStatus{w.Code, w.Body.String()}
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(w.Body.Bytes(), into)
}

// An object is what the tests look at of any object that the API answers with.
type object struct {
	ID     string
	Status string
	File   *object
	Data   []struct {
		ID       string
		Metadata map[string]string
	}
}

// post asks the API for an object until there is one.
func (o *ordeal) post(path, body string, headers ...string) (a object) {
	o.Helper()
	o.try("POST "+path, func(l *life) error {
		a = object{}
		return l.call("POST", path, strings.NewReader(body), &a, headers...)
	})
	return a
}

// form is post with a form that has a file.
func (o *ordeal) form(path, name, content string, fields ...string) (a object) {
	o.Helper()
	o.try("POST "+path, func(l *life) error {
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		for i := 0; i < len(fields); i += 2 {
			w.WriteField(fields[i], fields[i+1])
		}
		part, _ := w.CreateFormFile(name, "in.jsonl")
		part.Write([]byte(content))
		w.Close()
		a = object{}
		return l.call("POST", path, &body, &a, "Content-Type", w.FormDataContentType())
	})
	return a
}

// uploaded makes an input file by way of the API.
func (o *ordeal) uploaded(content string) string {
	o.Helper()
	id := o.form("/v1/files", "file", content, "purpose", "batch").ID
	o.keep(id, content)
	return id
}

func (o *ordeal) keep(file, content string) {
	o.files[file] = content
	o.inputs = append(o.inputs, []byte(content))
	o.bench.inputs[file] = []byte(content)
}

// created makes a batch of the file that is to end so. A client that hears nothing looks whether
// the batch is there before it asks again.
func (o *ordeal) created(file string, ends batch.Status) (id string) {
	o.Helper()
	tag := fmt.Sprint(len(o.batches))
	o.try("create", func(l *life) error {
		var list, made object
		if err := l.call("GET", "/v1/batches", nil, &list); err != nil {
			return err
		}
		for _, b := range list.Data {
			if b.Metadata["tag"] == tag {
				id = b.ID
				return nil
			}
		}
		err := l.call("POST", "/v1/batches", strings.NewReader(fmt.Sprintf(
			`{"input_file_id":%q,"endpoint":%q,"completion_window":"24h","metadata":{"tag":%q}}`, file, endpoint, tag)), &made)
		id = made.ID
		return err
	})
	o.batches[id] = ends
	o.look(id)
	return id
}

// createdOnce is created for a client that gives its request a key, and then just asks again.
func (o *ordeal) createdOnce(file string, ends batch.Status) string {
	o.Helper()
	id := o.post("/v1/batches", fmt.Sprintf(`{"input_file_id":%q,"endpoint":%q,"completion_window":"24h"}`, file, endpoint),
		"Idempotency-Key", "key "+file).ID
	o.batches[id] = ends
	o.look(id)
	return id
}

func (o *ordeal) cancelled(id string) {
	o.Helper()
	if a := o.post("/v1/batches/"+id+"/cancel", ""); a.Status != "cancelling" && a.Status != "cancelled" {
		o.Errorf("a batch that was cancelled is %s", a.Status)
	}
	o.batches[id] = batch.Cancelled
}

// deleted deletes a file. That it is gone is what a client hears who asks again.
func (o *ordeal) deleted(file string) {
	o.Helper()
	o.try("delete", func(l *life) error {
		err := l.call("DELETE", "/v1/files/"+file, nil, nil)
		if e, ok := errors.AsType[errStatus](err); ok && e.status == 404 {
			return nil
		}
		return err
	})
	delete(o.files, file)
	o.gone = append(o.gone, file)
}

// clients is a history of what clients write: files in one piece and in parts, batches, keys.
func (o *ordeal) clients() {
	o.weather = map[strike]bool{{"blob syncdir", 2, lost}: true}
	// What a crash has left.
	temp := filepath.Join(o.dir, "blobs", "tmp", blob.NewKey()+".123")
	if err := os.WriteFile(temp, []byte("half"), 0o600); err != nil {
		o.Fatal(err)
	}
	h := o.serve()
	one, two := string(chat(3)), string(chat(4))
	first := o.uploaded(one)
	started := o.createdOnce(first, batch.Completed)
	u := o.post("/v1/uploads", fmt.Sprintf(`{"purpose":"batch","filename":"in.jsonl","bytes":%d,"mime_type":"application/jsonl"}`, len(two)))
	part := o.form("/v1/uploads/"+u.ID+"/parts", "data", two[:100])
	rest := o.form("/v1/uploads/"+u.ID+"/parts", "data", two[100:])
	second := o.post("/v1/uploads/"+u.ID+"/complete", fmt.Sprintf(`{"part_ids":[%q,%q]}`, part.ID, rest.ID)).File.ID
	o.keep(second, two)
	o.created(second, batch.Completed)
	stopped := o.created(o.uploaded(string(chat(30))), batch.Cancelled)
	o.cancelled(stopped)
	given := o.post("/v1/uploads", `{"purpose":"batch","filename":"in.jsonl","bytes":9,"mime_type":"application/jsonl"}`)
	o.form("/v1/uploads/"+given.ID+"/parts", "data", "{}")
	o.try("cancel upload", func(l *life) error { return l.call("POST", "/v1/uploads/"+given.ID+"/cancel", nil, nil) })
	o.deleted(o.uploaded("{}\n"))
	o.until(started, "validated", func(x batch.Batch) bool { return x.Status != batch.Validating })
	o.deleted(first) // which its batch does not feel

	var project, secret, revoked string
	o.try("create project", func(l *life) error {
		project = fmt.Sprintf("project %d", time.Now().UnixNano())
		_, err := l.store.CreateProject(o.Context(), project, 1)
		return err
	})
	makeKey := func() (k store.Key, secret string) {
		o.try("create key", func(l *life) (err error) {
			k, secret, err = l.store.CreateKey(o.Context(), project, "")
			return err
		})
		return k, secret
	}
	_, secret = makeKey()
	k, revoked := makeKey()
	o.keys[secret] = true
	o.try("authenticate", func(l *life) error {
		_, err := l.store.Keys(true).Authenticate(o.Context(), secret, false)
		return err
	})
	o.try("revoke", func(l *life) error { return l.store.RevokeKey(o.Context(), k.ID) })
	o.keys[revoked] = false
	o.allEnd()
	h.end()
}

// work is a history of what an engine writes: batches of every ending, files that go, a drain and a
// restart, claims of which nothing is heard.
func (o *ordeal) work() {
	o.weather = map[strike]bool{{"Claim", 3, untold}: true, {"ClaimValidating", 2, untold}: true}
	late := o.bench.upstream(sim.Config{Models: []sim.Model{{ID: "of late"}}}, upstream.Config{MaxInFlight: 1})
	late.away.Store(true)
	o.upload([]byte("old"))
	old := o.upload([]byte("older"))
	time.Sleep(25 * time.Hour)
	if err := o.store.DeleteFile(o.Context(), batch.DefaultProject, old); err != nil {
		o.Fatal(err)
	}
	text := mixed(24, 6, "wrong")
	run := func(input []byte, ends batch.Status) string {
		id := o.run(input)
		o.inputs = append(o.inputs, input)
		o.batches[id] = ends
		return id
	}
	long := run(append(text, []byte(line("n", "n", "x"))...), batch.Completed)
	run([]byte("nonsense\n"), batch.Failed)
	cancelled := run(chat(40), batch.Cancelled)
	short := chat(80, "q")
	o.inputs = append(o.inputs, short)
	expired := o.create(o.upload(short), 5*time.Second)
	o.batches[expired] = batch.Expired
	run(chat(2, "of late"), batch.Completed)
	h := o.serve()
	time.Sleep(2 * time.Second)
	o.cancel(cancelled)
	time.Sleep(500 * time.Millisecond)
	h.end()
	late.away.Store(false)
	h = o.serve()
	o.allEnd()
	time.Sleep(time.Second) // of what was deleted, the second process removes the bytes
	h.end()
	o.want(o.look(long), batch.Completed, 25, 21, 4)
}

// nodes is a history of a node beside which another one falls silent that has a segment, and a batch to
// validate.
func (o *ordeal) nodes() {
	o.shared = true
	silent, err := store.Open(o.Context(), o.dir, store.Options{Shared: true})
	if err != nil {
		o.Fatal(err)
	}
	o.Cleanup(func() { silent.Close() })
	must := func(err error) {
		o.Helper()
		if err != nil {
			o.Fatal(err)
		}
	}
	node, err := silent.Join(o.Context(), "silent")
	must(err)
	var ids []string
	for range 2 {
		input := chat(9)
		o.inputs = append(o.inputs, input)
		ids = append(ids, o.run(input))
		o.batches[ids[len(ids)-1]] = batch.Completed
	}
	a, err := silent.ClaimValidating(o.Context(), node)
	must(err)
	lane := batch.Lane{Model: "m", Endpoint: endpoint}
	must(silent.Admit(o.Context(), *a, "m", []batch.Segment{{Lane: lane, Length: a.Input.Bytes, FirstLine: 1, Total: 9}}))
	_, err = silent.Claim(o.Context(), node, batch.Work{BatchID: ids[0], Lane: lane})
	must(err)
	_, err = silent.ClaimValidating(o.Context(), node)
	must(err)
	h := o.serve()
	o.try("pair", func(l *life) error { // see the command
		p := batch.Part{Key: blob.NewKey()}
		if err := l.store.ReserveBlob(o.Context(), p.Key); err != nil {
			return err
		}
		w, err := l.blobs.Create(o.Context(), p.Key)
		if err != nil {
			return err
		}
		if _, err := w.Write([]byte("blob\n")); err != nil {
			w.Abort()
			return err
		}
		if p.Bytes, err = w.Commit(); err != nil {
			return err
		}
		return l.store.Pair(o.Context(), p)
	})
	o.allEnd()
	h.end()
}

// allEnd waits for all batches, those included that nobody was told of.
func (o *ordeal) allEnd() {
	o.Helper()
	ids := query[string](o.bench, "SELECT id FROM batches ORDER BY seq")
	for _, id := range ids {
		o.look(id)
		x := o.ends(id)
		if want := o.batches[id]; want != "" && x.Status != want {
			o.Errorf("a batch is %s, want %s", x.Status, want)
		}
	}
	for id := range o.batches {
		if !slices.Contains(ids, id) {
			o.Errorf("promise 11: batch %s was acknowledged and is gone", id)
		}
	}
}

// wantKept checks that what was acknowledged is there.
func (o *ordeal) wantKept() {
	o.Helper()
	for id, content := range o.files {
		f, err := o.store.File(o.Context(), batch.DefaultProject, id)
		if err != nil {
			o.Errorf("promise 11: file %s was acknowledged: %v", id, err)
			continue
		}
		r := blob.Concat(o.Context(), o.blobs, f.Parts, 0, -1)
		defer r.Close()
		if text, err := io.ReadAll(r); err != nil || string(text) != content {
			o.Errorf("promise 11: file %s has %d bytes, %v; want %d, or other ones", id, len(text), err, len(content))
		}
	}
	for _, id := range o.gone {
		if _, err := o.store.File(o.Context(), batch.DefaultProject, id); batch.KindOf(err) != batch.NotFound {
			o.Errorf("promise 11: file %s was deleted: %v", id, err)
		}
	}
	for secret, good := range o.keys {
		if _, err := o.store.Keys(true).Authenticate(o.Context(), secret, false); (err == nil) != good {
			o.Errorf("promise 11: a key that is to be good, %v: %v", good, err)
		}
	}
}

// wantNoOrphans lets a day pass and wants the sweeper to find everything that nobody names.
func (o *ordeal) wantNoOrphans() {
	o.Helper()
	time.Sleep(store.PendingFor + time.Minute)
	ctx := o.Context()
	must := func(err error) {
		o.Helper()
		if err != nil {
			o.Fatal(err)
		}
	}
	for range 3 { // what one sweep takes a name from, the next may find
		_, err := o.store.Sweep(ctx)
		must(err)
	}
	keys, err := o.store.Deleted(ctx, 0)
	must(err)
	for _, key := range keys {
		must(o.blobs.Delete(ctx, key))
	}
	must(o.store.Forget(ctx, keys))
	named := query[string](o.bench, `SELECT key FROM blobs WHERE key IN (SELECT blob_key FROM file_parts)
		OR key IN (SELECT blob_key FROM upload_parts) OR key IN (SELECT blob_key FROM storage) ORDER BY key`)
	rows := query[string](o.bench, "SELECT key FROM blobs ORDER BY key")
	var found []string
	for info, err := range o.blobs.List(ctx) {
		must(err)
		found = append(found, info.Key)
	}
	slices.Sort(found)
	if !slices.Equal(named, rows) || !slices.Equal(named, found) {
		o.Errorf("after the sweep %d blobs are named, %d have a row, %d are there", len(named), len(rows), len(found))
	}
	if _, err := blob.Open(filepath.Join(o.dir, "blobs")); err != nil {
		o.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(o.dir, "blobs", "tmp")); err != nil || len(left) > 0 {
		o.Errorf("left among temporary files: %v, %v", left, err)
	}
}

// wantFewRepeats checks that a crash has what was under way sent again and nothing else, and that
// whatever else fails has nothing sent again (promise 4).
func (o *ordeal) wantFewRepeats() {
	o.Helper()
	repeats := 0
	var parser batch.Parser
	for _, input := range o.inputs {
		for l := range batch.SplitLines(input, 1) {
			if req, err := parser.Request(l); err == nil {
				repeats += max(0, o.calls(req.Body)-1)
			}
		}
	}
	if most := o.deaths * 2 * slots; repeats > most {
		o.Errorf("promise 4: %d requests were sent again after %d deaths, want %d at most", repeats, o.deaths, most)
	}
}

// histories are what TestMatrix strikes.
var histories = map[string]func(*ordeal){"clients": (*ordeal).clients, "work": (*ordeal).work, "nodes": (*ordeal).nodes}

// endure runs a history with a strike, and examines everything.
func endure(t *testing.T, history string, s strike) (o *ordeal) {
	bubble(t, func(b *bench) {
		b.store.Close()
		guest, err := store.Open(b.Context(), b.dir, store.Options{Guest: true})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { guest.Close() })
		b.store = guest
		b.plainUpstream()
		o = &ordeal{
			bench: b, strike: s, count: map[string]int{}, files: map[string]string{}, batches: map[string]batch.Status{},
			keys: map[string]bool{},
			profile: func(c *engine.Config) {
				*c = c.WithSegmentLines(7)
				c.KeepDeleted, c.KeepBatches = time.Second, 24*time.Hour
			},
		}
		histories[history](o)
		o.wantKept()
		o.wantFewRepeats()
		b.examine()
		o.wantNoOrphans()
	})
	return o
}

// slots is how many calls may be in flight; as many again may be answered and not recorded yet.
const slots = 4

// plainUpstream is the upstream that all histories have.
func (b *bench) plainUpstream() {
	b.upstream(sim.Config{Timing: sim.Timing{Latency: 500 * time.Millisecond, Jitter: 0.5}, Always400: "wrong"},
		upstream.Config{MaxInFlight: slots, Models: []string{"m", "n", "q"}})
}

// TestMatrix strikes writes: each kind that there is in the code, the first of it, the last and
// another, has no effect and fails, has its effect and fails, or is what the process dies before or
// after. Then whoever waits asks again, the next process takes over, and in the end nothing that
// was acknowledged is lost, nothing recorded was sent again, and nothing is left that is not swept.
func TestMatrix(t *testing.T) {
	aboutFolders(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	type place struct {
		history string
		n       int
	}
	points := map[string]place{}
	for _, history := range slices.Sorted(maps.Keys(histories)) {
		t.Run(history, func(t *testing.T) {
			for point, n := range endure(t, history, strike{}).count {
				if n > points[point].n {
					points[point] = place{history, n}
				}
			}
		})
	}
	t.Log(points)
	known := writes(t)
	for _, w := range known {
		if points[w].n == 0 {
			t.Errorf("%s writes, and no history gets there", w)
		}
	}
	for point := range points {
		if !slices.Contains(known, point) {
			t.Errorf("%s writes, and is not found to do so in the code", point)
		}
	}
	struck := map[fate]*atomic.Int64{lost: {}, untold: {}, diesBefore: {}, diesAfter: {}}
	t.Cleanup(func() {
		for f, n := range struck {
			t.Logf("%s: %d writes of %d kinds", fates[f], n.Load(), len(points))
		}
	})
	i := 0
	for _, point := range slices.Sorted(maps.Keys(points)) {
		p := points[point]
		nths := []int{1, p.n, 1 + dice.IntN(p.n)}
		if *everyFault {
			nths = nil
			for n := range p.n {
				nths = append(nths, n+1)
			}
		}
		slices.Sort(nths)
		for _, n := range slices.Compact(nths) {
			for _, f := range []fate{lost, untold, diesBefore, diesAfter} {
				if i++; sparing(i, 17) {
					continue
				}
				t.Run(fmt.Sprintf("%s %d %s", point, n, fates[f]), func(t *testing.T) {
					t.Parallel()
					switch o := endure(t, p.history, strike{point, n, f}); {
					case o.struck:
						struck[f].Add(1)
					case n == 1:
						t.Errorf("%s is not written this time", point)
					}
				})
			}
		}
	}
}
