package storetest

import (
	"context"
	"slices"
	"sync"
	"time"

	"offpeak/internal/batch"
)

// testFinalize ends batches whose segments have lines of both kinds, of one, or of none.
func testFinalize(d *db) {
	for _, test := range []struct {
		name         string
		output, errs []int64 // bytes of the parts, segment by segment; 0: no part
		cancelled    bool
	}{
		{"both", []int64{10, 20, 30}, []int64{1, 2, 3}, false},
		{"gaps", []int64{0, 20, 0}, []int64{1, 0, 3}, false},
		{"output alone", []int64{10, 20}, []int64{0, 0}, false},
		{"errors alone", []int64{0, 0}, []int64{1, 2}, false},
		{"none", []int64{0}, []int64{0}, false},
		{"cancelled", []int64{10, 0}, []int64{0, 7}, true},
	} {
		b := d.running(len(test.output))
		if test.cancelled {
			b = d.cancel(b.ID)
		}
		var output, errs []batch.Part
		var leases []*batch.Lease
		for range test.output {
			leases = append(leases, d.claim(b))
		}
		for i := range leases { // sealed in another order than that of the input
			i = len(leases) - 1 - i
			d.record(leases[i], tally(10, 0), "all")
			out, bad, _ := d.seal(leases[i], test.output[i], test.errs[i])
			if out.Key != "" {
				output = slices.Insert(output, 0, out)
			}
			if bad.Key != "" {
				errs = slices.Insert(errs, 0, bad)
			}
		}
		want := d.batch(b.ID)
		d.clock.turn(time.Minute)
		got := d.finalized(b.ID)
		d.wantSame(test.name+", finalized", got, d.batch(b.ID))
		now := d.clock.Now()
		if want.Status, want.CompletedAt = batch.Completed, now; test.cancelled {
			want.Status, want.CompletedAt, want.CancelledAt = batch.Cancelled, time.Time{}, now
		}
		for _, f := range []struct {
			name  string
			id    *string
			parts []batch.Part
		}{{"_output.jsonl", &want.OutputFileID, output}, {"_error.jsonl", &want.ErrorFileID, errs}} {
			got, err := d.File(d.ctx(), b.Project, *f.id)
			if len(f.parts) == 0 {
				d.wantKind(test.name+": a file of no lines", err, batch.NotFound)
				*f.id = ""
				continue
			}
			file := batch.File{
				ID: *f.id, Project: b.Project, Purpose: batch.PurposeBatchOutput, Filename: b.ID + f.name,
				CreatedAt: now, ExpiresAt: now.Add(b.OutputExpiresAfter), Parts: f.parts,
			}
			for _, p := range f.parts {
				file.Bytes += p.Bytes
			}
			d.must(err)
			d.wantSame(test.name+f.name, got, file)
		}
		d.wantSame(test.name, got, want)
		if again, done, err := d.Store.Finalize(d.ctx(), b.ID); done || err != nil {
			d.Errorf("%s: finalized again: %+v, %v", test.name, again, err)
		}
		if l, err := d.Claim(d.ctx(), d.node, work(b, "m")); l != nil || err != nil {
			d.Errorf("%s: a segment of a terminal batch: %+v, %v", test.name, l, err)
		}
	}
	if ids, err := d.Finalizable(d.ctx()); err != nil || len(ids) > 0 {
		d.Errorf("Finalizable() = %v, %v", ids, err)
	}
	if counts, err := d.CountBatches(d.ctx()); err != nil || len(counts) > 0 {
		d.Errorf("CountBatches() = %v, %v", counts, err)
	}

	// Not before its time.
	for _, b := range []batch.Batch{d.running(1), d.cancel(d.running(1).ID), d.validating()} {
		if _, done, err := d.Finalize(d.ctx(), b.ID); done || err != nil {
			d.Errorf("a batch that is %s is finalized, %v", b.Status, err)
		}
	}
	if _, done, err := d.Finalize(d.ctx(), "batch_none"); done || err != nil {
		d.Errorf("an unknown batch is finalized, %v", err)
	}
	if counts, err := d.CountBatches(d.ctx()); err != nil || !same(counts, map[batch.Status]int64{
		batch.Validating: 1, batch.InProgress: 1, batch.Cancelling: 1,
	}) {
		d.Errorf("CountBatches() = %v, %v", counts, err)
	}
}

// testFinalizeOnce lets many finalize at once.
func testFinalizeOnce(d *db) {
	b := d.running(2)
	for range 2 {
		l := d.claim(b)
		d.record(l, tally(10, 0), "all")
		d.seal(l, 10, 5)
	}
	var mu sync.Mutex
	winners := 0
	concurrently(8, func(int) {
		_, done, err := d.Finalize(d.ctx(), b.ID)
		if err != nil {
			d.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if done {
			winners++
		}
	})
	if winners != 1 {
		d.Errorf("%d of 8 finalized the batch", winners)
	}
	if f, err := d.File(d.ctx(), b.Project, b.OutputFileID); err != nil || f.Bytes != 20 || len(f.Parts) != 2 {
		d.Errorf("the output is %+v, %v", f, err)
	}
}

// testFinalizeFails wants a batch unharmed that cannot be finalized.
func testFinalizeFails(d *db) {
	b := d.running(1)
	l := d.claim(b)
	d.record(l, tally(9, 1), "all")
	d.seal(l, 100, 10)
	thief := d.newFile(batch.PurposeBatch, 1)
	thief.ID = b.ErrorFileID // 22 random digits do not meet, but if they did
	d.must(d.CreateFile(d.ctx(), thief))
	before := d.batch(b.ID)
	if _, done, err := d.Finalize(d.ctx(), b.ID); err == nil || done {
		d.Errorf("Finalize() = %v, %v; want an error", done, err)
	}
	d.wantSame("after a finalize that failed", d.batch(b.ID), before)
	_, err := d.File(d.ctx(), b.Project, b.OutputFileID)
	d.wantKind("output of a finalize that failed", err, batch.NotFound)
	if ids, err := d.Finalizable(d.ctx()); err != nil || !slices.Equal(ids, []string{b.ID}) {
		d.Errorf("Finalizable() = %v, %v", ids, err)
	}
}

// testExpire lets the deadline of batches in every status pass.
func testExpire(d *db) {
	completed := d.completed()
	cancelled := d.cancel(d.validating().ID)
	cancelling := d.cancel(d.running(1).ID)
	finalizing := d.running(1)
	l := d.claim(finalizing)
	d.record(l, tally(10, 0), "all")
	d.seal(l, 1, 0)
	running := d.running(2)
	l = d.claim(running)
	d.record(l, tally(3, 2), "some")
	waiting := d.validating()
	admission := d.admission(waiting)
	waiting2 := d.validating()
	d.clock.turn(time.Second)
	later := d.validating()

	d.clock.turn(24*time.Hour - time.Second - time.Millisecond)
	if ids, err := d.Store.Expire(d.ctx()); err != nil || len(ids) > 0 {
		d.Fatalf("before any deadline: Expire() = %v, %v", ids, err)
	}
	d.clock.turn(time.Millisecond)
	want := map[string]batch.Batch{}
	for _, b := range []batch.Batch{completed, cancelled, cancelling, finalizing, running, waiting, waiting2, later} {
		b = d.batch(b.ID)
		switch b.ID {
		case running.ID, waiting.ID, waiting2.ID:
			if changed, err := b.Expire(d.clock.Now()); !changed || err != nil {
				d.Fatalf("Expire() = %v, %v", changed, err)
			}
		}
		want[b.ID] = b
	}
	ids, err := d.Store.Expire(d.ctx())
	d.must(err)
	due := []string{running.ID, waiting.ID, waiting2.ID}
	slices.Sort(due)
	slices.Sort(ids)
	if !slices.Equal(ids, due) {
		d.Errorf("Expire() = %v, want %v", ids, due)
	}
	check := func(when string) {
		for id, b := range want {
			d.wantSame(when, d.batch(id), b)
		}
	}
	check("expired")
	if ids, err := d.Store.Expire(d.ctx()); err != nil || len(ids) > 0 {
		d.Errorf("expired again: %v, %v", ids, err)
	}
	d.wantSame("cancelled after the deadline", d.cancel(running.ID), want[running.ID])
	d.wantLost("admit after the deadline", d.Admit(d.ctx(), admission, "m", nil))
	check("afterwards")

	// What is under way may still be recorded; then the batch ends as it was decided.
	d.record(l, tally(5, 0), "more")
	d.seal(l, 8, 2)
	d.seal(d.claim(running), 0, 10)
	if got := d.finalized(running.ID); got.Status != batch.Expired || !got.ExpiredAt.Equal(d.clock.Now()) ||
		got.Counts != (batch.Counts{Total: 20, Completed: 8, Failed: 2}) {
		d.Errorf("finalized: %+v", got)
	}
}

func testEndings(d *db) {
	running, cancelled, done, waiting := d.running(1), d.cancel(d.running(1).ID), d.completed(), d.cancel(d.validating().ID)
	all := []string{running.ID, cancelled.ID, done.ID, waiting.ID, "batch_none"}
	got, err := d.Store.Endings(d.ctx(), all)
	want := map[string]batch.Status{cancelled.ID: batch.Cancelled, done.ID: batch.Completed}
	if err != nil || !same(got, want) {
		d.Errorf("Endings() = %v, %v; want %v", got, err, want)
	}
	if got, err := d.Store.Endings(d.ctx(), nil); err != nil || len(got) > 0 {
		d.Errorf("Endings(nothing) = %v, %v", got, err)
	}
}

// testClockStepsBack runs batches while every step seems to come an hour before the one that
// precedes it: timestamps do not run backwards for that.
func testClockStepsBack(d *db) {
	back := func() { d.clock.turn(-time.Hour) }
	end := func(b batch.Batch) batch.Batch {
		l := d.claim(b)
		d.record(l, tally(10, 0), "all")
		back()
		d.seal(l, 10, 0)
		back()
		return d.finalized(b.ID)
	}
	for _, run := range []func() batch.Batch{
		func() batch.Batch {
			b := d.validating()
			back()
			d.must(d.Admit(d.ctx(), d.admission(b), "m", []batch.Segment{{Lane: batch.Lane{Model: "m", Endpoint: endpoint}, Length: 1, Total: 1}}))
			return end(b)
		},
		func() batch.Batch {
			b := d.running(1)
			back()
			return end(d.cancel(b.ID))
		},
		func() batch.Batch {
			b := d.running(1)
			d.clock.turn(24 * time.Hour)
			if _, err := d.Store.Expire(d.ctx()); err != nil {
				d.Fatal(err)
			}
			return end(b)
		},
		func() batch.Batch {
			b := d.validating()
			back()
			return d.cancel(b.ID)
		},
		func() batch.Batch {
			b := d.validating()
			back()
			d.must(d.Reject(d.ctx(), d.admission(b), nil))
			return d.batch(b.ID)
		},
	} {
		b := run()
		var last time.Time
		for _, at := range []time.Time{
			b.CreatedAt, b.InProgressAt, b.FinalizingAt, b.CancellingAt, b.CompletedAt, b.FailedAt, b.ExpiredAt, b.CancelledAt,
		} {
			if at.IsZero() {
				continue
			}
			if at.Before(last) {
				d.Errorf("timestamps run backwards: %+v", b)
			}
			last = at
		}
		if !b.Status.Terminal() {
			d.Errorf("the batch is %s", b.Status)
		}
	}
}

// testAbandoned breaks writes off at any moment, and wants the store to be fit for the next one.
func testAbandoned(d *db) {
	b := d.running(1)
	l := d.claim(b)
	applied := 0
	for i := range 150 {
		ctx, cancel := context.WithTimeout(d.ctx(), time.Duration(i)*20*time.Microsecond)
		g := group(l, tally(1, 0), "g")
		_, err := d.Record(ctx, []batch.Group{g})
		cancel()
		if err != nil { // as the engine does: again as it was
			if lost, err := d.Record(d.ctx(), []batch.Group{g}); err != nil || len(lost) > 0 {
				d.Fatalf("after %d: Record() = %v, %v", i, lost, err)
			}
		} else {
			applied++
		}
		l.Seq++
		l.Tally = g.Tally
	}
	d.Logf("%d of 150 went through at once", applied)
	if got := len(d.journal(l.ID)); got != 150 {
		d.Errorf("%d groups in the journal, want 150", got)
	}
	if got := d.batch(b.ID).Counts.Completed; got != 150 {
		d.Errorf("%d completed, want 150", got)
	}
}
