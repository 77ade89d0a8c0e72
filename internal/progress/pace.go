package progress

import "time"

// A pace reckons how fast requests are answered right now. It reads no clock: time comes in
// with the counts.
//
// The rate is taken over the last 10 s. Where answers are rare that would flicker between
// nothing and too much, so the window reaches further back until it holds 10 answers, but at
// most 2 minutes. After a stop the rate therefore sinks gradually, and is 0 after 2 minutes.
type pace struct {
	samples []sample // oldest first
}

type sample struct {
	at     time.Time
	done   int64
	tokens int64
}

const (
	paceWindow  = 10 * time.Second
	paceAnswers = 10
	paceHorizon = 2 * time.Minute
	paceSpacing = 250 * time.Millisecond // bounds the number of samples kept
)

// add notes that done requests were answered and tokens counted by the time at.
func (p *pace) add(at time.Time, done, tokens int64) {
	s := sample{at, done, tokens}
	n := len(p.samples)
	if n > 0 {
		last := p.samples[n-1]
		if done < last.done || tokens < last.tokens || at.Before(last.at) {
			// Not the same work, or not the same clock.
			p.samples = append(p.samples[:0], s)
			return
		}
	}
	if n > 1 && at.Sub(p.samples[n-2].at) < paceSpacing {
		p.samples[n-1] = s // the newest always stands, earlier ones are thinned out
	} else {
		p.samples = append(p.samples, s)
	}

	// Keep one sample at or before the horizon, so that the window is never short of it.
	old := 0
	for old+1 < len(p.samples) && at.Sub(p.samples[old+1].at) >= paceHorizon {
		old++
	}
	p.samples = append(p.samples[:0], p.samples[old:]...)
}

// rate returns the answers and the tokens per second.
func (p *pace) rate() (requests, tokens float64) {
	if len(p.samples) < 2 {
		return 0, 0
	}
	newest := p.samples[len(p.samples)-1]
	from := p.samples[0]
	for i := len(p.samples) - 2; i > 0; i-- {
		s := p.samples[i]
		if newest.at.Sub(s.at) >= paceWindow && newest.done-s.done >= paceAnswers {
			from = s
			break
		}
	}
	d := newest.at.Sub(from.at).Seconds()
	if d <= 0 {
		return 0, 0
	}
	requests = float64(newest.done-from.done) / d
	if from.tokens > 0 || from.done == 0 { // else tokens became known in between, all at once
		tokens = float64(newest.tokens-from.tokens) / d
	}
	return requests, tokens
}

// eta returns how long the remaining requests will take at this pace, and whether that can be
// told at all.
func (p *pace) eta(remaining int64) (time.Duration, bool) {
	if remaining <= 0 {
		return 0, true
	}
	requests, _ := p.rate()
	if requests <= 0 {
		return 0, false
	}
	left := float64(remaining) / requests
	if left > (100 * 24 * time.Hour).Seconds() {
		return 0, false // a number nobody believes
	}
	return time.Duration(left * float64(time.Second)), true
}
