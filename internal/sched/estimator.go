package sched

import "math"

// An Estimator tells what things of one kind may come to, from what others came to. The zero value has
// seen nothing.
type Estimator struct {
	seen     float64 // at most recall, as what was long ago says less
	mean     float64
	variance float64
}

const (
	// recall is how many of the last an estimate rests upon.
	recall = 256
	// certainty is how many deviations are allowed for.
	certainty = 3
)

// Known says whether anything has been seen.
func (e *Estimator) Known() bool { return e.seen > 0 }

// Mean is what one comes to on average.
func (e *Estimator) Mean() float64 { return e.mean }

// Learn notes what one came to.
func (e *Estimator) Learn(v float64) {
	e.seen = min(e.seen+1, recall)
	d := v - e.mean
	e.mean += d / e.seen
	e.variance += (d*(v-e.mean) - e.variance) / e.seen
}

// Reserve returns how much to set aside for one of so many that are open at once, for all together to
// keep within what is set aside for them. Alone, one may be far from the mean; of many, what some are
// above it others are below, and what remains is how well the mean is known.
func (e *Estimator) Reserve(open int) float64 {
	if !e.Known() {
		return 0
	}
	// A few that are alike by chance do not say that all are.
	deviation := max(math.Sqrt(e.variance), e.mean/math.Sqrt(e.seen))
	return e.mean + certainty*deviation*(1/math.Sqrt(float64(max(open, 1)))+1/math.Sqrt(e.seen))
}
