package batch

import (
	"fmt"
	"slices"
	"time"
)

// A Status is where a batch stands. It moves along this machine and no other way:
//
//	stateDiagram-v2
//	    [*] --> validating
//	    validating --> in_progress: admit
//	    validating --> failed: reject
//	    validating --> expired: expire
//	    validating --> cancelled: cancel
//	    in_progress --> finalizing: seal (the last segment)
//	    in_progress --> finalizing: expire (heads for expired)
//	    in_progress --> cancelling: cancel
//	    finalizing --> completed: finish
//	    finalizing --> expired: finish (the deadline ended it)
//	    finalizing --> cancelling: cancel (unless the deadline ended it)
//	    cancelling --> cancelled: finish
type Status string

// The statuses of the API (contract §2.1).
const (
	Validating Status = "validating"
	Failed     Status = "failed"
	InProgress Status = "in_progress"
	Finalizing Status = "finalizing"
	Completed  Status = "completed"
	Expired    Status = "expired"
	Cancelling Status = "cancelling"
	Cancelled  Status = "cancelled"
)

// Statuses lists every status, in the order in which a batch may pass through them.
var Statuses = []Status{Validating, InProgress, Finalizing, Cancelling, Completed, Failed, Expired, Cancelled}

// Terminal reports whether s never changes again.
func (s Status) Terminal() bool {
	switch s {
	case Completed, Failed, Expired, Cancelled:
		return true
	}
	return false
}

// An Event is something that moves a batch.
type Event string

// The events of the machine.
const (
	EventAdmit  Event = "admit"  // validation found the input good
	EventReject Event = "reject" // validation found it bad
	EventSeal   Event = "seal"   // the last open segment was sealed
	EventExpire Event = "expire" // the deadline passed
	EventCancel Event = "cancel" // the user asked
	EventFinish Event = "finish" // every segment of an ending batch is sealed
)

// transitions is the drawing above as data. A move to Finalizing or Cancelling decides the
// ending; a finish goes to whatever ending was decided.
var transitions = map[Status]map[Event]struct{ to, ending Status }{
	Validating: {
		EventAdmit:  {to: InProgress},
		EventReject: {to: Failed},
		EventExpire: {to: Expired},
		EventCancel: {to: Cancelled},
	},
	InProgress: {
		EventSeal:   {to: Finalizing, ending: Completed},
		EventExpire: {to: Finalizing, ending: Expired},
		EventCancel: {to: Cancelling, ending: Cancelled},
	},
	Finalizing: {
		EventCancel: {to: Cancelling, ending: Cancelled},
		EventFinish: {}, // to the ending
	},
	Cancelling: {
		EventFinish: {},
	},
}

// move applies e at now, or fails with a Conflict and changes nothing.
func (b *Batch) move(e Event, now time.Time) error {
	t, ok := transitions[b.Status][e]
	if !ok {
		return &Error{Kind: Conflict, Msg: fmt.Sprintf("Cannot %s a batch with status '%s'.", e, b.Status)}
	}
	if e == EventFinish {
		t.to = b.Ending
	}
	if t.ending != "" {
		b.Ending = t.ending
	}
	now = b.notBefore(now)
	// A batch that ends while validating passes in one step through what it has nothing to do in:
	// cancelled and expired batches always have these timestamps (contract B-03).
	switch {
	case t.to == Cancelled && b.CancellingAt.IsZero():
		b.CancellingAt = now
	case t.to == Expired && b.FinalizingAt.IsZero():
		b.FinalizingAt = now
	}
	b.Status = t.to
	*b.timestamp(t.to) = now
	if t.to.Terminal() && e != EventFinish {
		b.OutputFileID, b.ErrorFileID = "", "" // never ran: no files (contract S-03, C-04)
	}
	return nil
}

// notBefore returns now, or the latest timestamp of b if the clock has stepped back behind it.
func (b *Batch) notBefore(now time.Time) time.Time {
	return slices.MaxFunc([]time.Time{
		now, b.CreatedAt, b.InProgressAt, b.FinalizingAt, b.CancellingAt,
	}, time.Time.Compare)
}

func (b *Batch) timestamp(s Status) *time.Time {
	switch s {
	case InProgress:
		return &b.InProgressAt
	case Finalizing:
		return &b.FinalizingAt
	case Completed:
		return &b.CompletedAt
	case Failed:
		return &b.FailedAt
	case Expired:
		return &b.ExpiredAt
	case Cancelling:
		return &b.CancellingAt
	case Cancelled:
		return &b.CancelledAt
	}
	return &b.CreatedAt
}

// Admit starts b: validation counted total requests, all for model ("" if models are mixed).
func (b *Batch) Admit(total int64, model string, now time.Time) error {
	if err := b.move(EventAdmit, now); err != nil {
		return err
	}
	b.Counts.Total, b.Model = total, model
	return nil
}

// Reject fails b for what validation found wrong with its input.
func (b *Batch) Reject(errs []LineError, now time.Time) error {
	if err := b.move(EventReject, now); err != nil {
		return err
	}
	b.Errors = errs
	return nil
}

// Seal notes that b's last open segment was sealed. A batch whose end was decided before keeps
// that ending.
func (b *Batch) Seal(now time.Time) error {
	if b.Ending != "" && !b.Status.Terminal() {
		return nil
	}
	return b.move(EventSeal, now)
}

// Expire ends b because its deadline has passed. It reports whether that changed anything: a
// batch that is already ending keeps its ending (contract S-08).
func (b *Batch) Expire(now time.Time) (changed bool, err error) {
	if b.Ending != "" || b.Status.Terminal() {
		return false, nil
	}
	err = b.move(EventExpire, now)
	return err == nil, err
}

// Cancel ends b because the user asked. It reports whether that changed anything: repeating a
// cancel does not, nor does one after the deadline. A batch that is terminal otherwise refuses
// with a Conflict (contract §6).
func (b *Batch) Cancel(now time.Time) (changed bool, err error) {
	switch {
	case b.Status == Cancelling, b.Status == Cancelled:
		return false, nil
	case b.Status == Finalizing && b.Ending == Expired:
		return false, nil
	}
	err = b.move(EventCancel, now)
	return err == nil, err
}

// Finish makes an ending batch terminal. hasOutput and hasErrors say which result files exist.
func (b *Batch) Finish(hasOutput, hasErrors bool, now time.Time) error {
	if err := b.move(EventFinish, now); err != nil {
		return err
	}
	if !hasOutput {
		b.OutputFileID = ""
	}
	if !hasErrors {
		b.ErrorFileID = ""
	}
	return nil
}
