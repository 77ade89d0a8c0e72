package bucket

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// partSize is what a part of a multipart upload has at least, save the last one.
	partSize = 5 << 20
	// smallSize is what a blob may have without a buffer of that size.
	smallSize = 256 << 10
	// partBuffers is how many parts are in memory at a time. It must be more than there are
	// goroutines that have two blobs open at once, as sealers do: else each of them may hold one
	// buffer and wait for a second.
	partBuffers = 8
	// maxParts is how many parts a blob can have.
	maxParts = 10_000
)

// buffers hold blobs on their way. Those for parts are few.
type buffers struct {
	free  chan struct{} // a token for each part buffer that may be taken
	parts sync.Pool     // of *[partSize]byte
	small sync.Pool     // of *[smallSize]byte
	stuck atomic.Bool   // the last part could not be sent
}

func newBuffers() *buffers {
	b := &buffers{free: make(chan struct{}, partBuffers)}
	for range partBuffers {
		b.free <- struct{}{}
	}
	b.parts.New = func() any { return new([partSize]byte) }
	b.small.New = func() any { return new([smallSize]byte) }
	return b
}

func (b *buffers) takeSmall() []byte { return b.small.Get().(*[smallSize]byte)[:0] }

// take waits for a part buffer: as long as it takes while parts are sent, since those who have one may
// be slow, and for patience while none can be.
func (b *buffers) take(ctx context.Context, patience time.Duration) ([]byte, error) {
	tick := time.NewTicker(patience)
	defer tick.Stop()
	for {
		select {
		case <-b.free:
			return b.parts.Get().(*[partSize]byte)[:0], nil
		case <-tick.C:
			if b.stuck.Load() {
				return nil, errSlow
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// note notes how the sending of a part ended.
func (b *buffers) note(err error) { b.stuck.Store(err != nil) }

// tryTake takes a part buffer if there is one.
func (b *buffers) tryTake() ([]byte, bool) {
	select {
	case <-b.free:
		return b.parts.Get().(*[partSize]byte)[:0], true
	default:
		return nil, false
	}
}

// give gives back a buffer of either kind, or none.
func (b *buffers) give(buf []byte) {
	switch cap(buf) {
	case smallSize:
		b.small.Put((*[smallSize]byte)(buf[:smallSize]))
	case partSize:
		b.parts.Put((*[partSize]byte)(buf[:partSize]))
		b.free <- struct{}{}
	}
}
