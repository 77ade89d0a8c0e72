package store

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"offpeak/internal/batch"
)

// TestKeysWhileTheDiskIsBusy: who comes with a key waits for no writer, in whatever crowd. That the
// key was used is noted once a minute, by one of them.
func TestKeysWhileTheDiskIsBusy(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s, err := Open(t.Context(), t.TempDir(), Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, secret, err := s.CreateKey(t.Context(), batch.DefaultProject, "")
	if err != nil {
		t.Fatal(err)
	}
	used := func() time.Time {
		keys, err := s.ListKeys(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return keys[0].LastUsedAt
	}
	k := s.Keys(true)
	crowd := func() {
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if _, err := k.Authenticate(t.Context(), secret, false); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}

	writer, err := s.write.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	crowd() // would not end if any of them waited for the writer
	writer.Rollback()
	if at := used(); !at.IsZero() {
		t.Errorf("noted at %v, while it could not be", at)
	}
	now = now.Add(30 * time.Second)
	crowd()
	if at := used(); !at.IsZero() {
		t.Errorf("noted at %v, within the minute", at)
	}
	now = now.Add(31 * time.Second)
	crowd()
	if at := used(); !at.Equal(now) {
		t.Errorf("noted at %v, want %v", at, now)
	}
	first := now
	now = now.Add(59 * time.Second)
	crowd()
	if at := used(); !at.Equal(first) {
		t.Errorf("noted again at %v", at)
	}
}

// TestModes: whatever a backup was restored with, the database is its owner's alone once it is open.
func TestModes(t *testing.T) {
	dir := t.TempDir()
	open := func() *Store {
		t.Helper()
		s, err := Open(t.Context(), dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	open().Close()
	path := filepath.Join(dir, "offpeak.db")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	defer open().Close()
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", f, fi.Mode(), err)
		}
	}
}
