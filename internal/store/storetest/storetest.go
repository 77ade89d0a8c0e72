// Package storetest holds the tests that every database behind package store passes.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/store"
)

// A Database is an empty database for one test.
type Database struct {
	// Open opens it. Tests close what they opened before they open it again.
	Open func(o store.Options) (*store.Store, error)
	// Alone tells that the database belongs to one process: what a former one held is free as soon
	// as the next one joins.
	Alone bool
}

// Run runs all tests, each on a database that fresh makes.
func Run(t *testing.T, fresh func(t *testing.T) Database) {
	for _, test := range []struct {
		name string
		run  func(*db)
	}{
		{"File", testFile},
		{"FileList", testFileList},
		{"FileExpiry", testFileExpiry},
		{"FileDelete", testFileDelete},
		{"FileNeedsBlobs", testFileNeedsBlobs},
		{"Upload", testUpload},
		{"UploadRefuses", testUploadRefuses},
		{"UploadForeign", testUploadForeign},
		{"UploadEnds", testUploadEnds},
		{"UploadKeepsParts", testUploadKeepsParts},
		{"UploadManyParts", testUploadManyParts},
		{"UploadRaces", testUploadRaces},
		{"Batch", testBatch},
		{"BatchList", testBatchList},
		{"CreateOnce", testCreateOnce},
		{"ForeignIDs", testForeignIDs},
		{"Cancel", testCancel},
		{"Validation", testValidation},
		{"ValidationEndsOnce", testValidationEndsOnce},
		{"InputGone", testInputGone},
		{"StrayBatches", testStrayBatches},
		{"Claim", testClaim},
		{"ClaimOrder", testClaimOrder},
		{"ClaimOnce", testClaimOnce},
		{"Record", testRecord},
		{"RecordSeveral", testRecordSeveral},
		{"OnlyTheNewestClaimWrites", testOnlyTheNewestClaimWrites},
		{"LostReplies", testLostReplies},
		{"Release", testRelease},
		{"StraySegments", testStraySegments},
		{"Seal", testSeal},
		{"SealsAtOnce", testSealsAtOnce},
		{"Segments", testSegments},
		{"AnyClaims", testAnyClaims},
		{"Finalize", testFinalize},
		{"FinalizeOnce", testFinalizeOnce},
		{"FinalizeFails", testFinalizeFails},
		{"Expire", testExpire},
		{"Endings", testEndings},
		{"ClockStepsBack", testClockStepsBack},
		{"SweepFiles", testSweepFiles},
		{"SweepPending", testSweepPending},
		{"SweptBeforeNamed", testSweptBeforeNamed},
		{"Deleted", testDeleted},
		{"DropBatches", testDropBatches},
		{"Join", testJoin},
		{"Pair", testPair},
		{"Tell", testTell},
		{"Heartbeat", testHeartbeat},
		{"Bury", testBury},
		{"BuryHeldByTheDead", testBuryHeldByTheDead},
		{"BuryAtOnce", testBuryAtOnce},
		{"ClockOfNodes", testClockOfNodes},
		{"Nodes", testNodes},
		{"NodesGo", testNodesGo},
		{"Limits", testLimits},
		{"LimitsOfTheDead", testLimitsOfTheDead},
		{"References", testReferences},
		{"Reopen", testReopen},
		{"Abandoned", testAbandoned},
		{"Keys", testKeys},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := &db{T: t, Database: fresh(t), clock: &clock{now: time.UnixMilli(1_767_323_045_678)}}
			d.open()
			test.run(d)
		})
	}
}

// A db is a database under test with a clock to turn. Its methods fail the test where the store
// fails them.
type db struct {
	*testing.T
	Database
	*store.Store
	clock *clock
	node  string
	other string // a node beside ours
}

func (d *db) open() {
	d.Helper()
	s, err := d.Open(store.Options{Now: d.clock.Now})
	d.must(err)
	d.Cleanup(func() { s.Close() })
	d.Store = s
	d.other, err = s.Join(d.ctx(), "other")
	d.must(err)
	d.node, err = s.Join(d.ctx(), "test")
	d.must(err)
}

// reopen closes the database without a word, as a process does that dies, and opens it again.
func (d *db) reopen() {
	d.Helper()
	d.must(d.Store.Close())
	d.open()
}

func (d *db) ctx() context.Context { return d.Context() }

func (d *db) must(err error) {
	if err != nil {
		d.Helper()
		d.Fatal(err)
	}
}

// wantKind checks that err is of the kind k.
func (d *db) wantKind(what string, err error, k batch.Kind) {
	if batch.KindOf(err) != k {
		d.Helper()
		d.Errorf("%s: error %v is of kind %d, want kind %d", what, err, batch.KindOf(err), k)
	}
}

// wantLost checks that err tells of a lost lease.
func (d *db) wantLost(what string, err error) {
	if !errors.Is(err, batch.ErrLeaseLost) {
		d.Helper()
		d.Errorf("%s: error %v, want %v", what, err, batch.ErrLeaseLost)
	}
}

// A clock shows the time that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// blob reserves a blob. Its bytes are nobody's concern here.
func (d *db) blob() string {
	d.Helper()
	key := blob.NewKey()
	d.must(d.ReserveBlob(d.ctx(), key))
	return key
}

// part reserves a blob for a part of n bytes.
func (d *db) part(n int64) batch.Part {
	d.Helper()
	return batch.Part{Key: d.blob(), Bytes: n}
}

// newFile describes a file with parts of the given sizes, not created yet.
func (d *db) newFile(purpose string, sizes ...int64) batch.File {
	d.Helper()
	now := d.clock.Now()
	f := batch.File{
		ID: batch.NewFileID(), Project: batch.DefaultProject, Purpose: purpose, Filename: "in.jsonl", CreatedAt: now,
	}
	for _, n := range sizes {
		f.Parts = append(f.Parts, d.part(n))
		f.Bytes += n
	}
	return f
}

// file creates a file with parts of the given sizes.
func (d *db) file(purpose string, sizes ...int64) batch.File {
	d.Helper()
	f := d.newFile(purpose, sizes...)
	d.must(d.CreateFile(d.ctx(), f))
	return f
}

const endpoint = "/v1/chat/completions"

// newBatch describes a batch of the input, not created yet.
func (d *db) newBatch(input string) batch.Batch {
	d.Helper()
	b, err := batch.New(batch.CreateParams{
		Project: batch.DefaultProject, InputFileID: input, Endpoint: endpoint, CompletionWindow: "24h",
	}, batch.Policy{}, d.clock.Now())
	d.must(err)
	return b
}

// validating creates a batch with an input of two parts.
func (d *db) validating() batch.Batch {
	d.Helper()
	b := d.newBatch(d.file(batch.PurposeBatch, 700, 300).ID)
	d.must(d.CreateBatch(d.ctx(), b))
	return b
}

// admission claims the batch, which must be the next in line.
func (d *db) admission(b batch.Batch) batch.Admission {
	d.Helper()
	a, err := d.ClaimValidating(d.ctx(), d.node)
	d.must(err)
	if a == nil || a.Batch.ID != b.ID {
		d.Fatalf("ClaimValidating() is not %s", b.ID)
	}
	return *a
}

// running creates a batch and admits it with n segments of ten requests each for the model m, or
// for those given, one segment after the other.
func (d *db) running(n int, models ...string) batch.Batch {
	d.Helper()
	b := d.validating()
	if len(models) == 0 {
		models = []string{"m"}
	}
	var segments []batch.Segment
	for i := range int64(n) {
		segments = append(segments, batch.Segment{
			Lane:   batch.Lane{Model: models[int(i)%len(models)], Endpoint: endpoint},
			Offset: i * 100, Length: 100, FirstLine: i*10 + 1, Total: 10,
		})
	}
	d.must(d.Admit(d.ctx(), d.admission(b), "m", segments))
	return d.batch(b.ID)
}

func (d *db) batch(id string) batch.Batch {
	d.Helper()
	b, err := d.Batch(d.ctx(), batch.DefaultProject, id)
	d.must(err)
	return b
}

func (d *db) cancel(id string) batch.Batch {
	d.Helper()
	b, err := d.CancelBatch(d.ctx(), batch.DefaultProject, id)
	d.must(err)
	return b
}

// work is how a claim names the segments of b for the model.
func work(b batch.Batch, model string) batch.Work {
	return batch.Work{BatchID: b.ID, Lane: batch.Lane{Model: model, Endpoint: endpoint}}
}

// claim takes the next segment of b for the model m.
func (d *db) claim(b batch.Batch) *batch.Lease {
	d.Helper()
	return d.claimOf(b, "m")
}

func (d *db) claimOf(b batch.Batch, model string) *batch.Lease {
	d.Helper()
	l, err := d.Claim(d.ctx(), d.node, work(b, model))
	d.must(err)
	if l == nil {
		d.Fatalf("Claim(%s, %s) finds no segment", b.ID, model)
	}
	return l
}

// group returns a group that adds t to what is recorded under l.
func group(l *batch.Lease, t batch.Tally, data string) batch.Group {
	sum := l.Tally
	sum.Add(t)
	return batch.Group{Lease: *l, Tally: sum, Data: []byte(data)}
}

// tally is a result of n requests that succeeded and m that did not.
func tally(n, m int64) batch.Tally {
	return batch.Tally{Completed: n, Failed: m, Usage: batch.Usage{
		Input: 10 * n, Cached: n, Output: 20 * n, Reasoning: 2 * n, Total: 30 * n,
	}}
}

// record records a group under l, and leaves in l what its owner knows afterwards.
func (d *db) record(l *batch.Lease, t batch.Tally, data string) {
	d.Helper()
	g := group(l, t, data)
	lost, err := d.Record(d.ctx(), []batch.Group{g})
	d.must(err)
	if len(lost) > 0 {
		d.Fatalf("Record() loses segment %d", lost[0])
	}
	l.Tally = g.Tally
	l.Seq++
}

// seal seals the segment of l into parts of the given sizes; 0 stands for no part.
func (d *db) seal(l *batch.Lease, output, errs int64) (out, bad batch.Part, last bool) {
	d.Helper()
	if output > 0 {
		out = d.part(output)
	}
	if errs > 0 {
		bad = d.part(errs)
	}
	last, err := d.Seal(d.ctx(), *l, out, bad)
	d.must(err)
	return out, bad, last
}

// finalized finalizes the batch, which must be ready for it.
func (d *db) finalized(id string) batch.Batch {
	d.Helper()
	b, done, err := d.Finalize(d.ctx(), id)
	d.must(err)
	if !done {
		d.Fatalf("Finalize(%s) is not done", id)
	}
	return b
}

// completed runs a batch of one segment to its end.
func (d *db) completed() batch.Batch {
	d.Helper()
	b := d.running(1)
	l := d.claim(b)
	d.record(l, tally(10, 0), "all")
	d.seal(l, 100, 0)
	return d.finalized(b.ID)
}

// journal returns what is recorded of the segment, group by group.
func (d *db) journal(segment int64) []string {
	d.Helper()
	seqs, err := d.JournalSeqs(d.ctx(), segment)
	d.must(err)
	groups := make([]string, len(seqs))
	for i, seq := range seqs {
		data, err := d.JournalGroup(d.ctx(), segment, seq)
		d.must(err)
		groups[i] = string(data)
	}
	return groups
}

// sweep sweeps until there is nothing left to do.
func (d *db) sweep() {
	d.Helper()
	for more := true; more; {
		var err error
		more, err = d.Sweep(d.ctx())
		d.must(err)
	}
}

// deleted reports which of the keys belong to blobs that are swept.
func (d *db) deleted(keys ...string) []bool {
	d.Helper()
	swept, err := d.Deleted(d.ctx(), 0)
	d.must(err)
	out := make([]bool, len(keys))
	for i, k := range keys {
		for _, s := range swept {
			out[i] = out[i] || s == k
		}
	}
	return out
}

// concurrently calls f n times at once and waits for all of them.
func concurrently(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// same reports whether two values print alike, which times do that differ only in their place.
func same(a, b any) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

// wantSame checks that got and want are the same, and of two structs says where they are not.
func (d *db) wantSame(what string, got, want any) {
	if same(got, want) {
		return
	}
	d.Helper()
	g, w := reflect.ValueOf(got), reflect.ValueOf(want)
	if g.Type() != w.Type() || g.Kind() != reflect.Struct {
		d.Errorf("%s: %+v, want %+v", what, got, want)
		return
	}
	for i := range g.NumField() {
		if a, b := g.Field(i).Interface(), w.Field(i).Interface(); !same(a, b) {
			d.Errorf("%s: %s is %+v, want %+v", what, g.Type().Field(i).Name, a, b)
		}
	}
}
