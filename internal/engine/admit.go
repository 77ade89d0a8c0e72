package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
)

type admissions interface {
	// ClaimValidating takes the oldest batch that waits for validation; nil if there is none.
	ClaimValidating(ctx context.Context, node string) (*batch.Admission, error)
	// Admit starts a validated batch, all of its segments with it. It fails with
	// batch.ErrLeaseLost if the batch left validation, and with a NotFound if its input did.
	Admit(ctx context.Context, a batch.Admission, model string, segments []batch.Segment) error
	Reject(ctx context.Context, a batch.Admission, errs []batch.LineError) error
	// Validating reports whether a is still good: the batch was not cancelled and did not expire.
	Validating(ctx context.Context, a batch.Admission) (bool, error)
	ReleaseValidating(ctx context.Context, a batch.Admission) error
	// ReleaseStrayBatches gives back what the node validates save under the known tokens: claims
	// whose reply was lost.
	ReleaseStrayBatches(ctx context.Context, node string, known []string) error
}

// admitAll validates batches, a few at a time so that a small one need not wait for a large one.
func (e *Engine) admitAll(ctx context.Context) {
	slots := make(chan struct{}, admissionsAtOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(e.cfg.poll)
	defer tick.Stop()
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		a, err := e.claimValidating(ctx)
		if ctx.Err() == nil {
			e.outages.validate.Note(err)
		}
		if a != nil {
			wg.Go(func() { e.admitOne(ctx, *a, slots) })
			continue
		}
		<-slots
		select {
		case <-e.wakeAdmit:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// claimValidating takes the next batch to validate, and before that gives back what it took
// without knowing.
func (e *Engine) claimValidating(ctx context.Context) (*batch.Admission, error) {
	if !e.leased(time.Now()) || e.isCutOff() {
		return nil, nil
	}
	node := e.member.self()
	e.mu.Lock()
	strays, known := e.strayBatches, slices.Collect(maps.Keys(e.admitted))
	e.strayBatches = false
	e.mu.Unlock()
	var a *batch.Admission
	var err error
	if strays {
		err = e.store.ReleaseStrayBatches(ctx, node, known)
	}
	if err == nil {
		a, err = e.store.ClaimValidating(ctx, node)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.strayBatches = true
	} else if a != nil {
		e.admitted[a.Token] = true
	}
	return a, err
}

// admitOne validates one batch to its end, or gives it back. It holds a slot unless it waits.
func (e *Engine) admitOne(ctx context.Context, a batch.Admission, slots chan struct{}) {
	log := e.log.With("batch", a.Batch.ID)
	start := time.Now()
	defer func() {
		e.mu.Lock()
		delete(e.admitted, a.Token)
		delete(e.waiting, a.Batch.ID)
		e.mu.Unlock()
		<-slots
	}()
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		changed := e.pool.Changed() // before the look, so that no change is missed
		var outcome []any
		err := e.reaching(ctx, func(ctx context.Context) (err error) {
			outcome, err = e.admit(ctx, a)
			return err
		})
		unknown, isUnknown := errors.AsType[errUnknownModel](err)
		switch {
		case err == nil:
			log.Info("batch validated", append(outcome, "dur", time.Since(start))...)
			wake(e.wakeClaim)
			return
		case errors.Is(err, batch.ErrLeaseLost): // or admitted, and the reply got lost
			log.Info("batch left validation", "dur", time.Since(start))
			wake(e.wakeClaim)
			return
		case ctx.Err() != nil, errors.Is(err, errCutOff):
			e.giveBack(ctx, a)
			return
		case isUnknown:
			e.mu.Lock()
			e.waiting[a.Batch.ID] = e.pool.Trouble()
			e.mu.Unlock()
		default:
			// The input could not be read, or the database not be written. That passes.
			log.Error("validate batch", "err", err)
		}
		<-slots
		stays := true
		if isUnknown {
			stays = e.waitForModel(ctx, a, unknown.lane, changed)
		} else {
			select {
			case <-time.After(pause):
				stays = e.stillValidating(ctx, a)
			case <-ctx.Done():
			}
		}
		slots <- struct{}{} // others let theirs go, even while everything ends
		if !stays {
			log.Info("batch left validation", "dur", time.Since(start))
			return
		}
	}
}

// waitForModel waits until some upstream serves the lane or none does for certain, and reports
// whether the batch is to be looked at again then. If ctx ends, it is: to be given back.
func (e *Engine) waitForModel(ctx context.Context, a batch.Admission, lane batch.Lane, changed <-chan struct{}) bool {
	for ctx.Err() == nil {
		select {
		case <-changed:
			changed = e.pool.Changed()
			if serves, certain := e.pool.Serves(lane); serves || certain {
				return true
			}
		case <-time.After(5 * time.Second):
			if !e.stillValidating(ctx, a) {
				return false
			}
		case <-ctx.Done():
		}
	}
	return true
}

// stillValidating reports whether a is still to be validated: the batch may have been cancelled.
func (e *Engine) stillValidating(ctx context.Context, a batch.Admission) bool {
	ok, err := e.store.Validating(ctx, a)
	return ok || err != nil // whoever cannot be asked has not said no
}

func (e *Engine) giveBack(ctx context.Context, a batch.Admission) {
	err := e.store.ReleaseValidating(context.WithoutCancel(ctx), a)
	e.outages.release.Note(err, "batch", a.Batch.ID)
	if err != nil {
		e.mu.Lock()
		e.strayBatches = true
		e.mu.Unlock()
	}
}

// errUnknownModel tells of a lane that no upstream serves as far as is known, while not every one
// has said what it serves.
type errUnknownModel struct{ lane batch.Lane }

func (e errUnknownModel) Error() string {
	return fmt.Sprintf("model %s is unknown and not every upstream's list is read", e.lane.Model)
}

// admit checks the whole input once and starts or fails the batch. outcome is for the log.
func (e *Engine) admit(ctx context.Context, a batch.Admission) (outcome []any, err error) {
	reject := func(errs ...batch.LineError) ([]any, error) {
		return []any{"status", batch.Failed, "errors", len(errs)}, e.store.Reject(ctx, a, errs)
	}
	b := a.Batch
	if a.Input == nil {
		return reject(batch.CannotFindFile(b.InputFileID, b.Project))
	}
	if a.Input.Purpose != batch.PurposeBatch {
		return reject(batch.WrongPurpose(b.InputFileID, a.Input.Purpose))
	}
	var unknown *batch.Lane
	rules := e.cfg.Rules
	rules.Endpoint = b.Endpoint
	rules.Serves = func(lane batch.Lane) bool {
		serves, certain := e.pool.Serves(lane)
		if !certain {
			unknown = &lane
		}
		return serves
	}
	c := batch.NewChecker(rules)
	input := blob.Concat(ctx, e.blobs, a.Input.Parts, 0, a.Input.Bytes)
	defer input.Close()
	var errs []batch.LineError
	plan := planner{most: e.cfg.segmentLines}
	if b.Endpoint == "/v1/embeddings" {
		plan.most = min(plan.most, embeddingLines)
	}
	if nodes := e.member.live(); nodes > 1 {
		// A small batch is for all nodes, too.
		plan.spread = a.Input.Bytes / int64(4*nodes)
	}
	for lines := batch.NewLines(input, 0, 1, rules.MaxLine); ; {
		line, err := lines.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", a.Input.ID, err)
		}
		if line.Blank() {
			continue
		}
		_, lane, lerr := c.Line(line)
		switch {
		case unknown != nil:
			return nil, errUnknownModel{*unknown}
		case lerr == nil:
			plan.add(line, lane)
		case len(errs) < batch.MaxLineErrors:
			errs = append(errs, *lerr)
		}
	}
	if errs = append(c.End(), errs...); len(errs) > 0 {
		return reject(errs[:min(len(errs), batch.MaxLineErrors)]...)
	}
	segments := plan.end()
	if err := e.store.Admit(ctx, a, c.Model(), segments); err != nil {
		if batch.KindOf(err) == batch.NotFound {
			return reject(batch.CannotFindFile(b.InputFileID, b.Project))
		}
		return nil, err
	}
	return []any{"status", batch.InProgress, "requests", c.Requests(), "segments", len(segments)}, nil
}

// A planner cuts an input into segments: windows of bounded size, and in each window one segment
// per lane.
type planner struct {
	most   int   // lines of a window
	spread int64 // bytes that are enough for a window with leastSpread lines; 0: none are
	done   []batch.Segment
	window []batch.Segment // of the window being filled; they share its range
	lines  int
}

// leastSpread is how many lines a window has at least that was cut for the sake of other nodes: each
// segment costs a few transactions.
const leastSpread = 8

func (p *planner) add(line batch.Line, lane batch.Lane) {
	if len(p.window) > 0 {
		w := &p.window[0]
		length := line.Offset + line.Length - w.Offset
		if p.lines == p.most || length > windowBytes || p.spread > 0 && p.lines >= leastSpread && length > p.spread {
			p.close()
		}
	}
	p.lines++
	if len(p.window) == 0 {
		p.window = append(p.window, batch.Segment{Lane: lane, Offset: line.Offset, FirstLine: line.Number})
	}
	i := slices.IndexFunc(p.window, func(g batch.Segment) bool { return g.Lane == lane })
	if i < 0 {
		i = len(p.window)
		p.window = append(p.window, batch.Segment{Lane: lane, Offset: p.window[0].Offset, FirstLine: p.window[0].FirstLine})
	}
	p.window[i].Total++
	for i := range p.window {
		p.window[i].Length = line.Offset + line.Length - p.window[i].Offset
	}
}

func (p *planner) close() {
	p.done = append(p.done, p.window...)
	p.window, p.lines = p.window[:0], 0
}

func (p *planner) end() []batch.Segment {
	p.close()
	return p.done
}
