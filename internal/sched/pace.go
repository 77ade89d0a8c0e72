package sched

import (
	"math"
	"time"
)

// A Pace tells how fast the calls of a batch go, and so when it will be done. The zero value is
// ready.
//
// Answers are long or short by far, and those that come first are the short ones. So calls in flight
// count, too, with what they have taken so far; and as long as few long ones have ended, how long
// they are is taken from the shape that such lengths have as a rule, the log-normal one.
type Pace struct {
	meter    Meter
	begun    time.Time
	at       time.Time
	inFlight int
	sent     float64 // when the calls in flight were sent, in seconds since begun, added up
	slots    float64 // calls in flight, on average over the last moments

	// What is long ago counts less.
	aged    time.Time          // when it was last made to
	spent   float64            // seconds that calls were in flight
	results float64            // of calls
	took    [durations]float64 // calls with a result, by how long they took
}

const (
	durations = 96 // each a fifth longer than the one before, from 1 ms to ten hours
	// remembers is how long it takes for what a Pace knows to count a third of what is new.
	remembers = 10 * time.Minute
	// moments is the same for how many calls are in flight.
	moments = 20 * time.Second
)

// Send notes that a call goes out.
func (p *Pace) Send(now time.Time) {
	p.pass(now)
	p.inFlight++
	p.sent += now.Sub(p.begun).Seconds()
}

// Done notes that a call has ended which brought a result and took so long.
func (p *Pace) Done(took time.Duration, now time.Time) {
	p.end(took, now)
	p.results++
	p.took[bin(took)]++
	p.meter.Add(now)
}

// Drop notes that a call has ended which brought none, after so long.
func (p *Pace) Drop(took time.Duration, now time.Time) { p.end(took, now) }

func (p *Pace) end(took time.Duration, now time.Time) {
	p.pass(now)
	p.inFlight--
	p.sent -= now.Sub(p.begun).Seconds() - took.Seconds()
}

// Rate returns results per second, lately.
func (p *Pace) Rate(now time.Time) float64 { return p.meter.Rate(now) }

// PerRequest returns how long a request takes, calls that brought no result included; 0 if nobody
// can tell.
func (p *Pace) PerRequest() time.Duration {
	if p.results == 0 {
		return 0
	}
	return time.Duration(p.spent / p.results * float64(time.Second))
}

// ETA returns when so many requests will have their results, those in flight among them; zero if
// nobody can tell.
func (p *Pace) ETA(left int64, now time.Time) time.Time {
	p.pass(now)
	if left <= 0 {
		return now
	}
	waiting, slots := left-int64(p.inFlight), p.slots
	if waiting <= 0 {
		waiting, slots = 0, float64(left)
	}
	if p.results == 0 || slots < 0.01 {
		return time.Time{}
	}
	// Until the last one is sent all slots are in use, and then it takes as long as the longest of
	// those that are still in flight.
	each, last := p.lengths(min(slots, float64(left)))
	takes := float64(waiting)*each/slots + last
	const horizon = 10 * 365 * 24 * time.Hour
	if takes > horizon.Seconds() {
		return time.Time{}
	}
	return now.Add(time.Duration(takes * float64(time.Second)))
}

// lengths returns how long a request takes on average, and how long it takes until n calls have
// ended that are somewhere in their course.
func (p *Pace) lengths(n float64) (each, last float64) {
	shape := p.fit()
	each, last = p.spent/p.results, p.last(n)
	// The more is seen, the less need be supposed, most of all of the longest.
	each += (shape.mean() - each) / (1 + p.results/(4*float64(p.inFlight+1)))
	last += (shape.last(n) - last) / (1 + p.results/(20*float64(p.inFlight+1)))
	return each, last
}

// rarity is what part of the calls is so long as the longest of n.
func rarity(n float64) float64 { return 1 - math.Pow(0.57, 1/max(n, 1)) }

// last returns how long it takes until n calls have ended that are somewhere in their course, by
// those that have ended.
//
// A call that is somewhere in its course goes on for longer than x with a chance of what the
// lengths of all calls beyond x are of the lengths of all calls.
func (p *Pace) last(n float64) float64 {
	mean := 0.0
	for i, c := range p.took {
		mean += c * seconds(i)
	}
	wanted := rarity(n) * mean
	beyond, count := 0.0, 0.0 // lengths beyond seconds(i), of the calls that took longer
	for i := durations - 1; i > 0; i-- {
		count += p.took[i]
		step := seconds(i) - seconds(i-1)
		if beyond+count*step >= wanted && count > 0 {
			return seconds(i) - (wanted-beyond)/count
		}
		beyond += count * step
	}
	return 0
}

// A shape is a log-normal distribution.
type shape struct{ mu, sigma float64 }

// fit finds the likeliest shape, where of calls in flight it is known only that they are longer
// than their age: again and again, each is taken to be as long as it then would be on average.
func (p *Pace) fit() shape {
	n, sum, squares := 0.0, 0.0, 0.0
	for i, c := range p.took {
		l := math.Log(seconds(i))
		n += c
		sum += c * l
		squares += c * l * l
	}
	narrow := func(variance float64) float64 { return min(max(math.Sqrt(max(variance, 0)), 0.1), 2) }
	s := shape{mu: sum / n, sigma: narrow(squares/n - sum/n*sum/n)}
	k := float64(p.inFlight)
	if k == 0 {
		return s
	}
	age := math.Log(max(p.at.Sub(p.begun).Seconds()-p.sent/k, seconds(0)))
	for range 30 {
		z := (age - s.mu) / s.sigma
		above := normal(-z)
		if above < 1e-6 {
			break // far older than anything that has ended: not of this shape
		}
		hazard := s.sigma * math.Exp(-z*z/2) / math.Sqrt(2*math.Pi) / above
		mu := (sum + k*(s.mu+hazard)) / (n + k)
		square := (squares + k*(s.mu*s.mu+s.sigma*s.sigma+hazard*(age+s.mu))) / (n + k)
		s = shape{mu, narrow(square - mu*mu)}
	}
	return s
}

func (s shape) mean() float64 { return math.Exp(s.mu + s.sigma*s.sigma/2) }

// last is as last of Pace, for calls of this shape.
func (s shape) last(n float64) float64 {
	least, most := 0.0, 1000*s.mean()
	for range 40 {
		x := (least + most) / 2
		z := (s.mu - math.Log(x)) / s.sigma
		if beyond := s.mean()*normal(z+s.sigma) - x*normal(z); beyond > rarity(n)*s.mean() {
			least = x
		} else {
			most = x
		}
	}
	return least
}

// normal is the standard normal distribution.
func normal(z float64) float64 { return math.Erfc(-z/math.Sqrt2) / 2 }

func bin(d time.Duration) int {
	d = max(d, time.Millisecond)
	return min(int(math.Round(math.Log(float64(d)/float64(time.Millisecond))/math.Log(1.2))), durations-1)
}

func seconds(bin int) float64 { return 0.001 * math.Pow(1.2, float64(bin)) }

// pass lets time pass up to now.
func (p *Pace) pass(now time.Time) {
	if p.at.IsZero() {
		p.at, p.begun, p.aged = now, now, now
	}
	d := now.Sub(p.at).Seconds()
	if d <= 0 {
		return
	}
	p.at = now
	if since := now.Sub(p.aged); since > remembers/10 {
		less := math.Exp(-since.Seconds() / remembers.Seconds())
		p.spent *= less
		p.results *= less
		for i := range p.took {
			p.took[i] *= less
		}
		p.aged = now
	}
	p.spent += float64(p.inFlight) * d
	span := min(moments.Seconds(), now.Sub(p.begun).Seconds())
	p.slots += (float64(p.inFlight) - p.slots) * -math.Expm1(-d/span)
}
