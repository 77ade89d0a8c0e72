package sched

import (
	"math"
	"slices"
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
	sent     []float64 // when the calls in flight were sent, in seconds since begun, the first first
	slots    float64   // calls in flight, on average over the last moments

	// What is long ago counts less.
	aged    time.Time          // when it was last made to
	spent   float64            // seconds that calls were in flight
	lost    float64            // of them, of calls that brought no result
	whole   float64            // seconds that calls with a result took
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
	p.sent = append(p.sent, now.Sub(p.begun).Seconds())
}

// Done notes that a call has ended which brought a result and took so long.
func (p *Pace) Done(took time.Duration, now time.Time) {
	p.end(took, now)
	p.results++
	p.whole += took.Seconds()
	p.took[bin(took)]++
	p.meter.Add(now)
}

// Drop notes that a call has ended which brought none, after so long.
func (p *Pace) Drop(took time.Duration, now time.Time) {
	p.end(took, now)
	p.lost += took.Seconds()
}

func (p *Pace) end(took time.Duration, now time.Time) {
	p.pass(now)
	p.inFlight--
	if n := len(p.sent); n > 0 {
		i, _ := slices.BinarySearch(p.sent, now.Sub(p.begun).Seconds()-took.Seconds()-1e-6)
		i = min(i, n-1)
		p.sent = slices.Delete(p.sent, i, i+1)
	}
}

// Rate returns results per second, lately.
func (p *Pace) Rate(now time.Time) float64 { return p.meter.Rate(now) }

// PerRequest returns how long a request takes, calls that brought no result included, and those in flight
// with what they have taken so far; 0 if nobody can tell.
func (p *Pace) PerRequest(now time.Time) time.Duration {
	if p.results == 0 {
		return 0
	}
	p.pass(now)
	return time.Duration(p.spent / p.results * float64(time.Second))
}

// Open returns what all calls in flight will come to, and what the next one, in calls like those that have
// ended: 0 if none has. The short ones end first, so those in flight are longer: what has gone on for long goes
// on for as long again, and none is shorter than the mean of all, for which what they have taken so far counts
// as well.
func (p *Pace) Open(now time.Time) (all, next float64) {
	if p.results == 0 || p.whole <= 0 {
		return 0, 0
	}
	p.pass(now)
	ended := p.whole / p.results
	next = max(1, (p.spent-p.lost)/p.whole)
	at := now.Sub(p.begun).Seconds()
	for _, sent := range p.sent {
		all += max(next, 2*(at-sent)/ended)
	}
	return all, next
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
	if p.results < 1e-6 || slots < 0.01 {
		return time.Time{}
	}
	// Until the last one is sent all slots are in use, and then it takes as long as the longest of
	// those that are still in flight.
	l := p.lengths()
	takes := l.last(float64(waiting), float64(waiting)*l.mean()*p.spent/max(p.spent-p.lost, p.spent/1e6)/slots, float64(left))
	const horizon = 10 * 365 * 24 * time.Hour
	if takes > horizon.Seconds() {
		return time.Time{}
	}
	return now.Add(time.Duration(takes * float64(time.Second)))
}

// A spans tells how long calls take, as a table.
type spans struct {
	longer [durations]float64 // the part of the calls that take longer than edge(i)
	time   [durations]float64 // seconds that a call spends before edge(i), on average
	scale  float64            // what the table's seconds come to
	ages   [durations]float64 // calls in flight, by how long they have taken so far
	flying float64
}

// lengths finds out how long calls take. Those that are in flight count with what they have taken so
// far, and for those that are longer than nearly all that have ended the shape has to do.
func (p *Pace) lengths() *spans {
	l := &spans{scale: 1, flying: float64(len(p.sent))}
	for _, at := range p.sent {
		l.ages[bin(time.Duration((p.at.Sub(p.begun).Seconds()-at)*float64(time.Second)))]++
	}
	shape := p.fit(&l.ages)
	seen, known, binned := 0.0, 0.0, 0.0
	for i, c := range p.took {
		known += c + l.ages[i]
		seen += c
		binned += c * seconds(i)
	}
	if p.whole > 0 && binned > 0 {
		l.scale = p.whole / binned
	}
	const few = 4
	part, before, joint := 1.0, 0.0, -1
	longest := durations - 1
	for longest > 0 && p.took[longest]+l.ages[longest] == 0 {
		longest--
	}
	for i, c := range p.took {
		switch at := edge(i); {
		case joint < 0 && known > min(few, seen):
			part *= 1 - min(1, c/max(known-l.ages[i]/2, c))
			known -= c + l.ages[i]
			l.longer[i] = part
		default:
			if joint < 0 {
				joint = i - 1
			}
			from := edge(max(joint, 0))
			if g := shape.longer(from); g > 1e-9 {
				l.longer[i] = part * shape.longer(at) / g
			} else {
				l.longer[i] = part * (from / at) * (from / at)
			}
		}
		if i > longest {
			l.longer[i] /= 1 + seen/1000 // the more have ended, the more likely there is a limit
		}
		last, start := 1.0, 0.0
		if i > 0 {
			last, start = l.longer[i-1], edge(i-1)
		}
		before += (edge(i) - start) * (last + l.longer[i]) / 2
		l.time[i] = before
	}
	return l
}

// mean returns how many seconds a call takes.
func (l *spans) mean() float64 { return l.time[durations-1] * l.scale }

// at returns which part of the calls takes longer than x seconds, and how many seconds a call spends
// before x.
func (l *spans) at(x float64) (longer, spent float64) {
	x /= l.scale
	if x <= 0 {
		return 1, 0
	}
	i := max(0, int(math.Ceil(math.Log(x/edge(0))/math.Log(1.2))))
	if i >= durations {
		return 0, l.time[durations-1] * l.scale
	}
	last, start, before := 1.0, 0.0, 0.0
	if i > 0 {
		last, start, before = l.longer[i-1], edge(i-1), l.time[i-1]
	}
	longer = last + (l.longer[i]-last)*(x-start)/(edge(i)-start)
	return longer, (before + (x-start)*(last+longer)/2) * l.scale
}

// last returns in how many seconds the last call ends, as likely sooner as later, where so many are
// sent evenly until drain, and left have not ended.
func (l *spans) last(waiting, drain, left float64) float64 {
	share := 1.0 // of those in flight that count
	if left < l.flying {
		share = left / l.flying
	}
	// doubt is the negative logarithm of the chance that all have ended by t.
	doubt := func(t float64) (d float64) {
		if waiting > 0 {
			_, all := l.at(t)
			_, some := l.at(t - drain)
			d = waiting / max(drain, 1e-9) * (all - some)
		}
		for i, n := range l.ages {
			if n == 0 {
				continue
			}
			age := seconds(i)
			longer, _ := l.at(age)
			still, _ := l.at(age + t)
			odds := age / (age + t) // older than any that is known
			if longer > 1e-9 {
				odds = still / longer
			}
			d -= share * n * math.Log(max(1-odds, 1e-9))
		}
		return d
	}
	least, most := drain, drain+2*edge(durations-1)
	for range 60 {
		if t := (least + most) / 2; doubt(t) > math.Ln2 {
			least = t
		} else {
			most = t
		}
	}
	return most
}

// A shape is a log-normal distribution.
type shape struct{ mu, sigma float64 }

// fit finds the likeliest shape, where of calls in flight it is known only that they are longer
// than their age: again and again, each is taken to be as long as it then would be on average.
func (p *Pace) fit(ages *[durations]float64) shape {
	n, sum, squares := 0.0, 0.0, 0.0
	for i, c := range p.took {
		l := math.Log(seconds(i))
		n += c
		sum += c * l
		squares += c * l * l
	}
	narrow := func(variance float64) float64 { return min(max(math.Sqrt(max(variance, 0)), 0.1), 2) }
	s := shape{mu: sum / n, sigma: narrow(squares/n - sum/n*sum/n)}
	for range 30 {
		all, mean, square := n, sum, squares
		for i, k := range ages {
			if k == 0 {
				continue
			}
			age := math.Log(seconds(i))
			z := (age - s.mu) / s.sigma
			above := normal(-z)
			if above < 1e-6 {
				continue // far older than anything that has ended: not of this shape
			}
			hazard := s.sigma * math.Exp(-z*z/2) / math.Sqrt(2*math.Pi) / above
			all += k
			mean += k * (s.mu + hazard)
			square += k * (s.mu*s.mu + s.sigma*s.sigma + hazard*(age+s.mu))
		}
		mean /= all
		s = shape{mean, narrow(square/all - mean*mean)}
	}
	return s
}

// longer is which part of the calls takes longer than x seconds.
func (s shape) longer(x float64) float64 { return normal((s.mu - math.Log(x)) / s.sigma) }

// normal is the standard normal distribution.
func normal(z float64) float64 { return math.Erfc(-z/math.Sqrt2) / 2 }

func bin(d time.Duration) int {
	d = max(d, time.Millisecond)
	return min(int(math.Round(math.Log(float64(d)/float64(time.Millisecond))/math.Log(1.2))), durations-1)
}

func seconds(bin int) float64 { return 0.001 * math.Pow(1.2, float64(bin)) }

// edge is where a bin ends.
func edge(bin int) float64 { return 0.001 * math.Pow(1.2, float64(bin)+0.5) }

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
		p.lost *= less
		p.whole *= less
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
