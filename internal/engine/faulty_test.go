package engine_test

import (
	"context"
	"errors"
	"io"
	"reflect"
	"slices"
	"sync"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/engine"
)

// A fate is what becomes of one operation.
type fate int

const (
	done   fate = iota
	lost        // it has no effect, and fails
	untold      // it takes effect, and fails
)

// errFault is what an operation fails with that a test makes fail.
var errFault = errors.New("simulated fault")

// Faults decide the fate of every operation that an engine asks for, of its store and its blobs.
type faults struct {
	mu    sync.Mutex
	count map[string]int // operations so far, by name
	total int
	dead  bool // the process is dead: nothing has an effect any more
	// decide returns the fate of the nth operation of the name, the allth of all.
	decide func(op string, n, all int) fate
	// before is called before an operation, if it is not nil.
	before func(op string, n int)
	// lapsed reports whether what was claimed under the token, a segment or a batch, is its owner's no
	// more; intruded is told of a write that was made all the same. Nil: nobody cares.
	lapsed   func(table string, id any, token string) bool
	intruded func(op string, id any)
}

// guard does a write of whoever has claimed something, and tells if it is made though the claim had
// lapsed before: a token is never given out twice, so what has lapsed stays so.
func (f *faults) guard(op, table string, id any, token string, do func() error) error {
	lapsed := f.lapsed != nil && f.lapsed(table, id, token)
	err := do()
	if lapsed && err == nil {
		f.intruded(op, id)
	}
	return err
}

func newFaults(decide func(op string, n, all int) fate) *faults {
	return &faults{count: map[string]int{}, decide: decide}
}

// in puts f between the engine and what it works on.
func (f *faults) in(c *engine.Config) {
	c.Store = &faultyStore{c.Store, f}
	c.Blobs = &faultyBlobs{c.Blobs, f}
}

func (f *faults) fate(op string) fate {
	f.mu.Lock()
	if f.dead {
		f.mu.Unlock()
		return lost
	}
	f.count[op]++
	f.total++
	n, all := f.count[op], f.total
	f.mu.Unlock()
	if f.before != nil {
		f.before(op, n)
	}
	if f.decide == nil {
		return done
	}
	return f.decide(op, n, all)
}

// die makes every operation from now on have no effect.
func (f *faults) die() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
}

func (f *faults) counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]int{}
	for op, n := range f.count {
		out[op] = n
	}
	return out
}

// through does an operation as its fate is.
func through[T any](f *faults, op string, do func() (T, error)) (T, error) {
	var zero T
	fate := f.fate(op)
	if fate == lost {
		return zero, errFault
	}
	v, err := do()
	if fate == untold && err == nil {
		return zero, errFault
	}
	return v, err
}

func throughErr(f *faults, op string, do func() error) error {
	_, err := through(f, op, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// operations are the names of all operations, those of the store as it calls them.
func operations() (names []string) {
	for m := range reflect.TypeFor[engine.Store]().Methods() {
		names = append(names, m.Name)
	}
	return slices.Concat(names, []string{"blob.Create", "blob.Write", "blob.Commit", "blob.Open", "blob.Read", "blob.Delete"})
}

// A faultyStore is a store whose operations may fail.
type faultyStore struct {
	s engine.Store
	f *faults
}

var _ engine.Store = (*faultyStore)(nil)

func (s *faultyStore) Join(ctx context.Context, name string) (string, error) {
	return through(s.f, "Join", func() (string, error) { return s.s.Join(ctx, name) })
}

func (s *faultyStore) Leave(ctx context.Context, node string) error {
	return throughErr(s.f, "Leave", func() error { return s.s.Leave(ctx, node) })
}

func (s *faultyStore) Heartbeat(ctx context.Context, node string) (batch.Heartbeat, error) {
	return through(s.f, "Heartbeat", func() (batch.Heartbeat, error) { return s.s.Heartbeat(ctx, node) })
}

func (s *faultyStore) Bury(ctx context.Context, node string, heard time.Time, silent time.Duration) (batch.Burial, error) {
	return through(s.f, "Bury", func() (batch.Burial, error) { return s.s.Bury(ctx, node, heard, silent) })
}

func (s *faultyStore) Share(ctx context.Context, node string, claims []batch.Claim, divide func(batch.Division) (batch.Grant, batch.Search)) ([]batch.Grant, error) {
	return through(s.f, "Share", func() ([]batch.Grant, error) { return s.s.Share(ctx, node, claims, divide) })
}

func (s *faultyStore) Tell(ctx context.Context, node string, now map[string]batch.Activity) error {
	return throughErr(s.f, "Tell", func() error { return s.s.Tell(ctx, node, now) })
}

func (s *faultyStore) ClaimValidating(ctx context.Context, node string) (*batch.Admission, error) {
	return through(s.f, "ClaimValidating", func() (*batch.Admission, error) { return s.s.ClaimValidating(ctx, node) })
}

func (s *faultyStore) Admit(ctx context.Context, a batch.Admission, model string, segments []batch.Segment) error {
	return throughErr(s.f, "Admit", func() error {
		return s.f.guard("Admit", "batches", a.Batch.ID, a.Token, func() error { return s.s.Admit(ctx, a, model, segments) })
	})
}

func (s *faultyStore) Reject(ctx context.Context, a batch.Admission, errs []batch.LineError) error {
	return throughErr(s.f, "Reject", func() error {
		return s.f.guard("Reject", "batches", a.Batch.ID, a.Token, func() error { return s.s.Reject(ctx, a, errs) })
	})
}

func (s *faultyStore) Validating(ctx context.Context, a batch.Admission) (bool, error) {
	return through(s.f, "Validating", func() (bool, error) { return s.s.Validating(ctx, a) })
}

func (s *faultyStore) ReleaseValidating(ctx context.Context, a batch.Admission) error {
	return throughErr(s.f, "ReleaseValidating", func() error { return s.s.ReleaseValidating(ctx, a) })
}

func (s *faultyStore) ReleaseStrayBatches(ctx context.Context, node string, known []string) error {
	return throughErr(s.f, "ReleaseStrayBatches", func() error { return s.s.ReleaseStrayBatches(ctx, node, known) })
}

func (s *faultyStore) Vacuum(ctx context.Context) error {
	return throughErr(s.f, "Vacuum", func() error { return s.s.Vacuum(ctx) })
}

func (s *faultyStore) Unclaimed(ctx context.Context) ([]batch.Work, error) {
	return through(s.f, "Unclaimed", func() ([]batch.Work, error) { return s.s.Unclaimed(ctx) })
}

func (s *faultyStore) Claim(ctx context.Context, node string, w batch.Work) (*batch.Lease, error) {
	return through(s.f, "Claim", func() (*batch.Lease, error) { return s.s.Claim(ctx, node, w) })
}

func (s *faultyStore) Release(ctx context.Context, l batch.Lease) error {
	return throughErr(s.f, "Release", func() error {
		return s.f.guard("Release", "segments", l.ID, l.Token, func() error { return s.s.Release(ctx, l) })
	})
}

func (s *faultyStore) ReleaseStrays(ctx context.Context, node string, known []string) error {
	return throughErr(s.f, "ReleaseStrays", func() error { return s.s.ReleaseStrays(ctx, node, known) })
}

func (s *faultyStore) Endings(ctx context.Context, batches []string) (map[string]batch.Status, error) {
	return through(s.f, "Endings", func() (map[string]batch.Status, error) { return s.s.Endings(ctx, batches) })
}

func (s *faultyStore) Seal(ctx context.Context, l batch.Lease, output, errs batch.Part) (bool, error) {
	return through(s.f, "Seal", func() (last bool, err error) {
		err = s.f.guard("Seal", "segments", l.ID, l.Token, func() error {
			last, err = s.s.Seal(ctx, l, output, errs)
			return err
		})
		return last, err
	})
}

func (s *faultyStore) ReserveBlob(ctx context.Context, key string) error {
	return throughErr(s.f, "ReserveBlob", func() error { return s.s.ReserveBlob(ctx, key) })
}

func (s *faultyStore) Record(ctx context.Context, groups []batch.Group) ([]int64, error) {
	return through(s.f, "Record", func() ([]int64, error) {
		var lapsed []int64
		for _, g := range groups {
			if s.f.lapsed != nil && s.f.lapsed("segments", g.Lease.ID, g.Lease.Token) {
				lapsed = append(lapsed, g.Lease.ID)
			}
		}
		lost, err := s.s.Record(ctx, groups)
		for _, id := range lapsed {
			if err == nil && !slices.Contains(lost, id) {
				s.f.intruded("Record", id)
			}
		}
		return lost, err
	})
}

func (s *faultyStore) JournalSeqs(ctx context.Context, segment int64) ([]int64, error) {
	return through(s.f, "JournalSeqs", func() ([]int64, error) { return s.s.JournalSeqs(ctx, segment) })
}

func (s *faultyStore) JournalGroup(ctx context.Context, segment, seq int64) ([]byte, error) {
	return through(s.f, "JournalGroup", func() ([]byte, error) { return s.s.JournalGroup(ctx, segment, seq) })
}

func (s *faultyStore) Expire(ctx context.Context) ([]string, error) {
	return through(s.f, "Expire", func() ([]string, error) { return s.s.Expire(ctx) })
}

func (s *faultyStore) Finalizable(ctx context.Context) ([]string, error) {
	return through(s.f, "Finalizable", func() ([]string, error) { return s.s.Finalizable(ctx) })
}

func (s *faultyStore) Finalize(ctx context.Context, id string) (b batch.Batch, finalized bool, err error) {
	err = throughErr(s.f, "Finalize", func() (err error) {
		b, finalized, err = s.s.Finalize(ctx, id)
		return err
	})
	return b, finalized && err == nil, err
}

func (s *faultyStore) Sweep(ctx context.Context) (bool, error) {
	return through(s.f, "Sweep", func() (bool, error) { return s.s.Sweep(ctx) })
}

func (s *faultyStore) DropBatches(ctx context.Context, keep time.Duration) error {
	return throughErr(s.f, "DropBatches", func() error { return s.s.DropBatches(ctx, keep) })
}

func (s *faultyStore) Deleted(ctx context.Context, keep time.Duration) ([]string, error) {
	return through(s.f, "Deleted", func() ([]string, error) { return s.s.Deleted(ctx, keep) })
}

func (s *faultyStore) Forget(ctx context.Context, keys []string) error {
	return throughErr(s.f, "Forget", func() error { return s.s.Forget(ctx, keys) })
}

func (s *faultyStore) CountBatches(ctx context.Context) (map[batch.Status]int64, error) {
	return through(s.f, "CountBatches", func() (map[batch.Status]int64, error) { return s.s.CountBatches(ctx) })
}

// faultyBlobs are blobs whose operations may fail.
type faultyBlobs struct {
	b engine.Blobs
	f *faults
}

func (b *faultyBlobs) Create(ctx context.Context, key string) (blob.Writer, error) {
	return through(b.f, "blob.Create", func() (blob.Writer, error) {
		w, err := b.b.Create(ctx, key)
		if err != nil {
			return nil, err
		}
		return &faultyWriter{w, b.f}, nil
	})
}

func (b *faultyBlobs) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	return through(b.f, "blob.Open", func() (io.ReadCloser, error) {
		r, err := b.b.Open(ctx, key, off, n)
		if err != nil {
			return nil, err
		}
		return &faultyReader{r, b.f}, nil
	})
}

func (b *faultyBlobs) Delete(ctx context.Context, key string) error {
	return throughErr(b.f, "blob.Delete", func() error { return b.b.Delete(ctx, key) })
}

type faultyWriter struct {
	blob.Writer
	f *faults
}

func (w *faultyWriter) Write(p []byte) (int, error) {
	return through(w.f, "blob.Write", func() (int, error) { return w.Writer.Write(p) })
}

func (w *faultyWriter) Commit() (int64, error) {
	return through(w.f, "blob.Commit", func() (int64, error) { return w.Writer.Commit() })
}

type faultyReader struct {
	io.ReadCloser
	f *faults
}

func (r *faultyReader) Read(p []byte) (int, error) {
	return through(r.f, "blob.Read", func() (int, error) { return r.ReadCloser.Read(p) })
}
