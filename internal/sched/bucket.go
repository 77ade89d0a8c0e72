package sched

import "time"

// A Bucket keeps a limit of so many units a minute, requests or tokens. No more are taken in any
// 60 seconds than the limit.
type Bucket struct {
	perMinute int
}

// NewBucket returns a full bucket. With a limit of 0 there is no limit.
func NewBucket(perMinute int) *Bucket { return &Bucket{perMinute: perMinute} }

// Wait returns how long it takes until n units may be taken; 0: now.
func (b *Bucket) Wait(n int64, now time.Time) time.Duration { return 0 }

// Take takes n units.
func (b *Bucket) Take(n int64, now time.Time) {}

// Settle notes that what was reserved by Take came to used.
func (b *Bucket) Settle(reserved, used int64, now time.Time) {}
