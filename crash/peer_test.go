package crash

import (
	"path/filepath"
	"testing"
	"time"

	"offpeak/internal/sim"
)

// The scenarios by which other batch servers are shown to survive, under the same names, so that
// numbers can be laid side by side. A fourth one is TestLastSecondLost.

// peerBatch is how many requests their batches have.
const peerBatch = 10_000

// peerSim answers some 3,000 requests a second.
var peerSim = sim.Config{Seed: 1, Timing: sim.Timing{Latency: 5 * time.Millisecond, Jitter: 0.5}, Always400: refused}

// TestSIGKILLHalfway kills a server half-way in a batch of 10,000.
func TestSIGKILLHalfway(t *testing.T) {
	peerScenario(t, peerBatch/2, func(u *upstream, s *server) time.Time { return s.kill() })
}

// TestSIGKILLBeforeFirstFlush kills a server when it has its first answers, and has recorded none.
func TestSIGKILLBeforeFirstFlush(t *testing.T) {
	again := peerScenario(t, 0, func(u *upstream, s *server) time.Time {
		u.await(t, "calls in flight", func() bool { return inFlight(u) == maxInFlight })
		s.suspend()
		u.release()
		u.await(t, "answers", func() bool { return u.answers[u.life] == maxInFlight })
		return s.kill()
	})
	if again != maxInFlight {
		t.Errorf("%d calls were repeated, want %d", again, maxInFlight)
	}
}

// TestSIGTERM asks a server to stop half-way in a batch of 10,000: nothing is sent again.
func TestSIGTERM(t *testing.T) {
	again := peerScenario(t, peerBatch/2, func(u *upstream, s *server) time.Time { s.stop(); return time.Now() })
	if again > 0 {
		t.Errorf("%d calls were repeated", again)
	}
}

// peerScenario runs a batch of 10,000, ends the server after so many answers, and starts it again.
// If that is to be before the first, answers are held until end releases them. It returns how many
// calls were made again.
func peerScenario(t *testing.T, after int, end func(*upstream, *server) time.Time) (again int) {
	slow(t)
	t.Parallel()
	u, w, dir := newUpstream(t, peerSim), newWork(), filepath.Join(t.TempDir(), "data")
	u.next(t)
	if after == 0 {
		u.release = u.hold()
		defer u.release()
	}
	s := serve(t, dir, u.url()).mustBeReady()
	id := w.submit(t, s.api, peerBatch)
	u.awaitAnswers(t, s.process, after)
	at := end(u, s)
	u.await(t, "the last connection's end", func() bool { return u.live == 0 })
	var y tally
	f := y.after(t, w, u, dir, at)
	u.next(t)
	s = serve(t, dir, u.url()).mustBeReady()
	b := w.finish(t, s.api, u)[id]
	y.started(u, s.process, time.Time{})
	s.stop()
	if b.RequestCounts.Completed+b.RequestCounts.Failed != peerBatch {
		t.Errorf("%+v", b.RequestCounts)
	}
	for _, body := range w.bodies {
		calls, _ := u.times(body)
		again += calls - 1
	}
	if again != y.repeated[0] {
		t.Errorf("%d calls were repeated, %d had to be", again, y.repeated[0])
	}
	t.Logf("%d of %d answers were recorded; %d calls were repeated, %d of them were in flight; the first call came %s after the start",
		len(f.recorded), peerBatch, again, y.inFlight[0], top(y.first))
	examine(t, dir)
	return again
}
