package engine

import (
	"bytes"
	"context"
	"testing"
)

// oneGroup is a journal with the same group everywhere.
type oneGroup struct {
	journals
	group []byte
}

func (s oneGroup) JournalGroup(context.Context, int64, int64) ([]byte, error) { return s.group, nil }

// Large groups are kept until their hold is given up, and no more of them than there may be; of others
// the database is asked.
func TestKept(t *testing.T) {
	r := newRecorder(oneGroup{group: []byte("stored")}, nil, NewMetrics())
	const size = 1 << 20
	large := bytes.Repeat([]byte("k"), size)
	a, b := &hold{}, &hold{}
	a.lease.ID, b.lease.ID = 1, 2
	r.mu.Lock()
	r.keep(a, 1, large, 10)
	r.keep(a, 2, large[:size/2], size/2/largeResult+1) // of small results
	for seq := range int64(2 * keptBytes / size) {
		r.keep(b, seq, large, 10)
	}
	if len(a.kept) != 1 || len(b.kept) != keptBytes/size-1 || r.kept != keptBytes {
		t.Errorf("%d and %d groups are kept, %d bytes", len(a.kept), len(b.kept), r.kept)
	}
	r.mu.Unlock()

	want := func(h *hold, seq int64, want []byte) {
		t.Helper()
		got, err := r.journalOf(h).JournalGroup(t.Context(), h.lease.ID, seq)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("group %d of segment %d has %d bytes, %v; want %d", seq, h.lease.ID, len(got), err, len(want))
		}
	}
	want(a, 1, large)
	want(a, 2, []byte("stored"))
	r.release(b)
	want(b, 1, []byte("stored"))
	want(a, 1, large)
	r.mu.Lock()
	r.keep(b, 1, large, 10) // recorded after it was given up
	if len(b.kept) != 0 || r.kept != size {
		t.Errorf("%d groups are kept of a hold that is given up, %d bytes in all", len(b.kept), r.kept)
	}
	r.mu.Unlock()
	r.release(a)
	r.release(a)
	if r.kept != 0 {
		t.Errorf("%d bytes are kept of nothing", r.kept)
	}
}
