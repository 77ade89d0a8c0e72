package engine_test

import (
	"database/sql"
	"flag"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
)

var (
	oneSeed   = flag.Uint64("seed", 0, "the seed that TestSimulation runs; 0: those that -seeds and -first say")
	manySeeds = flag.Int("seeds", 0, "how many seeds TestSimulation runs; 0: as many as cost little")
	firstSeed = flag.Uint64("first", 0, "the first of -seeds; 0: drawn from the clock")
)

// TestSimulation has everything happen that may happen to an engine, in an order that a seed
// decides, over days that take a moment: batches come, are cancelled, run out of time and lose their
// inputs; upstreams fail in every way; processes die, drain, are cut short and lose their leases;
// database, blobs and clock misbehave. After
// every step batches are looked at, and after every third all promises are examined. At the end all is
// well again, and then every batch has to end and nothing may be left over.
//
// A seed that fails is the name of its subtest; run it again with -seed. The steps, the faults of
// the storage and those of the upstreams are the same then. How goroutines take turns and how long a
// retry waits are not, so a failure may take a few runs to come again: its trace is printed for that.
func TestSimulation(t *testing.T) {
	aboutFolders(t)
	if *oneSeed != 0 {
		// With one thread, goroutines take turns in nearly the same order every time.
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		cryptotest.SetGlobalRandom(t, *oneSeed)
		simulate(t, *oneSeed)
		return
	}
	n, first := *manySeeds, *firstSeed
	if n == 0 {
		n = 60
		if race {
			n = 12
		}
	}
	if first == 0 {
		first = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	t.Logf("%d seeds from %d on", n, first)
	before := debug.SetGCPercent(400) // each is small, and memory is cheaper than time
	t.Cleanup(func() { debug.SetGCPercent(before) })
	var failed atomic.Int64
	for i := range uint64(n) {
		t.Run(fmt.Sprint(first+i), func(t *testing.T) {
			t.Parallel()
			if failed.Load() >= 3 {
				t.SkipNow() // there is enough to read
			}
			defer func() {
				if t.Failed() {
					failed.Add(1)
				}
			}()
			simulate(t, first+i)
		})
	}
}

// simulate runs one seed.
func simulate(t *testing.T, seed uint64) {
	trace := &trace{}
	defer func() {
		if r := recover(); r != nil { // the bubble is stuck
			t.Logf("go test ./internal/engine -run 'TestSimulation$' -seed %d\n%s", seed, trace)
			panic(r)
		}
		if t.Failed() {
			t.Logf("go test ./internal/engine -run 'TestSimulation$' -seed %d\n%s", seed, trace)
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, trace)
		defer w.abandon()
		for w.step = range w.steps {
			w.turn()
		}
		w.settle()
	})
}

// A world is a bench together with all that goes wrong around it.
type world struct {
	*bench
	seed  uint64
	trace *trace
	db    *sql.DB              // reads what is there
	holds map[string]*sql.Stmt // of a table, finds a row by id and token
	steps int
	step  int

	// What kind of a world it is.
	gentle bool          // upstreams fail only in ways that never cost a request anything
	poll   time.Duration // of its engines
	lines  int           // of a segment
	models []string

	p      *process      // nil: none runs
	faults *faults       // of p
	lives  int           // processes so far
	rival  *process      // a second one; nil: none. Unless nodes share the data, it believes to have it to itself
	mortal *faults       // of rival
	stolen []batch.Lease // what somebody else holds

	storage struct {
		sync.Mutex
		database, blobs float64       // share of operations that fail
		slow            time.Duration // that an operation takes, at most
		doom            int           // operation at which p dies; 0: none
		doomed          fate          // what becomes of it
	}
	calm time.Time // since when p runs with nothing wrong but upstreams

	lists   map[*up]bool    // whether an upstream has a list of its models
	cures   map[*up]func()  // what ends the trouble of an upstream
	unsure  map[string]bool // models that an upstream may have lost: their requests may fail
	inputs  []*contents
	batches []*errand
	state   string // of all batches, while they are waited for
}

// contents is what an input has in it.
type contents struct {
	file         string
	total, wrong int64
	poison       bool // one of the wrong ones brings its upstream down
	invalid      bool
	models       []string
	deleted      bool
}

// An errand is a batch and what is wanted of it.
type errand struct {
	id        string
	input     *contents
	cancelled bool
	due       time.Time // since when it has to end, whatever the upstreams do; zero: it need not
}

func newWorld(t *testing.T, seed uint64, trace *trace) *world {
	w := &world{
		bench: newBench(t), seed: seed, trace: trace,
		lists: map[*up]bool{}, cures: map[*up]func(){}, unsure: map[string]bool{},
	}
	w.patience = 12 * time.Hour
	var err error
	if w.db, err = sql.Open("sqlite", "file:"+filepath.Join(w.dir, "offpeak.db")+"?mode=ro"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.db.Close() })
	w.holds = map[string]*sql.Stmt{}
	for _, table := range []string{"segments", "batches"} {
		if w.holds[table], err = w.db.Prepare("SELECT count(*) FROM " + table + " WHERE id = $1 AND token = $2"); err != nil {
			t.Fatal(err)
		}
	}
	dice := w.dice("world")
	w.steps = 8 + dice.IntN(16) // two short orders show more than a long one, and some things take long
	if dice.IntN(4) == 0 {
		w.steps += dice.IntN(24)
	}
	w.gentle = dice.IntN(2) == 0
	w.poll = []time.Duration{5 * time.Second, 30 * time.Second, time.Minute, time.Minute}[dice.IntN(4)]
	w.lines = 2 + dice.IntN(20)
	w.models = []string{"a", "b", "c"}[:1+dice.IntN(3)]
	if w.dice("shared").IntN(3) == 0 {
		w.shared, w.poll = true, 5*time.Second
		w.reopen()
		w.note("nodes share the data")
	}
	w.build(dice)
	return w
}

// dice are of the seed and a purpose alone, so that what one purpose uses up does not change what
// another gets.
func (w *world) dice(purpose ...any) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprint(h, purpose...)
	return rand.New(rand.NewPCG(w.seed, h.Sum64()))
}

// between draws a duration; short ones are as likely as long ones.
func between(dice *rand.Rand, least, most time.Duration) time.Duration {
	return time.Duration(float64(least) * math.Pow(float64(most)/float64(least), dice.Float64())).Round(time.Millisecond)
}

func (w *world) note(format string, args ...any) {
	w.trace.add(fmt.Sprintf("%s %3d  ", time.Now().UTC().Format("02 15:04:05.000"), w.step) + fmt.Sprintf(format, args...))
}

// turn takes one step and examines what it leads to.
func (w *world) turn() {
	w.Helper()
	dice := w.dice("step", w.step)
	w.reap()
	if w.p == nil && dice.IntN(5) > 0 {
		w.launch()
	}
	weight := 0
	for _, s := range steps {
		weight += s.weight
	}
	n := dice.IntN(weight)
	if w.step < 2 {
		n = 0
	}
	for _, s := range steps {
		if n -= s.weight; n < 0 {
			s.take(w, dice)
			break
		}
	}
	w.pass(between(dice, 10*time.Millisecond, 2*time.Minute))
	w.inspect()
}

// steps are what may happen, and how often it does. The first comes first.
var steps = []struct {
	weight int
	take   func(w *world, dice *rand.Rand)
}{
	{18, (*world).createOne},
	{8, func(w *world, dice *rand.Rand) { w.pass(between(dice, time.Second, 20*time.Minute)) }},
	{8, (*world).cancelOne},
	{3, (*world).deleteOne},
	{10, (*world).harm},
	{8, (*world).heal},
	{9, (*world).curse},
	{4, func(w *world, dice *rand.Rand) { w.kill() }},
	{5, func(w *world, dice *rand.Rand) { w.stop(dice, 0) }},
	{2, func(w *world, dice *rand.Rand) { w.stop(dice, between(dice, time.Millisecond, 20*time.Second)) }},
	{4, (*world).depose},
	{4, (*world).steal},
	{3, (*world).duel},
	{7, (*world).spoil},
	{3, (*world).turnClock},
	{2, func(w *world, dice *rand.Rand) { // nobody comes to start it for long
		w.endDuel(w.dice("duel", w.step)) // who would look around every second for all that time
		w.stop(dice, 0)
		w.pass(between(dice, time.Hour, 100*time.Hour))
	}},
}

// pass lets time pass.
func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// inspect examines what is there, and whether what has to end does.
func (w *world) inspect() {
	w.Helper()
	now := time.Now()
	w.storage.Lock()
	s := &w.storage
	if w.p == nil || w.rival != nil || len(w.stolen) > 0 || s.database > 0 || s.blobs > 0 || s.slow > 0 || s.doom > 0 {
		w.calm = now
	}
	w.storage.Unlock()
	w.unswept = now.Sub(w.calm) < 5*time.Minute
	// To examine everything takes longer than all the rest. Who runs a single seed wants to know at
	// which step it went wrong.
	thorough := *oneSeed != 0 || w.dice("thorough", w.step).IntN(3) == 0 || w.step >= w.steps
	if thorough {
		w.examine()
	}
	w.check(thorough)
}

// check looks at the batches, at those that have ended only if asked to, and wants to be terminal
// what has to be.
func (w *world) check(all bool) {
	w.Helper()
	now := time.Now()
	for _, e := range w.batches {
		was := w.seen[e.id]
		if was.Status.Terminal() && !all {
			continue
		}
		x := w.look(e.id)
		if x.Status != was.Status {
			w.note("%s is %s, %+v", w.name(e), x.Status, x.Counts)
		}
		switch {
		case x.Status.Terminal():
			continue
		case x.Ending == "" && w.now().Before(x.ExpiresAt):
			e.due = time.Time{}
		case e.due.IsZero():
			e.due = now
		}
		if since := slices.MaxFunc([]time.Time{e.due, w.calm}, time.Time.Compare); !e.due.IsZero() && now.Sub(since) > 11*time.Minute+2*w.poll {
			w.Errorf("promise 6: %s is %s with %+v, %v after it had to end", w.name(e), x.Status, x.Counts, now.Sub(since))
			e.due = now // once is enough
		}
	}
	if w.Failed() {
		w.note("this is wrong")
		if w.p != nil {
			w.note("%s", w.p.Dump())
		}
		w.FailNow()
	}
}

// now is the time by the store's clock.
func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

func (w *world) name(e *errand) string { return fmt.Sprintf("batch %d", slices.Index(w.batches, e)) }

// settle has all go well again, and wants everything to come to its end.
func (w *world) settle() {
	w.Helper()
	w.step++
	w.note("all is well again")
	w.lift()
	w.mend()
	w.endDuel(w.dice("last duel"))
	for _, u := range w.ups {
		w.cure(u)
	}
	w.giveBack()
	w.reap()
	if w.p == nil {
		w.launch()
	}
	last := w.dice("last cancels")
	for _, e := range w.batches {
		if last.IntN(3) == 0 && !w.look(e.id).Status.Terminal() {
			w.cancelThis(e)
		}
	}
	start, moved := time.Now(), time.Now()
	for {
		w.check(false)
		open, state := 0, ""
		for _, e := range w.batches {
			x := w.seen[e.id]
			state += fmt.Sprint(x.Status, x.Counts)
			if !x.Status.Terminal() {
				open++
			}
		}
		if state != w.state {
			w.state, moved = state, time.Now()
		}
		if open == 0 {
			break
		}
		if time.Since(moved) > 10*time.Minute && w.giveUpPoison() {
			moved = time.Now()
		}
		if time.Since(moved) > 2*time.Hour || time.Since(start) > w.patience {
			w.note("%s", w.p.Dump())
			w.Fatalf("promise 6: all has been well for %v, and %d batches do not end", time.Since(start), open)
		}
		w.pass(10 * time.Second)
	}
	w.inspect()
	w.note("everything has ended")
	// Who lost a segment in silence, with a call that hangs, finds that out after the grace.
	w.pass(6*time.Minute + 2*w.poll)
	w.p.drain()
	w.p = nil
	w.wantFree()
	for _, e := range w.batches {
		w.judge(e)
	}
	w.sweepUp()
}

// giveUpPoison cancels the batches that have a request which brings its upstream down: where there is
// no other to compare it with, that looks like an outage, and is waited for until the deadline.
func (w *world) giveUpPoison() (any bool) {
	w.Helper()
	for _, e := range w.batches {
		if x := w.look(e.id); e.input.poison && !x.Status.Terminal() && !e.cancelled {
			w.note("%s has poison in it, and is cancelled", w.name(e))
			w.cancel(e.id)
			e.cancelled, any = true, true
		}
	}
	return any
}

// abandon ends what a failed test leaves running: in a bubble nobody else waits for it.
func (w *world) abandon() {
	for _, p := range []*process{w.rival, w.p} {
		if p != nil {
			p.stop()
			p.abort()
			<-p.ended
		}
	}
}

// judge holds how a batch ended against what was done to it.
func (w *world) judge(e *errand) {
	w.Helper()
	x, c := w.seen[e.id], e.input
	wrong := func(what string) {
		w.Helper()
		w.Errorf("%s %s: it is %s with %+v, errors %+v; its input: %+v", w.name(e), what, x.Status, x.Counts, x.Errors, *c)
	}
	sure := !slices.ContainsFunc(c.models, func(m string) bool { return w.unsure[m] })
	switch x.Status {
	case batch.Failed:
		if !c.invalid && !c.deleted && sure {
			wrong("failed with a good input")
		}
	case batch.Cancelled:
		if !e.cancelled {
			wrong("was never cancelled")
		}
	case batch.Expired:
		if x.ExpiredAt.Before(x.ExpiresAt) {
			wrong("expired before its time")
		}
	}
	if x.InProgressAt.IsZero() {
		return
	}
	if c.invalid {
		wrong("ran with a bad input")
	}
	if x.Counts.Total != c.total || x.Counts.Completed > c.total-c.wrong {
		wrong("has not the results of its input")
	}
	if x.Status == batch.Completed && sure && w.gentle && x.Counts.Failed != c.wrong || sure && w.gentle && x.Counts.Failed > c.wrong {
		wrong("promise 7: has requests that failed of what was no fault of theirs")
	}
}

// sweepUp has the sweeper come by when nothing is under way any more, and wants no more to be there
// than is named.
func (w *world) sweepUp() {
	w.Helper()
	w.ahead.Add(int64(20 * 24 * time.Hour)) // whatever the clock did
	for more := true; more; {
		var err error
		if more, err = w.store.Sweep(w.Context()); err != nil {
			w.Fatal(err)
		}
	}
	for what, rows := range map[string]string{
		"blobs that nothing names": "blobs WHERE pending = 1", "groups of the journal": "journal", "segments": "segments",
	} {
		if n := w.count(rows); n > 0 {
			w.Errorf("promise 9: %d %s stay for good", n, what)
		}
	}
}

// count counts rows of the database.
func (w *world) count(from string) (n int) {
	w.Helper()
	if err := w.db.QueryRow("SELECT count(*) FROM " + from).Scan(&n); err != nil {
		w.Fatal(err)
	}
	return n
}

// A trace is what happened, for those who want to know why something went wrong.
type trace struct {
	mu      sync.Mutex
	lines   []string
	dropped int
}

// mostTrace is how many lines of a trace are kept, half of them the first and half the last.
const mostTrace = 4000

func (t *trace) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) >= mostTrace {
		t.lines = slices.Delete(t.lines, mostTrace/2, mostTrace/2+100)
		t.dropped += 100
	}
	t.lines = append(t.lines, strings.TrimRight(line, "\n"))
}

// Write takes a line of the engine's log.
func (t *trace) Write(p []byte) (int, error) {
	t.add("                         " + string(p))
	return len(p), nil
}

func (t *trace) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fmt.Sprintf("%s\n(%d lines are left out in the middle)", strings.Join(t.lines, "\n"), t.dropped)
}
