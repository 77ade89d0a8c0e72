package sched

import (
	"slices"
	"time"
)

// A Bucket keeps a limit of so many units a minute, of requests or of tokens: no more are taken in
// any minute, whenever it begins. Nothing is kept back for later either; what may be taken may be
// taken at once. The zero value has no limit.
type Bucket struct {
	limit int64
	share int64    // that may be taken here, of the limit; the rest is other nodes'
	taken []taking // the oldest first
	sum   int64
}

// A taking is what was taken in a short time.
type taking struct {
	from, to time.Time // of the first and of the last
	n        int64
}

const (
	// window is a minute, and a little more, as calls take different times to arrive.
	window = time.Minute + 250*time.Millisecond
	// grain is for how long takings are added up, so that there are not too many to keep.
	grain = 100 * time.Millisecond
)

// Limit is how many units may be taken in a minute, by all nodes together; 0: any number.
func (b *Bucket) Limit() int64 { return b.limit }

// Share sets the limit of all nodes together, and the share of it that may be taken here.
func (b *Bucket) Share(limit, share int64) { b.limit, b.share = limit, share }

// Spent is what was taken in the last minute.
func (b *Bucket) Spent(now time.Time) int64 {
	b.pass(now)
	return b.sum
}

// Free is what may be taken now.
func (b *Bucket) Free(now time.Time) int64 {
	b.pass(now)
	return max(b.share-b.sum, 0)
}

// Wait returns how long it takes until n units may be taken; 0: now. More than a minute's units may
// be taken when nothing else was for a minute, as they would wait for ever else. What is more than the
// share waits until that has grown, and then somebody is to ask again.
func (b *Bucket) Wait(n int64, now time.Time) time.Duration {
	if b.limit <= 0 {
		return 0
	}
	b.pass(now)
	over := b.sum + min(n, b.limit) - b.share
	if over <= 0 {
		return 0
	}
	for _, t := range b.taken {
		if over -= t.n; over <= 0 {
			return t.to.Add(window).Sub(now)
		}
	}
	return window
}

// Take takes n units, whether or not they may be.
func (b *Bucket) Take(n int64, now time.Time) {
	if b.limit <= 0 || n <= 0 {
		return
	}
	b.pass(now)
	b.sum += n
	if last := len(b.taken) - 1; last >= 0 && now.Sub(b.taken[last].from) < grain {
		t := &b.taken[last]
		t.n += n
		t.to = now
		return
	}
	b.taken = append(b.taken, taking{now, now, n})
}

// Settle notes that what was reserved, and taken at the given time, came to used. What was too much
// may be taken by others. What was too little counts from now on.
func (b *Bucket) Settle(taken time.Time, reserved, used int64, now time.Time) {
	if used > reserved {
		b.Take(used-reserved, now)
		return
	}
	b.pass(now)
	i, _ := slices.BinarySearchFunc(b.taken, taken, func(t taking, at time.Time) int { return t.to.Compare(at) })
	if i < len(b.taken) && !b.taken[i].from.After(taken) {
		back := min(reserved-used, b.taken[i].n)
		b.taken[i].n -= back
		b.sum -= back
	}
}

// pass forgets what was taken more than a minute ago.
func (b *Bucket) pass(now time.Time) {
	i := 0
	for i < len(b.taken) && now.Sub(b.taken[i].to) >= window {
		b.sum -= b.taken[i].n
		i++
	}
	if i > 0 {
		b.taken = slices.Delete(b.taken, 0, i)
	}
}
