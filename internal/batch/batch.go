// Package batch says what Offpeak works with: projects, files, batches, segments, requests and
// their results, the machine that a batch's status follows, and the JSON Lines format of inputs
// and outputs with every rule for them.
//
// The package is pure. It reads no clock, opens no file and knows neither SQL nor HTTP; whoever
// uses it passes the time in and writes the outcome down. What the API calls a thing, this
// package calls it too. Rules cite their source as "contract B-03": docs/contract.md lists them.
package batch

import (
	"time"
)

// A Project owns files and batches. Projects do not see each other.
type Project struct {
	ID        string
	Name      string
	Weight    int // share of an upstream relative to other projects, at least 1
	CreatedAt time.Time
}

// DefaultProject owns everything on a server that has no keys.
const DefaultProject = "proj_default"

// A Batch is the user's unit of work: one input file, run to a terminal status.
//
// Zero times are unset. Every timestamp goes from unset to set once (contract B-03).
type Batch struct {
	ID       string
	Project  string
	Endpoint string // of every request, such as "/v1/chat/completions"
	Model    string // of every request; empty before validation has ended, and where models are mixed

	InputFileID  string
	OutputFileID string // drawn at create; empty once the batch is terminal without such a file
	ErrorFileID  string // likewise
	// OutputExpiresAfter is how long output and error file are kept after their creation.
	OutputExpiresAfter time.Duration

	CompletionWindow string            // as the user wrote it, such as "24h"
	Metadata         map[string]string // nil if the user sent none

	Status Status
	// Ending is the terminal status that the batch heads for: empty while it runs, then
	// completed, expired or cancelled from the moment its end is decided.
	Ending Status

	Counts Counts
	Usage  Usage
	Errors []LineError // why validation failed; only with status failed

	CreatedAt    time.Time
	ExpiresAt    time.Time // the deadline
	InProgressAt time.Time
	FinalizingAt time.Time
	CompletedAt  time.Time
	FailedAt     time.Time
	ExpiredAt    time.Time
	CancellingAt time.Time
	CancelledAt  time.Time
}

// Counts are a batch's requests: how many there are, how many succeeded, how many were executed
// and failed. Requests that were never executed count only in Total (contract C-03).
type Counts struct {
	Total, Completed, Failed int64
}

// Usage is the sum of tokens over successful requests (contract B-06).
type Usage struct {
	Input, Cached, Output, Reasoning, Total int64
}

// Add adds v to u.
func (u *Usage) Add(v Usage) {
	u.Input += v.Input
	u.Cached += v.Cached
	u.Output += v.Output
	u.Reasoning += v.Reasoning
	u.Total += v.Total
}

// A Tally is what has been recorded of a set of requests.
type Tally struct {
	Completed, Failed int64
	Usage             Usage
}

// Add adds o to t.
func (t *Tally) Add(o Tally) {
	t.Completed += o.Completed
	t.Failed += o.Failed
	t.Usage.Add(o.Usage)
}

// Recorded is the number of requests in t.
func (t Tally) Recorded() int64 { return t.Completed + t.Failed }

// DefaultRetention is how long batch inputs and results are kept where nobody says otherwise
// (contract FI-05, CR-01).
const DefaultRetention = 30 * 24 * time.Hour

// ResultFile describes the file that holds part of b's results, as it is born at now. Its parts
// are filled in by whoever knows them. Names follow contract FI-18.
func (b *Batch) ResultFile(id, which string, now time.Time) File {
	return File{
		ID: id, Project: b.Project, Purpose: PurposeBatchOutput,
		Filename:  b.ID + "_" + which + ".jsonl",
		CreatedAt: now, ExpiresAt: now.Add(b.OutputExpiresAfter),
	}
}

// Activity is what goes on for one batch at one moment.
type Activity struct {
	InFlight int       // requests sent and unanswered
	Rate     float64   // results a second, lately
	ETA      time.Time // when it will be done, as things go; zero if nobody can tell
	AtRisk   bool      // whether that is after its deadline
	// WaitingFor is a short sentence about what holds it, or a lane of it, up. Empty if all moves.
	WaitingFor string
}
