package sched

import (
	"math"
	"time"
)

// A Meter tells how often something happens lately: what happened ten seconds ago counts a third
// of what happens now. The zero value is ready.
type Meter struct {
	start, last time.Time
	sum         float64 // of events, each weighed by its age at last
}

const meterSpan = 10 * time.Second

// Add notes that something happened at now.
func (m *Meter) Add(now time.Time) {
	if m.start.IsZero() {
		m.start = now
	}
	m.sum = m.aged(now) + 1
	m.last = now
}

// Rate returns how often it happens a second, as of now.
func (m *Meter) Rate(now time.Time) float64 {
	// Right after the start there is less than a span to look back on.
	seen := -math.Expm1(-float64(max(now.Sub(m.start), time.Second)) / float64(meterSpan))
	return m.aged(now) / (meterSpan.Seconds() * seen)
}

func (m *Meter) aged(now time.Time) float64 {
	return m.sum * math.Exp(-float64(max(now.Sub(m.last), 0))/float64(meterSpan))
}

// ETA returns when work is done of which so many units remain, at the given rate per second; zero
// if nobody can tell.
func ETA(remaining int64, rate float64, now time.Time) time.Time {
	const horizon = 10 * 365 * 24 * time.Hour
	if rate <= 0 {
		return time.Time{}
	}
	d := float64(remaining) / rate * float64(time.Second)
	if d > float64(horizon) {
		return time.Time{}
	}
	return now.Add(time.Duration(d))
}
