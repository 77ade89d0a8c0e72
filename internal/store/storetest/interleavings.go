package storetest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/store"
)

// A Shared is a database that several processes work on at once, and that lets a test see them do so.
type Shared struct {
	Database
	// Gated opens the database on connections that ask gate before each statement, before each commit
	// ("COMMIT") and after it ("COMMITTED"). An error from gate is the outcome of that.
	Gated func(o store.Options, gate func(query string) error) (*store.Store, error)
	// Waiting returns how many sessions wait for the lock of another.
	Waiting func() (int, error)
}

// Interleavings runs tests in which two nodes meet at one row, each in the order that is written
// out: the first is stopped in the middle of a transaction, the second comes, the first goes on.
func Interleavings(t *testing.T, fresh func(t *testing.T) Shared) {
	for _, test := range []struct {
		name string
		run  func(d *db, a *side)
	}{
		{"TakeoverWaitsForTheCommit", takeoverWaitsForTheCommit},
		{"TakeoverComesFirst", takeoverComesFirst},
		{"ClaimDuringRelease", claimDuringRelease},
		{"ClaimsDoNotCollide", claimsDoNotCollide},
		{"RecordUntold", recordUntold},
		{"RecordCut", recordCut},
		{"SealUntold", sealUntold},
		{"ClaimUntold", claimUntold},
		{"RecordUnderWay", recordUnderWay},
		{"RecordsInOneOrder", recordsInOneOrder},
		{"LastSealsAtOnce", lastSealsAtOnce},
		{"ResealOvertakesSlowWrite", resealOvertakesSlowWrite},
		{"CancelDuringSeal", cancelDuringSeal},
		{"CancelBeforeFinalize", cancelBeforeFinalize},
		{"CancelAfterFinalize", cancelAfterFinalize},
		{"FinalizeTwice", finalizeTwice},
		{"ExpireDuringCancel", expireDuringCancel},
		{"CancelDuringExpire", cancelDuringExpire},
		{"ValidatingOnce", validatingOnce},
		{"CancelDuringAdmission", cancelDuringAdmission},
		{"AdmissionDuringCancel", admissionDuringCancel},
		{"DeleteDuringAdmission", deleteDuringAdmission},
		{"NameDuringSweep", nameDuringSweep},
		{"SweepDuringName", sweepDuringName},
		{"SweepsDoNotCollide", sweepsDoNotCollide},
		{"TwoNamesTakenAway", twoNamesTakenAway},
		{"DropBatchesUnderAReader", dropBatchesUnderAReader},
		{"CreateOnceAtOnce", createOnceAtOnce},
		{"CreateOnceDuringFailure", createOnceDuringFailure},
		{"ProjectsOfOneName", projectsOfOneName},
		{"PartDuringCompletion", partDuringCompletion},
		{"CancelDuringCompletion", cancelDuringCompletion},
		{"BurialsDoNotCollide", burialsDoNotCollide},
		{"HeartbeatDuringBurial", heartbeatDuringBurial},
		{"JudgeUnfitByThen", judgeUnfitByThen},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := fresh(t)
			d := &db{T: t, Database: s.Database, clock: &clock{now: time.UnixMilli(1_767_323_045_678)}}
			d.open()
			test.run(d, d.side(s))
		})
	}
}

// A side is the node whose transactions are stopped. The other node of a test is its db.
type side struct {
	*store.Store
	d       *db
	node    string
	waiting func() (int, error)

	mu      sync.Mutex
	at      string // the statement before which the next call stops
	reached chan struct{}
	open    chan struct{}
	untold  bool // the answer to the next commit is lost
}

var errCut = errors.New("the connection is cut")

func (d *db) side(shared Shared) *side {
	s := &side{d: d, waiting: shared.Waiting}
	var err error
	s.Store, err = shared.Gated(store.Options{Now: d.clock.Now}, s.gate)
	d.must(err)
	d.Cleanup(func() { s.Close() })
	s.node, err = s.Join(d.ctx(), "side")
	d.must(err)
	return s
}

func (s *side) gate(query string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.untold && query == "COMMITTED" {
		s.untold = false
		return errCut
	}
	if s.at == "" || !strings.Contains(query, s.at) {
		return nil
	}
	s.at = ""
	s.mu.Unlock()
	defer s.mu.Lock()
	close(s.reached)
	select {
	case <-s.open:
		return nil
	case <-s.d.ctx().Done(): // the test has failed
		return errCut
	}
}

// stop calls f, which stops before the statement that contains at; resume lets it go on, and returns
// when it has.
func (s *side) stop(at string, f func()) (resume func()) {
	s.d.Helper()
	s.mu.Lock()
	s.at, s.reached, s.open = at, make(chan struct{}), make(chan struct{})
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-s.reached:
	case <-done:
		s.d.Fatalf("it ended without coming to %q", at)
	}
	return func() {
		close(s.open)
		<-done
	}
}

// blocked calls f, which has to wait for what the stopped side has locked; wait waits for its end.
func (s *side) blocked(f func()) (wait func()) {
	s.d.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	for {
		n, err := s.waiting()
		s.d.must(err)
		if n > 0 {
			return func() { <-done }
		}
		select {
		case <-done:
			s.d.Error("it did not wait for the other")
			return func() {}
		case <-time.After(time.Millisecond): // the database tells nobody who waits
		}
	}
}

// claim takes the next segment of b for the side.
func (s *side) claim(b batch.Batch) *batch.Lease {
	s.d.Helper()
	l, err := s.Claim(s.d.ctx(), s.node, work(b, "m"))
	s.d.must(err)
	if l == nil {
		s.d.Fatal("there is no segment to claim")
	}
	return l
}

// takeoverWaitsForTheCommit: a group is about to commit when its owner is declared dead. Who takes
// the segment over finds the group, in counts and in the journal.
func takeoverWaitsForTheCommit(d *db, a *side) {
	b := d.running(1)
	l := a.claim(b)
	resume := a.stop("COMMIT", func() {
		if lost, err := a.Record(d.ctx(), []batch.Group{group(l, tally(3, 1), "mid-commit")}); err != nil || len(lost) > 0 {
			d.Errorf("Record() = %v, %v", lost, err)
		}
	})
	wait := a.blocked(func() {
		if err := d.ReleaseStrays(d.ctx(), a.node, nil); err != nil {
			d.Error(err)
		}
	})
	if l, err := d.Claim(d.ctx(), d.node, work(b, "m")); l != nil || err != nil {
		d.Errorf("claimed %+v, %v under its owner", l, err)
	}
	resume()
	wait()
	next := d.claim(b)
	d.wantSame("tally of the new owner", next.Tally, tally(3, 1))
	d.wantSame("journal of the new owner", d.journal(next.ID), []string{"mid-commit"})
	d.wantSame("counts", d.batch(b.ID).Counts, batch.Counts{Total: 10, Completed: 3, Failed: 1})
}

// takeoverComesFirst: an owner is about to write when its segment is given to another. Whatever it
// writes is refused, and changes nothing.
func takeoverComesFirst(d *db, a *side) {
	for _, write := range []struct {
		name string
		call func(l batch.Lease) error
	}{
		{"record", func(l batch.Lease) error {
			lost, err := a.Record(d.ctx(), []batch.Group{group(&l, tally(9, 0), "late")})
			if err == nil && len(lost) == 1 {
				err = batch.ErrLeaseLost
			}
			return err
		}},
		{"seal", func(l batch.Lease) error { _, err := a.Seal(d.ctx(), l, batch.Part{}, batch.Part{}); return err }},
		{"release", func(l batch.Lease) error { return a.Release(d.ctx(), l) }},
	} {
		b := d.running(1)
		l := a.claim(b)
		var err error
		resume := a.stop("UPDATE segments", func() { err = write.call(*l) })
		d.must(d.ReleaseStrays(d.ctx(), a.node, nil))
		next := d.claim(b)
		d.record(next, tally(2, 0), "new")
		resume()
		d.wantLost(write.name, err)
		d.record(next, tally(3, 0), "newer") // it is the owner still
		d.wantSame(write.name+": journal", d.journal(next.ID), []string{"new", "newer"})
		d.wantSame(write.name+": counts", d.batch(b.ID).Counts, batch.Counts{Total: 10, Completed: 5})
	}
}

// claimDuringRelease: a claim waits for nobody. What is being released is not free yet.
func claimDuringRelease(d *db, a *side) {
	b := d.running(1)
	l := a.claim(b)
	resume := a.stop("COMMIT", func() {
		if err := a.Release(d.ctx(), *l); err != nil {
			d.Error(err)
		}
	})
	if l, err := d.Claim(d.ctx(), d.node, work(b, "m")); l != nil || err != nil {
		d.Errorf("claimed %+v, %v before it was free", l, err)
	}
	resume()
	if next := d.claim(b); next.ID != l.ID {
		d.Errorf("claimed segment %d, want %d", next.ID, l.ID)
	}
}

// claimsDoNotCollide: of two who claim at once, the second neither waits nor goes away empty.
func claimsDoNotCollide(d *db, a *side) {
	b := d.running(2)
	var first *batch.Lease
	resume := a.stop("COMMIT", func() { first = a.claim(b) })
	second := d.claim(b)
	resume()
	if first.ID >= second.ID {
		d.Errorf("the first has segment %d, the second %d", first.ID, second.ID)
	}
}

// recordUntold: the commit took effect, its answer was lost, and the owner repeats it as it was.
func recordUntold(d *db, a *side) {
	b := d.running(1)
	l := a.claim(b)
	g := []batch.Group{group(l, tally(3, 1), "once")}
	a.untold = true
	if _, err := a.Record(d.ctx(), g); !errors.Is(err, errCut) {
		d.Fatalf("Record() = %v, want %v", err, errCut)
	}
	for range 2 {
		if lost, err := a.Record(d.ctx(), g); err != nil || len(lost) > 0 {
			d.Errorf("Record() again = %v, %v", lost, err)
		}
	}
	d.wantSame("journal", d.journal(l.ID), []string{"once"})
	d.wantSame("counts", d.batch(b.ID).Counts, batch.Counts{Total: 10, Completed: 3, Failed: 1})
}

// recordCut: the connection is cut before the commit came. Nothing took effect; it is repeated.
func recordCut(d *db, a *side) {
	b := d.running(1)
	l := a.claim(b)
	g := []batch.Group{group(l, tally(3, 1), "once")}
	ctx, cut := context.WithCancel(d.ctx())
	var err error
	resume := a.stop("COMMIT", func() { _, err = a.Record(ctx, g) })
	cut()
	resume()
	if err == nil {
		d.Fatal("a commit that did not come is acknowledged")
	}
	d.wantSame("journal before", len(d.journal(l.ID)), 0)
	if lost, err := a.Record(d.ctx(), g); err != nil || len(lost) > 0 {
		d.Errorf("Record() again = %v, %v", lost, err)
	}
	d.wantSame("journal", d.journal(l.ID), []string{"once"})
}

// sealUntold: the same of a seal, which the batch must not count twice.
func sealUntold(d *db, a *side) {
	b := d.running(1)
	l := a.claim(b)
	d.record(l, tally(10, 0), "all")
	out := d.part(10)
	a.untold = true
	if _, err := a.Seal(d.ctx(), *l, out, batch.Part{}); !errors.Is(err, errCut) {
		d.Fatalf("Seal() = %v, want %v", err, errCut)
	}
	if last, err := a.Seal(d.ctx(), *l, out, batch.Part{}); !last || err != nil {
		d.Errorf("Seal() again = %v, %v", last, err)
	}
	d.wantSame("counts", d.finalized(b.ID).Counts, batch.Counts{Total: 10, Completed: 10})
}

// claimUntold: the answer to a claim was lost. Its node has a stray now, and gives back only that.
func claimUntold(d *db, a *side) {
	b := d.running(2)
	a.untold = true
	if _, err := a.Claim(d.ctx(), a.node, work(b, "m")); !errors.Is(err, errCut) {
		d.Fatalf("Claim() = %v, want %v", err, errCut)
	}
	known := a.claim(b)
	d.must(a.ReleaseStrays(d.ctx(), a.node, []string{known.Token}))
	d.record(known, tally(1, 0), "kept")
	d.claim(b)
}

// recordUnderWay: the answer was long in coming, and the owner repeats what is still under way.
func recordUnderWay(d *db, a *side) {
	b := d.running(1)
	l := a.claim(b)
	g := []batch.Group{group(l, tally(3, 1), "once")}
	record := func(s *store.Store) func() {
		return func() {
			if lost, err := s.Record(d.ctx(), g); err != nil || len(lost) > 0 {
				d.Errorf("Record() = %v, %v", lost, err)
			}
		}
	}
	resume := a.stop("COMMIT", record(a.Store))
	wait := a.blocked(record(d.Store))
	resume()
	wait()
	d.wantSame("journal", d.journal(l.ID), []string{"once"})
	d.wantSame("counts", d.batch(b.ID).Counts, batch.Counts{Total: 10, Completed: 3, Failed: 1})
}

// recordsInOneOrder: who writes to several rows does so from the lowest on, whatever order they were
// given in, so that no two ever wait for each other.
func recordsInOneOrder(d *db, a *side) {
	b := d.running(2)
	x, y := a.claim(b), a.claim(b)
	gx, gy := group(x, tally(1, 0), "x"), group(y, tally(2, 0), "y")
	resume := a.stop("INSERT INTO journal", func() {
		if lost, err := a.Record(d.ctx(), []batch.Group{gy, gx}); err != nil || len(lost) > 0 {
			d.Errorf("both: Record() = %v, %v", lost, err)
		}
	})
	if lost, err := d.Record(d.ctx(), []batch.Group{gy}); err != nil || len(lost) > 0 { // would wait if y came first
		d.Errorf("the higher: Record() = %v, %v", lost, err)
	}
	resume()
	d.wantSame("journal", append(d.journal(x.ID), d.journal(y.ID)...), []string{"x", "y"})
	d.wantSame("counts", d.batch(b.ID).Counts, batch.Counts{Total: 20, Completed: 3})
}

// lastSealsAtOnce: the second of the last two seals adds to what the first has left, and knows that
// it is the last.
func lastSealsAtOnce(d *db, a *side) {
	b := d.running(2)
	x, y := a.claim(b), d.claim(b)
	d.record(x, tally(10, 0), "x")
	d.record(y, tally(4, 6), "y")
	px, py := d.part(100), d.part(50)
	var last [2]bool
	var errs [2]error
	resume := a.stop("COMMIT", func() { last[0], errs[0] = a.Seal(d.ctx(), *x, px, batch.Part{}) })
	wait := a.blocked(func() { last[1], errs[1] = d.Seal(d.ctx(), *y, py, batch.Part{}) })
	resume()
	wait()
	if errs != [2]error{} || last != [2]bool{false, true} {
		d.Errorf("Seal() = %v, %v; want only the second to be the last", last, errs)
	}
	b = d.batch(b.ID)
	d.wantSame("status", b.Status, batch.Finalizing)
	d.wantSame("counts", b.Counts, batch.Counts{Total: 20, Completed: 14, Failed: 6})
	d.wantSame("usage", b.Usage, batch.Usage{Input: 140, Cached: 14, Output: 280, Reasoning: 28, Total: 420})
	d.finalized(b.ID)
}

// resealOvertakesSlowWrite: while an owner's part is on its slow way to the blobs, the segment is
// taken over and sealed. The late part is never named, and goes.
func resealOvertakesSlowWrite(d *db, a *side) {
	b := d.running(1)
	l := a.claim(b)
	d.record(l, tally(10, 0), "all")
	slow := d.part(100) // under way
	d.must(d.ReleaseStrays(d.ctx(), a.node, nil))
	next := d.claim(b)
	out, _, last := d.seal(next, 90, 0)
	if !last {
		d.Error("the new owner's seal is not the last")
	}
	_, err := a.Seal(d.ctx(), *l, slow, batch.Part{})
	d.wantLost("the slow seal", err)
	d.wantSame("counts", d.finalized(b.ID).Counts, batch.Counts{Total: 10, Completed: 10})
	d.clock.turn(store.PendingFor)
	d.sweep()
	d.wantSame("swept are the slow part and the one that is named", d.deleted(slow.Key, out.Key), []bool{true, false})
}

// cancelDuringSeal: a cancel that waits for a seal shows the batch with that seal counted once.
func cancelDuringSeal(d *db, a *side) {
	b := d.running(2)
	l := a.claim(b)
	d.record(l, tally(10, 0), "all")
	resume := a.stop("COMMIT", func() {
		if _, err := a.Seal(d.ctx(), *l, batch.Part{}, batch.Part{}); err != nil {
			d.Error(err)
		}
	})
	var cancelled batch.Batch
	wait := a.blocked(func() { cancelled = d.cancel(b.ID) })
	resume()
	wait()
	d.wantSame("counts", cancelled.Counts, batch.Counts{Total: 20, Completed: 10})
	d.wantSame("the batch", cancelled, d.batch(b.ID))
}

// cancelBeforeFinalize: a cancel that comes between the last seal and finalize turns the completion.
func cancelBeforeFinalize(d *db, a *side) {
	b := d.running(1)
	l := d.claim(b)
	d.record(l, tally(10, 0), "all")
	d.seal(l, 10, 0)
	resume := a.stop("COMMIT", func() {
		if got, err := a.CancelBatch(d.ctx(), b.Project, b.ID); err != nil || got.Status != batch.Cancelling {
			d.Errorf("CancelBatch() = %s, %v", got.Status, err)
		}
	})
	wait := a.blocked(func() { b = d.finalized(b.ID) })
	resume()
	wait()
	d.wantSame("status", b.Status, batch.Cancelled)
	d.wantSame("the batch", d.batch(b.ID), b)
}

// cancelAfterFinalize: a cancel that comes while finalize commits finds the batch terminal.
func cancelAfterFinalize(d *db, a *side) {
	b := d.running(1)
	l := d.claim(b)
	d.record(l, tally(10, 0), "all")
	d.seal(l, 10, 0)
	var done bool
	var err, cancelErr error
	resume := a.stop("COMMIT", func() { _, done, err = a.Finalize(d.ctx(), b.ID) })
	wait := a.blocked(func() { _, cancelErr = d.CancelBatch(d.ctx(), b.Project, b.ID) })
	resume()
	wait()
	if !done || err != nil {
		d.Errorf("Finalize() = %v, %v", done, err)
	}
	d.wantKind("cancel", cancelErr, batch.Conflict)
	d.wantSame("status", d.batch(b.ID).Status, batch.Completed)
}

// finalizeTwice: the second of two waits, and finds nothing to do.
func finalizeTwice(d *db, a *side) {
	b := d.running(1)
	l := d.claim(b)
	d.record(l, tally(10, 0), "all")
	d.seal(l, 10, 0)
	var done [2]bool
	var errs [2]error
	resume := a.stop("COMMIT", func() { _, done[0], errs[0] = a.Finalize(d.ctx(), b.ID) })
	wait := a.blocked(func() { _, done[1], errs[1] = d.Finalize(d.ctx(), b.ID) })
	resume()
	wait()
	if done != [2]bool{true, false} || errs != [2]error{} {
		d.Errorf("Finalize() = %v, %v", done, errs)
	}
}

// expireDuringCancel: what ends a batch is decided once. The cancel was first.
func expireDuringCancel(d *db, a *side) {
	b := d.running(1)
	resume := a.stop("COMMIT", func() {
		if _, err := a.CancelBatch(d.ctx(), b.Project, b.ID); err != nil {
			d.Error(err)
		}
	})
	d.clock.turn(25 * time.Hour)
	wait := a.blocked(func() {
		if ids, err := d.Store.Expire(d.ctx()); err != nil || len(ids) > 0 {
			d.Errorf("Expire() = %v, %v", ids, err)
		}
	})
	resume()
	wait()
	d.wantSame("ending", d.batch(b.ID).Ending, batch.Cancelled)
}

// cancelDuringExpire: and here the deadline, which a cancel does not change any more.
func cancelDuringExpire(d *db, a *side) {
	b := d.running(1)
	d.clock.turn(25 * time.Hour)
	resume := a.stop("COMMIT", func() {
		if ids, err := a.Store.Expire(d.ctx()); err != nil || len(ids) != 1 {
			d.Errorf("Expire() = %v, %v", ids, err)
		}
	})
	wait := a.blocked(func() { d.cancel(b.ID) })
	resume()
	wait()
	d.wantSame("ending", d.batch(b.ID).Ending, batch.Expired)
}

// validatingOnce: of two who take a batch to validate, the second takes the next one at once.
func validatingOnce(d *db, a *side) {
	first, second := d.validating(), d.validating()
	var adm *batch.Admission
	var err error
	resume := a.stop("COMMIT", func() { adm, err = a.ClaimValidating(d.ctx(), a.node) })
	d.admission(second)
	if third, err := d.ClaimValidating(d.ctx(), d.node); third != nil || err != nil {
		d.Errorf("a third takes %+v, %v", third, err)
	}
	resume()
	if err != nil || adm == nil || adm.Batch.ID != first.ID {
		d.Errorf("the first takes %+v, %v; want %s", adm, err, first.ID)
	}
}

// cancelDuringAdmission: a cancel that waits for the admission cancels a batch that is in progress.
func cancelDuringAdmission(d *db, a *side) {
	b := d.validating()
	adm := d.admission(b)
	resume := a.stop("COMMIT", func() {
		if err := a.Admit(d.ctx(), adm, "m", []batch.Segment{{Lane: batch.Lane{Model: "m", Endpoint: endpoint}, Length: 1, FirstLine: 1, Total: 1}}); err != nil {
			d.Error(err)
		}
	})
	wait := a.blocked(func() { b = d.cancel(b.ID) })
	resume()
	wait()
	d.wantSame("status", b.Status, batch.Cancelling)
	d.wantSame("total", b.Counts.Total, int64(1))
}

// admissionDuringCancel: an admission that waits for a cancel is refused, and leaves nothing.
func admissionDuringCancel(d *db, a *side) {
	b := d.validating()
	adm := d.admission(b)
	resume := a.stop("COMMIT", func() {
		if _, err := a.CancelBatch(d.ctx(), b.Project, b.ID); err != nil {
			d.Error(err)
		}
	})
	wait := a.blocked(func() {
		d.wantLost("admission", d.Admit(d.ctx(), adm, "m", []batch.Segment{{Lane: batch.Lane{Model: "m", Endpoint: endpoint}, Length: 1, FirstLine: 1, Total: 1}}))
	})
	resume()
	wait()
	d.wantSame("status", d.batch(b.ID).Status, batch.Cancelled)
	if l, err := d.Claim(d.ctx(), d.node, work(b, "m")); l != nil || err != nil {
		d.Errorf("a segment is left: %+v, %v", l, err)
	}
}

// deleteDuringAdmission: an input that is deleted and swept while its batch is admitted stays.
func deleteDuringAdmission(d *db, a *side) {
	b := d.validating()
	adm := d.admission(b)
	resume := a.stop("COMMIT", func() {
		if err := a.Admit(d.ctx(), adm, "m", []batch.Segment{{Lane: batch.Lane{Model: "m", Endpoint: endpoint}, Length: 1, FirstLine: 1, Total: 1}}); err != nil {
			d.Error(err)
		}
	})
	d.must(d.DeleteFile(d.ctx(), b.Project, b.InputFileID))
	d.sweep()
	resume()
	d.wantSame("input of the claim", d.claim(b).Input, adm.Input.Parts)
}

// nameDuringSweep: a blob is named at the moment when a sweep takes it for abandoned. One of them
// wins: the bytes of what is named stay.
func nameDuringSweep(d *db, a *side) {
	f := d.newFile(batch.PurposeBatch, 1)
	d.clock.turn(store.PendingFor)
	resume := a.stop("UPDATE blobs SET deleted_at", func() {
		if _, err := a.Sweep(d.ctx()); err != nil {
			d.Error(err)
		}
	})
	var err error
	wait := a.blocked(func() { err = d.CreateFile(d.ctx(), f) })
	resume()
	wait()
	if !errors.Is(err, batch.ErrSwept) {
		d.Errorf("CreateFile() = %v, want %v", err, batch.ErrSwept)
	}
	d.wantSame("swept", d.deleted(f.Parts[0].Key), []bool{true})
}

// sweepDuringName: and here the name is first. The sweep does not wait for it.
func sweepDuringName(d *db, a *side) {
	f := d.newFile(batch.PurposeBatch, 1)
	d.clock.turn(store.PendingFor)
	resume := a.stop("COMMIT", func() {
		if err := a.CreateFile(d.ctx(), f); err != nil {
			d.Error(err)
		}
	})
	d.sweep()
	resume()
	d.sweep()
	d.wantSame("swept", d.deleted(f.Parts[0].Key), []bool{false})
	d.wantFile("a file whose blob a sweep came by", f)
}

// sweepsDoNotCollide: two sweeps at once take each its own, and neither waits.
func sweepsDoNotCollide(d *db, a *side) {
	x, y := d.file(batch.PurposeBatch, 1), d.file(batch.PurposeBatch, 1)
	d.must(d.DeleteFile(d.ctx(), x.Project, x.ID))
	resume := a.stop("COMMIT", func() {
		if _, err := a.Sweep(d.ctx()); err != nil {
			d.Error(err)
		}
	})
	d.must(d.DeleteFile(d.ctx(), y.Project, y.ID))
	d.sweep()
	resume()
	d.clock.turn(store.PendingFor)
	d.sweep()
	d.wantSame("swept", d.deleted(x.Parts[0].Key, y.Parts[0].Key), []bool{true, true})
}

// twoNamesTakenAway: two files with one blob go at once. Whoever is second sees that nobody names it.
func twoNamesTakenAway(d *db, a *side) {
	x, y := d.newFile(batch.PurposeBatch, 1), d.newFile(batch.PurposeBatch)
	y.Parts = x.Parts
	d.must(d.CreateFile(d.ctx(), x))
	d.must(d.CreateFile(d.ctx(), y))
	d.must(d.DeleteFile(d.ctx(), x.Project, x.ID))
	resume := a.stop("COMMIT", func() {
		if _, err := a.Sweep(d.ctx()); err != nil {
			d.Error(err)
		}
	})
	d.must(d.DeleteFile(d.ctx(), y.Project, y.ID))
	wait := a.blocked(d.sweep)
	resume()
	wait()
	d.clock.turn(store.PendingFor)
	d.sweep()
	d.wantSame("swept", d.deleted(x.Parts[0].Key), []bool{true})
}

// dropBatchesUnderAReader: a list that is being read is as it was when it was begun.
func dropBatchesUnderAReader(d *db, a *side) {
	b := d.completed()
	d.clock.turn(time.Hour)
	resume := a.stop("COMMIT", func() {
		if err := a.DropBatches(d.ctx(), time.Minute); err != nil {
			d.Error(err)
		}
	})
	d.wantSame("read meanwhile", d.batch(b.ID), b)
	if list, more, err := d.ListBatches(d.ctx(), b.Project, batch.BatchQuery{Limit: 10}); err != nil || more || len(list) != 1 {
		d.Errorf("listed meanwhile: %d, %v, %v", len(list), more, err)
	}
	resume()
	_, err := d.Batch(d.ctx(), b.Project, b.ID)
	d.wantKind("read afterwards", err, batch.NotFound)
	if list, more, err := d.ListBatches(d.ctx(), b.Project, batch.BatchQuery{Limit: 10}); err != nil || more || len(list) != 0 {
		d.Errorf("listed afterwards: %d, %v, %v", len(list), more, err)
	}
}

// createOnceAtOnce: two requests under one key make one batch.
func createOnceAtOnce(d *db, a *side) {
	input := d.file(batch.PurposeBatch, 1).ID
	x, y := d.newBatch(input), d.newBatch(input)
	resume := a.stop("COMMIT", func() {
		if got, err := a.CreateBatchOnce(d.ctx(), x, "key", [32]byte{1}); err != nil || got.ID != x.ID {
			d.Errorf("the first: %s, %v", got.ID, err)
		}
	})
	wait := a.blocked(func() {
		if got, err := d.CreateBatchOnce(d.ctx(), y, "key", [32]byte{1}); err != nil || got.ID != x.ID {
			d.Errorf("the second: %s, %v; want the batch of the first, %s", got.ID, err, x.ID)
		}
	})
	resume()
	wait()
	_, err := d.Batch(d.ctx(), y.Project, y.ID)
	d.wantKind("the second batch", err, batch.NotFound)
}

// createOnceDuringFailure: the first of two fails, and the second makes the batch.
func createOnceDuringFailure(d *db, a *side) {
	input := d.file(batch.PurposeBatch, 1).ID
	x, y := d.newBatch(input), d.newBatch(input)
	ctx, cut := context.WithCancel(d.ctx())
	var err error
	resume := a.stop("COMMIT", func() { _, err = a.CreateBatchOnce(ctx, x, "key", [32]byte{1}) })
	wait := a.blocked(func() {
		if got, err := d.CreateBatchOnce(d.ctx(), y, "key", [32]byte{2}); err != nil || got.ID != y.ID {
			d.Errorf("the second: %s, %v", got.ID, err)
		}
	})
	cut()
	resume()
	wait()
	if err == nil {
		d.Error("the first was cut, and is acknowledged")
	}
}

// projectsOfOneName: the second is told that the name is taken.
func projectsOfOneName(d *db, a *side) {
	resume := a.stop("COMMIT", func() {
		if _, err := a.CreateProject(d.ctx(), "team", 1); err != nil {
			d.Error(err)
		}
	})
	var err error
	wait := a.blocked(func() { _, err = d.CreateProject(d.ctx(), "team", 1) })
	resume()
	wait()
	d.wantKind("the second project", err, batch.Conflict)
}

// partDuringCompletion: a part that comes while its upload is completed is refused.
func partDuringCompletion(d *db, a *side) {
	u := d.upload(1)
	p := d.bring(u, 1)
	resume := a.stop("COMMIT", func() {
		if _, err := a.CompleteUpload(d.ctx(), u.Project, u.ID, naming(p)); err != nil {
			d.Error(err)
		}
	})
	late := batch.NewUploadPart(u.ID, d.part(1), d.clock.Now())
	var err error
	wait := a.blocked(func() { err = d.AddPart(d.ctx(), u.Project, late) })
	resume()
	wait()
	d.wantKind("a part for a completed upload", err, batch.Invalid)
}

// cancelDuringCompletion: an upload ends once.
func cancelDuringCompletion(d *db, a *side) {
	u := d.upload(1)
	p := d.bring(u, 1)
	resume := a.stop("COMMIT", func() {
		if _, err := a.CompleteUpload(d.ctx(), u.Project, u.ID, naming(p)); err != nil {
			d.Error(err)
		}
	})
	var err error
	wait := a.blocked(func() { _, err = d.CancelUpload(d.ctx(), u.Project, u.ID) })
	resume()
	wait()
	d.wantKind("cancel of a completed upload", err, batch.Invalid)
}

// burialsDoNotCollide: of two who free what a dead node held, the second leaves it to the first. Whoever
// claims it afterwards has it for good, and it counts one death.
func burialsDoNotCollide(d *db, a *side) {
	b := d.running(1)
	_, err := d.Claim(d.ctx(), d.other, work(b, "m"))
	d.must(err)
	d.clock.turn(lasts + time.Second)
	d.heartbeat(a.node)
	d.heartbeat(d.node)
	resume := a.stop("UPDATE segments", func() {
		if _, err := a.Bury(d.ctx(), a.node, time.Time{}, lasts); err != nil {
			d.Error(err)
		}
	})
	d.bury(d.node)
	l, err := d.Claim(d.ctx(), d.node, work(b, "m")) // finds it only if the second has freed it, too
	d.must(err)
	resume()
	if l == nil {
		l = d.claim(b)
	}
	d.record(l, tally(1, 0), "its owner's")
	d.wantSame("deaths", l.Deaths, 1)
}

// heartbeatDuringBurial: a heartbeat that comes before a node is declared dead saves it, though it was
// silent when others looked.
func heartbeatDuringBurial(d *db, a *side) {
	d.clock.turn(lasts + time.Second)
	d.heartbeat(a.node)
	d.heartbeat(d.node)
	var buried batch.Burial
	var err error
	resume := a.stop("UPDATE nodes", func() { buried, err = a.Bury(d.ctx(), a.node, time.Time{}, lasts) })
	d.heartbeat(d.other)
	resume()
	d.must(err)
	d.wantSame("burial", buried, batch.Burial{})
	d.heartbeat(d.other)
}

// judgeUnfitByThen: a judge that was fit when it looked, and is not when it declares, declares nobody.
func judgeUnfitByThen(d *db, a *side) {
	for _, unfit := range []struct {
		name string
		make func()
	}{
		{"heard of anew", func() { d.clock.turn(time.Millisecond); d.heartbeat(a.node) }},
		{"dead", func() { d.must(d.Leave(d.ctx(), a.node)) }},
	} {
		d.clock.turn(lasts + time.Second)
		d.heartbeat(d.node)
		heard := d.heartbeat(a.node).At
		var buried batch.Burial
		var err error
		resume := a.stop("UPDATE nodes", func() { buried, err = a.Bury(d.ctx(), a.node, heard, lasts) })
		unfit.make()
		resume()
		d.must(err)
		d.wantSame("burial by a judge that is "+unfit.name, buried, batch.Burial{})
	}
	d.heartbeat(d.other)
}
