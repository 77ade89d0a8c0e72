package engine

import (
	"cmp"
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
	if err := e.store.Tell(ctx, e.member.self(), now); err != nil {
		if ctx.Err() == nil {
			e.log.Debug("tell what goes on", "err", err)
		}
		return
	}
	e.told = len(now) > 0
}

// activities returns what goes on for each batch that this node has to do with, except when it will be
// done: that depends on what the others do.
func (e *Engine) activities(now time.Time) map[string]batch.Activity {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := map[string]batch.Activity{}
	for id := range e.waiting {
		out[id] = batch.Activity{WaitingFor: e.pool.Trouble()}
	}
	projects, held := map[string]string{}, map[string][]*queue{}
	for _, l := range e.lanes {
		for _, s := range l.shares {
			for _, q := range s.queues {
				projects[q.batch], held[q.batch] = s.project, append(held[q.batch], q)
			}
		}
	}
	for id, queues := range held {
		var a batch.Activity
		for _, q := range queues {
			a.InFlight += q.inFlight
			a.Rate += q.pace.Rate(now)
		}
		a.WaitingFor, _ = e.waitingFor(batch.Batch{ID: id, Project: projects[id]}, queues, now)
		out[id] = a
	}
	for id, lane := range e.unserved {
		a := out[id]
		a.WaitingFor = cmp.Or(e.pool.Trouble(), "no upstream serves the model "+lane.Model)
		out[id] = a
	}
	return out
}
