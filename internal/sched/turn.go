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

// memory is how long it takes until what a contender has had more or less than others counts like
// one call in flight.
const memory = 30 * time.Second

// Next returns the index of the contender who makes the next call, or -1 if there is none: the one
// with the least in flight per weight, then the earliest deadline, then the oldest.
//
// What a contender has had beyond its due counts like calls in flight, up to one of them, and what it
// lacks likewise. Slots are whole: of five that four share, somebody has two, and it must not be the
// same for ever.
func Next(c []Contender) int {
	mean := Mean(c)
	best, least := -1, 0.0
	for i := range c {
		load := c[i].load(mean)
		if best < 0 || load < least || load == least && older(&c[i], &c[best]) {
			best, least = i, load
		}
	}
	return best
}

// Mean returns what the contenders have had on average, per weight.
func Mean(c []Contender) float64 {
	had, weight := 0.0, 0.0
	for i := range c {
		had += c[i].Had * c[i].Weight
		weight += c[i].Weight
	}
	return had / weight
}

func (c *Contender) load(mean float64) float64 {
	beyond := (c.Had - mean) * c.Weight / memory.Seconds()
	return (float64(c.Running) + min(max(beyond, -1), 1)) / c.Weight
}

func older(a, b *Contender) bool {
	return cmp.Or(a.Deadline.Compare(b.Deadline), cmp.Compare(a.Age, b.Age)) < 0
}

// An Account keeps what a contender has had: its slots, each for as long as it had it, per weight.
type Account struct {
	running int
	weight  float64
	had     float64 // slot seconds per weight
	at      time.Time
}

// Join has an account begin, or begin again, beside those that have work: whoever comes now has
// missed nothing, and need not make up for it.
func (a *Account) Join(others []Contender) {
	if len(others) > 0 {
		a.had = max(a.had, Mean(others))
	}
}

// Settle has the account forget what it lacks beyond a little, where others have had so much on
// average: whoever could have had more and had no use for it has no claim to it later.
func (a *Account) Settle(mean float64) { a.had = max(a.had, mean-memory.Seconds()) }

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
// remaining is how many requests are left, of which each takes perRequest, left the time there is. A
// share may be less than a slot, as where limits a minute leave one unused now and then.
func Urgency(remaining int64, perRequest time.Duration, fair float64, left time.Duration) float64 {
	const most = 16
	if remaining <= 0 || perRequest <= 0 {
		return 1
	}
	if left <= 0 || fair <= 0 {
		return most
	}
	needs := float64(remaining) * perRequest.Seconds() / left.Seconds()
	return min(max(needs/fair, 1), most)
}

// Concede returns the urgency of a batch that needs such a part of all slots there are for its project, beside
// one that presses and can be in time. It cannot itself if it needs more than all; what it had of them would
// have the other be late as well. One that needs half as many again does not press at all.
func Concede(urgency, part float64) float64 {
	const hopeless = 1.5
	return 1 + (urgency-1)*min(max((hopeless-part)/(hopeless-1), 0), 1)
}
