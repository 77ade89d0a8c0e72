// Package progress shows how a batch goes: to a person at a terminal as a bar, to a log as a
// plain line now and then, to a program as JSON lines.
//
// The caller pushes a [Snapshot] whenever it knows something new, however often that is; the
// [Printer] decides what is worth showing. Rates and the time left are reckoned here, from the
// snapshots of the last seconds. When the work ends, Summary says what came of it:
//
//	p := progress.NewBar(os.Stderr, true)
//	defer p.Close()
//	for s := range snapshots {
//		p.Update(s)
//	}
//	p.Summary(progress.Summary{Status: "completed", …})
//
// The package reads no environment and asks no terminal whether it is one: who constructs the
// Printer decides. Printers write on a best-effort basis and report no errors, because a
// terminal that went away is no reason to stop the work.
package progress

import (
	"bytes"
	"io"
	"time"
)

// A Printer shows the progress of one batch. Its methods may be called from any goroutine.
type Printer interface {
	// Update shows s, or remembers it until the next line or frame is due. It never waits for
	// the terminal.
	Update(s Snapshot)

	// Message shows text, one line or several, above the bar or between the lines.
	Message(text string)

	// Close shows the last snapshot, if it was not, and returns when that is written. Closing
	// again does nothing; updates after it are ignored, messages still appear.
	Close()

	// Summary closes the Printer and shows what came of the work.
	Summary(s Summary)
}

// A Snapshot is how a batch stands at one moment.
type Snapshot struct {
	Time    time.Time // when this was so; the zero time means now
	Started time.Time // when the work began; the zero time means at the first snapshot

	Batch  string // its id; may be empty
	Status string // as the API names it

	Total     int64 // requests; 0 while unknown
	Completed int64 // succeeded so far
	Failed    int64 // failed so far
	Already   int64 // how many of Completed and Failed an earlier run had recorded

	InputTokens  int64 // 0 while unknown
	OutputTokens int64
	InFlight     int // sent and unanswered
	// Rate is how many requests a second get their result, as a server tells it. It counts as long as too
	// little has been seen to tell. 0: nobody says.
	Rate float64

	// WaitingFor says what holds the work, or part of it, up, in a few words: "lane m: all upstreams
	// unreachable since 12:03". Empty when nothing is amiss.
	WaitingFor string

	// ETA is when a server that knows of other work too reckons to be done. The zero time
	// means to reckon it from the recent rate.
	ETA time.Time
	// AtRisk tells that ETA is after the deadline.
	AtRisk bool
}

// Done returns how many requests of s have their final answer.
func (s Snapshot) Done() int64 { return s.Completed + s.Failed }

func (s Snapshot) tokens() int64 { return s.InputTokens + s.OutputTokens }

// Writer returns a writer whose lines become messages of p, so that a logger can share the
// terminal with a bar. Each Write should hold whole lines, as those of log and log/slog do.
func Writer(p Printer) io.Writer { return messages{p} }

type messages struct{ p Printer }

func (m messages) Write(b []byte) (int, error) {
	m.p.Message(string(bytes.TrimSuffix(b, []byte("\n"))))
	return len(b), nil
}
