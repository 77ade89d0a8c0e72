package sched

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestBackoff(t *testing.T) {
	const nearlyOne = 1 - 1e-9
	for _, c := range []struct {
		attempt     int
		retryAfter  time.Duration
		least, most time.Duration
	}{
		{2, 0, 0, 500 * ms},
		{3, 0, 0, time.Second},
		{4, 0, 0, 2 * time.Second},
		{7, 0, 0, 16 * time.Second},
		{8, 0, 0, 30 * time.Second},
		{100, 0, 0, 30 * time.Second},
		{1 << 40, 0, 0, 30 * time.Second},
		{1, 0, 0, 500 * ms},
		{-1, 0, 0, 500 * ms},
		{2, 20 * time.Second, 20 * time.Second, 20*time.Second + 500*ms},
		{100, time.Hour, time.Hour, time.Hour + 30*time.Second},
	} {
		if got := Backoff(c.attempt, c.retryAfter, 0); got != c.least {
			t.Errorf("attempt %d, Retry-After %v: at least %v, want %v", c.attempt, c.retryAfter, got, c.least)
		}
		if got := Backoff(c.attempt, c.retryAfter, nearlyOne); got > c.most || got < c.most-time.Microsecond {
			t.Errorf("attempt %d, Retry-After %v: at most %v, want %v", c.attempt, c.retryAfter, got, c.most)
		}
	}
}

func TestBackoffBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		attempt := rapid.Int().Draw(t, "attempt")
		retryAfter := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "retryAfter"))
		random := rapid.Float64Range(0, 0.999999).Draw(t, "random")
		got := Backoff(attempt, retryAfter, random)
		if got < retryAfter || got > retryAfter+30*time.Second {
			t.Fatalf("attempt %d, Retry-After %v: waits %v", attempt, retryAfter, got)
		}
		if more := Backoff(attempt, retryAfter, min(random+0.1, 0.9999999)); more < got {
			t.Fatalf("attempt %d: %v, and with more jitter %v", attempt, got, more)
		}
	})
}
