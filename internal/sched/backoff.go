package sched

import "time"

// Backoff returns how long the given attempt (from 2) waits: exponential with full jitter, at
// least what the upstream asked for. random is uniform in [0,1).
func Backoff(attempt int, retryAfter time.Duration, random float64) time.Duration {
	const first, most = 500 * time.Millisecond, 30 * time.Second
	span := min(first<<min(max(attempt-2, 0), 10), most)
	// The jitter comes on top of what was asked for, so that not everybody is back in one instant.
	return retryAfter + time.Duration(random*float64(span))
}
