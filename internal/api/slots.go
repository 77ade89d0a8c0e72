package api

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// slots are shares of something scarce, so many at a time. A project may take one while it holds
// fewer than are free. So a project that is alone gets half of them; the next finds half free, and
// takes half of that; and whatever some project does with its slots, another one's first never waits
// for it, short of as many busy projects as the number has bits. (The rule is that of buffers in
// switches: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet
// Switches", 1998.)
type slots struct {
	wait time.Duration // how long a request may wait for one

	mu      sync.Mutex
	free    int
	held    map[string]int        // by project, if any
	waiting map[string]*list.List // by project, if any: of waiter
	arrived int                   // how many ever waited
}

// A waiter waits for a slot.
type waiter struct {
	given chan struct{} // is closed when it has one
	turn  int
}

// slotWait is how long a request waits for a slot: less than the minute after which proxies give up
// by default, and the five of Node (contract H-03), so that the client hears why.
const slotWait = 50 * time.Second

func newSlots(n int) *slots {
	return &slots{wait: slotWait, free: n, held: map[string]int{}, waiting: map[string]*list.List{}}
}

// take takes a slot for a project, in turn. It fails with errUnavailable if none comes free in time.
// Whoever has a slot gives it back by release, once.
func (s *slots) take(ctx context.Context, project string) (release func(), err error) {
	release = func() { s.give(project) }
	s.mu.Lock()
	if s.waiting[project] == nil && s.may(project) {
		s.grant(project)
		s.mu.Unlock()
		return release, nil
	}
	queue := s.waiting[project]
	if queue == nil {
		queue = list.New()
		s.waiting[project] = queue
	}
	given := make(chan struct{})
	s.arrived++
	place := queue.PushBack(waiter{given, s.arrived})
	s.mu.Unlock()

	timer := time.NewTimer(s.wait)
	defer timer.Stop()
	select {
	case <-given:
		return release, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-timer.C:
		err = errUnavailable
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-given: // in the same moment
		return release, nil
	default:
	}
	s.remove(project, place)
	return nil, err
}

// within runs f while its project holds a slot.
//
// It does so on a goroutine of its own. The database's code grows a stack to 32 KiB and more, which
// a goroutine keeps for long after; thousands of connections would each have one, where no more
// than there are slots are of use.
func within[T any](ctx context.Context, s *slots, project string, f func() (T, error)) (T, error) {
	var (
		v   T
		err error
	)
	release, err := s.take(ctx, project)
	if err != nil {
		return v, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer release()
		defer func() {
			if p := recover(); p != nil {
				err = newPanicError(p)
			}
		}()
		v, err = f()
	}()
	<-done // f ends with ctx, if need be
	return v, err
}

func (s *slots) may(project string) bool { return s.held[project] < s.free }

func (s *slots) grant(project string) {
	s.free--
	s.held[project]++
}

// give takes a slot back and gives what may be given now: to the project that has the fewest, of
// several to who has waited longest.
func (s *slots) give(project string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	if s.held[project]--; s.held[project] == 0 {
		delete(s.held, project)
	}
	for {
		var next string
		var first waiter                  // of next; none yet if its turn is 0
		for p, queue := range s.waiting { // as many as there are projects with a crowd
			w := queue.Front().Value.(waiter)
			if s.may(p) && (first.turn == 0 || s.held[p] < s.held[next] || s.held[p] == s.held[next] && w.turn < first.turn) {
				next, first = p, w
			}
		}
		if first.turn == 0 {
			return
		}
		s.grant(next)
		close(first.given)
		s.remove(next, s.waiting[next].Front())
	}
}

func (s *slots) remove(project string, place *list.Element) {
	queue := s.waiting[project]
	if queue.Remove(place); queue.Len() == 0 {
		delete(s.waiting, project)
	}
}

// limits bound what goes on at a time, each by slots of its own, so that nothing that takes long
// keeps what does not.
type limits struct {
	// reads and writes are calls of the store. Readers have a few connections to the database, which
	// the engine needs too; writers queue at the disk, and readers must not wait behind them.
	reads, writes *slots
	// large are lists of files, which may be long, and JSON bodies that are more than smallJSON.
	large *slots
	// uploads and downloads hold buffers and open files for as long as a client is slow.
	uploads, downloads *slots
}

// defaultTransfers is how many files are uploaded, and how many downloaded, at a time: half of each
// by one project. An upload holds about a quarter of a MiB, a download half of that.
const defaultTransfers = 128

func newLimits(transfers int) limits {
	return limits{
		reads: newSlots(16), writes: newSlots(16), large: newSlots(8),
		uploads: newSlots(transfers), downloads: newSlots(transfers),
	}
}
