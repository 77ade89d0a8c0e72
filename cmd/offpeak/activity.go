package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/sched"
	"offpeak/internal/store"
)

// An activity knows what goes on for batches at all nodes. Of others it asks the database once in a
// second, however many ask it.
type activity struct {
	store  *store.Store
	engine *engine.Engine // nil: nothing goes on here
	log    *slog.Logger

	mu        sync.Mutex
	at        time.Time
	elsewhere map[string][]batch.Activity
}

// of returns what goes on for b.
func (a *activity) of(b batch.Batch) (here batch.Activity) {
	node := ""
	if a.engine != nil {
		here, node = a.engine.Activity(b), a.engine.Node()
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if age := now.Sub(a.at); age > time.Second || age < 0 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		others, err := a.store.Elsewhere(ctx, node)
		if err != nil {
			a.log.Debug("ask what goes on elsewhere", "err", err)
		}
		a.at, a.elsewhere = now, others
	}
	return sched.Together(b, here, a.elsewhere[b.ID], now)
}
