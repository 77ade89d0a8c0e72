package sched

import "time"

// A Pace tells how fast the calls of a batch go, and so when it will be done. The zero value is
// ready.
type Pace struct {
	meter    Meter
	inFlight int
	calls    int64
	total    time.Duration
}

// Send notes that a call goes out.
func (p *Pace) Send(now time.Time) { p.inFlight++ }

// Done notes that a call has ended which brought a result and took so long.
func (p *Pace) Done(took time.Duration, now time.Time) {
	p.inFlight--
	p.calls++
	p.total += took
	p.meter.Add(now)
}

// Drop notes that a call has ended which brought none.
func (p *Pace) Drop(now time.Time) { p.inFlight-- }

// Rate returns results per second, lately.
func (p *Pace) Rate(now time.Time) float64 { return p.meter.Rate(now) }

// PerRequest returns how long a request takes, for Urgency; 0 if nobody can tell.
func (p *Pace) PerRequest() time.Duration {
	if p.calls == 0 {
		return 0
	}
	return p.total / time.Duration(p.calls)
}

// ETA returns when so many requests will have their results, those in flight among them; zero if
// nobody can tell.
func (p *Pace) ETA(left int64, now time.Time) time.Time { return ETA(left, p.Rate(now), now) }
