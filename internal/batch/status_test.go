package batch

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var epoch = time.Unix(1_789_000_000, 0)

// newBatch returns a batch as it is created.
func newBatch() Batch {
	return Batch{
		ID: NewBatchID(epoch), Endpoint: "/v1/chat/completions", Status: Validating,
		OutputFileID: "file-output", ErrorFileID: "file-errors",
		CreatedAt: epoch, ExpiresAt: epoch.Add(24 * time.Hour),
	}
}

// apply has e happen to b at now.
func apply(b *Batch, e Event, now time.Time) (changed bool, err error) {
	before := b.Status
	switch e {
	case EventAdmit:
		err = b.Admit(8, "m", now)
	case EventReject:
		err = b.Reject([]LineError{{Code: "empty_file"}}, now)
	case EventSeal:
		err = b.Seal(now)
	case EventExpire:
		return b.Expire(now)
	case EventCancel:
		return b.Cancel(now)
	case EventFinish:
		err = b.Finish(true, true, now)
	}
	return b.Status != before, err
}

var events = []Event{EventAdmit, EventReject, EventSeal, EventExpire, EventCancel, EventFinish}

// place names where a batch stands, with its ending where the status does not tell it.
func place(b Batch) string {
	if b.Status == Finalizing {
		return string(b.Status + ":" + b.Ending)
	}
	return string(b.Status)
}

// ways leads to every place that a batch can be in.
var ways = map[string][]Event{
	"validating":           {},
	"in_progress":          {EventAdmit},
	"finalizing:completed": {EventAdmit, EventSeal},
	"finalizing:expired":   {EventAdmit, EventExpire},
	"cancelling":           {EventAdmit, EventCancel},
	"completed":            {EventAdmit, EventSeal, EventFinish},
	"failed":               {EventReject},
	"expired":              {EventAdmit, EventExpire, EventFinish},
	"cancelled":            {EventAdmit, EventCancel, EventFinish},
}

// at returns a batch that stands at the place.
func at(t testing.TB, name string) Batch {
	t.Helper()
	b := newBatch()
	for _, e := range ways[name] {
		if _, err := apply(&b, e, epoch.Add(time.Minute)); err != nil {
			t.Fatalf("%s on the way to %s: %v", e, name, err)
		}
	}
	if got := place(b); got != name {
		t.Fatalf("%v leads to %s, want %s", ways[name], got, name)
	}
	return b
}

func TestEveryMove(t *testing.T) {
	// "·" changes nothing and is no error, "x" is refused with a Conflict.
	const table = `
		                      admit        reject  seal                  expire              cancel      finish
		validating            in_progress  failed  x                     expired             cancelled   x
		in_progress           x            x       finalizing:completed  finalizing:expired  cancelling  x
		finalizing:completed  x            x       ·                     ·                   cancelling  completed
		finalizing:expired    x            x       ·                     ·                   ·           expired
		cancelling            x            x       ·                     ·                   ·           cancelled
		completed             x            x       x                     ·                   x           x
		failed                x            x       x                     ·                   x           x
		expired               x            x       x                     ·                   x           x
		cancelled             x            x       x                     ·                   ·           x`
	rows := strings.Split(strings.TrimSpace(table), "\n")
	if len(rows) != 1+len(ways) {
		t.Fatalf("%d rows, want one for each of %v", len(rows)-1, slices.Sorted(maps.Keys(ways)))
	}
	for _, row := range rows[1:] {
		cells := strings.Fields(row)
		for i, e := range events {
			from, want := cells[0], cells[1+i]
			before := at(t, from)
			b := before
			changed, err := apply(&b, e, epoch.Add(time.Hour))
			got := place(b)
			switch {
			case KindOf(err) == Conflict:
				got = "x"
			case err != nil:
				t.Errorf("%s on %s: %v is no Conflict", e, from, err)
			case got == from:
				got = "·"
			}
			if got != want {
				t.Errorf("%s on %s: got %s, want %s", e, from, got, want)
			}
			if moved := got != "x" && got != "·"; changed != moved {
				t.Errorf("%s on %s: changed is %v, got %s", e, from, changed, got)
			}
			if (got == "x" || got == "·") && !reflect.DeepEqual(b, before) {
				t.Errorf("%s on %s changed nothing, and yet\n got %+v\nwant %+v", e, from, b, before)
			}
		}
	}
}

// matrix is contract B-03: which timestamps a batch has. ● always, – never, ○ if it was there.
const matrix = `
	              created  in_progress  finalizing  completed  failed  expired  cancelling  cancelled
	validating    ●        –            –           –          –       –        –           –
	failed        ●        –            –           –          ●       –        –           –
	in_progress   ●        ●            –           –          –       –        –           –
	finalizing    ●        ●            ●           –          –       –        –           –
	completed     ●        ●            ●           ●          –       –        –           –
	expired       ●        ○            ●           –          –       ●        –           –
	cancelling    ●        ○            ○           –          –       –        ●           –
	cancelled     ●        ○            ○           –          –       –        ●           ●`

func timestamps(b Batch) map[string]time.Time {
	return map[string]time.Time{
		"created": b.CreatedAt, "in_progress": b.InProgressAt, "finalizing": b.FinalizingAt,
		"completed": b.CompletedAt, "failed": b.FailedAt, "expired": b.ExpiredAt,
		"cancelling": b.CancellingAt, "cancelled": b.CancelledAt,
	}
}

// checkMatrix returns what contradicts contract B-03 in a batch that went through the statuses.
func checkMatrix(b Batch, passed []Status) error {
	rows := strings.Split(strings.TrimSpace(matrix), "\n")
	columns := strings.Fields(rows[0])
	for _, row := range rows[1:] {
		cells := strings.Fields(row)
		if cells[0] != string(b.Status) {
			continue
		}
		for i, column := range columns {
			want := cells[1+i] == "●" || cells[1+i] == "○" && slices.Contains(passed, Status(column))
			if set := !timestamps(b)[column].IsZero(); set != want {
				return fmt.Errorf("%s after %v: %s_at is set: %v, want %v", b.Status, passed, column, set, want)
			}
		}
		return nil
	}
	return fmt.Errorf("unknown status %q", b.Status)
}

// moves are the arrows of contract §2.2.
var moves = map[Status][]Status{
	Validating: {InProgress, Failed, Expired, Cancelled},
	InProgress: {Finalizing, Cancelling},
	Finalizing: {Completed, Expired, Cancelling},
	Cancelling: {Cancelled},
}

// ending is how a batch ends to which the events happen in this order, in the words of contract
// S-05 and S-08 instead of the machine's. Empty: it does not end.
func ending(happened []Event) (end Status) {
	admitted := false
	for _, e := range happened {
		switch {
		case !admitted && e == EventAdmit:
			admitted = true
		case !admitted && e == EventReject:
			return Failed
		case !admitted && e == EventExpire:
			return Expired
		case !admitted && e == EventCancel:
			return Cancelled
		case admitted && e == EventFinish && end != "":
			return end
		case admitted && e == EventSeal && end == "":
			end = Completed
		case admitted && e == EventExpire && end == "":
			end = Expired
		case admitted && e == EventCancel && end != Expired: // also what was about to complete
			end = Cancelled
		}
	}
	return end
}

// Whatever happens to a batch in whatever order, and however the clock steps, it keeps promise 6.
func TestLegalMovesOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, now := newBatch(), epoch
		passed := []Status{b.Status}
		var happened []Event
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			e := rapid.SampledFrom(events).Draw(t, "event")
			now = now.Add(time.Duration(rapid.Int64Range(-3600, 3600).Draw(t, "step")) * time.Second)
			before := b
			changed, err := apply(&b, e, now)
			happened = append(happened, e)

			if moved := b.Status != before.Status; changed != moved {
				t.Fatalf("%s: reported change %v of %s to %s", e, changed, before.Status, b.Status)
			}
			if err != nil && KindOf(err) != Conflict {
				t.Fatalf("%s on %s: %v is no Conflict", e, before.Status, err)
			}
			if (err != nil || before.Status.Terminal()) && !reflect.DeepEqual(b, before) {
				t.Fatalf("%s on %s (%v)\n  made %+v\nout of %+v", e, before.Status, err, b, before)
			}
			if b.Status != before.Status {
				if !slices.Contains(moves[before.Status], b.Status) {
					t.Fatalf("%s moved %s to %s", e, before.Status, b.Status)
				}
				passed = append(passed, b.Status)
			}
			if err := checkMatrix(b, passed); err != nil {
				t.Fatal(err)
			}
			was := timestamps(before)
			for name, at := range timestamps(b) {
				if !was[name].IsZero() && !at.Equal(was[name]) {
					t.Fatalf("%s on %s changed %s_at from %v to %v", e, before.Status, name, was[name], at)
				}
			}
			checkOrder(t, b)
			if want := ending(happened); b.Status.Terminal() && b.Status != want {
				t.Fatalf("%v ends %s, want %s", happened, b.Status, want)
			}
		}
	})
}

// checkOrder checks that no timestamp of b lies before one that it came after.
func checkOrder(t *rapid.T, b Batch) {
	t.Helper()
	for _, chain := range [][]time.Time{
		{b.CreatedAt, b.InProgressAt, b.FinalizingAt, b.CompletedAt},
		{b.CreatedAt, b.InProgressAt, b.FinalizingAt, b.ExpiredAt},
		{b.CreatedAt, b.InProgressAt, b.FinalizingAt, b.CancellingAt, b.CancelledAt},
		{b.CreatedAt, b.FailedAt},
	} {
		chain = slices.DeleteFunc(chain, time.Time.IsZero)
		if !slices.IsSortedFunc(chain, time.Time.Compare) {
			t.Fatalf("timestamps of a batch that is %s run backwards: %v", b.Status, chain)
		}
	}
}

// What ends first decides; only a cancel may still turn a completion (contract S-05, S-08).
func TestFirstEndingWins(t *testing.T) {
	for _, c := range []struct {
		happens []Event
		want    Status
	}{
		{[]Event{EventSeal}, Completed},
		{[]Event{EventExpire}, Expired},
		{[]Event{EventCancel}, Cancelled},
		{[]Event{EventExpire, EventCancel}, Expired},
		{[]Event{EventExpire, EventSeal}, Expired},
		{[]Event{EventCancel, EventExpire}, Cancelled},
		{[]Event{EventCancel, EventSeal}, Cancelled},
		{[]Event{EventSeal, EventExpire}, Completed},
		{[]Event{EventSeal, EventCancel}, Cancelled},
		{[]Event{EventSeal, EventCancel, EventExpire}, Cancelled},
	} {
		b := at(t, "in_progress")
		for _, e := range append(c.happens, EventFinish) {
			if _, err := apply(&b, e, epoch.Add(time.Hour)); err != nil {
				t.Errorf("%v: %s: %v", c.happens, e, err)
			}
		}
		if b.Status != c.want || b.Ending != c.want {
			t.Errorf("%v ends %s with ending %q, want %s", c.happens, b.Status, b.Ending, c.want)
		}
	}
}

func TestResultFileIDs(t *testing.T) {
	for _, c := range []struct {
		name           string
		output, errors bool
	}{
		{"both", true, true}, {"output alone", true, false}, {"errors alone", false, true}, {"neither", false, false},
	} {
		b := at(t, "finalizing:completed")
		if err := b.Finish(c.output, c.errors, epoch); err != nil {
			t.Fatal(err)
		}
		if got := b.OutputFileID != ""; got != c.output {
			t.Errorf("%s: output_file_id %q", c.name, b.OutputFileID)
		}
		if got := b.ErrorFileID != ""; got != c.errors {
			t.Errorf("%s: error_file_id %q", c.name, b.ErrorFileID)
		}
	}
	for _, e := range []Event{EventReject, EventExpire, EventCancel} {
		b := newBatch()
		if _, err := apply(&b, e, epoch); err != nil {
			t.Fatal(err)
		}
		if b.OutputFileID != "" || b.ErrorFileID != "" {
			t.Errorf("%s while validating leaves the files %q and %q", e, b.OutputFileID, b.ErrorFileID)
		}
	}
}

func TestAdmitAndReject(t *testing.T) {
	b := newBatch()
	if err := b.Admit(8, "m", epoch); err != nil || b.Counts != (Counts{Total: 8}) || b.Model != "m" {
		t.Errorf("admitted with %v: counts %+v, model %q", err, b.Counts, b.Model)
	}
	b = newBatch()
	errs := []LineError{{Code: "invalid_url", Line: 3}}
	if err := b.Reject(errs, epoch); err != nil || !reflect.DeepEqual(b.Errors, errs) || b.Counts != (Counts{}) {
		t.Errorf("rejected with %v: errors %+v, counts %+v", err, b.Errors, b.Counts)
	}
}

func TestStatusNames(t *testing.T) {
	for _, s := range Statuses {
		if _, leaves := transitions[s]; leaves == s.Terminal() {
			t.Errorf("%s: terminal is %v, and yet events move it: %v", s, s.Terminal(), leaves)
		}
	}
	if len(Statuses) != 8 {
		t.Errorf("%d statuses, want the 8 of contract §2.1", len(Statuses))
	}
	b := at(t, "completed")
	_, err := b.Cancel(epoch)
	if want := "Cannot cancel a batch with status 'completed'."; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
