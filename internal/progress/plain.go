package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
)

// Plain is the [Printer] for logs and pipes: one line at the start, then one at most every 5 s
// while something changes, and one whenever the status does.
type Plain struct {
	mu       sync.Mutex // guards all, and one line at a time on w
	w        io.Writer
	tracker  tracker
	throttle throttle
	closed   bool
}

var _ Printer = (*Plain)(nil)

// NewPlain writes lines to w.
func NewPlain(w io.Writer) *Plain {
	return &Plain{w: w, throttle: throttle{every: 5 * time.Second}}
}

// Update implements [Printer].
func (p *Plain) Update(s Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.tracker.update(s, time.Now())
	if p.throttle.due(p.tracker.last) {
		p.print()
	}
}

// Message implements [Printer].
func (p *Plain) Message(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.w, text)
}

// Close implements [Printer].
func (p *Plain) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && p.throttle.pending(p.tracker.last) {
		p.print()
	}
	p.closed = true
}

// Summary implements [Printer].
func (p *Plain) Summary(s Summary) {
	p.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	io.WriteString(p.w, s.text())
}

// print writes the line
//
//	in_progress: 31,245 of 50,000 (62%), 3 failed, 412 req/s, 1:15 elapsed, ETA 0:45; waiting: …
func (p *Plain) print() {
	v := p.tracker.view(p.tracker.last.Time)
	var parts []string
	if v.Total > 0 {
		parts = append(parts, fmt.Sprintf("%s of %s (%d%%)", humanize.Comma(v.Done()), humanize.Comma(v.Total), v.percent()))
	}
	for _, f := range v.fields() {
		parts = append(parts, f.text)
	}
	line := strings.Join(parts, ", ")
	if v.Status != "" {
		line = v.Status + ": " + line
	}
	if v.WaitingFor != "" && !v.ended() {
		line += "; waiting: " + oneLine(v.WaitingFor)
	}
	fmt.Fprintln(p.w, line)
}

// A throttle picks the snapshots that are worth a line, by the time that they carry.
type throttle struct {
	every time.Duration // between lines that only count further

	any  bool
	last Snapshot // the last one picked
}

// due reports whether s is worth a line now, and then takes it for the last one picked. A new
// status always is; the start or end of waiting is a second after the line before.
func (t *throttle) due(s Snapshot) bool {
	age := s.Time.Sub(t.last.Time)
	switch {
	case !t.any, s.Status != t.last.Status:
	case (s.WaitingFor != "") != (t.last.WaitingFor != "") && age >= min(time.Second, t.every):
	case t.pending(s) && age >= t.every:
	default:
		return false
	}
	t.any, t.last = true, s
	return true
}

// pending reports whether s says anything that the last one picked did not.
func (t *throttle) pending(s Snapshot) bool {
	if s.Time.IsZero() {
		return false // no snapshot ever came
	}
	a, b := s, t.last
	for _, s := range []*Snapshot{&a, &b} {
		s.Time, s.Started, s.ETA, s.InFlight = time.Time{}, time.Time{}, time.Time{}, 0
	}
	return !t.any || a != b
}
