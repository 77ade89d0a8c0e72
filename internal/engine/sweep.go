package engine

import (
	"context"
	"errors"
	"time"

	"offpeak/internal/batch"
)

type sweeps interface {
	// Expire ends the batches whose deadline has passed, and returns them.
	Expire(ctx context.Context) ([]string, error)
	// Finalizable lists ending batches without an open segment; Finalize makes one terminal.
	Finalizable(ctx context.Context) ([]string, error)
	Finalize(ctx context.Context, id string) (b batch.Batch, done bool, err error)
	// Sweep drops what nobody names; the bytes are removed once Deleted lists them.
	Sweep(ctx context.Context) (more bool, err error)
	DropBatches(ctx context.Context, keep time.Duration) error
	Deleted(ctx context.Context, keep time.Duration) ([]string, error)
	Forget(ctx context.Context, keys []string) error
	CountBatches(ctx context.Context) (map[batch.Status]int64, error)
}

// finalizeAll makes batches terminal whose last segment is sealed.
func (e *Engine) finalizeAll(ctx context.Context) {
	tick := time.NewTicker(e.cfg.poll)
	defer tick.Stop()
	for {
		e.finalizeReady(ctx)
		select {
		case <-e.wakeFinalize:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (e *Engine) finalizeReady(ctx context.Context) {
	ids, err := e.store.Finalizable(ctx)
	if ctx.Err() == nil && (err != nil || len(ids) == 0) {
		e.outages.finalize.Note(err)
	}
	for _, id := range ids {
		b, done, err := e.store.Finalize(ctx, id)
		if ctx.Err() == nil {
			e.outages.finalize.Note(err, "batch", id)
		}
		if err != nil {
			continue
		}
		if done {
			e.metrics.ended.WithLabelValues(string(b.Status)).Inc()
			e.log.Info("batch ended", "batch", id, "status", b.Status, "total", b.Counts.Total,
				"completed", b.Counts.Completed, "failed", b.Counts.Failed,
				"dur", max(0, time.Since(b.CreatedAt)).Round(time.Millisecond)) // the clock may have been set back
		}
	}
}

// expireAll ends batches at their deadline.
func (e *Engine) expireAll(ctx context.Context) {
	tick := time.NewTicker(max(time.Second, e.cfg.poll))
	defer tick.Stop()
	for {
		e.dismiss(time.Now())
		if err := e.expire(ctx); ctx.Err() == nil {
			e.outages.expire.Note(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// sweepAll removes every now and then what nobody needs. That is nothing to wait for: storage that
// is away takes minutes to say so of each blob.
func (e *Engine) sweepAll(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for n := 0; ; n++ {
		err := e.sweep(ctx)
		if t, ok := e.blobs.(tidier); ok && n%60 == 0 {
			err = errors.Join(err, t.Tidy(ctx, abandoned))
		}
		if ctx.Err() == nil {
			e.outages.sweep.Note(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// A tidier is storage that keeps what a process has left half-written when it died. Any node may
// tidy, several at once.
type tidier interface {
	// Tidy removes what was begun longer than age ago.
	Tidy(ctx context.Context, age time.Duration) error
}

// abandoned is how old something half-written is that nobody can be at any more: store.PendingFor,
// after which it would not be named.
const abandoned = 24 * time.Hour

// expire ends the batches whose deadline has passed.
func (e *Engine) expire(ctx context.Context) error {
	expired, err := e.store.Expire(ctx)
	if len(expired) > 0 {
		e.log.Info("deadline passed", "batches", expired)
		wake(e.wakeClaim)
	}
	return err
}

// sweep drops rows first and bytes later: a restored backup of the database may still name them.
func (e *Engine) sweep(ctx context.Context) error {
	if e.cfg.KeepBatches > 0 {
		if err := e.store.DropBatches(ctx, e.cfg.KeepBatches); err != nil {
			return err
		}
	}
	for more := true; more; {
		var err error
		if more, err = e.store.Sweep(ctx); err != nil {
			return err
		}
	}
	for {
		keys, err := e.store.Deleted(ctx, e.cfg.KeepDeleted)
		if err != nil || len(keys) == 0 {
			return err
		}
		var failed error
		gone := keys[:0]
		for _, key := range keys {
			if err := e.blobs.Delete(ctx, key); err != nil {
				failed = err // the others go all the same
				continue
			}
			gone = append(gone, key)
		}
		if err := e.store.Forget(ctx, gone); err != nil || failed != nil {
			return errors.Join(failed, err)
		}
	}
}
