package progress

import (
	"math"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// feed adds one sample every step for d, with done growing by perSecond, and returns the end.
func feed(p *pace, from sample, d, step time.Duration, perSecond float64) sample {
	s := from
	for at := step; at <= d; at += step {
		s = sample{
			at:     from.at.Add(at),
			done:   from.done + int64(at.Seconds()*perSecond),
			tokens: from.tokens + 100*int64(at.Seconds()*perSecond),
		}
		p.add(s.at, s.done, s.tokens)
	}
	return s
}

func TestPace(t *testing.T) {
	start := sample{at: noon}
	tests := []struct {
		name     string
		run      func(p *pace)
		requests float64
		tokens   float64
	}{
		{"nothing", func(p *pace) {}, 0, 0},
		{"one sample", func(p *pace) { p.add(noon, 5, 500) }, 0, 0},
		{"same instant", func(p *pace) { p.add(noon, 0, 0); p.add(noon, 9, 9) }, 0, 0},
		{"steady", func(p *pace) {
			p.add(noon, 0, 0)
			feed(p, start, time.Minute, 100*time.Millisecond, 400)
		}, 400, 40000},
		{"first second", func(p *pace) {
			p.add(noon, 0, 0)
			feed(p, start, time.Second, 50*time.Millisecond, 40)
		}, 40, 4000},
		{"resumed work counts from where it stood", func(p *pace) {
			p.add(noon, 10000, 0)
			feed(p, sample{noon, 10000, 0}, 5*time.Second, time.Second, 2)
		}, 2, 0},
		{"faster than before: only the window counts", func(p *pace) {
			p.add(noon, 0, 0)
			s := feed(p, start, time.Minute, time.Second, 10)
			feed(p, s, 10*time.Second, time.Second, 100)
		}, 100, 10000},
		{"rare answers: the window reaches back", func(p *pace) {
			p.add(noon, 0, 0)
			feed(p, start, 10*time.Minute, 500*time.Millisecond, 1.0/10)
		}, 0.1, 10},
		{"stopped for 20 s: sinks", func(p *pace) {
			p.add(noon, 0, 0)
			s := feed(p, start, 30*time.Second, 500*time.Millisecond, 40)
			feed(p, s, 20*time.Second, 500*time.Millisecond, 0)
		}, 1, 100},
		{"stopped for long: zero", func(p *pace) {
			p.add(noon, 0, 0)
			s := feed(p, start, 30*time.Second, 500*time.Millisecond, 40)
			feed(p, s, 3*time.Minute, time.Second, 0)
		}, 0, 0},
		{"asked every 30 s", func(p *pace) {
			p.add(noon, 0, 0)
			feed(p, start, 10*time.Minute, 30*time.Second, 5)
		}, 5, 500},
		{"counts that shrink start anew", func(p *pace) {
			p.add(noon, 0, 0)
			s := feed(p, start, 20*time.Second, time.Second, 40)
			p.add(s.at.Add(time.Second), 1, 0)
		}, 0, 0},
		{"a clock that steps back starts anew", func(p *pace) {
			p.add(noon, 0, 0)
			p.add(noon.Add(-time.Hour), 10, 0)
			feed(p, sample{noon.Add(-time.Hour), 10, 0}, 10*time.Second, time.Second, 3)
		}, 3, 0},
		{"tokens known only at the end have no rate", func(p *pace) {
			p.add(noon, 100, 0)
			p.add(noon.Add(10*time.Second), 200, 1e6)
		}, 10, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p pace
			tt.run(&p)
			requests, tokens := p.rate()
			// Not exactly: whole answers meet sample times only roughly.
			if math.Abs(requests-tt.requests) > 0.15*tt.requests || tt.tokens > 0 && math.Abs(tokens-tt.tokens) > 0.15*tt.tokens {
				t.Errorf("rate() = %v, %v, want %v, %v", requests, tokens, tt.requests, tt.tokens)
			}
			if len(p.samples) > 500 {
				t.Errorf("%d samples kept", len(p.samples))
			}
		})
	}
}

func TestPaceETA(t *testing.T) {
	steady := func(perSecond float64) *pace {
		p := &pace{}
		p.add(noon, 0, 0)
		feed(p, sample{at: noon}, 20*time.Second, 100*time.Millisecond, perSecond)
		return p
	}
	tests := []struct {
		name      string
		pace      *pace
		remaining int64
		want      time.Duration
		known     bool
	}{
		{"nothing left", &pace{}, 0, 0, true},
		{"no rate yet", &pace{}, 10, 0, false},
		{"stands still", steady(0), 10, 0, false},
		{"steady", steady(10), 600, time.Minute, true},
		{"beyond belief", steady(1), 1e9, 0, false},
	}
	for _, tt := range tests {
		got, known := tt.pace.eta(tt.remaining)
		if known != tt.known || (got-tt.want).Abs() > time.Second {
			t.Errorf("%s: eta(%d) = %v, %v, want %v, %v", tt.name, tt.remaining, got, known, tt.want, tt.known)
		}
	}
}
