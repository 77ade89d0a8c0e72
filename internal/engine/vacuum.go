package engine

import (
	"context"
	"time"
)

// vacuumEvery is how often the journal is cleaned up while something is recorded. At full speed it
// grows by a few megabytes in that time.
const vacuumEvery = 3 * time.Second

// vacuumAll keeps the journal small where the database does not do so itself: while something is
// recorded, and once more when seals have dropped the last of it.
func (e *Engine) vacuumAll(ctx context.Context) {
	tick := time.NewTicker(vacuumEvery)
	defer tick.Stop()
	dirty := false
	for seen := int64(0); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		n := e.recorder.commits.Load()
		if n == seen && !dirty {
			continue
		}
		seen, dirty = n, n != seen
		if err := e.store.Vacuum(ctx); ctx.Err() == nil {
			e.outages.vacuum.Note(err)
		}
	}
}
