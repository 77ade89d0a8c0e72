package crash

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"offpeak/internal/sim"
)

// A tally keeps what kills have cost.
type tally struct {
	repeated     []int           // calls that had to be made again, of each kill
	inFlight     []int           // of them, those that were in flight
	age          []time.Duration // of the oldest answer that was lost with a kill
	ready, first []time.Duration // from the start of a process: until it serves, until its first call
	patient      bool            // answers may be lost however old they are
	known        map[string]bool // custom ids that were recorded at the last kill
}

// The promises about what a kill costs: calls in flight, and answers that waited to be recorded,
// which is 50 ms, of an upstream that gives 800 a second. On top of that comes the commit itself,
// which takes what the disk of the day takes: so most bounds are for the median, that one hiccup of
// the machine fails nothing.
const (
	maxRepeated = maxInFlight + 40
	maxLost     = 2 * time.Second // in no case are answers lost that are older
	maxResume   = time.Second
)

// after examines what a kill has left. The upstream is to be at rest.
func (y *tally) after(t *testing.T, w *work, u *upstream, dir string, at time.Time) folder {
	t.Helper()
	f := readFolder(t, dir)
	for id := range y.known {
		if !f.recorded[id] {
			t.Errorf("%s was recorded at the last kill, and is not any more", id)
		}
	}
	again := map[string]bool{}
	for id := range y.known {
		again[w.bodies[id]] = true
	}
	recorded := map[string]bool{}
	for id := range f.recorded {
		recorded[w.bodies[id]] = true
	}
	repeated, inFlight, oldest := 0, 0, time.Duration(0)
	for _, c := range u.of(u.life) {
		if again[c.body] {
			t.Errorf("recorded before the process began, and sent again: %s", c.body)
		}
		switch {
		case recorded[c.body]:
			if !c.answered() {
				t.Errorf("recorded without an answer: %s", c.body)
			}
			continue
		case c.answered() && c.ended.Before(at):
			oldest = max(oldest, at.Sub(c.ended))
		case c.begun.Before(at): // on a slow machine there are others: it takes a moment to die
			inFlight++
		}
		repeated++
	}
	if inFlight > maxInFlight {
		t.Errorf("%d calls were in flight, of %d allowed", inFlight, maxInFlight)
	}
	if oldest > maxLost && !y.patient {
		t.Errorf("an answer of %s before the kill was not recorded", oldest)
	}
	y.repeated, y.inFlight, y.age = append(y.repeated, repeated), append(y.inFlight, inFlight), append(y.age, oldest)
	y.known = f.recorded
	return f
}

// started notes how long a process took that found work to do.
func (y *tally) started(u *upstream, p *process, ready time.Time) {
	if !ready.IsZero() {
		y.ready = append(y.ready, ready.Sub(p.started))
	}
	if calls := u.of(u.life); len(calls) > 0 {
		y.first = append(y.first, calls[0].begun.Sub(p.started))
	}
}

// report prints what kills have cost, and looks whether nothing else was sent twice.
func (y *tally) report(t *testing.T, w *work, u *upstream) {
	t.Helper()
	most, again := 0, 0
	for _, n := range y.repeated {
		most += n
	}
	for _, body := range w.bodies {
		calls, _ := u.times(body)
		again += max(0, calls-1)
	}
	if again > most {
		t.Errorf("%d calls were repeated, %d had to be", again, most)
	}
	t.Logf("%d kills; repeated calls per kill: median %d, max %d; of them in flight: median %d, max %d; oldest answer lost: median %s, max %s",
		len(y.repeated), middle(y.repeated), top(y.repeated), middle(y.inFlight), top(y.inFlight), middle(y.age), top(y.age))
	if len(y.ready) > 0 {
		t.Logf("restart → ready: median %s, max %s, of %d", middle(y.ready), top(y.ready), len(y.ready))
	}
	t.Logf("restart → first request: median %s, max %s, of %d", middle(y.first), top(y.first), len(y.first))
	if m := middle(y.repeated); m > maxRepeated {
		t.Errorf("%d calls have to be repeated, want at most %d", m, maxRepeated)
	}
	if m := middle(y.first); m > maxResume {
		t.Errorf("work resumes after %s, want at most %s", m, maxResume)
	}
}

func middle[T cmp.Ordered](list []T) (m T) {
	if len(list) > 0 {
		m = slices.Sorted(slices.Values(list))[len(list)/2]
	}
	return m
}

func top[T cmp.Ordered](list []T) (m T) {
	if len(list) > 0 {
		m = slices.Max(list)
	}
	return m
}

// A moment is when a process is killed: so long after its start, or so long after it got a number
// of answers.
type moment struct {
	answers int
	wait    time.Duration
}

func (m moment) String() string { return fmt.Sprintf("%s after %d answers", m.wait, m.answers) }

// randomMoment favours none of a process's ages: one in four is killed as it starts.
func randomMoment(r *rand.Rand, answers int) moment {
	if r.IntN(4) == 0 {
		return moment{0, time.Duration(r.Int64N(int64(200 * time.Millisecond)))}
	}
	return moment{1 + r.IntN(answers), time.Duration(r.Int64N(int64(60 * time.Millisecond)))}
}

// pass waits for the moment. The time that is waited is no synchronisation: it is what is tried.
func (m moment) pass(t *testing.T, u *upstream, p *process) {
	t.Helper()
	if m.answers > 0 {
		u.awaitAnswers(t, p, m.answers)
	}
	select {
	case <-time.After(m.wait):
	case <-p.ended:
	}
}

// killSim is the upstream of processes that are killed: some 800 answers a second.
var killSim = sim.Config{Seed: 1, Timing: sim.Timing{Latency: 20 * time.Millisecond, Jitter: 0.9}, Always400: refused}

// TestKillServe kills a server at random moments while others create, cancel and delete.
func TestKillServe(t *testing.T) {
	slow(t)
	t.Parallel()
	r, u, w, dir := chance(t), newUpstream(t, killSim), newWork(), filepath.Join(t.TempDir(), "data")
	var y tally
	var left folder
	for range rounds(t, 10) {
		u.next(t)
		m := randomMoment(r, 400)
		s := serve(t, dir, u.url())
		var ready time.Time
		var busy sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		random := rand.New(rand.NewPCG(r.Uint64(), 0))
		most, enough := 5, m.answers
		if left.open > 1500 {
			most, enough = 1, 0
		}
		busy.Go(func() {
			if s.ready() {
				ready = time.Now()
				w.keepBusy(ctx, s.api, random, most, enough)
			}
		})
		m.pass(t, u, s.process)
		at := s.kill()
		stop()
		busy.Wait()
		u.await(t, "the last connection's end", func() bool { return u.live == 0 })
		if left.open > 0 {
			y.started(u, s.process, ready)
		}
		left = y.after(t, w, u, dir, at)
		examine(t, dir)
		if t.Failed() {
			t.Fatalf("killed %s", m)
		}
	}
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	w.finish(t, s.api, u)
	s.stop()
	y.after(t, w, u, dir, time.Now())
	if n := len(y.repeated) - 1; y.repeated[n] != 0 {
		t.Errorf("%d answers are not recorded, of a server that was asked to stop", y.repeated[n])
	}
	y.repeated, y.inFlight, y.age = y.repeated[:len(y.repeated)-1], y.inFlight[:len(y.inFlight)-1], y.age[:len(y.age)-1]
	w.checkBodies(t, u)
	examine(t, dir)
	y.report(t, w, u)
}

// TestKillRun kills the command that runs one file at random moments. The same command goes on.
func TestKillRun(t *testing.T) {
	slow(t)
	t.Parallel()
	r, u, w, dir := chance(t), newUpstream(t, killSim), newWork(), t.TempDir()
	var y tally
	left := 0
	var name, in, out string
	var at time.Time
	for n := rounds(t, 10); n > 0 || left > 0; n-- {
		if left == 0 {
			name = w.input(1200)
			in, out = filepath.Join(dir, name), filepath.Join(dir, name+".out")
			if err := os.WriteFile(in, w.inputs[name], 0o600); err != nil {
				t.Fatal(err)
			}
			y.known = nil
			left = 1200
		}
		u.next(t)
		p := start(t, "run", in, "-o", out, "--upstream", u.url(), "--max-in-flight", strconv.Itoa(maxInFlight))
		m := randomMoment(r, 300)
		if n > 0 {
			m.pass(t, u, p)
			at = p.kill()
		} else {
			<-p.ended
			at = time.Now()
		}
		u.await(t, "the last connection's end", func() bool { return u.live == 0 })
		if y.known != nil {
			y.started(u, p, time.Time{})
		}
		if _, err := os.Stat(filepath.Join(out+".offpeak", "done.json")); err == nil && p.cmd.ProcessState.ExitCode() < 0 {
			left = 1 // it was about to end: nothing is left but to say so
			continue
		}
		if p.cmd.ProcessState.ExitCode() < 0 {
			y.after(t, w, u, out+".offpeak", at)
			if len(y.known) > 0 {
				examine(t, out+".offpeak")
			}
			left = 1200 - len(y.known)
			if t.Failed() {
				t.Fatalf("killed %s", m)
			}
			if left > 0 {
				continue
			}
			left = 1 // answered, but not written yet
			continue
		}
		p.end(2) // some requests are refused
		output, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		errs, err := os.ReadFile(filepath.Join(dir, name+".errors.out"))
		if err != nil {
			t.Fatal(err)
		}
		for id := range y.known {
			if calls := u.of(u.life); slices.ContainsFunc(calls, func(c *call) bool { return c.body == w.bodies[id] }) {
				t.Errorf("%s was recorded, and is sent again", id)
			}
		}
		checkAnswers(t, u, w.bodies, w.inputs[name], output, errs, "completed")
		left = 0
	}
	w.checkBodies(t, u)
	y.report(t, w, u)
}
