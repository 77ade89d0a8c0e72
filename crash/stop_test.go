package crash

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/store"
)

// stopped is for how long processes are stopped: longer than anything is judged by on one machine.
const stopped = 2 * time.Second

// TestStopped stops a server while its calls are in flight. They are answered meanwhile; another
// process does not get the folder; and it goes on as if nothing had been.
func TestStopped(t *testing.T) {
	slow(t)
	t.Parallel()
	u, w, dir := newUpstream(t, killSim), newWork(), filepath.Join(t.TempDir(), "data")
	release := u.hold()
	defer release()
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	w.submit(t, s.api, 200)
	u.await(t, "calls in flight", func() bool { return inFlight(u) == maxInFlight })
	s.signal(syscall.SIGSTOP)
	release()
	u.await(t, "answers to a process that is stopped", func() bool { return inFlight(u) == 0 })

	other := start(t, serveArgs(dir, u.url())...)
	other.end(1)
	if !strings.Contains(other.text(), "another offpeak process works on this data folder") {
		t.Errorf("a second server says:\n%s", other.text())
	}
	time.Sleep(stopped) // nothing to wait for: this is what is tried

	s.signal(syscall.SIGCONT)
	w.finish(t, s.api, u)
	if text := s.text(); strings.Contains(text, "level=ERROR") || strings.Contains(text, "level=WARN") {
		t.Errorf("the log of a process that was stopped:\n%s", text)
	}
	s.stop()
	for id, body := range w.bodies {
		if calls, _ := u.times(body); calls != 1 {
			t.Errorf("%s was sent %d times", id, calls)
		}
	}
	examine(t, dir)
}

// TestStoppedAcrossDeadline stops a server before the deadline of a batch and lets it go on after
// it. What was sent counts, the rest is expired.
func TestStoppedAcrossDeadline(t *testing.T) {
	slow(t)
	t.Parallel()
	u, w, dir := newUpstream(t, killSim), newWork(), filepath.Join(t.TempDir(), "data")
	release := u.hold()
	defer release()
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	id, deadline := w.submitUntil(t, s, dir, 100, 3*time.Second)
	u.await(t, "calls in flight", func() bool { return inFlight(u) == maxInFlight })
	s.signal(syscall.SIGSTOP)
	release()
	u.await(t, "answers to a process that is stopped", func() bool { return inFlight(u) == 0 })
	time.Sleep(time.Until(deadline)) // the event that is waited for is this one
	s.signal(syscall.SIGCONT)

	poll(t, "the end", func() bool {
		b, err := s.api.Batch(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return ended(*b)
	})
	b, err := s.api.Batch(t.Context(), id)
	if err != nil || b.Status != "expired" {
		t.Fatalf("%+v, %v; want expired", b, err)
	}
	completed, failed := checkAnswers(t, u, w.bodies, w.inputs["in-0.jsonl"],
		content(t, s.api, *b.OutputFileID), content(t, s.api, *b.ErrorFileID), "expired")
	// Between the one thing that it does after SIGCONT and the other it may send some more.
	answered := u.answers[u.life]
	if completed+failed != answered || answered < maxInFlight || int(b.RequestCounts.Completed) != completed {
		t.Errorf("%d of %d answers count, %+v", completed+failed, answered, b.RequestCounts)
	}
	for id, body := range w.bodies {
		if calls, _ := u.times(body); calls > 1 {
			t.Errorf("%s was sent %d times", id, calls)
		}
	}
	s.stop()
	examine(t, dir)
}

// submitUntil is submit with a deadline sooner than the API has them.
func (w *work) submitUntil(t *testing.T, s *server, dir string, n int, window time.Duration) (id string, deadline time.Time) {
	t.Helper()
	file, err := w.upload(t.Context(), s.api, w.input(n))
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), dir, store.Options{Guest: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	b, err := batch.New(batch.CreateParams{
		Project: batch.DefaultProject, Endpoint: "/v1/chat/completions", CompletionWindow: "24h", InputFileID: file,
	}, batch.Policy{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b.ExpiresAt = time.Now().Add(window)
	if err := db.CreateBatch(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b.ID, b.ExpiresAt
}

// TestUpstreamBroken kills and stops the upstream's process while a server works with it. No
// request fails for that; what was in flight when it died is sent again, and nothing else.
func TestUpstreamBroken(t *testing.T) {
	slow(t)
	t.Parallel()
	w, dir := newWork(), t.TempDir()
	data, bodies := filepath.Join(dir, "data"), filepath.Join(dir, "bodies")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	sim := func() *process {
		p := start(t, "sim", "--listen", addr, "--latency", "20ms", "--jitter", "0.9", "--always-400", refused, "--body-log", bodies)
		if p.awaitLog("simulated upstream on") == nil {
			t.Fatal(p.text())
		}
		return p
	}
	arrived := func() int {
		text, _ := os.ReadFile(bodies)
		return strings.Count(string(text), "\n")
	}
	up := sim()
	s := serve(t, data, "http://"+addr+"/v1").mustBeReady()
	id := w.submit(t, s.api, 600)
	const kills = 2
	for i := range kills {
		poll(t, "calls", func() bool { return arrived() > 100*(i+1) })
		up.kill()
		s.awaitLog(fmt.Sprintf(`(?s)(upstream is down.*){%d}`, i+1))
		up = sim()
		s.awaitLog(fmt.Sprintf(`(?s)(upstream is back.*){%d}`, i+1))
	}
	poll(t, "calls", func() bool { return arrived() > 400 })
	up.signal(syscall.SIGSTOP)
	time.Sleep(stopped) // what is tried
	up.signal(syscall.SIGCONT)
	poll(t, "the end", func() bool {
		b, err := s.api.Batch(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return ended(*b)
	})
	b, err := s.api.Batch(t.Context(), id)
	if err != nil || b.Status != "completed" || b.RequestCounts.Completed != 588 || b.RequestCounts.Failed != 12 {
		t.Errorf("%+v, %v", b, err)
	}
	if n := arrived() - 600; n > kills*maxInFlight {
		t.Errorf("%d calls too many, of %d in flight at %d kills", n, maxInFlight, kills)
	}
	s.stop()
	examine(t, data)
}
