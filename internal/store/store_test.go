package store_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"offpeak/internal/store"
	"offpeak/internal/store/storetest"
)

// traceEnv makes the test binary open the folder it names, write twice and say so each time.
const traceEnv = "OFFPEAK_STORE_TRACE_TEST"

func writeTwice(dir string) error {
	s, err := store.Open(context.Background(), dir, store.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	for _, key := range []string{"one", "two"} {
		if err := s.ReserveBlob(context.Background(), key); err != nil {
			return err
		}
		fmt.Println("reserved", key)
	}
	return nil
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(traceEnv); dir != "" {
		if err := writeTwice(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Nobody pulls the plug here, so there is no need to wait for a disk.
	if _, err := os.Stat("/dev/shm"); err == nil {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	if race {
		flag.Set("rapid.checks", "20")
	}
	goleak.VerifyTestMain(m)
}

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Database {
		dir := t.TempDir()
		return storetest.Database{
			Open:  func(o store.Options) (*store.Store, error) { return store.Open(t.Context(), dir, o) },
			Alone: true,
		}
	})
}

// TestShared has nodes share a folder, as they do in tests of what they do to each other.
func TestShared(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Database {
		dir := t.TempDir()
		return storetest.Database{
			Open: func(o store.Options) (*store.Store, error) {
				o.Shared = true
				return store.Open(t.Context(), dir, o)
			},
		}
	})
}

// open opens the folder, for as long as the test lasts or until it is closed.
func open(t *testing.T, dir string, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestFolder opens folders of any name, missing ones included, and lets nobody else look inside.
func TestFolder(t *testing.T) {
	for _, name := range []string{"a", "a/b/c", "with space", "%41?x=1#y&_pragma=z", "żółw", "file:x"} {
		dir := filepath.Join(t.TempDir(), name)
		open(t, dir, store.Options{}).Close()
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("folder %q: %v, %v; want mode 0700", name, fi.Mode(), err)
		}
		if fi, err := os.Stat(filepath.Join(dir, "offpeak.db")); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("database in %q: %v, %v; want mode 0600", name, fi, err)
		}
		open(t, dir, store.Options{}).Close()
	}
}

// TestOneProcess keeps a second process out of the folder until the first has closed it. A guest
// is no second one.
func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, store.Options{})
	if _, err := store.Open(t.Context(), dir, store.Options{}); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second Open: %v, want %v", err, store.ErrLocked)
	}
	guest := open(t, dir, store.Options{Guest: true})
	second := open(t, dir, store.Options{Guest: true})
	if _, _, err := guest.CreateKey(t.Context(), "default", "k"); err != nil {
		t.Error(err)
	}
	for _, s := range []*store.Store{s, second} {
		if has, err := s.HasKeys(t.Context()); !has || err != nil {
			t.Errorf("after a guest made a key, HasKeys() = %v, %v", has, err)
		}
	}
	guest.Close()
	second.Close()
	if _, err := s.Join(t.Context(), "n"); err != nil {
		t.Errorf("after guests left: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	open(t, dir, store.Options{})
}

// TestFirstOpenedAtOnce makes a server and guests the first to open a folder, all of them.
func TestFirstOpenedAtOnce(t *testing.T) {
	for range 5 {
		dir := t.TempDir()
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				s, err := store.Open(t.Context(), dir, store.Options{Guest: i > 0})
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				if _, err := s.Projects(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

// TestNewerSchema refuses a database that a newer version of Offpeak has changed.
func TestNewerSchema(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, store.Options{}).Close()
	db, err := sql.Open("sqlite", filepath.Join(dir, "offpeak.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)`); err != nil {
		t.Fatal(err)
	}
	for _, o := range []store.Options{{}, {Guest: true}} {
		_, err = store.Open(t.Context(), dir, o)
		if err == nil || !strings.Contains(err.Error(), "the schema has version 99999") {
			t.Errorf("Open(%+v) = %v, want a word about the version", o, err)
		}
	}
}

// TestUnfit refuses what is no folder or no database, and says what is wrong with it.
func TestUnfit(t *testing.T) {
	write := func(t *testing.T, path, text string) string {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, test := range []struct {
		name string
		dir  func(t *testing.T) string
		want string
	}{
		{"a file for a folder", func(t *testing.T) string { return write(t, filepath.Join(t.TempDir(), "f"), "") },
			"data folder: mkdir "},
		{"text for a database", func(t *testing.T) string {
			return filepath.Dir(write(t, filepath.Join(t.TempDir(), "offpeak.db"), strings.Repeat("no database\n", 1000)))
		}, "the file is not an offpeak database"},
		{"a folder for a database", func(t *testing.T) string {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "offpeak.db"), 0o700); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "is a directory"},
		{"a damaged database", func(t *testing.T) string {
			dir := t.TempDir()
			open(t, dir, store.Options{}).Close()
			write(t, filepath.Join(dir, "offpeak.db"), "SQLite format 3\x00and then nothing that fits"+strings.Repeat("x", 9000))
			return dir
		}, "the file is not an offpeak database"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := test.dir(t)
			for range 2 { // a refusal leaves no lock behind
				s, err := store.Open(t.Context(), dir, store.Options{})
				if err == nil {
					s.Close()
					t.Fatal("it opens")
				}
				if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), dir) {
					t.Errorf("error %q, want the folder and %q in it", err, test.want)
				}
			}
		})
	}
}

// TestCommitOnDisk asks the kernel whether a commit is on the disk before anybody is told of it.
func TestCommitOnDisk(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace here")
	}
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-y", "-qq", "-o", out, "-e", "trace=write,pwrite64,fsync,fdatasync", os.Args[0])
	cmd.Env = append(os.Environ(), traceEnv+"="+t.TempDir())
	if said, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(said), "ptrace") {
			t.Skipf("strace may not trace here: %s", said)
		}
		t.Fatalf("%v: %s", err, said)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), `"reserved one\n"`)
	between, _, found := strings.Cut(rest, `"reserved two\n"`)
	if !found {
		t.Fatalf("nothing was written:\n%s", text)
	}
	if !regexp.MustCompile(`(?s)write64\(\d+<[^>]*/offpeak\.db-wal>.*f(data)?sync\(\d+<[^>]*/offpeak\.db-wal>`).MatchString(between) {
		t.Errorf("between two writes that were acknowledged:\n%s", between)
	}
}

// TestReadOnlyFolder runs as somebody who may not write: this test again, in a process of nobody's
// if ours may do anything.
func TestReadOnlyFolder(t *testing.T) {
	const env = "OFFPEAK_TEST_READ_ONLY"
	if dir := os.Getenv(env); dir != "" {
		_, err := store.Open(t.Context(), dir, store.Options{})
		if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "data folder "+dir) {
			t.Errorf("error %v, want one of missing permission that names the folder", err)
		}
		return
	}
	dir, err := os.MkdirTemp("", "offpeak")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	// The binary stands in a folder of ours; nobody needs a copy.
	exe := filepath.Join(os.TempDir(), filepath.Base(dir)+".test")
	if out, err := exec.Command("cp", os.Args[0], exe).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer os.Remove(exe)
	cmd := exec.Command(exe, "-test.run=^TestReadOnlyFolder$", "-test.count=1")
	cmd.Env = append(os.Environ(), env+"="+dir)
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
