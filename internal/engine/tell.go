package engine

import (
	"context"
	"time"

	"offpeak/internal/batch"
)

// tell notes for the other nodes what goes on at this one, with a heartbeat. Nobody relies on it but
// people, so what fails is told another time.
func (e *Engine) tell(ctx context.Context) {
	now := e.activities(time.Now())
	if len(now) == 0 && !e.told {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, beatEvery)
	defer cancel()
	err := e.store.Tell(ctx, e.member.self(), now)
	if err == nil {
		e.told = len(now) > 0
	}
	if err == nil || ctx.Err() == nil {
		e.outages.tell.Note(err)
	}
}

// activities returns what goes on for each batch that this node has to do with, except when it will be
// done: that depends on what the others do.
func (e *Engine) activities(now time.Time) map[string]batch.Activity {
	e.mu.Lock()
	defer e.mu.Unlock()
	all, held := map[string]batch.Batch{}, map[string][]*queue{}
	for id := range e.waiting {
		all[id] = batch.Batch{ID: id, Status: batch.Validating}
	}
	for id := range e.unserved {
		all[id] = batch.Batch{ID: id, Status: batch.InProgress}
	}
	for _, l := range e.lanes {
		for _, s := range l.shares {
			for _, q := range s.queues {
				all[q.batch] = batch.Batch{ID: q.batch, Project: s.project, Status: batch.InProgress}
				held[q.batch] = append(held[q.batch], q)
			}
		}
	}
	out := make(map[string]batch.Activity, len(all))
	for id, b := range all {
		out[id], _ = e.goingOn(b, held[id], now)
	}
	return out
}
