// Package engine moves batches forward: it admits, claims, executes, records, seals, finalizes and
// sweeps.
//
// A batch is created elsewhere, as a row. The engine finds it, checks its input and cuts it into
// segments; claims segments while their lane has room; sends their requests to upstreams; records
// answers in groups; seals a segment once every request has its result; and finalizes the batch
// with the last seal. Every step is level-triggered: it looks at what is recorded and does what
// that asks for, so that a process which starts after a crash runs the same code as one that goes
// on.
//
// What makes it safe stands in the store: a segment has one owner at a time, and writes of a former
// one are refused. What the engine adds is order. A result is counted when it is recorded, a
// segment is sealed from what was recorded, never from memory.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/sched"
	"offpeak/internal/upstream"
)

// Store is what the engine needs of the metadata. Every write is durable when it returns; writes
// under a lease that is lost fail with batch.ErrLeaseLost and change nothing.
type Store interface {
	admissions
	segments
	journals
	sweeps
	members
	limits
}

// Blobs is what the engine needs of the bytes; see package blob for what it promises.
type Blobs interface {
	blob.Opener
	Create(ctx context.Context, key string) (blob.Writer, error)
	Delete(ctx context.Context, key string) error
}

// Config is what an Engine is made of.
type Config struct {
	Store     Store
	Blobs     Blobs
	Upstreams *upstream.Pool
	// Log gets what operators want to know. Nil: nothing is logged.
	Log *slog.Logger
	// Metrics counts what the engine does. Nil: they are made and nobody sees them.
	Metrics *Metrics
	// Node is the label of this process.
	Node string
	// AwaitStore tells that a store which does not answer at the start is going to: another primary is
	// about to be found, say. Else Run fails.
	AwaitStore bool
	// Rules are what inputs are checked against; Endpoint and Serves are filled in by the engine.
	Rules batch.Rules
	// Drain is how long calls in flight may go on after Run was asked to end. Zero: 30 s.
	Drain time.Duration
	// Grace is how long they may go on once their batch is ending. Zero: 5 minutes.
	Grace time.Duration
	// KeepDeleted is how long the bytes of deleted files are kept, longer than the oldest backup
	// of the database that anybody would restore. Zero: 7 days.
	KeepDeleted time.Duration
	// KeepBatches is how long batches are kept after their end. Zero: for good.
	KeepBatches time.Duration
	// Memory bounds the windows of input held at a time, in bytes. Zero: 48 MiB. One segment in
	// each lane is always allowed.
	Memory int64

	segmentLines int           // how many a window has at most; tests want few
	poll         time.Duration // how often is looked for what nobody woke us for; tests want it rare
}

// An Engine runs batches. Make one with New, then call Run.
type Engine struct {
	cfg     Config
	store   Store
	blobs   Blobs
	pool    *upstream.Pool
	log     *slog.Logger
	metrics *Metrics
	outages outages
	member  *membership
	born    time.Time // when it was made: monotonic time is counted from then

	wakeAdmit, wakeClaim, wakeFinalize, wakeShare chan struct{} // of capacity 1

	recorder *recorder
	workers  sync.WaitGroup
	seals    chan *hold

	reach reach

	told bool // the others know of something that goes on here; owned by keepLease

	// Owned by claimAll.
	strays  bool                 // we may hold what we do not know of
	shunned map[string]time.Time // by batch: until when it is left alone

	mu           sync.Mutex
	sites        []*site
	gone         []*site // that are not configured any more, while what they spent counts
	lanes        map[batch.Lane]*lane
	holds        map[int64]*hold    // by segment
	loaded       int64              // bytes of windows in holds
	open         []batch.Work       // what nobody held at the last look
	nodes        int                // that lived then
	noticed      map[work]time.Time // since when each has been seen there, where there are several
	paces        map[work]*sched.Pace
	homes        homes
	turn         turn    // memory of choose
	hungry       []*site // memory of feedAll
	taken        []*lane // memory of lanesFor
	draining     bool
	alarm        *time.Timer // fires when a retry is due or a gate opens
	alarmAt      time.Time
	admitted     map[string]bool       // tokens of batches that this node validates
	strayBatches bool                  // it may validate others without knowing
	waiting      map[string]string     // of them, those that wait, and for what
	unserved     map[string]batch.Lane // batches with work for a lane that no upstream is known for
	hard         context.Context       // ends when calls in flight must
}

// Limits of the engine's own.
const (
	poll             = 250 * time.Millisecond // for what nobody woke us for
	windowLines      = 1000
	embeddingLines   = 250 // of a window of embeddings, whose answers are large: they are to have room in keptBytes
	windowBytes      = 8 << 20
	admissionsAtOnce = 3
	sealers          = 2
)

// New returns an engine that does nothing yet.
func New(c Config) *Engine {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	if c.Drain == 0 {
		c.Drain = 30 * time.Second
	}
	if c.Grace == 0 {
		c.Grace = 5 * time.Minute
	}
	if c.KeepDeleted == 0 {
		c.KeepDeleted = 7 * 24 * time.Hour
	}
	if c.Memory == 0 {
		c.Memory = 48 << 20
	}
	if c.segmentLines == 0 {
		c.segmentLines = windowLines
	}
	if c.poll == 0 {
		c.poll = poll
	}
	if c.Rules.MaxLine == 0 {
		c.Rules.MaxLine = batch.DefaultMaxLine
	}
	e := &Engine{
		cfg: c, store: c.Store, blobs: c.Blobs, pool: c.Upstreams, log: c.Log, metrics: c.Metrics,
		wakeAdmit: make(chan struct{}, 1), wakeClaim: make(chan struct{}, 1), wakeFinalize: make(chan struct{}, 1), wakeShare: make(chan struct{}, 1),
		seals: make(chan *hold, 256), member: newMembership(), born: time.Now(),
		lanes: map[batch.Lane]*lane{}, holds: map[int64]*hold{}, shunned: map[string]time.Time{},
		admitted: map[string]bool{}, waiting: map[string]string{}, unserved: map[string]batch.Lane{}, paces: map[work]*sched.Pace{},
		noticed: map[work]time.Time{},
	}
	e.outages = newOutages(c.Log)
	e.recorder = newRecorder(c.Store, e.outages.record, c.Metrics)
	e.adoptPool()
	c.Metrics.watch(e)
	return e
}

// Wake tells the engine that a batch was created, cancelled or otherwise changed, so that it looks
// at once instead of soon.
func (e *Engine) Wake() {
	wake(e.wakeAdmit)
	wake(e.wakeClaim)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it is going to look anyway
	}
}

// Run moves batches until ctx ends. Then it claims nothing more, lets the calls in flight end, for
// Config.Drain at most or until abort ends, records what they brought, and returns. Requests it
// did not get to are as if it had never seen them. If the database is away for so long that something
// cannot be recorded, it fails with an UnrecordedError.
func (e *Engine) Run(ctx, abort context.Context) error {
	node, err := e.join(ctx)
	if err != nil {
		return err
	}
	e.member.become(node)
	e.beat(ctx)

	hard, cutOff := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cutOff(nil)
	defer context.AfterFunc(abort, func() { cutOff(errStopped) })()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(e.cfg.Drain, func() { cutOff(errStopped) }) })()
	defer context.AfterFunc(hard, e.recorder.hurry)()
	e.hard = hard
	e.alarm = time.AfterFunc(time.Hour, e.ring)
	defer e.alarm.Stop()

	// Before anything is claimed: deadlines may have passed while nobody looked.
	if err := e.expire(ctx); ctx.Err() == nil {
		e.outages.expire.Note(err)
	}

	// Three stages end one after the other: what brings new work in, what executes it, what
	// records its results.
	var intake, committer, sealing sync.WaitGroup
	intake.Go(func() { e.pool.Run(ctx) })
	intake.Go(func() { e.followPool(ctx) })
	intake.Go(func() { e.followLoads(ctx) })
	intake.Go(func() { e.admitAll(ctx) })
	intake.Go(func() { e.claimAll(ctx) })
	intake.Go(func() { e.finalizeAll(ctx) })
	intake.Go(func() { e.expireAll(ctx) })
	intake.Go(func() { e.sweepAll(ctx) })
	intake.Go(func() { e.vacuumAll(ctx) })
	intake.Go(func() { e.buryAll(ctx) })
	// What of the limits is not used any more is given to others, until the last call has ended.
	var sharing sync.WaitGroup
	calling, allEnded := context.WithCancel(context.WithoutCancel(ctx))
	defer allEnded()
	sharing.Go(func() { e.shareAll(calling) })
	// The lease is kept until the last result is recorded.
	var beating sync.WaitGroup
	living, expire := context.WithCancel(context.WithoutCancel(ctx))
	defer expire()
	beating.Go(func() { e.keepLease(living) })
	recording, stopRecording := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRecording()
	committer.Go(func() { e.recorder.run(recording, e.settled) })
	for range sealers {
		sealing.Go(func() {
			for h := range e.seals {
				e.sealHold(recording, h)
			}
		})
	}

	<-ctx.Done()
	e.drain()
	e.workers.Wait()
	intake.Wait()
	allEnded()
	sharing.Wait()
	// The database may be away. What cannot be recorded now is sent again another time.
	defer time.AfterFunc(10*time.Second, stopRecording).Stop()
	e.recorder.close()
	committer.Wait()
	close(e.seals)
	sealing.Wait()
	farewell, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	e.finalizeReady(farewell)
	e.releaseAll(farewell)
	e.shareLast(farewell)
	expire()
	beating.Wait()
	if err := e.store.Leave(farewell, e.member.self()); err != nil {
		// Whoever is silent is missed soon enough.
		e.log.Warn("leave; others take over what this node held once it has been silent for long", "node", e.cfg.Node, "err", err)
	}
	return e.recorder.forgotten()
}

// An UnrecordedError tells that Run ended as it was asked to, but that of what calls had brought last
// it is not known to be recorded. What is not is asked for again, as if the calls had been cut off.
type UnrecordedError struct {
	Results int
	Err     error // why
}

func (e *UnrecordedError) Error() string {
	return fmt.Sprintf("stopped, but %d results could not be recorded, and are asked for again: %v", e.Results, e.Err)
}

func (e *UnrecordedError) Unwrap() error { return e.Err }

// join makes this process a node.
func (e *Engine) join(ctx context.Context) (node string, err error) {
	for {
		node, err = e.store.Join(context.WithoutCancel(ctx), e.cfg.Node)
		if err != nil && !e.cfg.AwaitStore {
			return "", err
		}
		e.outages.join.Note(err, "node", e.cfg.Node)
		if err == nil {
			return node, nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// errStopped is why calls end that outlast the drain.
var errStopped = errors.New("the server is stopping")

// drain makes workers end after the call they are in.
func (e *Engine) drain() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.draining = true
	for _, s := range e.sites {
		for _, w := range s.idle {
			close(w.calls)
		}
		s.idle = nil
	}
}

// releaseAll gives back what is still held, so that whoever comes next need not wait.
func (e *Engine) releaseAll(ctx context.Context) {
	e.mu.Lock()
	holds := slices.Collect(maps.Values(e.holds))
	e.mu.Unlock()
	for _, h := range holds {
		err := e.store.Release(ctx, e.recorder.lease(h))
		if errors.Is(err, batch.ErrLeaseLost) {
			err = nil
		}
		e.outages.release.Note(err, "segment", h.lease.ID)
	}
}
