package progress

import (
	"encoding/json"
	"io"
	"math"
	"sync"
	"time"
)

// JSON is the [Printer] for programs: one JSON object per line, told apart by "event".
//
// A progress event comes at the start, at every change of status, and at most every second
// while something changes:
//
//	{"event":"progress","time":"2026-11-21T12:04:10.250Z","batch":"batch_…","status":"in_progress",
//	 "total":50000,"completed":31242,"failed":3,"already":0,"in_flight":256,
//	 "input_tokens":1000000,"output_tokens":234567,"requests_per_second":412.5,
//	 "tokens_per_second":18300.1,"elapsed_seconds":75.2,"eta_seconds":45.5,"waiting_for":null}
//
// eta_seconds is null when it cannot be told, waiting_for when nothing is amiss. What a person
// would read above the bar is a message:
//
//	{"event":"message","time":"…","message":"created batch_…"}
//
// and the last line is the summary, see [Summary]. Fields may be added.
type JSON struct {
	mu       sync.Mutex // guards all, and one line at a time
	enc      *json.Encoder
	now      func() time.Time
	tracker  tracker
	throttle throttle
	closed   bool
}

var _ Printer = (*JSON)(nil)

// NewJSON writes events to w.
func NewJSON(w io.Writer) *JSON { return newJSON(w, time.Now) }

func newJSON(w io.Writer, now func() time.Time) *JSON {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return &JSON{enc: enc, now: now, throttle: throttle{every: time.Second}}
}

// Update implements [Printer].
func (j *JSON) Update(s Snapshot) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	j.tracker.update(s, j.now())
	if j.throttle.due(j.tracker.last) {
		j.print()
	}
}

// Message implements [Printer].
func (j *JSON) Message(text string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.enc.Encode(struct {
		Event   string `json:"event"`
		Time    string `json:"time"`
		Message string `json:"message"`
	}{"message", stamp(j.now()), text})
}

// Close implements [Printer].
func (j *JSON) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed && j.throttle.pending(j.tracker.last) {
		j.print()
	}
	j.closed = true
}

// Summary implements [Printer].
func (j *JSON) Summary(s Summary) {
	j.Close()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.enc.Encode(s.event())
}

type progressEvent struct {
	Event             string   `json:"event"`
	Time              string   `json:"time"`
	Batch             *string  `json:"batch"`
	Status            string   `json:"status"`
	Total             int64    `json:"total"`
	Completed         int64    `json:"completed"`
	Failed            int64    `json:"failed"`
	Already           int64    `json:"already"`
	InFlight          int      `json:"in_flight"`
	InputTokens       int64    `json:"input_tokens"`
	OutputTokens      int64    `json:"output_tokens"`
	RequestsPerSecond float64  `json:"requests_per_second"`
	TokensPerSecond   float64  `json:"tokens_per_second"`
	ElapsedSeconds    float64  `json:"elapsed_seconds"`
	ETASeconds        *float64 `json:"eta_seconds"`
	DeadlineAtRisk    *bool    `json:"deadline_at_risk"` // null where nobody knows
	WaitingFor        *string  `json:"waiting_for"`
}

func (j *JSON) print() {
	v := j.tracker.view(j.tracker.last.Time)
	e := progressEvent{
		Event: "progress", Time: stamp(v.Time), Batch: orNull(v.Batch), Status: v.Status,
		Total: v.Total, Completed: v.Completed, Failed: v.Failed, Already: v.Already,
		InFlight: v.InFlight, InputTokens: v.InputTokens, OutputTokens: v.OutputTokens,
		RequestsPerSecond: short(v.requestRate), TokensPerSecond: short(v.tokenRate),
		ElapsedSeconds: short(v.elapsed.Seconds()), WaitingFor: orNull(v.WaitingFor),
	}
	if v.etaKnown {
		left := short(v.eta.Seconds())
		e.ETASeconds = &left
	}
	if !v.ETA.IsZero() {
		e.DeadlineAtRisk = &v.AtRisk
	}
	j.enc.Encode(e)
}

// stamp writes t as RFC 3339 in UTC with milliseconds.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }

// short rounds x to three decimals, which is finer than anything measured here.
func short(x float64) float64 { return math.Round(x*1000) / 1000 }
