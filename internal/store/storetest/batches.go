package storetest

import (
	"slices"
	"sync"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/store"
)

func testBatch(d *db) {
	b := d.newBatch("file-perhaps")
	b.Metadata = map[string]string{"k": "v", "ключ": "\"\\\u0001"}
	b.OutputExpiresAfter = 90 * time.Minute
	d.must(d.CreateBatch(d.ctx(), b))
	bare := d.newBatch("file-perhaps")
	d.must(d.CreateBatch(d.ctx(), bare))
	empty := d.newBatch("file-perhaps")
	empty.Metadata = map[string]string{}
	d.must(d.CreateBatch(d.ctx(), empty))
	for range 2 {
		for _, want := range []batch.Batch{b, bare, empty} {
			got := d.batch(want.ID)
			d.wantSame("batch", got, want)
			if (got.Metadata == nil) != (want.Metadata == nil) {
				d.Errorf("metadata is %#v, want %#v", got.Metadata, want.Metadata)
			}
		}
		d.reopen()
	}
	_, err := d.Batch(d.ctx(), batch.DefaultProject, "batch_none")
	d.wantKind("unknown batch", err, batch.NotFound)
	if err := d.CreateBatch(d.ctx(), b); err == nil {
		d.Error("a second batch with one id is created")
	}
}

func testBatchList(d *db) {
	var want []string
	for i := range 11 {
		if i%4 == 0 {
			d.clock.turn(time.Millisecond)
		}
		want = append(want, d.validating().ID)
	}
	slices.Reverse(want)
	for _, limit := range []int{1, 3, 10, 11, 12} {
		var got []string
		q := batch.BatchQuery{Limit: limit}
		for more := true; more; {
			var page []batch.Batch
			var err error
			page, more, err = d.ListBatches(d.ctx(), batch.DefaultProject, q)
			d.must(err)
			if len(page) > limit || more && len(page) < limit {
				d.Fatalf("%+v: a page of %d, and more: %v", q, len(page), more)
			}
			for _, b := range page {
				d.wantSame("in the list", b, d.batch(b.ID))
				got = append(got, b.ID)
				q.After = b.ID
			}
		}
		if !slices.Equal(got, want) {
			d.Errorf("%+v lists %v, want %v", q, got, want)
		}
	}
	_, _, err := d.ListBatches(d.ctx(), batch.DefaultProject, batch.BatchQuery{After: "batch_none", Limit: 1})
	d.wantKind("list after an unknown batch", err, batch.NotFound)
}

// testCreateOnce repeats a creation under a key: within a day it makes one batch.
func testCreateOnce(d *db) {
	input := d.file(batch.PurposeBatch, 1).ID
	p, err := d.CreateProject(d.ctx(), "other", 1)
	d.must(err)
	one, two := [32]byte{1}, [32]byte{2}
	create := func(project, key string, request [32]byte) (made, asked batch.Batch, err error) {
		asked = d.newBatch(input)
		asked.Project = project
		made, err = d.CreateBatchOnce(d.ctx(), asked, key, request)
		return made, asked, err
	}
	first, asked, err := create(batch.DefaultProject, "k", one)
	d.must(err)
	d.wantSame("the batch that was made", first.ID, asked.ID)
	d.cancel(first.ID)
	again, _, err := create(batch.DefaultProject, "k", one)
	d.must(err)
	d.wantSame("the batch as it is by now", again, d.batch(first.ID))
	_, _, err = create(batch.DefaultProject, "k", two)
	d.wantKind("another request under the key", err, batch.Conflict)
	for _, test := range []struct{ project, key string }{{p.ID, "k"}, {batch.DefaultProject, "l"}} {
		made, asked, err := create(test.project, test.key, two)
		d.must(err)
		d.wantSame("the key is another's, or another", made.ID, asked.ID)
	}
	d.clock.turn(store.IdempotencyTime)
	made, asked, err := create(batch.DefaultProject, "k", two)
	d.must(err)
	d.wantSame("a day later", made.ID, asked.ID)
	if batches, _, err := d.ListBatches(d.ctx(), batch.DefaultProject, batch.BatchQuery{Limit: 9}); err != nil || len(batches) != 3 {
		d.Errorf("%d batches, %v; want 3", len(batches), err)
	}
}

// testCancel cancels a batch in every status.
func testCancel(d *db) {
	sealed := func() batch.Batch {
		b := d.running(1)
		l := d.claim(b)
		d.record(l, tally(10, 0), "all")
		d.seal(l, 100, 0)
		return b
	}
	expire := func(b batch.Batch) batch.Batch {
		d.clock.turn(24 * time.Hour)
		if _, err := d.Expire(d.ctx()); err != nil {
			d.Fatal(err)
		}
		return b
	}
	for _, test := range []struct {
		name     string
		make     func() batch.Batch
		from, to batch.Status
		ending   batch.Status
		refused  bool
	}{
		{"validating", d.validating, batch.Validating, batch.Cancelled, "", false},
		{"in validation", func() batch.Batch { b := d.validating(); d.admission(b); return b },
			batch.Validating, batch.Cancelled, "", false},
		{"in progress", func() batch.Batch { return d.running(2) }, batch.InProgress, batch.Cancelling, batch.Cancelled, false},
		{"all sealed", sealed, batch.Finalizing, batch.Cancelling, batch.Cancelled, false},
		{"past its deadline", func() batch.Batch { return expire(d.running(1)) },
			batch.Finalizing, batch.Finalizing, batch.Expired, false},
		{"cancelling", func() batch.Batch { b := d.running(1); d.cancel(b.ID); return b },
			batch.Cancelling, batch.Cancelling, batch.Cancelled, false},
		{"cancelled", func() batch.Batch { b := d.validating(); d.cancel(b.ID); return b },
			batch.Cancelled, batch.Cancelled, "", false},
		{"completed", d.completed, batch.Completed, batch.Completed, batch.Completed, true},
		{"failed", func() batch.Batch {
			b := d.validating()
			d.must(d.Reject(d.ctx(), d.admission(b), []batch.LineError{{Code: "c"}}))
			return b
		}, batch.Failed, batch.Failed, "", true},
		{"expired", func() batch.Batch { return expire(d.validating()) }, batch.Expired, batch.Expired, "", true},
	} {
		before := d.batch(test.make().ID)
		if before.Status != test.from {
			d.Fatalf("%s: the batch is %s, want %s", test.name, before.Status, test.from)
		}
		d.clock.turn(time.Second)
		got, err := d.CancelBatch(d.ctx(), batch.DefaultProject, before.ID)
		after := d.batch(before.ID)
		switch {
		case test.refused:
			d.wantKind(test.name, err, batch.Conflict)
		case err != nil:
			d.Errorf("%s: %v", test.name, err)
		default:
			d.wantSame(test.name, got, after)
		}
		if after.Status != test.to || after.Ending != test.ending {
			d.Errorf("%s: becomes %s ending %q, want %s ending %q", test.name, after.Status, after.Ending, test.to, test.ending)
		}
		if (test.from == test.to) != same(before, after) {
			d.Errorf("%s: %+v becomes %+v", test.name, before, after)
		}
		if test.from != test.to && !after.CancellingAt.Equal(d.clock.Now()) {
			d.Errorf("%s: cancelling_at is %v, want %v", test.name, after.CancellingAt, d.clock.Now())
		}
		d.clock.turn(time.Second)
		if _, err := d.CancelBatch(d.ctx(), batch.DefaultProject, before.ID); !test.refused && err != nil {
			d.Errorf("%s: cancelled again: %v", test.name, err)
		}
		d.wantSame(test.name+", cancelled again", d.batch(before.ID), after)
	}
}

func testValidation(d *db) {
	first := d.validating()
	d.clock.turn(-time.Hour) // the order is that of creation, whatever the clock says
	second, third := d.validating(), d.validating()

	a := d.admission(first)
	input, err := d.File(d.ctx(), first.Project, first.InputFileID)
	d.must(err)
	d.wantSame("claimed batch", a.Batch, d.batch(first.ID))
	d.wantSame("its input", *a.Input, input)
	if a.Token == "" {
		d.Error("a claim without a token")
	}
	d.admission(second)
	d.must(d.ReleaseValidating(d.ctx(), a))
	a = d.admission(first) // it is the oldest again
	d.admission(third)
	if a, err := d.ClaimValidating(d.ctx(), d.node); a != nil || err != nil {
		d.Errorf("with everything claimed: %+v, %v", a, err)
	}

	lanes := []batch.Lane{{Model: "a", Endpoint: endpoint}, {Model: "b", Endpoint: endpoint}}
	d.clock.turn(2 * time.Hour)
	d.must(d.Admit(d.ctx(), a, "", []batch.Segment{
		{Lane: lanes[0], Offset: 0, Length: 600, FirstLine: 1, Total: 4},
		{Lane: lanes[1], Offset: 0, Length: 600, FirstLine: 1, Total: 3},
		{Lane: lanes[0], Offset: 600, Length: 400, FirstLine: 8, Total: 2},
	}))
	want := first
	want.Status, want.InProgressAt = batch.InProgress, d.clock.Now()
	want.Counts.Total = 9
	d.wantSame("admitted", d.batch(first.ID), want)

	errs := []batch.LineError{
		{Code: "invalid_json_line", Message: "This is „wrong“.", Line: 3},
		{Code: "empty_file", Message: "m", Param: "p"},
	}
	b := d.validating()
	d.must(d.Reject(d.ctx(), d.admission(b), errs))
	got := d.batch(b.ID)
	if got.Status != batch.Failed || !same(got.Errors, errs) || !got.FailedAt.Equal(d.clock.Now()) ||
		got.OutputFileID+got.ErrorFileID != "" || !got.InProgressAt.IsZero() {
		d.Errorf("rejected: %+v", got)
	}

	// Many at once share the work without a batch twice.
	var batches []string
	for range 20 {
		batches = append(batches, d.validating().ID)
	}
	var mu sync.Mutex
	var claimed []string
	concurrently(8, func(int) {
		for {
			a, err := d.ClaimValidating(d.ctx(), d.node)
			if err != nil {
				d.Error(err)
			}
			if a == nil || err != nil {
				return
			}
			mu.Lock()
			claimed = append(claimed, a.Batch.ID)
			mu.Unlock()
		}
	})
	slices.Sort(claimed)
	slices.Sort(batches)
	if !slices.Equal(claimed, batches) {
		d.Errorf("%d claims, want each of %d batches once", len(claimed), len(batches))
	}
}

// testValidationEndsOnce ends validation in every way, and then once more in every way.
func testValidationEndsOnce(d *db) {
	type end struct {
		name string
		call func(batch.Admission) error
	}
	admit := end{"admit", func(a batch.Admission) error {
		return d.Admit(d.ctx(), a, "m", []batch.Segment{{Lane: batch.Lane{Model: "m", Endpoint: endpoint}, Length: 1, Total: 1}})
	}}
	reject := end{"reject", func(a batch.Admission) error { return d.Reject(d.ctx(), a, []batch.LineError{{Code: "c"}}) }}
	for _, first := range []end{
		admit, reject,
		{"cancel", func(a batch.Admission) error {
			_, err := d.CancelBatch(d.ctx(), a.Batch.Project, a.Batch.ID)
			return err
		}},
		{"expire", func(batch.Admission) error {
			d.clock.turn(24 * time.Hour)
			_, err := d.Expire(d.ctx())
			return err
		}},
		{"claimed anew", func(a batch.Admission) error {
			d.must(d.ReleaseValidating(d.ctx(), a))
			again, err := d.ClaimValidating(d.ctx(), d.node)
			if err == nil && again.Batch.ID != a.Batch.ID {
				d.Fatalf("%s is claimed instead of %s", again.Batch.ID, a.Batch.ID)
			}
			return err
		}},
	} {
		a := d.admission(d.validating())
		if ok, err := d.Store.Validating(d.ctx(), a); !ok || err != nil {
			d.Errorf("before %s, Validating() = %v, %v", first.name, ok, err)
		}
		d.must(first.call(a))
		if ok, err := d.Store.Validating(d.ctx(), a); ok || err != nil {
			d.Errorf("after %s, Validating() = %v, %v", first.name, ok, err)
		}
		before := d.batch(a.Batch.ID)
		for _, second := range []end{admit, reject} {
			d.wantLost(first.name+", then "+second.name, second.call(a))
		}
		d.must(d.ReleaseValidating(d.ctx(), a))
		d.wantSame(first.name, d.batch(a.Batch.ID), before)
		if a, err := d.ClaimValidating(d.ctx(), d.node); a != nil || err != nil {
			d.Errorf("%s: then %+v is claimed, %v", first.name, a, err)
		}
	}
}

// testInputGone validates batches whose input is not to be had: never there, deleted, expired, or
// deleted while it was read.
func testInputGone(d *db) {
	deleted := d.file(batch.PurposeBatch, 1)
	d.must(d.DeleteFile(d.ctx(), deleted.Project, deleted.ID))
	expired := d.newFile(batch.PurposeBatch, 1)
	expired.ExpiresAt = d.clock.Now()
	d.must(d.CreateFile(d.ctx(), expired))
	for _, id := range []string{"file-none", deleted.ID, expired.ID} {
		b := d.newBatch(id)
		d.must(d.CreateBatch(d.ctx(), b))
		if a := d.admission(b); a.Input != nil {
			d.Errorf("the input of a batch of %s is %+v", id, a.Input)
		}
	}
	b := d.validating()
	a := d.admission(b)
	d.must(d.DeleteFile(d.ctx(), b.Project, b.InputFileID))
	d.wantKind("admit without input", d.Admit(d.ctx(), a, "m", []batch.Segment{{Total: 1}}), batch.NotFound)
	d.wantSame("after a refused admission", d.batch(b.ID), a.Batch)
	if work, err := d.Unclaimed(d.ctx()); err != nil || len(work) > 0 {
		d.Errorf("a refused admission leaves work: %+v, %v", work, err)
	}
	d.must(d.Reject(d.ctx(), a, []batch.LineError{batch.CannotFindFile(b.InputFileID, b.Project)}))
}

// testStrayBatches gives back the claim that its node does not know of, and no other.
func testStrayBatches(d *db) {
	known, stray, theirs := d.validating(), d.validating(), d.validating()
	a := d.admission(known)
	d.admission(stray)
	other, err := d.ClaimValidating(d.ctx(), d.other)
	d.must(err)
	if other.Batch.ID != theirs.ID {
		d.Fatalf("%s is claimed, want %s", other.Batch.ID, theirs.ID)
	}
	d.must(d.ReleaseStrayBatches(d.ctx(), d.node, []string{a.Token}))
	d.admission(stray)
	if a, err := d.ClaimValidating(d.ctx(), d.node); a != nil || err != nil {
		d.Errorf("more than the stray is free: %+v, %v", a, err)
	}
	d.must(d.Reject(d.ctx(), a, nil))
	d.must(d.Reject(d.ctx(), *other, nil))
	d.must(d.ReleaseStrayBatches(d.ctx(), d.node, nil))
	d.admission(stray)
}
