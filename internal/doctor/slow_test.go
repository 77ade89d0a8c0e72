package doctor_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/blob"
	"offpeak/internal/doctor"
)

// slowBlobs take a moment for everything, as a bucket does.
type slowBlobs struct {
	doctor.Blobs
	mu          sync.Mutex
	calls       int
	at, atOnce  int // calls that are under way, and were at most
	open, opens int // readers that are open, and were at most
}

const moment = 100 * time.Millisecond

func (b *slowBlobs) wait() {
	b.mu.Lock()
	b.calls++
	b.at++
	b.atOnce = max(b.atOnce, b.at)
	b.mu.Unlock()
	time.Sleep(moment)
	b.mu.Lock()
	b.at--
	b.mu.Unlock()
}

func (b *slowBlobs) Size(ctx context.Context, key string) (int64, error) {
	b.wait()
	return b.Blobs.Size(ctx, key)
}

func (b *slowBlobs) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	b.wait()
	r, err := b.Blobs.Open(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open++
	b.opens = max(b.opens, b.open)
	return &slowReader{r, b}, nil
}

type slowReader struct {
	io.ReadCloser
	b *slowBlobs
}

func (r *slowReader) Close() error {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	r.b.open--
	return r.ReadCloser.Close()
}

// TestSlowBlobs examines blobs that take a moment each, some of them damaged. Several are asked for at a
// time, and what is found is found in the same order.
func TestSlowBlobs(t *testing.T) {
	w := newWard(t)
	for i, status := range []string{"completed", "cancelled", "expired"} {
		path := w.path(status, "output")
		if i == 1 {
			must(w, os.Remove(path))
			continue
		}
		text, err := os.ReadFile(path)
		must(w, err)
		w.edit(path, string(text[:20]), "nonsense "+string(text[:11]))
	}
	want := w.examine()
	synctest.Test(t, func(t *testing.T) {
		blobs := &slowBlobs{Blobs: blob.NewView(filepath.Join(w.dir, "blobs"))}
		start := time.Now()
		got, err := doctor.OpenWith(w.dir, blobs, doctor.Options{
			NothingDeleted: true, Now: func() time.Time { return time.Date(2000, 1, 1, 1, 0, 0, 0, time.UTC) },
		}).Examine(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		t.Logf("%d calls, %d at once, %d readers open, took %v", blobs.calls, blobs.atOnce, blobs.opens, took)
		if one := time.Duration(blobs.calls) * moment; took > one/2 {
			t.Errorf("%d calls took %v", blobs.calls, took)
		}
		if blobs.atOnce > 16 || blobs.opens > 17 || blobs.open != 0 {
			t.Errorf("%d calls at once, %d readers open, %d left open", blobs.atOnce, blobs.opens, blobs.open)
		}
		if len(want.Findings) < 3 || !reflect.DeepEqual(got.Findings, want.Findings) || got.Examined != want.Examined {
			t.Errorf("found %v\nwant %v", got, want)
		}
	})
}
