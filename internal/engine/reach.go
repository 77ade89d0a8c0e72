package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
)

// A node may be cut off from the blobs while it lives, and other nodes are not. So what needs blobs
// does not keep a segment, or a batch that is to be validated, for as long as that lasts: others get
// it, and this node takes nothing more until blobs can be reached again. Alone it would help nobody.

// errCutOff is why something ends that needs blobs.
var errCutOff = errors.New("blobs cannot be reached from here")

const (
	// suspicious is how long something that needs blobs may take until it is looked whether they can
	// be reached at all, and probePatience how long that look may take: it finds out that a blob is
	// not there, which storage may want to be certain of.
	suspicious    = 4 * time.Second
	probePatience = 4 * time.Second
	probeAgain    = 2 * time.Second
)

// reach is what is known of the blobs.
type reach struct {
	mu     sync.Mutex
	cutOff bool
	probed time.Time // last, since then
}

// reaching does what needs blobs. Where there are other nodes it fails with errCutOff within seconds if
// blobs cannot be reached; however slow they are, it goes on as long as they can.
func (e *Engine) reaching(ctx context.Context, f func(context.Context) error) error {
	if e.isCutOff() {
		return errCutOff
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-time.After(suspicious):
			case <-ctx.Done():
				return
			}
			if e.member.live() > 1 && !e.probe(ctx) {
				cancel(errCutOff)
			}
		}
	})
	err := f(ctx)
	if err != nil && ctx.Err() == nil && !errors.Is(err, batch.ErrLeaseLost) && e.member.live() > 1 && !e.probe(ctx) && ctx.Err() == nil {
		cancel(errCutOff)
	}
	cause := context.Cause(ctx)
	cancel(nil)
	watching.Wait()
	if err == nil || cause != errCutOff {
		return err
	}
	e.reach.mu.Lock()
	defer e.reach.mu.Unlock()
	if !e.reach.cutOff {
		e.log.Error("blobs cannot be reached from here; what needs them is left to other nodes until they can", "err", err)
	}
	e.reach.cutOff, e.reach.probed = true, time.Now()
	return errCutOff
}

// probe reports whether blobs can be reached. It may say that they cannot because ctx has ended.
func (e *Engine) probe(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	r, err := e.blobs.Open(ctx, blob.NewKey(), 0, 1)
	if err == nil {
		r.Close()
	}
	return err == nil || errors.Is(err, blob.ErrNotFound)
}

func (e *Engine) isCutOff() bool {
	e.reach.mu.Lock()
	defer e.reach.mu.Unlock()
	return e.reach.cutOff
}

// lookForBlobs looks every now and then whether blobs can be reached again, if they could not, and
// reports whether they can.
func (e *Engine) lookForBlobs(ctx context.Context) bool {
	e.reach.mu.Lock()
	cutOff, due := e.reach.cutOff, time.Since(e.reach.probed) >= probeAgain
	e.reach.mu.Unlock()
	if !cutOff {
		return true
	}
	if e.member.live() > 1 && (!due || !e.probe(ctx)) {
		if due {
			e.reach.mu.Lock()
			e.reach.probed = time.Now()
			e.reach.mu.Unlock()
		}
		return false
	}
	e.reach.mu.Lock()
	e.reach.cutOff = false
	e.reach.mu.Unlock()
	e.log.Info("blobs are reached again")
	wake(e.wakeAdmit)
	return true
}
