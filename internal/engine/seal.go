package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/journal"
)

// sealHold seals h for as long as that takes, since there is nobody else to do it while h is held;
// where others can, and we cannot, they get it.
//
// If we crash before the last step, the parts are blobs that nobody names and that are swept; the
// next owner seals again under new keys, to the same bytes.
func (e *Engine) sealHold(ctx context.Context, h *hold) {
	lease := e.recorder.lease(h)
	var output, errs batch.Part
	written := false
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		var err error
		if !written {
			err = e.reaching(ctx, func(ctx context.Context) (err error) {
				output, errs, err = e.writeParts(ctx, h, lease)
				return err
			})
			written = err == nil
		}
		if written {
			// Repeated as it was: if only the reply got lost, the journal is gone already.
			var last bool
			if last, err = e.store.Seal(ctx, lease, output, errs); err == nil {
				e.outages.seal.Note(nil)
				e.metrics.sealed.Inc()
				e.drop(h)
				if last {
					wake(e.wakeFinalize)
				}
				return
			}
		}
		switch {
		case errors.Is(err, batch.ErrLeaseLost):
			e.drop(h)
			return
		case errors.Is(err, errCutOff):
			if err = e.store.Release(ctx, lease); err == nil || errors.Is(err, batch.ErrLeaseLost) {
				e.log.Info("segment given back, others seal it", "batch", h.lease.BatchID, "segment", h.lease.ID)
				e.drop(h)
				return
			}
		case errors.Is(err, batch.ErrSwept):
			written = false
		case errors.Is(err, errUnrecorded), errors.Is(err, batch.ErrSealed):
			// It is not ours any more, or else whoever claims it next makes good what is missing.
			if err = e.store.Release(ctx, lease); err == nil || errors.Is(err, batch.ErrLeaseLost) {
				e.log.Warn("segment not sealed, its journal is gone", "batch", h.lease.BatchID, "segment", h.lease.ID)
				e.drop(h)
				return
			}
		case ctx.Err() != nil:
			return // it stays held and is released
		}
		e.outages.seal.Note(err, "batch", h.lease.BatchID, "segment", h.lease.ID)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// errUnrecorded is returned by writeParts for a journal that does not hold all that was recorded:
// somebody else has sealed the segment.
var errUnrecorded = errors.New("there is no result, and the batch is not ending")

// writeParts writes what is recorded of h to an output and an error part, in the order of lines.
func (e *Engine) writeParts(ctx context.Context, h *hold, lease batch.Lease) (output, errs batch.Part, err error) {
	fail := func(err error) (batch.Part, batch.Part, error) { return batch.Part{}, batch.Part{}, err }
	recorded, err := journal.Read(ctx, e.recorder.journalOf(h), lease.ID, len(h.requests))
	if err != nil {
		return fail(err)
	}
	defer recorded.Close()
	reserved := e.recorder.takeBlob(h)
	good, bad := &part{e: e, reserved: &reserved}, &part{e: e, reserved: &reserved}
	defer good.abort()
	defer bad.abort()
	var line []byte
	for i := range h.requests {
		if !recorded.Has(i) {
			r := batch.Result{}
			switch h.ending {
			case batch.Expired:
				r.Failure = batch.FailureExpired
			case batch.Cancelled:
				r.Failure = batch.FailureCancelled
			default:
				return fail(fmt.Errorf("line %d: %w", h.requests[i].Line, errUnrecorded))
			}
			line = r.AppendLine(line[:0], lease.BatchID, h.requests[i].Request)
			if err := bad.write(ctx, line); err != nil {
				return fail(err)
			}
			continue
		}
		to := bad
		if recorded.OK(i) {
			to = good
		}
		if err := to.begin(ctx); err != nil {
			return fail(err)
		}
		if err := recorded.WriteLine(ctx, i, to.w); err != nil {
			return fail(err)
		}
	}
	if output, err = good.commit(); err != nil {
		return fail(err)
	}
	if errs, err = bad.commit(); err != nil {
		return fail(err)
	}
	return output, errs, nil
}

// A part is an output or error part being written. Without lines it never comes into being.
type part struct {
	e        *Engine
	reserved *string // key for the first part that needs one; empty: none is left
	key      string
	w        blob.Writer
}

// begin makes p, if that is not done yet.
func (p *part) begin(ctx context.Context) error {
	if p.w != nil {
		return nil
	}
	// The row first: bytes without a row would never be found again.
	p.key, *p.reserved = *p.reserved, ""
	if p.key == "" {
		p.key = blob.NewKey()
		if err := p.e.store.ReserveBlob(ctx, p.key); err != nil {
			return err
		}
	}
	var err error
	p.w, err = p.e.blobs.Create(ctx, p.key)
	return err
}

func (p *part) write(ctx context.Context, line []byte) error {
	err := p.begin(ctx)
	if err == nil {
		_, err = p.w.Write(line)
	}
	return err
}

func (p *part) commit() (batch.Part, error) {
	if p.w == nil {
		return batch.Part{}, nil
	}
	n, err := p.w.Commit()
	return batch.Part{Key: p.key, Bytes: n}, err
}

func (p *part) abort() {
	if p.w != nil {
		p.w.Abort()
	}
}
