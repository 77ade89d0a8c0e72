package crash

import (
	"database/sql"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"modernc.org/sqlite"

	"offpeak/internal/sim"
)

// TestCopiedFolder takes the folder of a stopped server elsewhere, as cp -a does, and goes on there.
func TestCopiedFolder(t *testing.T) {
	slow(t)
	t.Parallel()
	u, w, root := newUpstream(t, killSim), newWork(), t.TempDir()
	dir, moved := filepath.Join(root, "data"), filepath.Join(root, "moved")
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	w.submit(t, s.api, 300)
	u.awaitAnswers(t, s.process, 100)
	s.stop()
	copyFolder(t, dir, moved)
	u.next(t)
	s = serve(t, moved, u.url()).mustBeReady()
	w.finish(t, s.api, u)
	s.stop()
	for id, body := range w.bodies {
		if calls, _ := u.times(body); calls != 1 {
			t.Errorf("%s was sent %d times", id, calls)
		}
	}
	examine(t, moved)
}

// TestBackup backs up a server at work, as docs/configuration.md says, lets it go on, and has a new
// server begin with the backup: that knows what was committed when the backup was made, and does
// the rest again.
func TestBackup(t *testing.T) {
	slow(t)
	t.Parallel()
	u, w, root := newUpstream(t, killSim), newWork(), t.TempDir()
	dir, backup := filepath.Join(root, "data"), filepath.Join(root, "backup")
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	done := w.submit(t, s.api, 60)
	poll(t, "the first batch", func() bool {
		b, err := s.api.Batch(t.Context(), done)
		return err == nil && ended(*b)
	})
	running := w.submit(t, s.api, 600)
	poll(t, "answers that are recorded", func() bool {
		b, err := s.api.Batch(t.Context(), running)
		return err == nil && b.RequestCounts.Completed+b.RequestCounts.Failed >= 150
	})
	if err := os.Mkdir(backup, 0o700); err != nil {
		t.Fatal(err)
	}
	backUp(t, filepath.Join(dir, "offpeak.db"), filepath.Join(backup, "offpeak.db"))

	// Before the blobs are copied the server goes on: it seals, finalizes, and what the backup
	// names is deleted.
	w.finishHere(t, s)
	for id := range w.files {
		if _, err := s.api.DeleteFile(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	b, err := s.api.Batch(t.Context(), done)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.api.DeleteFile(t.Context(), *b.OutputFileID); err != nil {
		t.Fatal(err)
	}
	s.stop() // and sweeps
	s = serve(t, dir, u.url()).mustBeReady()
	s.stop()
	copyFolder(t, filepath.Join(dir, "blobs"), filepath.Join(backup, "blobs"))

	f := readFolder(t, backup)
	if len(f.recorded) < 200 || len(f.recorded) >= 660 {
		t.Fatalf("the backup has %d answers, want some", len(f.recorded))
	}
	u.next(t)
	s = serve(t, backup, u.url()).mustBeReady()
	w.finish(t, s.api, u)
	s.stop()
	for id := range f.recorded {
		if calls, _ := u.times(w.bodies[id]); calls != 1 {
			t.Errorf("%s is in the backup, and was sent %d times", id, calls)
		}
	}
	examine(t, backup, "blob-orphan") // blobs that are younger than the database
}

// backUp copies a database in use, with what sqlite3's .backup is made of.
func backUp(t *testing.T, from, to string) {
	t.Helper()
	db, err := sql.Open("sqlite", from)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Raw(func(driver any) error {
		b, err := driver.(interface {
			NewBackup(string) (*sqlite.Backup, error)
		}).NewBackup(to)
		if err != nil {
			return err
		}
		_, err = b.Step(-1)
		return errors.Join(err, b.Finish())
	}); err != nil {
		t.Fatal(err)
	}
}

// finishHere waits until every batch has ended.
func (w *work) finishHere(t *testing.T, s *server) {
	t.Helper()
	poll(t, "the end of all batches", func() bool {
		for b, err := range s.api.Batches(t.Context()) {
			if err != nil || !ended(b) {
				return false
			}
		}
		return true
	})
}

// TestLastSecondLost has a server begin with its folder as it was a second before it died, which is
// what a snapshot of a disk is, or a standby that was behind. Answers of that second are sent again,
// and only those; what was created in it is gone, and nothing else.
func TestLastSecondLost(t *testing.T) {
	slow(t)
	t.Parallel()
	u, w, root := newUpstream(t, killSim), newWork(), t.TempDir()
	dir, snapshot := filepath.Join(root, "data"), filepath.Join(root, "snapshot")
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	w.submit(t, s.api, 1500)
	u.awaitAnswers(t, s.process, 300)
	s.suspend() // so that all files are of one moment
	copyFolder(t, dir, snapshot)
	s.signal(syscall.SIGCONT)
	kept := maps.Clone(w.batches)
	lost := newWork()
	lost.bodies, lost.inputs = w.bodies, w.inputs
	lost.submit(t, s.api, 20)
	time.Sleep(time.Second) // the second that is lost
	s.kill()
	u.await(t, "the last connection's end", func() bool { return u.live == 0 })

	f := readFolder(t, snapshot)
	u.next(t)
	s = serve(t, snapshot, u.url()).mustBeReady()
	found := w.finish(t, s.api, u)
	s.stop()
	if !slices.Equal(slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(kept))) {
		t.Errorf("batches %v, want %v", slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(kept)))
	}
	again := 0
	for id, body := range w.bodies {
		calls, _ := u.times(body)
		if f.recorded[id] && calls != 1 {
			t.Errorf("%s was recorded, and sent %d times", id, calls)
		}
		if calls > 1 {
			again++
		}
	}
	t.Logf("%d of %d were recorded a second before, %d were sent again", len(f.recorded), len(w.bodies), again)
	examine(t, snapshot)
}

// TestLogCut cuts the end off the write-ahead log of a killed server: first what may be missing
// after a failure of power, a commit that nobody was told of; then more and more of what was, as a
// disk does that lies. Whatever is left is sound, and everything that it names is done.
func TestLogCut(t *testing.T) {
	slow(t)
	t.Parallel()
	r, u, w, root := chance(t), newUpstream(t, sim.Config{Seed: 1, Always400: refused}), newWork(), t.TempDir()
	dir := filepath.Join(root, "data")
	u.next(t)
	s := serve(t, dir, u.url()).mustBeReady()
	for range 4 {
		w.submit(t, s.api, 250)
	}
	u.awaitAnswers(t, s.process, 700)
	s.kill()
	u.await(t, "the last connection's end", func() bool { return u.live == 0 })
	size := logSize(t, filepath.Join(dir, "offpeak.db-wal"))
	whole := readFolder(t, dir)
	cuts := []int64{0, 1, frameSize - 1, frameSize, 3 * frameSize, 20 * frameSize, size/2 + r.Int64N(frameSize), size}
	for range rounds(t, 2) {
		cuts = append(cuts, 1+r.Int64N(size))
	}
	for _, cut := range cuts {
		cut = min(cut, size)
		damaged := filepath.Join(root, "cut")
		copyFolder(t, dir, damaged)
		if err := os.Truncate(filepath.Join(damaged, "offpeak.db-wal"), size-cut); err != nil {
			t.Fatal(err)
		}
		f := readFolder(t, damaged)
		u.next(t)
		life := u.life
		s := serve(t, damaged, u.url()).mustBeReady()
		// What was created last may be gone; what is there is complete.
		some := newWork()
		some.bodies, some.inputs = w.bodies, w.inputs
		some.finish(t, s.api, u)
		s.stop()
		sent := map[string]int{}
		for _, c := range u.of(life) {
			sent[c.body]++
		}
		for id, body := range w.bodies {
			if f.recorded[id] && sent[body] > 0 || sent[body] > 1 {
				t.Errorf("recorded: %v, and sent %d times: %s", f.recorded[id], sent[body], id)
			}
		}
		examine(t, damaged, "blob-orphan") // blobs whose rows were cut off
		t.Logf("%d of %d bytes cut off: %d answers left of %d", cut, size, len(f.recorded), len(whole.recorded))
		if t.Failed() {
			t.FailNow()
		}
		if err := os.RemoveAll(damaged); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// frameSize is the size of a page in the write-ahead log, with what stands before it.
const frameSize = 4096 + 24

// logSize returns how much of a write-ahead log is in use: behind that may lie what it was used for
// before (https://sqlite.org/fileformat2.html#walformat).
func logSize(t *testing.T, path string) int64 {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const header = 32
	end := header
	for end+frameSize <= len(text) && string(text[end+8:end+16]) == string(text[16:24]) {
		end += frameSize
	}
	return int64(end)
}
