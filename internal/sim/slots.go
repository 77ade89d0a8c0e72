package sim

import (
	"container/list"
	"errors"
	"sync"
)

var errQueueFull = errors.New("sim: the queue is full")

// slots are the calls that an engine works on at once, and the queue behind them.
type slots struct {
	limit      int
	queueLimit int // 0: none

	mu    sync.Mutex
	busy  int
	queue list.List // of chan struct{}, which is closed when its call gets a slot; empty unless busy == limit
}

// try takes a slot if one is free.
func (s *slots) try() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy == s.limit {
		return false
	}
	s.busy++
	return true
}

// wait takes a slot once those who came before have had theirs. It fails with errQueueFull, or
// with errGone if the call ends first.
func (s *slots) wait(e ends) error {
	s.mu.Lock()
	if s.busy < s.limit {
		s.busy++
		s.mu.Unlock()
		return nil
	}
	if s.queueLimit > 0 && s.queue.Len() >= s.queueLimit {
		s.mu.Unlock()
		return errQueueFull
	}
	turn := make(chan struct{})
	place := s.queue.PushBack(turn)
	s.mu.Unlock()

	select {
	case <-turn:
		return nil
	case <-e.client:
	case <-e.outage:
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-turn: // the slot came as the call ended: the next in the queue must have it
		s.giveLocked()
	default:
		s.queue.Remove(place)
	}
	return errGone
}

// give frees a slot, or hands it to the first in the queue.
func (s *slots) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveLocked()
}

func (s *slots) giveLocked() {
	first := s.queue.Front()
	if first == nil {
		s.busy--
		return
	}
	close(s.queue.Remove(first).(chan struct{}))
}
