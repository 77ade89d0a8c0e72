package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// What is there.

// build makes the upstreams of the world.
func (w *world) build(dice *rand.Rand) {
	w.Helper()
	share := func(most float64) float64 {
		if dice.IntN(2) == 0 {
			return 0
		}
		return most * dice.Float64()
	}
	n := 1 + dice.IntN(3)
	hangs := false
	for i := range n {
		c := sim.Config{
			Seed: w.seed, Always400: "wrong", Poison: "poison", PoisonCrashes: dice.IntN(2) == 0,
			Timing:     sim.Timing{Latency: between(dice, 50*time.Millisecond, 20*time.Second), Jitter: 0.9},
			RetryAfter: []time.Duration{0, time.Second, time.Minute}[dice.IntN(3)],
			Faults: sim.Faults{
				Throttle: share(0.2), Error: share(0.1), Cut: share(0.05), Drop: share(0.05), HTML: share(0.05), Redirect: share(0.02),
				Attempts: 2,
			},
		}
		// No request meets with more failures than it has attempts, nor with two calls that hang.
		if n > 2 {
			c.Faults.Attempts = 1
		}
		if dice.IntN(3) == 0 && !hangs {
			c.Faults.Hang, c.Faults.Attempts, hangs = 0.1, 1, true
		}
		// The first one serves every model, by one way or another.
		models := w.models
		if i > 0 {
			models = models[:1+dice.IntN(len(models))]
		}
		u := upstream.Config{MaxInFlight: 1 + dice.IntN(12), Timeout: []time.Duration{2 * time.Minute, 2 * time.Minute, 30 * time.Minute}[dice.IntN(3)]}
		switch dice.IntN(4) {
		case 0: // any
		case 1:
			u.Models = models
		default:
			for _, m := range models {
				c.Models = append(c.Models, sim.Model{ID: m})
			}
		}
		w.lists[w.upstream(c, u)] = len(c.Models) > 0
		w.note("upstream %d: models %v, at most %d calls, latency %v, faults %+v", i, models, u.MaxInFlight, c.Timing.Latency, c.Faults)
	}
	w.repeats = dice.IntN(4) == 0
	w.note("gentle %v, poll %v, segments of %d lines, inputs used again %v", w.gentle, w.poll, w.lines, w.repeats)
}

// launch starts a process, which knows nothing of what former ones knew.
func (w *world) launch() {
	w.lives++
	w.note("process %d starts", w.lives)
	w.faults = newFaults(nil)
	w.p = w.process(w.faults)
	w.calm = time.Now()
}

func (w *world) process(f *faults) *process {
	life := w.lives
	f.decide = func(op string, n, all int) fate { return w.fate(f, life, op, n, all) }
	f.before = func(op string, n int) { w.slow(life, op, n) }
	f.lapsed = w.lapsed
	f.intruded = func(op string, id any) {
		w.Errorf("process %d: %s of %v went through after its lease was lost", life, op, id)
	}
	p := w.start(f.in, small(w.lines), func(c *engine.Config) {
		*c = c.WithPoll(w.poll)
		c.Node = fmt.Sprint("process ", life)
		c.Log = slog.New(slog.NewTextHandler(w.trace, &slog.HandlerOptions{ReplaceAttr: brief})).With("process", life)
		var ups []*upstream.Upstream
		for _, u := range w.ups {
			up, err := upstream.New(u.config)
			if err != nil {
				w.Fatal(err)
			}
			ups = append(ups, up)
		}
		c.Upstreams = upstream.NewPool(ups...)
	})
	return p
}

// lapsed reports whether what is in the table is no longer its who holds the token.
func (w *world) lapsed(table string, id any, token string) bool {
	var n int
	err := w.holds[table].QueryRow(id, token).Scan(&n)
	return err == nil && n == 0
}

// brief leaves out of a line of the log what does not tell much.
func brief(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.String("at", a.Value.Time().UTC().Format("15:04:05.000"))
	}
	return a
}

// fate decides what becomes of an operation: of the nth of its name in that life, always the same.
func (w *world) fate(f *faults, life int, op string, n, all int) fate {
	w.storage.Lock()
	defer w.storage.Unlock()
	s := &w.storage
	if f == w.faults && s.doom > 0 && all >= s.doom {
		w.note("process %d dies at %s %d, which is %v", life, op, n, []string{"", "lost", "untold"}[s.doomed])
		f.die()
		return s.doomed
	}
	share := s.database
	if strings.HasPrefix(op, "blob.") {
		share = s.blobs
	}
	if share == 0 {
		return done
	}
	dice := w.dice("fate", life, op, n)
	switch {
	case share == 1:
		return lost
	case dice.Float64() >= share:
		return done
	}
	fate := lost + fate(dice.IntN(2))
	w.note("process %d has %s %d %v", life, op, n, []string{"", "lost", "untold"}[fate])
	return fate
}

// slow has an operation take its time.
func (w *world) slow(life int, op string, n int) {
	w.storage.Lock()
	most := w.storage.slow
	w.storage.Unlock()
	if most > 0 {
		time.Sleep(time.Duration(w.dice("slow", life, op, n).Int64N(int64(most))))
	}
}

// What may happen.

func (w *world) createOne(dice *rand.Rand) {
	w.Helper()
	var in *contents
	if w.repeats && len(w.inputs) > 0 && dice.IntN(2) == 0 {
		in = w.inputs[dice.IntN(len(w.inputs))]
	} else {
		in = w.input(dice)
	}
	window := between(dice, 20*time.Second, 72*time.Hour)
	e := &errand{input: in, id: w.create(in.file, window)}
	w.batches = append(w.batches, e)
	w.rouse()
	w.note("batch %d (%s) is created, to end within %v: %+v", len(w.batches)-1, e.id, window, *in)
}

// rouse tells everybody that something has changed.
func (w *world) rouse() {
	for _, p := range []*process{w.p, w.rival} {
		if p != nil {
			p.Wake()
		}
	}
}

// input uploads an input as the dice have it.
func (w *world) input(dice *rand.Rand) *contents {
	w.Helper()
	c := &contents{models: slices.Clone(w.models)}
	dice.Shuffle(len(c.models), func(i, j int) { c.models[i], c.models[j] = c.models[j], c.models[i] })
	c.models = c.models[:1+dice.IntN(len(c.models))]
	size := dice.Float64()
	c.total = 1 + int64(60*size*size*size)
	wrong := dice.IntN(3) == 0
	c.poison = !w.gentle && dice.IntN(8) == 0
	prefix := strings.Repeat("the same beginning ", dice.IntN(20))
	var text bytes.Buffer
	for i := range c.total {
		said := fmt.Sprintf("%squestion %d of %d by %d", prefix, i, len(w.inputs), w.seed)
		switch {
		case c.poison && i == c.total/2:
			said += " with poison"
			c.wrong++
		case wrong && dice.IntN(6) == 0:
			said += " which is wrong"
			c.wrong++
		}
		if dice.IntN(20) == 0 {
			text.WriteString("\n")
		}
		text.WriteString(line(fmt.Sprintf("r-%d", i), c.models[dice.IntN(len(c.models))], said))
	}
	if dice.IntN(6) == 0 {
		c.invalid = true
		switch dice.IntN(4) {
		case 0:
			text.WriteString("{\n")
		case 1:
			text.WriteString(line("r-0", "a", "twice"))
		case 2:
			text.Reset()
		case 3:
			text.WriteString(strings.Replace(line("r-x", "a", "elsewhere"), "/v1/chat", "/v1/nowhere", 1))
		}
	}
	part := 0
	if dice.IntN(4) == 0 {
		part = 1 + text.Len()/(1+dice.IntN(5))
	}
	c.file = w.upload(text.Bytes(), part)
	w.inputs = append(w.inputs, c)
	return c
}

func (w *world) cancelOne(dice *rand.Rand) {
	w.Helper()
	w.cancelThis(w.batches[dice.IntN(len(w.batches))])
}

func (w *world) cancelThis(e *errand) {
	w.Helper()
	x, err := w.store.CancelBatch(w.Context(), batch.DefaultProject, e.id)
	w.note("%s is cancelled: it is %s, %v", w.name(e), x.Status, err)
	if err != nil && batch.KindOf(err) != batch.Conflict {
		w.Fatal(err)
	}
	e.cancelled = e.cancelled || err == nil
	w.rouse()
}

func (w *world) deleteOne(dice *rand.Rand) {
	w.Helper()
	in := w.inputs[dice.IntN(len(w.inputs))]
	file := in.file
	if e := w.batches[dice.IntN(len(w.batches))]; dice.IntN(2) == 0 {
		if file = w.look(e.id).OutputFileID; file == "" {
			return
		}
		w.deletes = true
		w.note("the output of %s is deleted, if it is there", w.name(e))
	} else {
		in.deleted = true
		w.note("the input %s is deleted", file)
	}
	err := w.store.DeleteFile(w.Context(), batch.DefaultProject, file)
	if err != nil && batch.KindOf(err) != batch.NotFound {
		w.Fatal(err)
	}
}

// harm makes an upstream fail in some way, or all of them in the same, until they are cured.
func (w *world) harm(dice *rand.Rand) {
	ways := troubles
	if w.gentle {
		ways = slices.DeleteFunc(slices.Clone(ways), func(t trouble) bool { return !t.free })
	}
	t := ways[dice.IntN(len(ways))]
	ups := w.ups
	if dice.IntN(3) > 0 {
		i := dice.IntN(len(ups))
		ups = ups[i : i+1]
	}
	for _, u := range ups {
		w.cure(u)
		w.note("%s: %s", u.Name(), t.name)
		w.cures[u] = t.begin(w, u, dice)
	}
}

// cure ends the trouble of an upstream.
func (w *world) cure(u *up) {
	if end := w.cures[u]; end != nil {
		w.note("%s is well", u.Name())
		end()
		delete(w.cures, u)
	}
}

// heal ends the troubles of upstreams.
func (w *world) heal(dice *rand.Rand) {
	for _, u := range w.ups {
		if dice.IntN(3) > 0 {
			w.cure(u)
		}
	}
}

// curse has the process die soon, at one operation or another.
func (w *world) curse(dice *rand.Rand) {
	w.storage.Lock()
	defer w.storage.Unlock()
	if w.p == nil {
		return
	}
	counts := 0
	for _, n := range w.faults.counts() {
		counts += n
	}
	in := 1 + int(float64(80)*dice.Float64()*dice.Float64())
	w.storage.doom, w.storage.doomed = counts+in, lost+fate(dice.IntN(2))
	w.note("process %d is to die %d operations from now", w.lives, in)
}

// reap clears away a process that has died, or ended because it could not begin.
func (w *world) reap() {
	w.Helper()
	if w.p == nil {
		return
	}
	w.faults.mu.Lock()
	dead := w.faults.dead
	w.faults.mu.Unlock()
	select {
	case err := <-w.p.ended:
		w.note("process %d has ended: %v", w.lives, err)
		if err == nil || !dead && !errors.Is(err, errFault) {
			w.Fatalf("a process ended that nobody asked to: %v", err)
		}
		w.p.ended <- err
		dead = true
	default:
	}
	if dead {
		w.kill()
	}
}

// kill ends the process at once.
func (w *world) kill() {
	w.Helper()
	if w.p == nil {
		return
	}
	w.endDuel(w.dice("duel", w.step)) // it works on the same open store
	w.note("process %d is killed", w.lives)
	w.faults.die()
	w.lift()
	p := w.p
	w.p = nil
	p.die()
}

// lift takes the curse away.
func (w *world) lift() {
	w.storage.Lock()
	defer w.storage.Unlock()
	w.storage.doom = 0
}

// stop drains the process, or aborts its drain after some time.
func (w *world) stop(_ *rand.Rand, abort time.Duration) {
	w.Helper()
	if w.p == nil {
		return
	}
	w.note("process %d is to end; aborted after %v", w.lives, abort)
	p := w.p
	w.end(p, abort)
	w.p = nil
	if w.faults.dead {
		w.note("process %d died meanwhile", w.lives)
		w.endDuel(w.dice("duel", w.step))
		w.reopen()
	}
	w.lift()
}

// end ends a process in order, which has to be done in time.
func (w *world) end(p *process, abort time.Duration) {
	w.Helper()
	start := time.Now()
	p.stop()
	if abort > 0 {
		defer time.AfterFunc(abort, p.abort).Stop()
	}
	err := <-p.ended
	w.note("it ended with %v", err)
	most := time.Minute
	if w.storage.slow > 0 {
		most = 3 * time.Minute
	}
	if took := time.Since(start); took > most {
		w.Errorf("to end took a process %v", took)
	}
	if err != nil && !errors.Is(err, errFault) && !errors.Is(err, context.DeadlineExceeded) {
		w.Errorf("Run() = %v", err)
	}
}

// depose takes everything from whoever holds it, as if the others had declared them dead.
func (w *world) depose(*rand.Rand) {
	w.Helper()
	w.note("all leases are lost")
	w.bench.steal()
	if w.shared { // where it takes more than to join
		judge, err := w.store.Join(w.Context(), "judge")
		if err != nil {
			w.Fatal(err)
		}
		if _, err := w.store.Bury(w.Context(), judge, time.Time{}, -time.Hour); err != nil {
			w.Fatal(err)
		}
	}
	w.calm = time.Now()
}

// steal has somebody else claim a segment, and keep it for some time.
func (w *world) steal(dice *rand.Rand) {
	w.Helper()
	if dice.IntN(2) == 0 {
		w.depose(dice)
	}
	w.thief = true
	node, err := w.store.Join(w.Context(), "thief")
	if err != nil {
		w.Fatal(err)
	}
	w.stolen = nil
	for range 1 + dice.IntN(3) {
		work, err := w.store.Unclaimed(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		if len(work) == 0 {
			return
		}
		lease, err := w.store.Claim(w.Context(), node, work[dice.IntN(len(work))])
		if err != nil {
			w.Fatal(err)
		}
		if lease != nil {
			w.note("a thief has segment %d", lease.ID)
			w.stolen = append(w.stolen, *lease)
		}
	}
	w.pass(between(dice, time.Second, 2*time.Minute))
	if dice.IntN(2) == 0 {
		w.inspect()
	}
	w.giveBack()
}

// giveBack has the thief give back what it holds.
func (w *world) giveBack() {
	w.Helper()
	for _, l := range w.stolen {
		if err := w.store.Release(w.Context(), l); err != nil && !errors.Is(err, batch.ErrLeaseLost) {
			w.Error(err)
		}
	}
	if len(w.stolen) > 0 {
		w.note("the thief has given back what it had")
	}
	w.stolen = nil
	w.calm = time.Now()
}

// duel starts a second process beside the first, or ends it.
func (w *world) duel(dice *rand.Rand) {
	w.Helper()
	switch {
	case w.rival != nil:
		w.endDuel(dice)
	case w.p != nil:
		w.lives++
		w.note("process %d starts, and works beside the other", w.lives)
		w.repeats, w.thief = true, true
		w.mortal = newFaults(nil)
		w.rival = w.process(w.mortal)
		w.running.Store(w.p)
	}
}

func (w *world) endDuel(dice *rand.Rand) {
	w.Helper()
	if w.rival == nil {
		return
	}
	if dice.IntN(2) == 0 {
		w.note("the second process is killed")
		w.mortal.die()
		w.rival.stop()
		w.rival.abort()
		<-w.rival.ended
		if !w.shared || dice.IntN(2) == 0 {
			w.depose(dice) // somebody notices that it is gone
		}
	} else {
		w.note("the second process is to end")
		w.end(w.rival, 0)
		if _, err := w.store.Join(w.Context(), "sweeper"); err != nil { // if it could not say goodbye
			w.Fatal(err)
		}
	}
	w.rival = nil
	w.calm = time.Now()
}

// spoil makes the storage fail, or mends it.
func (w *world) spoil(dice *rand.Rand) {
	w.mend()
	w.storage.Lock()
	defer w.storage.Unlock()
	s := &w.storage
	switch dice.IntN(9) {
	case 0:
		s.database = 1
	case 1:
		s.database, s.blobs = 1, 1
	case 2:
		s.blobs = 1
	case 3, 6:
		s.database = 0.3 * dice.Float64()
	case 4:
		s.database, s.blobs = 0.2*dice.Float64(), 0.3*dice.Float64()
	case 5:
		s.slow = between(dice, time.Millisecond, 2*time.Second)
	}
	w.note("database fails: %.2f, blobs fail: %.2f, operations take %v", s.database, s.blobs, s.slow)
}

// mend mends the storage.
func (w *world) mend() {
	w.storage.Lock()
	defer w.storage.Unlock()
	w.storage.database, w.storage.blobs, w.storage.slow = 0, 0, 0
	w.calm = time.Now()
}

// turnClock turns the store's clock, forth or back.
func (w *world) turnClock(dice *rand.Rand) {
	by := between(dice, time.Second, 40*time.Hour)
	if dice.IntN(2) == 0 {
		by = -by
	}
	w.ahead.Add(int64(by))
	w.calm = time.Now()
	w.note("the clock steps by %v", by)
}

// A trouble is a way for an upstream to fail.
type trouble struct {
	name  string
	begin func(w *world, u *up, dice *rand.Rand) (end func())
	free  bool // it never costs a request anything
}

var troubles = []trouble{
	{"away", func(_ *world, u *up, _ *rand.Rand) func() { u.away.Store(true); return func() { u.away.Store(false) } }, true},
	{"401", refusal(401), true},
	{"402", refusal(402), true},
	{"302", refusal(302), true},
	{"429", refusal(429), true},
	{"503", refusal(503), true},
	{"slow", slowness, true},
	{"lost a model", lossOfModel, true},
	{"403", refusal(403), false},
	{"404", refusal(404), false},
	{"500", refusal(500), false},
	{"502", refusal(502), false},
	{"504", refusal(504), false},
	{"cut", func(_ *world, u *up, _ *rand.Rand) func() { return down(u) }, false},
	{"hangs", func(_ *world, u *up, _ *rand.Rand) func() {
		u.handle(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			read(r)
			<-r.Context().Done()
		}))
		return func() { u.handle(u.Server) }
	}, false},
	{"captive portal", func(_ *world, u *up, _ *rand.Rand) func() {
		u.handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>Sign in</html>") }))
		return func() { u.handle(u.Server) }
	}, false},
}

func refusal(status int) func(*world, *up, *rand.Rand) func() {
	return func(_ *world, u *up, _ *rand.Rand) func() { return u.refuse(status) }
}

// slowness makes every answer come later, and some of them much later.
func slowness(_ *world, u *up, dice *rand.Rand) func() {
	by := between(dice, time.Second, time.Minute)
	u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read(r)
		select {
		case <-time.After(by):
			u.Server.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}))
	return func() { u.handle(u.Server) }
}

// lossOfModel makes the upstream serve the world's other models only.
func lossOfModel(w *world, u *up, dice *rand.Rand) func() {
	gone := w.models[dice.IntN(len(w.models))]
	w.unsure[gone] = true
	w.note("it is %s", gone)
	u.handle(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		// One without a list gets none: what was read once stays good.
		if strings.HasSuffix(r.URL.Path, "/models") && w.lists[u] {
			io.WriteString(rw, `{"object":"list","data":[`)
			n := 0
			for _, m := range w.models {
				if m == gone {
					continue
				}
				if n++; n > 1 {
					io.WriteString(rw, ",")
				}
				fmt.Fprintf(rw, `{"id":%q}`, m)
			}
			io.WriteString(rw, "]}")
			return
		}
		body := read(r)
		if bytes.Contains(body, fmt.Appendf(nil, `"model":%q`, gone)) {
			http.Error(rw, `{"error":{"message":"no such model","code":"model_not_found"}}`, http.StatusNotFound)
			return
		}
		u.Server.ServeHTTP(rw, r)
	}))
	return func() { u.handle(u.Server) }
}

// read reads the whole body, and leaves it to be read again. A server of net/http notices that its
// client has left only once it has.
func read(r *http.Request) []byte {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	return body
}
