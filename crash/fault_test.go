package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"offpeak/internal/client"
)

// A fault makes calls of a process to the kernel fail, by strace: the kernel is not asked.
type fault struct {
	call  string
	err   string
	first int  // the first one that fails
	on    bool // all after it do, too
}

func (f fault) String() string {
	on := ""
	if f.on {
		on = "+"
	}
	return fmt.Sprintf("%s:error=%s:when=%d%s", f.call, f.err, f.first, on)
}

// faultPoints are the calls by which anything gets to the disk, with how often the process of a
// small batch makes each.
var faultPoints = []struct {
	call string
	most int
}{
	{"fsync", 100}, {"fsync", 100}, {"fsync", 25}, {"pwrite64", 800}, {"pwrite64", 200}, {"linkat", 8}, {"mkdirat", 8}, {"ftruncate", 3},
}

func randomFault(r *rand.Rand) fault {
	p := faultPoints[r.IntN(len(faultPoints))]
	return fault{p.call, []string{"EIO", "ENOSPC"}[r.IntN(2)], 1 + r.IntN(p.most), r.IntN(3) == 0}
}

// needStrace skips a test where there is no strace, or it may not trace. CI installs it.
func needStrace(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=none", "true").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("strace: %v\n%s", err, out)
		}
		t.Skipf("strace: %v\n%s", err, out)
	}
}

// serveTraced starts a server under strace. With -D the process that we start is the server
// itself, so that it is the one that is killed.
func serveTraced(t *testing.T, dir, upstream string, options ...string) *server {
	t.Helper()
	args := append([]string{"-D", "-f", "--seccomp-bpf", "-qq"}, options...)
	args = append(append(args, offpeak), serveArgs(dir, upstream)...)
	return &server{process: startCommand(t, exec.Command("strace", args...))}
}

// TestDiskFaults has fsync, writes, links and the like of a real server fail, once or from some
// point on. What fails once is tried again; whatever was acknowledged is there after a kill -9.
func TestDiskFaults(t *testing.T) {
	slow(t)
	needStrace(t)
	t.Parallel()
	r := chance(t)
	if s := os.Getenv("OFFPEAK_CRASH_FAULT"); s != "" { // such as fsync:error=EIO:when=14+
		var f fault
		s = strings.NewReplacer(":error=", " ", ":when=", " ", "+", " +").Replace(s)
		if _, err := fmt.Sscan(s, &f.call, &f.err, &f.first); err != nil {
			t.Fatal(err)
		}
		f.on = strings.HasSuffix(s, "+")
		breakDisk(t, r, f)
		return
	}
	var started, struck int
	n := rounds(t, 10)
	for range n {
		f := randomFault(r)
		up, told := breakDisk(t, r, f)
		started, struck = started+up, struck+told
		if t.Failed() {
			t.Logf("again with OFFPEAK_CRASH_FAULT=%s", f)
			break
		}
	}
	t.Logf("%d faults; %d servers came up; %d told of an error", n, started, struck)
}

// breakDisk has one server meet a fault, kills it, and looks at what the next one makes of it.
func breakDisk(t *testing.T, r *rand.Rand, f fault) (up, told int) {
	t.Helper()
	u, w, dir := newUpstream(t, killSim), newWork(), filepath.Join(t.TempDir(), "data")
	u.next(t)
	s := serveTraced(t, dir, u.url(), "-o", os.DevNull, "-e", "trace="+f.call, "-e", "inject="+f.String())
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var busy sync.WaitGroup
	if s.ready() {
		up = 1
		random := rand.New(rand.NewPCG(r.Uint64(), 0))
		busy.Go(func() {
			for range 3 {
				// What could not be done is told, over a connection that lives.
				if err := w.keepBusy(ctx, s.api, random, 1, 0); err != nil {
					if e, ok := errors.AsType[*client.Error](err); !s.hasEnded() && ctx.Err() == nil && (!ok || e.Status < 500 || e.Type != "server_error") {
						t.Errorf("%s: the API says %v", f, err)
					}
				}
			}
		})
		select {
		case <-s.ended:
		case <-wait(&busy):
			// Some of it runs; the moment is left to chance.
			select {
			case <-time.After(time.Duration(r.Int64N(int64(400 * time.Millisecond)))):
			case <-s.ended:
			}
		case <-time.After(patience):
			t.Fatalf("%s: the API does not answer", f)
		}
	}
	if s.hasEnded() && s.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%s: it ended: %v", f, s.cmd.ProcessState)
	}
	at := s.kill()
	stop()
	busy.Wait()
	if text := s.text(); strings.Contains(text, "panic") || strings.Contains(text, "goroutine ") {
		t.Errorf("%s:\n%s", f, text)
	} else if strings.Contains(text, "level=ERROR") || strings.Contains(text, "offpeak: ") {
		told = 1
	}
	u.await(t, "the last connection's end", func() bool { return u.live == 0 })
	y := tally{patient: told == 1} // nothing can be recorded by a disk that fails
	y.after(t, w, u, dir, at)
	u.next(t)
	s = serve(t, dir, u.url()).mustBeReady()
	w.finish(t, s.api, u)
	s.stop()
	y.after(t, w, u, dir, time.Now())
	w.checkBodies(t, u)
	examine(t, dir)
	return up, told
}

// wait returns a channel that is closed when g is done.
func wait(g *sync.WaitGroup) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.Wait()
	}()
	return done
}
