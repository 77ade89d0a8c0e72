package blob_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"offpeak/internal/blob"
	"offpeak/internal/blob/blobtest"
)

// crashEnv makes the test binary write blobs to the folder it names until it is killed.
const crashEnv = "OFFPEAK_BLOB_CRASH_TEST"

// traceEnv makes the test binary open the folder it names and commit one blob.
const traceEnv = "OFFPEAK_BLOB_TRACE_TEST"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		fmt.Fprintln(os.Stderr, writeUntilKilled(path))
		os.Exit(1)
	}
	if path := os.Getenv(traceEnv); path != "" {
		if err := commitOne(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestDir(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blobtest.Store {
		path := t.TempDir()
		d := open(t, path)
		t.Cleanup(func() { wantNoTemp(t, path) })
		return d
	})
}

func TestOpenRemovesLeftovers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b") // with parents to make
	d := open(t, path)
	kept, err := put(d, blob.NewKey(), []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	left := blob.NewKey()
	w, err := d.Create(t.Context(), left)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Abort)
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(path, "tmp", "notes.txt")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	d = open(t, path) // as after a crash: w is neither committed nor aborted
	wantContent(t, d, kept, []byte("kept"))
	if _, err := d.Size(t.Context(), left); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Size of the unfinished blob: %v, want ErrNotFound", err)
	}
	if err := os.Remove(foreign); err != nil {
		t.Errorf("Open removed what was not its own: %v", err)
	}
	wantNoTemp(t, path)
}

// TestSharedLeavesWhatIsBegun: what is half-written may be another process's, for a day.
func TestSharedLeavesWhatIsBegun(t *testing.T) {
	path := t.TempDir()
	theirs := open(t, path, blob.Shared())
	w, err := theirs.Create(t.Context(), blob.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("theirs")); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(path, "tmp", blob.NewKey()+".1")
	if err := os.WriteFile(old, []byte("abandoned"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(old, time.Time{}, time.Now().Add(-25*time.Hour)); err != nil {
		t.Fatal(err)
	}

	ours := open(t, path, blob.Shared())
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was abandoned yesterday: %v, want it gone", err)
	}
	if _, err := w.Commit(); err != nil {
		t.Errorf("a commit after another process came: %v", err)
	}
	key, err := put(ours, blob.NewKey(), []byte("ours")) // perhaps in a sub-folder that they made
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, theirs, key, []byte("ours"))
}

// TestSharedTidiedByTwo: what was abandoned may be removed by another process just before we do.
func TestSharedTidiedByTwo(t *testing.T) {
	path := t.TempDir()
	open(t, path, blob.Shared())
	old := filepath.Join(path, "tmp", blob.NewKey()+".1")
	writeFile(t, old)
	if err := os.Chtimes(old, time.Time{}, time.Now().Add(-25*time.Hour)); err != nil {
		t.Fatal(err)
	}
	tidied := 0
	open(t, path, blob.Shared(), blob.WithFault(func(op blob.Op, _ string) (bool, error) {
		if op == blob.OpTidy {
			tidied++
			return true, os.Remove(old)
		}
		return true, nil
	}))
	if tidied != 1 {
		t.Errorf("%d files were removed, want 1", tidied)
	}
}

// TestSharedSubFolder: a sub-folder that is there may have been made by another process, which has not
// made it durable yet. So it is no reason to fail, and everybody makes it durable once.
func TestSharedSubFolder(t *testing.T) {
	path := t.TempDir()
	var made []string // who made a sub-folder durable
	node := func(name string, opts ...blob.Option) *blob.Dir {
		return open(t, path, append(opts, blob.WithFault(func(op blob.Op, _ string) (bool, error) {
			if op == blob.OpMkdir {
				made = append(made, name)
			}
			return true, nil
		}))...)
	}
	key := blob.NewKey()
	before := node("opened before", blob.Shared())
	if err := os.Mkdir(filepath.Join(path, key[:2]), 0o700); err != nil { // by somebody who got no further
		t.Fatal(err)
	}
	after := node("opened after", blob.Shared())
	alone := node("alone") // what is there it has vouched for as it opened
	for range 2 {
		for _, d := range []*blob.Dir{before, after, alone} {
			key := key[:2] + blob.NewKey()[2:]
			if _, err := put(d, key, []byte("x")); err != nil {
				t.Fatal(err)
			}
			wantContent(t, before, key, []byte("x"))
		}
	}
	if want := []string{"opened before", "opened after"}; !slices.Equal(made, want) {
		t.Errorf("made durable by %q, want %q", made, want)
	}
}

// TestKill kills a process that writes blobs, again and again, and checks that those it called
// committed are there, that all that are there are whole, and that nothing else is left.
func TestKill(t *testing.T) {
	path := t.TempDir()
	committed := make(map[string]bool)
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashEnv+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			committed[lines.Text()] = true
			if n == 5*round {
				cmd.Process.Kill()
			}
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("writer ended: %v, want killed", err)
		}

		d := open(t, path)
		wantNoTemp(t, path)
		found := make(map[string]bool)
		for info, err := range d.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			found[info.Key] = true
			wantContent(t, d, info.Key, contentOf(info.Key))
		}
		for key := range committed {
			if !found[key] {
				t.Errorf("round %d: blob %s was committed and is gone", round, key)
			}
		}
	}
	t.Logf("%d blobs committed", len(committed))
}

func writeUntilKilled(path string) error {
	d, err := blob.Open(path)
	if err != nil {
		return err
	}
	errs := make(chan error)
	for range 4 {
		go func() {
			for {
				key, err := put(d, blob.NewKey(), nil)
				if err != nil {
					errs <- err
					return
				}
				fmt.Println(key)
			}
		}()
	}
	return <-errs
}

func commitOne(path string) error {
	d, err := blob.Open(path)
	if err != nil {
		return err
	}
	_, err = put(d, blob.NewKey(), nil)
	return err
}

// contentOf returns what put writes under key: some hundred kilobytes that only that key has.
func contentOf(key string) []byte {
	return bytes.Repeat([]byte(key), 1+int(key[0])*100)
}

func TestPermissions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blobs")
	d := open(t, path)
	key, err := put(d, blob.NewKey(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.Create(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	var files int
	err = filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if e.IsDir() {
			want = fs.ModeDir | 0o700
		} else {
			files++
		}
		if fi, err := e.Info(); err != nil || fi.Mode() != want {
			t.Errorf("%s has mode %v, error %v; want %v", name, fi.Mode(), err, want)
		}
		return nil
	})
	if err != nil || files != 2 {
		t.Errorf("saw %d files, error %v; want one committed and one not", files, err)
	}
}

// TestCommitOrder holds the order of steps that durability rests on.
func TestCommitOrder(t *testing.T) {
	var ops []blob.Op
	d := open(t, t.TempDir(), blob.WithFault(func(op blob.Op, _ string) (bool, error) {
		ops = append(ops, op)
		return true, nil
	}))
	opening := []blob.Op{blob.OpPrepare, blob.OpPrepare}
	if !slices.Equal(ops, opening) {
		t.Errorf("to open: %v, want %v", ops, opening)
	}
	ops = nil
	first := []blob.Op{
		blob.OpCreate, blob.OpWrite, blob.OpSync, blob.OpMkdir, blob.OpLink, blob.OpSyncDir, blob.OpUnlink,
	}
	key := blob.NewKey()
	if _, err := put(d, key, []byte("x")); err != nil || !slices.Equal(ops, first) {
		t.Errorf("a first commit: %v, error %v; want %v", ops, err, first)
	}
	second := slices.DeleteFunc(slices.Clone(first), func(op blob.Op) bool { return op == blob.OpMkdir })
	ops = nil
	if _, err := put(d, key[:2]+blob.NewKey()[2:], []byte("x")); err != nil || !slices.Equal(ops, second) {
		t.Errorf("another commit to the sub-folder: %v, error %v; want %v", ops, err, second)
	}
}

// TestFaults fails each step of a commit, once where it had no effect and once where it had: the
// blob is whole if Commit says so, and otherwise whole or absent; the next attempt succeeds; and
// reopening leaves nothing but blobs.
func TestFaults(t *testing.T) {
	boom := fmt.Errorf("injected: %w", syscall.ENOSPC)
	for _, test := range []struct {
		op     blob.Op
		apply  bool
		failed bool // what the caller is told
		there  bool // whether the blob is there then
	}{
		{blob.OpCreate, false, true, false},
		{blob.OpCreate, true, true, false},
		{blob.OpWrite, false, true, false},
		{blob.OpWrite, true, true, false},
		{blob.OpSync, false, true, false},
		{blob.OpSync, true, true, false},
		{blob.OpMkdir, false, true, false},
		{blob.OpMkdir, true, true, false},
		{blob.OpLink, false, true, false},
		{blob.OpLink, true, false, true}, // seen to have taken effect
		{blob.OpSyncDir, false, true, false},
		{blob.OpSyncDir, true, true, false},
		{blob.OpUnlink, false, false, true}, // tidying up: Open will do it
		{blob.OpUnlink, true, false, true},
	} {
		t.Run(fmt.Sprintf("%s,apply=%t", test.op, test.apply), func(t *testing.T) {
			path := t.TempDir()
			armed := true
			d := open(t, path, blob.WithFault(func(op blob.Op, _ string) (bool, error) {
				if op == test.op && armed {
					armed = false
					return test.apply, boom
				}
				return true, nil
			}))
			key, data := blob.NewKey(), bytes.Repeat([]byte("data"), 100<<10)
			_, err := put(d, key, data)
			if armed {
				t.Fatal("the step was never taken")
			}
			if failed := err != nil; failed != test.failed || failed && !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("error %v, want one: %t", err, test.failed)
			}
			wantThere := func(d *blob.Dir) {
				t.Helper()
				if test.there {
					wantContent(t, d, key, data)
				} else if _, err := d.Size(t.Context(), key); !errors.Is(err, blob.ErrNotFound) {
					t.Errorf("Size: %v, want ErrNotFound", err)
				}
			}
			wantThere(d)
			retry, err := put(d, blob.NewKey(), data)
			if err != nil {
				t.Errorf("next attempt: %v", err)
			}
			if _, err := put(d, key, data); err != nil != test.there || err != nil && !errors.Is(err, blob.ErrExists) {
				t.Errorf("next attempt under the same key: %v, want ErrExists: %t", err, test.there)
			}

			d = open(t, path)
			wantNoTemp(t, path)
			wantContent(t, d, key, data)
			wantContent(t, d, retry, data)
		})
	}
}

func TestFaultsInDelete(t *testing.T) {
	boom := errors.New("boom")
	for _, apply := range []bool{false, true} {
		var fail error
		d := open(t, t.TempDir(), blob.WithFault(func(op blob.Op, _ string) (bool, error) {
			if op == blob.OpDelete {
				return apply, fail
			}
			return true, nil
		}))
		key, err := put(d, blob.NewKey(), nil)
		if err != nil {
			t.Fatal(err)
		}
		fail = boom
		if err := d.Delete(t.Context(), key); !errors.Is(err, boom) {
			t.Errorf("Delete: %v, want %v", err, boom)
		}
		if _, err := d.Size(t.Context(), key); errors.Is(err, blob.ErrNotFound) != apply {
			t.Errorf("Size: %v, want ErrNotFound: %t", err, apply)
		}
		fail = nil
		if err := d.Delete(t.Context(), key); err != nil {
			t.Errorf("Delete again: %v", err)
		}
	}
}

// TestWriteAfterFault checks that a writer which lost bytes cannot commit the rest.
func TestWriteAfterFault(t *testing.T) {
	boom := errors.New("boom")
	path := t.TempDir()
	var once sync.Once
	d := open(t, path, blob.WithFault(func(op blob.Op, _ string) (apply bool, err error) {
		if op == blob.OpWrite {
			once.Do(func() { err = boom })
		}
		return false, err
	}))
	key := blob.NewKey()
	w, err := d.Create(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := w.Write(make([]byte, 1<<20)); !errors.Is(err, boom) {
			t.Errorf("Write %d: %v, want %v", i, err, boom)
		}
	}
	if _, err := w.Commit(); !errors.Is(err, boom) {
		t.Errorf("Commit: %v, want %v", err, boom)
	}
	if _, err := put(d, key, nil); err != nil { // whose buffer is the failed one's
		t.Errorf("the next writer: %v", err)
	}
	wantContent(t, d, key, contentOf(key))
	wantNoTemp(t, path)
}

// TestFileInTheWay puts a file where a folder should be, the one thing that stops root too.
func TestFileInTheWay(t *testing.T) {
	t.Run("root", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		writeFile(t, path)
		_, err := blob.Open(path)
		wantPathError(t, err, path)
	})
	t.Run("tmp", func(t *testing.T) {
		path := t.TempDir()
		writeFile(t, filepath.Join(path, "tmp"))
		_, err := blob.Open(path)
		wantPathError(t, err, filepath.Join(path, "tmp"))
	})
	t.Run("sub-folder", func(t *testing.T) {
		path, key := t.TempDir(), blob.NewKey()
		sub := filepath.Join(path, key[:2])
		writeFile(t, sub)
		d := open(t, path)
		_, err := put(d, key, nil)
		wantPathError(t, err, sub)
		if _, err := d.Size(t.Context(), key); err == nil || errors.Is(err, blob.ErrNotFound) {
			t.Errorf("Size: %v, want an error other than ErrNotFound", err)
		}
		wantNoTemp(t, path)
		if err := os.Remove(sub); err != nil {
			t.Fatal(err)
		}
		if _, err := put(d, key, nil); err != nil {
			t.Errorf("once the file is gone: %v", err)
		}
	})
}

func TestListPassesByWhatIsNoBlob(t *testing.T) {
	path := t.TempDir()
	d := open(t, path)
	key, err := put(d, blob.NewKey(), nil)
	if err != nil {
		t.Fatal(err)
	}
	stray := blob.NewKey()
	misplaced := "0" + key[1:]
	if key[0] == '0' {
		misplaced = "1" + key[1:]
	}
	for _, name := range []string{"lost+found/a", "zz/" + stray, key[:2] + "/README", key[:2] + "/" + misplaced} {
		if err := os.MkdirAll(filepath.Join(path, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(path, name))
	}
	var got []string
	for info, err := range d.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Key)
	}
	if !slices.Equal(got, []string{key}) {
		t.Errorf("List yields %q, want %q", got, key)
	}
}

// TestWritersShareBuffers checks that a small blob does not cost a buffer of its own.
func TestWritersShareBuffers(t *testing.T) {
	const runs = 200
	d := open(t, t.TempDir())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		w, err := d.Create(t.Context(), blob.NewKey())
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte("x"))
		w.Abort()
	}
	runtime.ReadMemStats(&after)
	// A sync.Pool forgets every fourth buffer under the race detector.
	if got := (after.TotalAlloc - before.TotalAlloc) / runs; got > 64<<10 {
		t.Errorf("a small blob allocates %d bytes, want less than a buffer", got)
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1 << 10, 256 << 10, 8 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			d, err := blob.Open(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				key, err := put(d, blob.NewKey(), data)
				if err != nil {
					b.Fatal(err)
				}
				d.Delete(b.Context(), key)
			}
		})
	}
}

func open(t *testing.T, path string, opts ...blob.Option) *blob.Dir {
	t.Helper()
	d, err := blob.Open(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// put stores data, or without any contentOf(key), and returns key.
func put(d *blob.Dir, key string, data []byte) (string, error) {
	if data == nil {
		data = contentOf(key)
	}
	w, err := d.Create(context.Background(), key)
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return "", err
	}
	_, err = w.Commit()
	return key, err
}

func writeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t *testing.T, d *blob.Dir, key string, want []byte) {
	t.Helper()
	r, err := d.Open(t.Context(), key, 0, -1)
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Errorf("blob %s has %d bytes, error %v; want %d, or other ones", key, len(got), err, len(want))
	}
}

// wantNoTemp checks that no temporary file is left of the folder at path.
func wantNoTemp(t *testing.T, path string) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(path, "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v, error %v; want nothing", left, err)
	}
}

// wantPathError checks that err says that path is no folder.
func wantPathError(t *testing.T, err error, path string) {
	t.Helper()
	if !errors.Is(err, syscall.ENOTDIR) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want ENOTDIR naming %s", err, path)
	}
}

// TestStrangeNeighbours: what is in the folder and not ours stays, and is nothing to us: links above
// all, which are not followed to be removed.
func TestStrangeNeighbours(t *testing.T) {
	root, elsewhere := t.TempDir(), t.TempDir()
	precious := filepath.Join(elsewhere, "precious")
	if err := os.WriteFile(precious, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := blob.NewKey()
	for _, path := range []string{filepath.Join("tmp", key+".1"), filepath.Join("tmp", "note"), filepath.Join(key[:2], key), filepath.Join(key[:2], "zz")} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(precious, filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(root); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v, %v", fi.Mode(), err)
	}
	if err := d.Delete(t.Context(), key); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("what a link led to is gone: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(root, "tmp", "note")); err != nil {
		t.Errorf("what is not ours is gone: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "../x", "a/b", key + "/", key + "\x00", strings.Repeat("a", 10<<10), strings.ToUpper(key), "..." + key[3:], key[:1]} {
		if _, err := d.Create(t.Context(), bad); err == nil {
			t.Errorf("key %.40q was created", bad)
		}
		if _, err := d.Open(t.Context(), bad, 0, -1); err == nil {
			t.Errorf("key %.40q was opened", bad)
		}
		if err := d.Delete(t.Context(), bad); err == nil {
			t.Errorf("key %.40q was deleted", bad)
		}
	}
	var seen []string
	for info, err := range d.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, info.Key)
	}
	if len(seen) > 0 {
		t.Errorf("List shows %v", seen)
	}
}
