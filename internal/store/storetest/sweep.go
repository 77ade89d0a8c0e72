package storetest

import (
	"errors"
	"slices"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/store"
)

// testSweepFiles sweeps deleted and expired files, save those that a running batch reads.
func testSweepFiles(d *db) {
	kept := d.file(batch.PurposeBatch, 1)
	deleted := d.file(batch.PurposeBatch, 1, 2)
	expired := d.newFile(batch.PurposeBatch, 1)
	expired.ExpiresAt = d.clock.Now().Add(time.Hour)
	d.must(d.CreateFile(d.ctx(), expired))
	shared := d.newFile("user_data")
	shared.Parts = deleted.Parts[1:]
	d.must(d.CreateFile(d.ctx(), shared))
	b := d.running(1)
	input, err := d.File(d.ctx(), b.Project, b.InputFileID)
	d.must(err)
	waiting := d.validating()
	input2, err := d.File(d.ctx(), b.Project, waiting.InputFileID)
	d.must(err)
	for _, id := range []string{deleted.ID, b.InputFileID, waiting.InputFileID} {
		d.must(d.DeleteFile(d.ctx(), batch.DefaultProject, id))
	}
	d.clock.turn(store.PendingFor)
	d.sweep()
	keys := []string{
		kept.Parts[0].Key, deleted.Parts[0].Key, deleted.Parts[1].Key, expired.Parts[0].Key,
		input.Parts[0].Key, input.Parts[1].Key, input2.Parts[0].Key,
	}
	if got, want := d.deleted(keys...), []bool{false, true, false, true, false, false, false}; !slices.Equal(got, want) {
		d.Errorf("swept: %v, want %v", got, want)
	}
	l := d.claim(b)
	if !same(l.Input, input.Parts) {
		d.Errorf("after the sweep, a claim has the input %+v, want %+v", l.Input, input.Parts)
	}
	// Result parts of a running batch are named though no file has them yet.
	d.record(l, tally(10, 0), "all")
	out, bad, _ := d.seal(l, 10, 5)
	d.clock.turn(store.PendingFor)
	d.sweep()
	if got := d.deleted(out.Key, bad.Key, input.Parts[0].Key); slices.Contains(got, true) {
		d.Errorf("swept from a running batch: %v", got)
	}
	// With its batch's end the input goes.
	b = d.finalized(b.ID)
	d.cancel(waiting.ID)
	d.sweep()
	if got := d.deleted(keys[4:]...); slices.Contains(got, false) {
		d.Errorf("swept with the end of their batches: %v", got)
	}
	if got := d.deleted(out.Key, bad.Key, keys[2]); slices.Contains(got, true) {
		d.Errorf("swept though files have them: %v", got)
	}
	// And the results at their own time.
	d.clock.turn(b.OutputExpiresAfter)
	d.must(d.DeleteFile(d.ctx(), batch.DefaultProject, shared.ID))
	d.sweep()
	if got := d.deleted(out.Key, bad.Key, keys[2]); slices.Contains(got, false) {
		d.Errorf("swept with their files: %v", got)
	}
	d.wantSame("after the sweep", d.batch(b.ID), b)
}

// testSweepPending sweeps blobs that nobody came to name, a day after they were begun.
func testSweepPending(d *db) {
	var keys []string
	for range 1100 { // more than one sweep takes at a time
		keys = append(keys, d.blob())
	}
	d.clock.turn(store.PendingFor - time.Millisecond)
	young := d.blob()
	d.sweep()
	if got := d.deleted(keys...); slices.Contains(got, true) {
		d.Error("swept before a day is over")
	}
	d.clock.turn(time.Millisecond)
	rounds := 0
	for more := true; more; rounds++ {
		var err error
		more, err = d.Sweep(d.ctx())
		d.must(err)
	}
	if rounds < 2 {
		d.Errorf("%d sweeps for %d blobs, want several that are bounded", rounds, len(keys))
	}
	swept := map[string]bool{}
	for {
		some, err := d.Deleted(d.ctx(), 0)
		d.must(err)
		if len(some) == 0 {
			break
		}
		for _, k := range some {
			if swept[k] {
				d.Fatalf("blob %s is forgotten and still listed", k)
			}
			swept[k] = true
		}
		d.must(d.Forget(d.ctx(), some))
	}
	for _, k := range keys {
		if !swept[k] {
			d.Errorf("blob %s was not swept", k)
		}
	}
	if swept[young] || len(swept) != len(keys) {
		d.Errorf("%d blobs swept, the young one among them: %v", len(swept), swept[young])
	}
}

// testSweptBeforeNamed names blobs too late, and wants that refused: their bytes are going.
func testSweptBeforeNamed(d *db) {
	f := d.newFile(batch.PurposeBatch, 1, 1)
	l := d.running1()
	d.record(l, tally(10, 0), "all")
	out, bad := d.part(10), d.part(10)
	d.clock.turn(store.PendingFor)
	fresh := d.part(10)
	d.sweep()
	if err := d.CreateFile(d.ctx(), f); !errors.Is(err, batch.ErrSwept) {
		d.Errorf("a file of swept blobs: error %v, want %v", err, batch.ErrSwept)
	}
	before := d.batch(l.BatchID)
	for _, parts := range [][2]batch.Part{{out, bad}, {fresh, bad}, {out, {}}} {
		if _, err := d.Seal(d.ctx(), *l, parts[0], parts[1]); !errors.Is(err, batch.ErrSwept) {
			d.Errorf("a seal with swept parts: error %v, want %v", err, batch.ErrSwept)
		}
	}
	d.wantSame("after refused seals", d.batch(l.BatchID), before)
	if j := d.journal(l.ID); !slices.Equal(j, []string{"all"}) {
		d.Errorf("refused seals leave the journal %q", j)
	}
	if _, _, last := d.seal(l, 10, 10); !last { // written anew
		d.Error("the seal is not the last")
	}
	// Forgotten is as good as swept.
	d.must(d.Forget(d.ctx(), []string{f.Parts[0].Key}))
	if err := d.CreateFile(d.ctx(), f); !errors.Is(err, batch.ErrSwept) {
		d.Errorf("a file of forgotten blobs: error %v, want %v", err, batch.ErrSwept)
	}
}

// testDeleted keeps the bytes of swept blobs for a while, and forgets only what was swept.
func testDeleted(d *db) {
	f := d.file(batch.PurposeBatch, 1)
	key := f.Parts[0].Key
	d.clock.turn(store.PendingFor)
	d.must(d.DeleteFile(d.ctx(), f.Project, f.ID))
	d.sweep()
	const keep = time.Hour
	d.clock.turn(keep - time.Millisecond)
	if keys, err := d.Store.Deleted(d.ctx(), keep); err != nil || len(keys) > 0 {
		d.Errorf("too early: %v, %v", keys, err)
	}
	d.clock.turn(time.Millisecond)
	if keys, err := d.Store.Deleted(d.ctx(), keep); err != nil || !slices.Equal(keys, []string{key}) {
		d.Errorf("Deleted() = %v, %v; want %s", keys, err, key)
	}
	other := d.file(batch.PurposeBatch, 1)
	pending := d.part(1)
	d.must(d.Forget(d.ctx(), []string{key, other.Parts[0].Key, pending.Key, blob.NewKey()}))
	if keys, err := d.Store.Deleted(d.ctx(), keep); err != nil || len(keys) > 0 {
		d.Errorf("forgotten, Deleted() = %v, %v", keys, err)
	}
	d.wantFile("file whose blob was to be forgotten", other)
	g := d.newFile(batch.PurposeBatch)
	g.Parts = []batch.Part{pending}
	d.must(d.CreateFile(d.ctx(), g))
}

// testDropBatches drops batches some time after their end, whatever it was, and no others.
func testDropBatches(d *db) {
	const keep = time.Hour
	running, waiting := d.running(1), d.validating()
	a := d.admission(waiting)
	old := []batch.Batch{d.completed(), d.cancel(d.validating().ID)}
	failed := d.validating()
	d.must(d.Reject(d.ctx(), d.admission(failed), []batch.LineError{{Code: "c"}}))
	old = append(old, d.batch(failed.ID))
	d.clock.turn(time.Millisecond)
	young := d.completed()
	d.clock.turn(keep - time.Millisecond)
	output, err := d.File(d.ctx(), old[0].Project, old[0].OutputFileID)
	d.must(err)
	d.must(d.Store.DropBatches(d.ctx(), keep))
	for _, b := range old {
		_, err := d.Batch(d.ctx(), b.Project, b.ID)
		d.wantKind("dropped batch that was "+string(b.Status), err, batch.NotFound)
	}
	d.wantFile("output of a dropped batch", output)
	d.wantSame("younger batch", d.batch(young.ID), young)
	// Nobody is sent to a dropped batch by the key that it was created under.
	input := d.file(batch.PurposeBatch, 1).ID
	once, again := d.newBatch(input), d.newBatch(input)
	create := func(b batch.Batch) batch.Batch {
		made, err := d.CreateBatchOnce(d.ctx(), b, "k", [32]byte{1})
		d.must(err)
		return made
	}
	d.cancel(create(once).ID)
	d.clock.turn(keep - time.Millisecond)
	d.must(d.Store.DropBatches(d.ctx(), keep))
	d.wantSame("a batch that is kept", create(again).ID, once.ID)
	d.clock.turn(time.Millisecond)
	d.must(d.Store.DropBatches(d.ctx(), keep))
	d.wantSame("a batch in place of one that was dropped", create(again).ID, again.ID)
	d.must(d.Reject(d.ctx(), a, nil))
	d.seal(d.claim(running), 0, 10)
	d.finalized(running.ID)
}
