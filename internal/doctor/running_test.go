package doctor_test

import (
	"context"
	"database/sql"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/doctor"
	"offpeak/internal/store"
)

// busyBlobs are blobs over which a server works: when they are looked at for the first time,
// something happens.
type busyBlobs struct {
	doctor.Blobs
	once   sync.Once
	happen func()
}

func (b *busyBlobs) Size(ctx context.Context, key string) (int64, error) {
	b.once.Do(b.happen)
	return b.Blobs.Size(ctx, key)
}

func (b *busyBlobs) List(ctx context.Context) iter.Seq2[blob.Info, error] { return b.Blobs.List(ctx) }

// TestWhileItRuns examines a folder while blobs come and go, which the rows that it reads, all of one
// moment, do not know of.
func TestWhileItRuns(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	l := newLargeAt(t, dir, func() time.Time { return now })
	going := l.input(3)
	stays := l.input(3)
	l.batch(stays, 3, 3)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "offpeak.db")+"?mode=ro&_pragma=query_only(1)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	happened := false
	blobs := &busyBlobs{Blobs: blob.NewView(filepath.Join(dir, "blobs")), happen: func() {
		happened = true
		l.input(5) // comes
		l.must(l.store.DeleteFile(t.Context(), batch.DefaultProject, going.ID))
		_, err := l.store.Sweep(t.Context())
		l.must(err)
		now = now.Add(25 * time.Hour)
		_, err = l.store.Sweep(t.Context())
		l.must(err)
		keys, err := l.store.Deleted(t.Context(), 0)
		l.must(err)
		if len(keys) != 1 || keys[0] != going.Parts[0].Key {
			t.Fatalf("swept are %v", keys)
		}
		l.must(l.blobs.Delete(t.Context(), keys[0]))
		l.must(l.store.Forget(t.Context(), keys)) // goes
	}}
	r, err := doctor.New(db, blobs, doctor.Options{}).Examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !happened || r.Examined.Files != 3 || r.Examined.Results != 3 {
		t.Errorf("happened: %v; examined %+v", happened, r.Examined)
	}
	for _, f := range r.Findings {
		t.Error(f)
	}
}

// TestServerStarts examines a folder over which a server starts meanwhile: what was read before
// counts for nothing.
func TestServerStarts(t *testing.T) {
	w := newWard(t)
	starts, moments := false, 0
	d := doctor.Open(w.dir, doctor.Options{Now: func() time.Time {
		if moments++; moments == 1 {
			s, err := store.Open(t.Context(), w.dir, store.Options{})
			must(w, err)
			t.Cleanup(func() { s.Close() })
			_, err = s.Join(t.Context(), "n")
			must(w, err)
			starts = true
		}
		return time.Date(2000, 1, 1, 1, 0, 0, 0, time.UTC)
	}})
	r, err := d.Examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !starts || moments != 2 {
		t.Errorf("the server starts: %v, examinations: %d; want 2", starts, moments)
	}
	if _, err := os.Stat("/proc/locks"); err == nil && !r.Running {
		t.Error("the server is not seen to run")
	}
	for _, f := range r.Findings {
		t.Error(f)
	}
}

// TestNotSwept wonders about what a sweep should have taken long ago, if a server runs.
func TestNotSwept(t *testing.T) {
	if _, err := os.Stat("/proc/locks"); err != nil {
		t.Skip("here one cannot tell whether a server runs")
	}
	dir := t.TempDir()
	l := newLarge(t, dir)
	l.must(l.store.ReserveBlob(t.Context(), blob.NewKey()))
	f := l.input(1)
	l.must(l.store.DeleteFile(t.Context(), batch.DefaultProject, f.ID))
	for after, want := range map[time.Duration]int{0: 0, 2 * time.Hour: 1, 26 * time.Hour: 2} {
		d := doctor.Open(dir, doctor.Options{Now: func() time.Time { return time.Now().Add(after) }})
		r := &doctor.Report{}
		for range 20 { // the list of locks is not always complete
			if r.Running {
				break
			}
			var err error
			r, err = d.Examine(t.Context())
			l.must(err)
		}
		if len(r.Findings) != want {
			t.Errorf("after %v: %v, want %d findings", after, r.Findings, want)
		}
	}
	l.must(l.store.Close())
	r, err := doctor.Open(dir, doctor.Options{Now: func() time.Time { return time.Now().Add(26 * time.Hour) }}).Examine(t.Context())
	l.must(err)
	for _, f := range r.Findings {
		t.Errorf("at rest: %v", f)
	}
}
