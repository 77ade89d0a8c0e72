package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
)

// A fakeStore is a Store in memory. It keeps the promises of the interface, and fails where a test
// wants it to.
type fakeStore struct {
	uploads // nobody: tests of uploads have the real store

	now func() time.Time

	mu       sync.Mutex
	reserved map[string]bool // blobs by key; false once named
	files    []batch.File    // in the order of creation
	gone     map[string]bool // ids of deleted files
	batches  []batch.Batch   // in the order of creation
	fault    func(op string) error
}

func newFakeStore(now func() time.Time) *fakeStore {
	return &fakeStore{now: now, reserved: make(map[string]bool), gone: make(map[string]bool)}
}

// lock locks s for an operation, or fails it.
func (s *fakeStore) lock(ctx context.Context, op string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	s.mu.Lock()
	if s.fault != nil {
		if err := s.fault(op); err != nil {
			s.mu.Unlock()
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	return nil
}

func (s *fakeStore) failing(fault func(op string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
}

func (s *fakeStore) ReserveBlob(ctx context.Context, key string) error {
	if err := s.lock(ctx, "ReserveBlob"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if _, ok := s.reserved[key]; ok {
		return errors.New("key drawn twice")
	}
	s.reserved[key] = true
	return nil
}

func (s *fakeStore) CreateFile(ctx context.Context, f batch.File) error {
	if err := s.lock(ctx, "CreateFile"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, p := range f.Parts {
		if !s.reserved[p.Key] {
			return fmt.Errorf("blob %s is not reserved", p.Key)
		}
		s.reserved[p.Key] = false
	}
	s.files = append(s.files, f)
	return nil
}

func (s *fakeStore) exists(f batch.File) bool {
	return !s.gone[f.ID] && (f.ExpiresAt.IsZero() || f.ExpiresAt.After(s.now()))
}

func (s *fakeStore) File(ctx context.Context, project, id string) (batch.File, error) {
	if err := s.lock(ctx, "File"); err != nil {
		return batch.File{}, err
	}
	defer s.mu.Unlock()
	for _, f := range s.files {
		if f.ID == id && f.Project == project && s.exists(f) {
			return f, nil
		}
	}
	return batch.File{}, batch.NoFile(id)
}

func (s *fakeStore) ListFiles(ctx context.Context, project string, q batch.FileQuery) ([]batch.File, bool, error) {
	if err := s.lock(ctx, "ListFiles"); err != nil {
		return nil, false, err
	}
	defer s.mu.Unlock()
	var all []batch.File
	for _, f := range s.files {
		if f.Project == project && (s.exists(f) || f.ID == q.After) {
			f.Parts = nil
			all = append(all, f)
		}
	}
	if !q.Ascending {
		slices.Reverse(all)
	}
	files, ok := behind(all, q.After, func(f batch.File) string { return f.ID })
	if !ok {
		return nil, false, batch.NoFile(q.After)
	}
	files = slices.DeleteFunc(slices.Clone(files), func(f batch.File) bool { return q.Purpose != "" && f.Purpose != q.Purpose })
	files, more := page(files, q.Limit)
	return files, more, nil
}

// behind returns the objects behind the one with the id after, and whether there is one.
func behind[T any](all []T, after string, id func(T) string) ([]T, bool) {
	if after == "" {
		return all, true
	}
	i := slices.IndexFunc(all, func(v T) bool { return id(v) == after })
	return all[i+1:], i >= 0
}

func page[T any](all []T, limit int) ([]T, bool) {
	if limit < 1 {
		panic("a page without a limit")
	}
	return all[:min(limit, len(all))], len(all) > limit
}

func (s *fakeStore) DeleteFile(ctx context.Context, project, id string) error {
	if _, err := s.File(ctx, project, id); err != nil {
		return err
	}
	if err := s.lock(ctx, "DeleteFile"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.gone[id] = true
	return nil
}

func (s *fakeStore) CreateBatch(ctx context.Context, b batch.Batch) error {
	if err := s.lock(ctx, "CreateBatch"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.batches = append(s.batches, b)
	return nil
}

func (s *fakeStore) CreateBatchOnce(ctx context.Context, b batch.Batch, key string, request [32]byte) (batch.Batch, error) {
	if err := s.lock(ctx, "CreateBatchOnce"); err != nil {
		return batch.Batch{}, err
	}
	s.mu.Unlock()
	return b, s.CreateBatch(ctx, b) // that it is made once is shown with the real store
}

func (s *fakeStore) Segments(context.Context, string, bool) ([]batch.Sealed, error) { return nil, nil }

func (s *fakeStore) JournalSeqs(context.Context, int64) ([]int64, error) { return nil, nil }

func (s *fakeStore) JournalGroup(context.Context, int64, int64) ([]byte, error) {
	return nil, batch.ErrSealed
}

func (s *fakeStore) Batch(ctx context.Context, project, id string) (batch.Batch, error) {
	if err := s.lock(ctx, "Batch"); err != nil {
		return batch.Batch{}, err
	}
	defer s.mu.Unlock()
	for _, b := range s.batches {
		if b.ID == id && b.Project == project {
			return b, nil
		}
	}
	return batch.Batch{}, batch.NoBatch(id)
}

func (s *fakeStore) ListBatches(ctx context.Context, project string, q batch.BatchQuery) ([]batch.Batch, bool, error) {
	if err := s.lock(ctx, "ListBatches"); err != nil {
		return nil, false, err
	}
	defer s.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(s.batches), func(b batch.Batch) bool { return b.Project != project })
	slices.Reverse(all)
	batches, ok := behind(all, q.After, func(b batch.Batch) string { return b.ID })
	if !ok {
		return nil, false, batch.NoBatch(q.After)
	}
	batches, more := page(batches, q.Limit)
	return batches, more, nil
}

func (s *fakeStore) CancelBatch(ctx context.Context, project, id string) (batch.Batch, error) {
	return s.change(ctx, project, id, func(b *batch.Batch) error {
		_, err := b.Cancel(s.now())
		return err
	})
}

// change moves a batch, for a test or for CancelBatch.
func (s *fakeStore) change(ctx context.Context, project, id string, f func(*batch.Batch) error) (batch.Batch, error) {
	if err := s.lock(ctx, "CancelBatch"); err != nil {
		return batch.Batch{}, err
	}
	defer s.mu.Unlock()
	for i, b := range s.batches {
		if b.ID == id && b.Project == project {
			if err := f(&b); err != nil {
				return batch.Batch{}, err
			}
			s.batches[i] = b
			return b, nil
		}
	}
	return batch.Batch{}, batch.NoBatch(id)
}

// errFakeAway is what fakes fail with that are away.
var errFakeAway = errors.New("secret address: connection refused")

func fakeAway(err error) bool { return errors.Is(err, errFakeAway) }

// fakeBlobs are Blobs in memory.
type fakeBlobs struct {
	mu    sync.Mutex
	blobs map[string][]byte
	open  int // writers neither committed nor aborted
	fault func(op string) error
	ended chan struct{} // gets a value whenever a writer ends
}

func newFakeBlobs() *fakeBlobs {
	return &fakeBlobs{blobs: make(map[string][]byte), ended: make(chan struct{}, 1000)}
}

func (b *fakeBlobs) failing(fault func(op string) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fault = fault
}

func (b *fakeBlobs) check(op string) error {
	if b.fault == nil {
		return nil
	}
	return b.fault(op)
}

func (b *fakeBlobs) Create(ctx context.Context, key string) (blob.Writer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.check("Create"); err != nil {
		return nil, err
	}
	b.open++
	return &fakeWriter{blobs: b, ctx: ctx, key: key}, nil
}

func (b *fakeBlobs) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.check("Open"); err != nil {
		return nil, err
	}
	data, ok := b.blobs[key]
	if !ok {
		return nil, blob.ErrNotFound
	}
	end := int64(len(data))
	if n >= 0 {
		end = min(end, off+n)
	}
	return io.NopCloser(bytes.NewReader(data[min(off, end):end])), nil
}

type fakeWriter struct {
	blobs *fakeBlobs
	ctx   context.Context
	key   string
	buf   bytes.Buffer
	done  bool
}

func (w *fakeWriter) Write(p []byte) (int, error) {
	w.blobs.mu.Lock()
	defer w.blobs.mu.Unlock()
	if err := errors.Join(w.ctx.Err(), w.blobs.check("Write")); err != nil {
		return 0, err
	}
	return w.buf.Write(p)
}

func (w *fakeWriter) Commit() (int64, error) {
	w.blobs.mu.Lock()
	defer w.blobs.mu.Unlock()
	w.end()
	if err := errors.Join(w.ctx.Err(), w.blobs.check("Commit")); err != nil {
		return 0, err
	}
	w.blobs.blobs[w.key] = w.buf.Bytes()
	return int64(w.buf.Len()), nil
}

func (w *fakeWriter) Abort() {
	w.blobs.mu.Lock()
	defer w.blobs.mu.Unlock()
	if !w.done {
		w.end()
	}
}

func (w *fakeWriter) end() {
	w.done = true
	w.blobs.open--
	w.blobs.ended <- struct{}{}
}

// fakeKeys gives project a to "key-of-a…" and so on.
type fakeKeys struct{}

func (fakeKeys) Authenticate(_ context.Context, key string, _ bool) (batch.Project, error) {
	name, ok := strings.CutPrefix(key, "sk-key-of-project-")
	switch {
	case key == "sk-key-that-breaks-the-store":
		return batch.Project{}, errors.New("database is down")
	case !ok:
		return batch.Project{}, &batch.Error{Kind: batch.NotFound, Msg: "no such key"}
	}
	return batch.Project{ID: "proj_" + name, Name: "Project " + name, Weight: 1}, nil
}

type fakeModels []string

func (m fakeModels) Models(context.Context) []batch.ModelInfo {
	infos := make([]batch.ModelInfo, len(m))
	for i, id := range m {
		infos[i] = batch.ModelInfo{ID: id, Created: time.Unix(1762000000, 0), OwnedBy: "upstream-1"}
	}
	return infos
}

// fakeMetrics are what GET /metrics shows.
type fakeMetrics string

func (m fakeMetrics) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	io.WriteString(w, string(m))
}
