package crash

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"offpeak/internal/client"
)

// A disk is a file system of its own, in memory, that can be filled.
type disk struct {
	t    *testing.T
	path string
}

// newDisk makes a disk of so many MiB. Who may not mount file systems cannot run the test, and CI
// may.
func newDisk(t *testing.T, size string) *disk {
	t.Helper()
	d := &disk{t, filepath.Join(t.TempDir(), "disk")}
	if err := os.Mkdir(d.path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", d.path, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("this test mounts a file system, which needs root: %v", err)
		}
		t.Skipf("this test mounts a file system, which needs root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(d.path, syscall.MNT_DETACH) })
	return d
}

// fill leaves room for so many bytes, until freed.
func (d *disk) fill(leave int64) {
	d.t.Helper()
	f, err := os.OpenFile(filepath.Join(d.path, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	zeros := make([]byte, 4096)
	for d.room() > leave {
		if _, err := f.Write(zeros); errors.Is(err, syscall.ENOSPC) {
			return // somebody else was quicker
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
}

func (d *disk) room() int64 {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.path, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * int64(st.Bsize)
}

func (d *disk) free() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.path, "filler")); err != nil {
		d.t.Fatal(err)
	}
}

// refusedWell looks whether an upload is refused with an error of the API, not with a connection
// that breaks.
func refusedWell(t *testing.T, w *work, s *server, n int) {
	t.Helper()
	_, err := w.upload(context.Background(), s.api, w.input(n))
	e, ok := errors.AsType[*client.Error](err)
	if !ok || e.Status < 500 || e.Type != "server_error" {
		t.Errorf("an upload to a full disk: %v; want the API's error", err)
	}
}

// TestDiskFull fills the disk at every stage of a batch. Nothing is lost and nothing is sent twice;
// once there is room it goes on by itself.
func TestDiskFull(t *testing.T) {
	slow(t)
	t.Parallel()
	n := rounds(t, 4)
	d, u, w := newDisk(t, fmt.Sprintf("%dm", 24+n)), newUpstream(t, killSim), newWork()
	dir := filepath.Join(d.path, "data")
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()

	// While uploading: an upload that does not fit, whatever else goes on.
	d.fill(6 << 20)
	refusedWell(t, w, s, 50_000)
	poll(t, "the room that it took", func() bool { return d.room() > 4<<20 })
	d.free()

	// While validating: no segment can be planned.
	file, err := w.upload(t.Context(), s.api, w.input(1000))
	if err != nil {
		t.Fatal(err)
	}
	release := u.hold()
	defer release()
	if _, err := w.create(t.Context(), s.api, file); err != nil {
		t.Fatal(err)
	}
	u.await(t, "calls in flight", func() bool { return inFlight(u) == maxInFlight })

	// While recording.
	d.fill(0)
	release()
	s.awaitLog(`level=ERROR msg="record results; sending stops until that works" err="?.*full`)
	refusedWell(t, w, s, 10)
	if resp, err := http.Get(strings.TrimSuffix(s.url, "/v1") + "/healthz"); err != nil || resp.StatusCode != 200 {
		t.Errorf("healthz: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
	d.free()
	u.await(t, "more answers", func() bool { return u.answers[u.life] > 200 })

	// While sealing: what is recorded is compressed, a part is not.
	u.await(t, "most answers", func() bool { return u.answers[u.life] > 900 })
	release = u.hold()
	defer release()
	d.fill(160 << 10)
	release()
	s.awaitLog(`level=ERROR msg="(seal segment)"`)
	d.free()
	w.finish(t, s.api, u)

	// At any moment.
	r := chance(t)
	for range n {
		before := len(u.of(u.life))
		w.submit(t, s.api, 300)
		u.await(t, "calls", func() bool { return len(u.calls) >= before+r.IntN(300) })
		d.fill(int64(r.IntN(200 << 10)))
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond) // what is tried
		d.free()
		w.finish(t, s.api, u)
		if t.Failed() {
			t.FailNow()
		}
	}
	for id, body := range w.bodies {
		if calls, _ := u.times(body); calls > 1 {
			t.Errorf("%s was sent %d times", id, calls)
		}
	}

	// Killed while it is full, and started while it is full.
	release = u.hold()
	defer release()
	w.submit(t, s.api, 300)
	u.await(t, "calls in flight", func() bool { return inFlight(u) == maxInFlight })
	d.fill(0)
	at := s.kill()
	release()
	u.await(t, "the last connection's end", func() bool { return u.live == 0 })
	(&tally{}).after(t, w, u, dir, at)
	u.next(t)
	s = serve(t, dir, u.url())
	s.ready() // or not: if the log of the database has room in itself, it is no trouble
	s.signal(syscall.SIGTERM)
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 0 && !strings.Contains(s.text(), "has only") {
		t.Errorf("it ends with exit code %d, and does not say that the disk is full:\n%s", code, s.text())
	}
	d.free()
	u.next(t)
	s = serve(t, dir, u.url()).mustBeReady()
	w.finish(t, s.api, u)
	s.stop()
	examine(t, dir)
}

// TestReadOnly starts a server on a disk that can only be read, as one is after errors.
func TestReadOnly(t *testing.T) {
	slow(t)
	t.Parallel()
	d, u, w := newDisk(t, "16m"), newUpstream(t, killSim), newWork()
	dir := filepath.Join(d.path, "data")
	remount := func(flags uintptr) error { return syscall.Mount("none", d.path, "tmpfs", syscall.MS_REMOUNT|flags, "") }
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	w.submit(t, s.api, 200)
	u.awaitAnswers(t, s.process, 50)
	if err := remount(syscall.MS_RDONLY); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("remount under a server: %v; want that it is busy", err)
	}
	at := s.kill()
	u.await(t, "the last connection's end", func() bool { return u.live == 0 })
	(&tally{}).after(t, w, u, dir, at)
	if err := remount(syscall.MS_RDONLY); err != nil {
		t.Fatal(err)
	}
	u.next(t)
	s = serve(t, dir, u.url())
	s.end(1)
	if !strings.Contains(s.text(), "read-only file system") {
		t.Errorf("it does not say why:\n%s", s.text())
	}
	examine(t, dir)
	if err := remount(0); err != nil {
		t.Fatal(err)
	}
	s = serve(t, dir, u.url()).mustBeReady()
	w.finish(t, s.api, u)
	s.stop()
	examine(t, dir)
}
