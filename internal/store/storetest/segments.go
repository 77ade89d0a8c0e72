package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"time"

	"offpeak/internal/batch"
)

func testClaim(d *db) {
	input := d.file(batch.PurposeBatch, 700, 300)
	b := d.newBatch(input.ID)
	d.must(d.CreateBatch(d.ctx(), b))
	g := batch.Segment{
		BatchID: b.ID, Project: b.Project, Lane: batch.Lane{Model: "org/m:1", Endpoint: endpoint},
		Offset: 1 << 40, Length: 8 << 20, FirstLine: 1 << 33, Total: 1000,
	}
	d.must(d.Admit(d.ctx(), d.admission(b), "org/m:1", []batch.Segment{g}))

	unclaimed, err := d.Unclaimed(d.ctx())
	d.must(err)
	want := batch.Work{BatchID: b.ID, Project: b.Project, Weight: 1, Lane: g.Lane, Deadline: b.ExpiresAt, Open: 1}
	if len(unclaimed) == 1 {
		want.Age = unclaimed[0].Age
	}
	if len(unclaimed) != 1 || !same(unclaimed[0], want) {
		d.Fatalf("Unclaimed() = %+v, want %+v", unclaimed, want)
	}
	l, err := d.Claim(d.ctx(), d.node, unclaimed[0])
	d.must(err)
	if l.Token == "" {
		d.Error("a claim without a token")
	}
	g.ID = l.ID
	d.wantSame("lease", *l, batch.Lease{Segment: g, Token: l.Token, Seq: l.Seq, Input: input.Parts, Deadline: b.ExpiresAt})
	if unclaimed, err := d.Unclaimed(d.ctx()); err != nil || len(unclaimed) > 0 {
		d.Errorf("with everything claimed, Unclaimed() = %+v, %v", unclaimed, err)
	}
	if l, err := d.Claim(d.ctx(), d.node, want); l != nil || err != nil {
		d.Errorf("with everything claimed, Claim() = %+v, %v", l, err)
	}

	// The next owner finds what this one recorded, and how the batch ends.
	d.record(l, tally(3, 1), "some")
	d.cancel(b.ID)
	d.must(d.DeleteFile(d.ctx(), b.Project, input.ID)) // which a running batch does not feel
	died := *l
	died.Died = true // of its requests, perhaps: the next owner knows
	d.must(d.Release(d.ctx(), died))
	if unclaimed, err = d.Unclaimed(d.ctx()); err != nil || len(unclaimed) != 1 || unclaimed[0].Ending != batch.Cancelled {
		d.Errorf("of a cancelled batch, Unclaimed() = %+v, %v", unclaimed, err)
	}
	next, err := d.Claim(d.ctx(), d.node, want)
	d.must(err)
	g.Tally, g.Deaths = tally(3, 1), 1
	d.wantSame("next lease", *next, batch.Lease{
		Segment: g, Token: next.Token, Seq: next.Seq, Input: input.Parts, Deadline: b.ExpiresAt, Ending: batch.Cancelled,
	})
	if next.Token == l.Token {
		d.Error("two claims have one token")
	}
}

func testClaimOrder(d *db) {
	first, second := d.running(4, "m", "n"), d.running(2)
	var ages []int64
	for range 2 { // whatever was given back is what comes next
		var leases []*batch.Lease
		for _, step := range []struct {
			b     batch.Batch
			model string
			line  int64 // the first of the segment to be claimed
		}{{first, "m", 1}, {second, "m", 1}, {first, "n", 11}, {first, "m", 21}, {first, "n", 31}, {second, "m", 11}} {
			l := d.claimOf(step.b, step.model)
			if l.BatchID != step.b.ID || l.Lane.Model != step.model || l.FirstLine != step.line {
				d.Errorf("claimed %+v, want the segment of %s in %s from line %d", *l, step.b.ID, step.model, step.line)
			}
			leases = append(leases, l)
		}
		for i := range leases {
			d.must(d.Release(d.ctx(), *leases[len(leases)-1-i]))
		}
		work, err := d.Unclaimed(d.ctx())
		d.must(err)
		if len(work) != 3 {
			d.Fatalf("Unclaimed() = %+v, want three kinds of work", work)
		}
		age := map[string]int64{}
		for _, w := range work {
			age[w.BatchID] = w.Age
		}
		ages = append(ages, age[second.ID]-age[first.ID])
	}
	if ages[0] <= 0 || ages[0] != ages[1] {
		d.Errorf("the second batch's age less the first's is %d, want the same above 0", ages)
	}
}

// testClaimOnce lets many claim at once.
func testClaimOnce(d *db) {
	b := d.running(25)
	var mu sync.Mutex
	var lines []int64
	tokens := map[string]bool{}
	concurrently(8, func(int) {
		for {
			l, err := d.Claim(d.ctx(), d.node, work(b, "m"))
			if err != nil {
				d.Error(err)
			}
			if l == nil || err != nil {
				return
			}
			mu.Lock()
			lines = append(lines, l.FirstLine)
			tokens[l.Token] = true
			mu.Unlock()
		}
	})
	slices.Sort(lines)
	if lines = slices.Compact(lines); len(lines) != 25 || len(tokens) != 25 {
		d.Errorf("%d segments were claimed with %d tokens, want each of 25 once", len(lines), len(tokens))
	}
}

// testRecord records groups and wants each of them counted when it is, and kept as it came.
func testRecord(d *db) {
	b := d.running(2)
	one, two := d.claim(b), d.claim(b)
	var sum batch.Tally
	binary := string([]byte{0, 1, 0xff, '\n'})
	for i, data := range []string{"first", binary, ""} {
		for _, l := range []*batch.Lease{one, two} {
			part := tally(int64(i), 1)
			d.record(l, part, data)
			sum.Add(part)
			got := d.batch(b.ID)
			if want := (batch.Counts{Total: 20, Completed: sum.Completed, Failed: sum.Failed}); got.Counts != want || got.Usage != sum.Usage {
				d.Errorf("after group %d: counts %+v and usage %+v, want %+v and %+v", i, got.Counts, got.Usage, want, sum.Usage)
			}
		}
	}
	d.reopen()
	for _, l := range []*batch.Lease{one, two} {
		if got, want := d.journal(l.ID), []string{"first", binary, ""}; !slices.Equal(got, want) {
			d.Errorf("journal %q, want %q", got, want)
		}
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // one answer may have megabytes
	l := d.running1()
	d.record(l, tally(1, 0), string(big))
	if got := d.journal(l.ID); len(got) != 1 || got[0] != string(big) {
		d.Error("a group of 4 MiB comes back changed")
	}
}

// running1 claims the only segment of a new batch.
func (d *db) running1() *batch.Lease {
	d.Helper()
	return d.claim(d.running(1))
}

// testRecordSeveral records one group each of several segments, some of which are lost: nothing
// of those is recorded, all of the others.
func testRecordSeveral(d *db) {
	b := d.running(5)
	var leases []*batch.Lease
	for range 5 {
		leases = append(leases, d.claim(b))
	}
	d.must(d.Release(d.ctx(), *leases[1])) // free
	d.must(d.Release(d.ctx(), *leases[3])) // and this one another's
	if l, err := d.Claim(d.ctx(), d.other, work(b, "m")); err != nil || l.ID != leases[1].ID {
		d.Fatalf("Claim() = %+v, %v; want segment %d", l, err, leases[1].ID)
	}
	var groups []batch.Group
	for _, i := range []int{4, 1, 0, 3, 2} { // in no order
		g := group(leases[i], tally(2, 1), fmt.Sprint(i))
		g.Blob = fmt.Sprint("blob", i)
		groups = append(groups, g)
	}
	for range 2 { // the second time as after a lost reply
		lost, err := d.Record(d.ctx(), groups)
		d.must(err)
		slices.Sort(lost)
		if want := []int64{leases[1].ID, leases[3].ID}; !slices.Equal(lost, want) {
			d.Errorf("Record() loses %v, want %v", lost, want)
		}
		for i, l := range leases {
			want := []string{fmt.Sprint(i)}
			if i == 1 || i == 3 {
				want = nil
			}
			if got := d.journal(l.ID); !slices.Equal(got, want) {
				d.Errorf("segment %d has the journal %q, want %q", i, got, want)
			}
		}
		if got, want := d.batch(b.ID).Counts, (batch.Counts{Total: 50, Completed: 6, Failed: 3}); got != want {
			d.Errorf("counts %+v, want %+v", got, want)
		}
	}
	if lost, err := d.Record(d.ctx(), nil); len(lost) > 0 || err != nil {
		d.Errorf("Record(nothing) = %v, %v", lost, err)
	}
	// Of those that are recorded, and of no others, the blobs are reserved.
	for i, l := range leases {
		key := fmt.Sprint("blob", i)
		if i == 1 || i == 3 {
			d.must(d.ReserveBlob(d.ctx(), key))
			continue
		}
		l.Seq++
		if _, err := d.Seal(d.ctx(), *l, batch.Part{Key: key, Bytes: 1}, batch.Part{}); err != nil {
			d.Errorf("Seal() into the blob that was reserved with the last group: %v", err)
		}
	}
}

// A write is one of the three that an owner can do to its segment.
type write struct {
	name string
	call func(d *db, l batch.Lease) error
}

var writes = []write{
	{"record", func(d *db, l batch.Lease) error {
		lost, err := d.Record(d.ctx(), []batch.Group{group(&l, tally(1, 1), "late")})
		if err == nil && len(lost) > 0 {
			err = batch.ErrLeaseLost
		}
		return err
	}},
	{"seal", func(d *db, l batch.Lease) error {
		_, err := d.Seal(d.ctx(), l, d.part(100), d.part(100))
		return err
	}},
	{"release", func(d *db, l batch.Lease) error { return d.Release(d.ctx(), l) }},
}

// testOnlyTheNewestClaimWrites tries every write under every claim that is not the newest, or is
// behind, and wants it refused without a trace.
func testOnlyTheNewestClaimWrites(d *db) {
	for _, stale := range []struct {
		name string
		make func(b batch.Batch) batch.Lease
	}{
		{"released", func(b batch.Batch) batch.Lease {
			l := d.claim(b)
			d.must(d.Release(d.ctx(), *l))
			return *l
		}},
		{"claimed by another", func(b batch.Batch) batch.Lease {
			l := d.claim(b)
			d.record(l, tally(1, 0), "a")
			d.must(d.Release(d.ctx(), *l))
			d.record(d.claim(b), tally(1, 0), "b")
			return *l
		}},
		{"of another's seq", func(b batch.Batch) batch.Lease {
			l := d.claim(b)
			d.must(d.Release(d.ctx(), *l))
			next := d.claim(b)
			l.Seq = next.Seq
			return *l
		}},
		{"behind", func(b batch.Batch) batch.Lease {
			l := d.claim(b)
			old := *l
			d.record(l, tally(1, 0), "a")
			d.record(l, tally(1, 0), "b")
			return old
		}},
		{"ahead", func(b batch.Batch) batch.Lease {
			l := *d.claim(b)
			l.Seq++
			return l
		}},
		{"with a made-up token", func(b batch.Batch) batch.Lease {
			l := *d.claim(b)
			l.Token = batch.NewToken()
			return l
		}},
		{"without a token", func(b batch.Batch) batch.Lease {
			l := d.claim(b)
			d.must(d.Release(d.ctx(), *l))
			l.Token, l.Seq = "", l.Seq+1
			return *l
		}},
		{"sealed", func(b batch.Batch) batch.Lease {
			l := d.claim(b)
			d.record(l, tally(9, 1), "a")
			d.seal(l, 100, 10)
			l.Seq++
			return *l
		}},
		{"sealed since", func(b batch.Batch) batch.Lease {
			l := d.claim(b)
			d.record(l, tally(9, 1), "a")
			old := *l
			d.seal(l, 100, 10)
			old.Seq-- // the write before the last
			return old
		}},
		{"of a batch that has ended", func(batch.Batch) batch.Lease {
			b := d.running(1)
			l := d.claim(b)
			d.record(l, tally(9, 1), "a")
			d.seal(l, 100, 10)
			d.finalized(b.ID)
			return *l
		}},
	} {
		for _, w := range writes {
			b := d.running(2)
			l := stale.make(b)
			before := d.batch(l.BatchID)
			journal := d.journal(l.ID)
			d.wantLost(fmt.Sprintf("%s under a lease %s", w.name, stale.name), w.call(d, l))
			d.wantSame(fmt.Sprintf("%s under a lease %s", w.name, stale.name), d.batch(l.BatchID), before)
			if got := d.journal(l.ID); !slices.Equal(got, journal) {
				d.Errorf("%s under a lease %s: the journal %q becomes %q", w.name, stale.name, journal, got)
			}
		}
	}
}

// testLostReplies repeats writes that took effect, as their owner does who was not told. A write
// of one kind is never taken for one of another that came in its place.
func testLostReplies(d *db) {
	b := d.running(2)
	l := d.claim(b)
	g := group(l, tally(2, 1), "once")
	for range 3 {
		if lost, err := d.Record(d.ctx(), []batch.Group{g}); err != nil || len(lost) > 0 {
			d.Fatalf("Record() = %v, %v", lost, err)
		}
	}
	if got := d.journal(l.ID); !slices.Equal(got, []string{"once"}) {
		d.Errorf("the journal is %q", got)
	}
	if got, want := d.batch(b.ID).Counts, (batch.Counts{Total: 20, Completed: 2, Failed: 1}); got != want {
		d.Errorf("counts %+v, want %+v", got, want)
	}
	if _, err := d.Seal(d.ctx(), *l, d.part(1), d.part(1)); err == nil {
		d.Error("a group is taken for a seal")
	}

	l.Seq++
	l.Tally = g.Tally
	out, bad := d.part(100), d.part(10)
	for range 3 {
		_, err := d.Seal(d.ctx(), *l, out, bad)
		d.must(err)
	}
	d.wantLost("a group in the seal's place", writes[0].call(d, *l))
	d.wantLost("a release in the seal's place", d.Release(d.ctx(), *l))
	if got, want := d.batch(b.ID).Counts, (batch.Counts{Total: 20, Completed: 2, Failed: 1}); got != want {
		d.Errorf("sealed, counts %+v, want %+v", got, want)
	}

	// The reply to the last seal was lost: the repeated one must lead to the batch's end, too.
	l = d.claim(b)
	d.record(l, tally(7, 3), "rest")
	out2 := d.part(70)
	for range 2 {
		last, err := d.Seal(d.ctx(), *l, out2, batch.Part{})
		d.must(err)
		if !last {
			d.Error("the last seal does not say so")
		}
	}
	done := d.finalized(b.ID)
	if want := (batch.Counts{Total: 20, Completed: 9, Failed: 4}); done.Counts != want {
		d.Errorf("at the end, counts %+v, want %+v", done.Counts, want)
	}
	d.wantLost("a seal repeated after the end", second(d.Seal(d.ctx(), *l, out2, batch.Part{})))

	// A group repeated once the segment is another's is lost, for all that it was recorded.
	l = d.running1()
	g = group(l, tally(1, 0), "mine")
	d.must(second(d.Record(d.ctx(), []batch.Group{g})))
	l.Seq++
	d.must(d.Release(d.ctx(), *l))
	if lost, err := d.Record(d.ctx(), []batch.Group{g}); err != nil || !slices.Equal(lost, []int64{l.ID}) {
		d.Errorf("Record() of a released segment = %v, %v", lost, err)
	}
	if got := d.journal(l.ID); !slices.Equal(got, []string{"mine"}) {
		d.Errorf("the journal is %q", got)
	}
}

func second[T any](_ T, err error) error { return err }

// testRelease gives segments back, one of them by an owner that was not told of its last group.
func testRelease(d *db) {
	b := d.running(1)
	l := d.claim(b)
	d.record(l, tally(1, 0), "a")
	g := group(l, tally(1, 0), "b")
	d.must(second(d.Record(d.ctx(), []batch.Group{g})))
	d.must(d.Release(d.ctx(), *l)) // it thinks that b was not recorded
	next := d.claim(b)
	if next.Tally != g.Tally || next.Deaths != 0 {
		d.Errorf("the next owner finds %+v and %d deaths, want %+v and none", next.Tally, next.Deaths, g.Tally)
	}
	if got := d.journal(l.ID); !slices.Equal(got, []string{"a", "b"}) {
		d.Errorf("the journal is %q", got)
	}
	d.wantLost("released twice", d.Release(d.ctx(), *l))
	d.record(next, tally(1, 0), "c")
}

// testStraySegments gives back the claim that its node does not know of, and no other.
func testStraySegments(d *db) {
	b := d.running(4)
	known, stray, theirs, sealed := d.claim(b), d.claim(b), (*batch.Lease)(nil), (*batch.Lease)(nil)
	theirs, err := d.Claim(d.ctx(), d.other, work(b, "m"))
	d.must(err)
	sealed = d.claim(b)
	d.record(sealed, tally(10, 0), "all")
	d.seal(sealed, 10, 0)
	d.must(d.ReleaseStrays(d.ctx(), d.node, []string{known.Token}))
	d.wantLost("record under the stray claim", writes[0].call(d, *stray))
	d.record(known, tally(1, 0), "a")
	d.record(theirs, tally(1, 0), "b")
	if l := d.claim(b); l.ID != stray.ID || l.Deaths != 0 {
		d.Errorf("claimed %+v, want the stray segment %d without a death", l, stray.ID)
	}
	if l, err := d.Claim(d.ctx(), d.node, work(b, "m")); l != nil || err != nil {
		d.Errorf("more than the stray was given back: %+v, %v", l, err)
	}
	d.must(d.ReleaseStrays(d.ctx(), d.node, nil))
	if l := d.claim(b); l.ID != known.ID {
		d.Errorf("claimed segment %d, want %d", l.ID, known.ID)
	}
}

func testSeal(d *db) {
	b := d.running(3, "m", "m", "n")
	one, two, three := d.claim(b), d.claim(b), d.claimOf(b, "n")
	d.record(one, tally(4, 1), "a")
	d.record(two, tally(3, 0), "b")
	d.record(one, tally(3, 2), "c")
	d.record(three, tally(0, 10), "d")

	d.clock.turn(time.Second)
	_, _, last := d.seal(one, 100, 50)
	if last {
		d.Error("the first of three seals is the last")
	}
	got := d.batch(b.ID)
	sum := tally(10, 13)
	if got.Status != batch.InProgress || got.Counts != (batch.Counts{Total: 30, Completed: 10, Failed: 13}) || got.Usage != sum.Usage {
		d.Errorf("with one segment sealed: %+v", got)
	}
	if j := d.journal(one.ID); len(j) > 0 {
		d.Errorf("a sealed segment has the journal %q", j)
	}
	if j := d.journal(two.ID); !slices.Equal(j, []string{"b"}) {
		d.Errorf("an open segment has the journal %q", j)
	}
	if l, err := d.Claim(d.ctx(), d.node, work(b, "m")); l != nil || err != nil {
		d.Errorf("a sealed segment is claimed: %+v, %v", l, err)
	}

	d.record(two, tally(0, 7), "e")
	two.Tally = tally(100, 100) // what counts is what was recorded, not what its owner thinks
	d.seal(two, 100, 0)
	if got := d.batch(b.ID); got.Counts != (batch.Counts{Total: 30, Completed: 10, Failed: 20}) || got.Usage != sum.Usage {
		d.Errorf("with two segments sealed: %+v", got)
	}

	d.clock.turn(time.Second)
	if _, _, last := d.seal(three, 0, 70); !last {
		d.Error("the last seal does not say so")
	}
	got = d.batch(b.ID)
	if got.Status != batch.Finalizing || got.Ending != batch.Completed || !got.FinalizingAt.Equal(d.clock.Now()) ||
		got.Counts != (batch.Counts{Total: 30, Completed: 10, Failed: 20}) || got.Usage != sum.Usage {
		d.Errorf("with all segments sealed: %+v", got)
	}
	if ids, err := d.Finalizable(d.ctx()); err != nil || !slices.Equal(ids, []string{b.ID}) {
		d.Errorf("Finalizable() = %v, %v", ids, err)
	}

	// A batch whose end was decided before keeps that ending, and its timestamps.
	b = d.running(1)
	l := d.claim(b)
	cancelled := d.cancel(b.ID)
	d.clock.turn(time.Second)
	if _, _, last := d.seal(l, 0, 100); !last {
		d.Error("the last seal does not say so")
	}
	d.wantSame("a cancelled batch with its last segment sealed", d.batch(b.ID), cancelled)
}

// testSegments lists the segments of a batch with their parts, in input order, whichever was sealed first.
func testSegments(d *db) {
	b := d.running(4)
	var leases []*batch.Lease
	for range 4 {
		leases = append(leases, d.claim(b))
	}
	bothOut, bothErr, _ := d.seal(leases[3], 100, 50)
	_, onlyErr, _ := d.seal(leases[0], 0, 70)
	onlyOut, _, _ := d.seal(leases[2], 80, 0)
	for failed, parts := range map[bool][]batch.Part{
		false: {{}, {}, onlyOut, bothOut},
		true:  {onlyErr, {}, {}, bothErr},
	} {
		var want []batch.Sealed
		for i, part := range parts {
			want = append(want, batch.Sealed{Segment: leases[i].ID, Sealed: i != 1, Part: part})
		}
		if got, err := d.Segments(d.ctx(), b.ID, failed); err != nil || !slices.Equal(got, want) {
			d.Errorf("Segments(failed: %v) = %+v, %v, want %+v", failed, got, err, want)
		}
	}
}

// testSealsAtOnce seals all segments of a batch at the same moment: one of them is the last.
func testSealsAtOnce(d *db) {
	b := d.running(8)
	var leases []*batch.Lease
	for range 8 {
		l := d.claim(b)
		d.record(l, tally(10, 0), "all")
		leases = append(leases, l)
	}
	var mu sync.Mutex
	lasts := 0
	concurrently(8, func(i int) {
		last, err := d.Seal(d.ctx(), *leases[i], batch.Part{}, batch.Part{})
		if err != nil {
			d.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if last {
			lasts++
		}
	})
	if got := d.batch(b.ID); lasts != 1 || got.Status != batch.Finalizing || got.Counts.Completed != 80 {
		d.Errorf("%d seals were the last; the batch is %+v", lasts, got)
	}
}
