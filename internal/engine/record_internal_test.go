package engine

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
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

// noted is a journal that takes whatever is recorded, and a second for each transaction.
type noted struct {
	journals
	groups []batch.Group
}

func (n *noted) Record(_ context.Context, groups []batch.Group) ([]int64, error) {
	time.Sleep(time.Second)
	n.groups = append(n.groups, groups...)
	return nil, nil
}

func (n *noted) recorder() *recorder {
	return newRecorder(n, newOutages(slog.New(slog.DiscardHandler)).record, NewMetrics())
}

// Whoever waits for what was added, or for a segment that is finished, waits for all of its groups, of which
// each transaction takes one.
func TestFlushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, h := &noted{}, &hold{}
		settled := 0
		r := n.recorder()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			r.run(t.Context(), func(context.Context, *hold, error) { settled = len(n.groups) })
		}()
		add := func() {
			r.addPacked(h, true, batch.Usage{}, []byte("a piece"), false)
			r.addPacked(h, true, batch.Usage{}, []byte("another one"), true)
			r.add(h, true, batch.Usage{}, []byte("an entry"))
		}
		add()
		if err := r.flush(t.Context()); err != nil || len(n.groups) != 3 {
			t.Errorf("%d of 3 groups are recorded, %v", len(n.groups), err)
		}
		add()
		r.finish(h)
		r.close()
		<-ended
		if settled != 6 {
			t.Errorf("the segment was settled with %d of 6 groups", settled)
		}
		for i, g := range n.groups {
			if want := []int64{0, 1, 2, 2, 3, 4}[i]; g.Tally.Completed != want || g.Lease.Seq != int64(i) {
				t.Errorf("group %d has %d results and seq %d, want %d and %d", i, g.Tally.Completed, g.Lease.Seq, want, i)
			}
		}
	})
}

// Of a segment that is lost nothing is recorded any more, nor is it sealed.
func TestLostIsNotSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, h, other := &noted{}, &hold{}, &hold{}
		h.lease.Token, other.lease.Token = "lost", "other"
		r := n.recorder()
		for _, h := range []*hold{h, other} {
			r.add(h, true, batch.Usage{}, []byte("an entry"))
			r.finish(h)
		}
		r.lose(h)
		var settled []*hold
		r.close()
		r.run(t.Context(), func(_ context.Context, h *hold, _ error) { settled = append(settled, h) })
		if len(settled) != 1 || settled[0] != other {
			t.Errorf("%d segments are settled, want the other one", len(settled))
		}
		if len(n.groups) != 1 || n.groups[0].Lease.Token != "other" {
			t.Errorf("%d groups are recorded, want that of the other one", len(n.groups))
		}
	})
}

// A key that is reserved is used once, and only while nobody may take it for abandoned, whatever clocks do.
func TestReservedKey(t *testing.T) {
	r := newRecorder(nil, nil, NewMetrics())
	for _, test := range []struct {
		age  time.Duration
		want string
	}{
		{time.Minute, "key"},
		{freshFor - time.Minute, "key"},
		{freshFor + time.Minute, ""},
		{-time.Minute, ""},
	} {
		h := &hold{blob: "key", reserved: time.Now().Round(0).Add(-test.age)}
		if key := r.takeBlob(h); key != test.want {
			t.Errorf("reserved %v ago: %q, want %q", test.age, key, test.want)
		}
		if key := r.takeBlob(h); key != "" {
			t.Errorf("reserved %v ago, taken once more: %q", test.age, key)
		}
	}
}
