package crash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"offpeak/internal/sim"
)

// TestRollingRestart asks a server to stop again and again in the middle of a small batch: nobody
// who reads the batch afterwards can tell.
func TestRollingRestart(t *testing.T) {
	slow(t)
	t.Parallel()
	r, u, w, dir := chance(t), newUpstream(t, killSim), newWork(), filepath.Join(t.TempDir(), "data")
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	n := rounds(t, 20)
	batch := w.submit(t, s.api, 40*n) // more than they get done
	known := map[string]bool{}
	var stopping []time.Duration
	for range n {
		// Now and then as it starts, as one does who notices a mistake.
		u.awaitAnswers(t, s.process, r.IntN(12))
		asked := time.Now()
		s.stop()
		stopping = append(stopping, time.Since(asked))
		if text := s.text(); strings.Contains(text, "level=ERROR") || strings.Contains(text, "level=WARN") {
			t.Fatalf("a restart is nothing to complain about:\n%s", text)
		}
		f := readFolder(t, dir)
		for _, c := range u.of(u.life) {
			if !c.answered() {
				t.Errorf("cut: %s", c.body)
			}
		}
		for id := range known {
			if !f.recorded[id] {
				t.Errorf("%s was recorded, and is not any more", id)
			}
		}
		known = f.recorded
		if f.deaths > 0 {
			t.Error("being asked to stop counts as a death")
		}
		u.next(t)
		s = serve(t, dir, u.url()).mustBeReady()
	}
	b := w.finish(t, s.api, u)[batch]
	if b.RequestCounts.Failed != b.RequestCounts.Total/50 { // those that are refused
		t.Errorf("%+v", b.RequestCounts)
	}
	for id, body := range w.bodies {
		if calls, answered := u.times(body); calls != 1 || answered != 1 {
			t.Errorf("%s was sent %d times and answered %d times", id, calls, answered)
		}
	}
	s.stop()
	examine(t, dir)
	t.Logf("%d restarts; stopping took: median %s, max %s", n, middle(stopping), top(stopping))
}

// TestDrainTimeout cuts calls when the drain is over, again and again: that costs them nothing.
func TestDrainTimeout(t *testing.T) {
	slow(t)
	t.Parallel()
	u, w, dir := newUpstream(t, killSim), newWork(), filepath.Join(t.TempDir(), "data")
	release := u.hold()
	defer release()
	// More often than a request may fail.
	for i := range 7 {
		u.next(t)
		s := serve(t, dir, u.url(), "--drain", "50ms").mustBeReady()
		if i == 0 {
			w.submit(t, s.api, 60)
		}
		u.await(t, "calls in flight", func() bool { return inFlight(u) == maxInFlight })
		s.stop()
		if f := readFolder(t, dir); len(f.recorded) > 0 || f.deaths > 0 || f.open != 60 {
			t.Errorf("%d recorded, %d open, %d deaths", len(f.recorded), f.open, f.deaths)
		}
	}
	release()
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	w.finish(t, s.api, u)
	s.stop()
	for id, body := range w.bodies {
		if _, answered := u.times(body); answered != 1 {
			t.Errorf("%s was answered %d times", id, answered)
		}
	}
	examine(t, dir)
}

// inFlight counts the calls of this life that are in flight. u.mu is held.
func inFlight(u *upstream) (n int) {
	for _, c := range u.calls {
		if c.life == u.life && !c.answered() {
			n++
		}
	}
	return n
}

// TestBalancer is what stands in front of a server sees of its end: not ready, while everything
// goes on; then nothing.
func TestBalancer(t *testing.T) {
	slow(t)
	t.Parallel()
	u, w, dir := newUpstream(t, sim.Config{Seed: 1, Always400: refused}), newWork(), filepath.Join(t.TempDir(), "data")
	release := u.hold()
	defer release()
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	first := w.submit(t, s.api, 60)
	u.await(t, "calls in flight", func() bool { return inFlight(u) == maxInFlight })

	// It asks all the time, over one connection for as long as that lives.
	type answer struct {
		status int
		closes bool
	}
	var mu sync.Mutex
	var seen []answer
	ready := strings.TrimSuffix(s.url, "/v1") + "/readyz"
	var probes sync.WaitGroup
	defer probes.Wait()
	gone := make(chan struct{})
	probes.Go(func() {
		defer close(gone)
		hc := &http.Client{Transport: &http.Transport{}, Timeout: patience}
		for {
			resp, err := hc.Get(ready)
			if err != nil {
				// A connection may be closed just as it is used; one that is refused is the end.
				if errors.Is(err, syscall.ECONNREFUSED) {
					return
				}
				continue
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			mu.Lock()
			if a := (answer{resp.StatusCode, resp.Close}); len(seen) == 0 || seen[len(seen)-1] != a {
				seen = append(seen, a)
			}
			mu.Unlock()
		}
	})
	sees := func(status int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(seen) > 0 && seen[len(seen)-1].status == status
		}
	}
	poll(t, "ready", sees(200))

	// An upload is under way.
	pipe, upload := io.Pipe()
	uploaded := make(chan error, 1)
	name := w.input(5)
	go func() {
		_, err := w.uploadFrom(context.Background(), s.api, name, pipe)
		uploaded <- err
	}()
	half := len(w.inputs[name]) / 2
	upload.Write(w.inputs[name][:half])

	s.signal(syscall.SIGTERM)
	poll(t, "not ready", sees(503))
	if b, err := s.api.Batch(t.Context(), first); err != nil || b.Status != "in_progress" {
		t.Errorf("batch: %+v, %v", b, err)
	}
	w.submit(t, s.api, 30) // for the next process
	upload.Write(w.inputs[name][half:])
	upload.Close()
	if err := <-uploaded; err != nil {
		t.Errorf("the upload that was under way: %v", err)
	}
	if s.hasEnded() || len(u.of(u.life)) != maxInFlight {
		t.Errorf("ended: %v; %d calls, %d were in flight", s.hasEnded(), len(u.of(u.life)), maxInFlight)
	}
	release()
	s.end(0)
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatal("something listens there")
	}
	// Ready until it was asked to stop, then not: and clients are told to go, too.
	if last := len(seen) - 1; last < 1 || seen[0] != (answer{200, false}) || seen[last] != (answer{503, true}) ||
		slices.ContainsFunc(seen[1:], func(a answer) bool { return a.status != 503 }) {
		t.Errorf("seen from outside: %v", seen)
	}
	if f := readFolder(t, dir); len(f.recorded) != maxInFlight {
		t.Errorf("%d are recorded, %d were in flight", len(f.recorded), maxInFlight)
	}

	u.next(t)
	s = serve(t, dir, u.url()).mustBeReady()
	w.finish(t, s.api, u)
	for id, body := range w.bodies {
		if calls, _ := u.times(body); calls > 1 {
			t.Errorf("%s was sent %d times", id, calls)
		}
	}
	s.stop()
	examine(t, dir)
}

// TestStopEarly asks servers to stop while they start. They stop well, unless they have not yet come
// to hear anything.
func TestStopEarly(t *testing.T) {
	slow(t)
	t.Parallel()
	r, u, root := chance(t), newUpstream(t, killSim), t.TempDir()
	dir := filepath.Join(root, "data")
	codes := map[int]int{}
	for i := range rounds(t, 10) {
		if i%2 == 0 { // one that has everything to make
			dir = filepath.Join(root, fmt.Sprint(i))
		}
		s := serve(t, dir, u.url())
		time.Sleep(time.Duration(r.Int64N(int64(30 * time.Millisecond)))) // what is tried
		s.signal(syscall.SIGTERM)
		<-s.ended
		code := s.cmd.ProcessState.ExitCode()
		if codes[code]++; code > 0 {
			t.Errorf("exit code %d:\n%s", code, s.text())
		}
		s.well = true
	}
	t.Logf("exit codes: %v", codes)
	s := serve(t, dir, u.url()).mustBeReady()
	s.stop()
	examine(t, dir)
}
