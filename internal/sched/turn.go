package sched

import (
	"cmp"
	"time"
)

// A Contender is somebody who could make the next call: a project of a lane, or a batch of a
// project.
type Contender struct {
	Running  int     // calls in flight
	Had      float64 // what it has had so far: see Account
	Weight   float64 // of the project, or the urgency of the batch
	Deadline time.Time
	Age      int64 // smaller is older
}

// Next returns the index of the contender who makes the next call, or -1 if there is none: the one
// with the least in flight per weight, then the one that has had the least so far, then the
// earliest deadline, then the oldest.
func Next(c []Contender) int {
	best := -1
	for i := range c {
		if best < 0 || earlier(&c[i], &c[best]) {
			best = i
		}
	}
	return best
}

func earlier(a, b *Contender) bool {
	return cmp.Or(
		cmp.Compare(float64(a.Running)/a.Weight, float64(b.Running)/b.Weight),
		cmp.Compare(a.Had, b.Had),
		a.Deadline.Compare(b.Deadline),
		cmp.Compare(a.Age, b.Age),
	) < 0
}

// An Account keeps what a contender has had: its slots, each for as long as it had it, per weight.
// Where there are fewer slots than contenders, it is what decides whose turn it is.
type Account struct {
	running int
	weight  float64
	had     float64 // slot seconds per weight
	at      time.Time
}

// Join starts an account beside those that are there: whoever comes now has missed nothing, and
// need not make up for it.
func (a *Account) Join(others []Contender) {
	for i, o := range others {
		if i == 0 || o.Had < a.had {
			a.had = o.Had
		}
	}
}

// Send notes that a call goes out.
func (a *Account) Send(now time.Time) {
	a.pass(now)
	a.running++
}

// Done notes that a call has ended.
func (a *Account) Done(now time.Time) {
	a.pass(now)
	a.running--
}

// Contender returns how the contender stands now, with its weight from now on.
func (a *Account) Contender(weight float64, now time.Time) Contender {
	a.pass(now)
	a.weight = max(weight, 1)
	return Contender{Running: a.running, Had: a.had, Weight: a.weight}
}

func (a *Account) pass(now time.Time) {
	if a.running > 0 {
		a.had += float64(a.running) / max(a.weight, 1) * now.Sub(a.at).Seconds()
	}
	a.at = now
}

// Urgency tells how a batch is to be weighed beside the others of its project. It is 1 while a fair
// share of slots is enough to be in time, and else how much more than that it would take, up to 16.
// remaining is how many requests are left, of which each takes perRequest, left the time there is.
func Urgency(remaining int64, perRequest time.Duration, fair int, left time.Duration) float64 {
	const most = 16
	if remaining <= 0 || perRequest <= 0 {
		return 1
	}
	if left <= 0 {
		return most
	}
	needs := float64(remaining) * perRequest.Seconds() / left.Seconds()
	return min(max(needs/float64(max(fair, 1)), 1), most)
}
