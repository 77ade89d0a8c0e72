package progress

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// A Summary says what came of a batch. Printers for people show it as a few lines, leaving out
// what is empty; the JSON printer as the event
//
//	{"event":"summary","batch":"batch_…","status":"completed","total":50000,"completed":49996,
//	 "failed":4,"already":0,"unanswered":0,"input_tokens":…,"output_tokens":…,
//	 "elapsed_seconds":125.3,"requests_per_second":399.0,
//	 "error_codes":{"invalid_value":3,"batch_expired":1},
//	 "problems":[{"line":3,"code":"invalid_url","param":"url","message":"…"}],
//	 "output_file":"out.jsonl","error_file":null,"next":null}
//
// in which strings that are empty here are null.
type Summary struct {
	Batch  string // its id; may be empty
	Status string // as the API names it; of a run here, "interrupted" or "refused" where the API has no word

	Total     int64
	Completed int64
	Failed    int64
	Already   int64 // how many of Completed and Failed an earlier run had recorded

	InputTokens  int64
	OutputTokens int64
	Elapsed      time.Duration

	Codes    map[string]int64 // how many lines of the error file have which error code
	Problems []Problem        // why validation refused the input

	OutputFile string // a path, or the id of a file on the server
	ErrorFile  string
	Next       string // a sentence about how to go on, if there is more to do
}

// A Problem is one reason why an input was refused.
type Problem struct {
	Line    int64 // of the input, from 1; 0 if it is not about one line
	Code    string
	Param   string
	Message string
}

// String returns p as one line of text.
func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Code != "" {
		b.WriteString(p.Code + ": ")
	}
	b.WriteString(oneLine(p.Message))
	if p.Param != "" && !strings.Contains(p.Message, p.Param) {
		b.WriteString(" (" + p.Param + ")")
	}
	return b.String()
}

// RequestsPerSecond returns how many requests were answered per second of Elapsed, not
// counting those of an earlier run.
func (s Summary) RequestsPerSecond() float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(max(0, s.Completed+s.Failed-s.Already)) / s.Elapsed.Seconds()
}

// unanswered returns how many requests have no final answer: the batch expired, was cancelled,
// or is not done.
func (s Summary) unanswered() int64 { return max(0, s.Total-s.Completed-s.Failed) }

// text writes s for a person:
//
//	batch_… completed: 49,996 of 50,000 succeeded, 4 failed
//	  errors    invalid_value: 3, batch_expired: 1
//	  tokens    12,345,678 in, 3,456,789 out
//	  time      2:05, 399 requests/s
//	  output    out.jsonl
//	  failed    out.errors.jsonl
func (s Summary) text() string {
	var b strings.Builder
	if s.Batch != "" {
		b.WriteString(s.Batch + " ")
	}
	b.WriteString(s.Status)
	if s.Total > 0 {
		fmt.Fprintf(&b, ": %s of %s succeeded", humanize.Comma(s.Completed), humanize.Comma(s.Total))
		if s.Failed > 0 {
			fmt.Fprintf(&b, ", %s failed", humanize.Comma(s.Failed))
		}
		if n := s.unanswered(); n > 0 {
			fmt.Fprintf(&b, ", %s not answered", humanize.Comma(n))
		}
		if s.Already > 0 {
			fmt.Fprintf(&b, " (%s of them before)", humanize.Comma(s.Already))
		}
	}
	b.WriteString("\n")
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "  %s\n", p)
	}

	row := func(name, text string) {
		if text != "" {
			fmt.Fprintf(&b, "  %-9s %s\n", name, text)
		}
	}
	row("errors", s.codes())
	if s.InputTokens+s.OutputTokens > 0 {
		row("tokens", fmt.Sprintf("%s in, %s out", humanize.Comma(s.InputTokens), humanize.Comma(s.OutputTokens)))
	}
	if s.Elapsed > 0 {
		took := clock(s.Elapsed)
		if s.Elapsed < time.Minute {
			took = fmt.Sprintf("%.1f s", s.Elapsed.Seconds())
		}
		row("time", fmt.Sprintf("%s, %s requests/s", took, rate(s.RequestsPerSecond())))
	}
	row("output", s.OutputFile)
	row("failed", s.ErrorFile)
	if s.Next != "" {
		b.WriteString(s.Next + "\n")
	}
	return b.String()
}

// codes lists the error codes, the most frequent first.
func (s Summary) codes() string {
	names := slices.SortedFunc(maps.Keys(s.Codes), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.Codes[b], s.Codes[a]), cmp.Compare(a, b))
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s: %s", oneLine(name), humanize.Comma(s.Codes[name]))
	}
	return strings.Join(names, ", ")
}

type summaryEvent struct {
	Event             string           `json:"event"`
	Batch             *string          `json:"batch"`
	Status            string           `json:"status"`
	Total             int64            `json:"total"`
	Completed         int64            `json:"completed"`
	Failed            int64            `json:"failed"`
	Already           int64            `json:"already"`
	Unanswered        int64            `json:"unanswered"`
	InputTokens       int64            `json:"input_tokens"`
	OutputTokens      int64            `json:"output_tokens"`
	ElapsedSeconds    float64          `json:"elapsed_seconds"`
	RequestsPerSecond float64          `json:"requests_per_second"`
	ErrorCodes        map[string]int64 `json:"error_codes"`
	Problems          []problemEvent   `json:"problems"`
	OutputFile        *string          `json:"output_file"`
	ErrorFile         *string          `json:"error_file"`
	Next              *string          `json:"next"`
}

type problemEvent struct {
	Line    *int64  `json:"line"`
	Code    *string `json:"code"`
	Param   *string `json:"param"`
	Message string  `json:"message"`
}

func (s Summary) event() summaryEvent {
	e := summaryEvent{
		Event: "summary", Batch: orNull(s.Batch), Status: s.Status,
		Total: s.Total, Completed: s.Completed, Failed: s.Failed, Already: s.Already,
		Unanswered:  s.unanswered(),
		InputTokens: s.InputTokens, OutputTokens: s.OutputTokens,
		ElapsedSeconds: short(s.Elapsed.Seconds()), RequestsPerSecond: short(s.RequestsPerSecond()),
		ErrorCodes: s.Codes, Problems: []problemEvent{},
		OutputFile: orNull(s.OutputFile), ErrorFile: orNull(s.ErrorFile), Next: orNull(s.Next),
	}
	if e.ErrorCodes == nil {
		e.ErrorCodes = map[string]int64{}
	}
	for _, p := range s.Problems {
		e.Problems = append(e.Problems, problemEvent{orNull(p.Line), orNull(p.Code), orNull(p.Param), p.Message})
	}
	return e
}

// orNull returns nil, which JSON shows as null, for a zero value.
func orNull[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
