package progress

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vbauerster/mpb/v8"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// at returns a snapshot of a batch of 100, seconds after noon.
func at(seconds float64, completed int64) Snapshot {
	return Snapshot{
		Time: noon.Add(time.Duration(seconds * float64(time.Second))), Batch: "batch_1",
		Status: "in_progress", Total: 100, Completed: completed,
	}
}

func with(s Snapshot, change func(*Snapshot)) Snapshot {
	change(&s)
	return s
}

// run is the life of one batch, with more snapshots than anyone wants to read.
func run(p Printer) {
	p.Update(Snapshot{Time: noon, Batch: "batch_1", Status: "validating"})
	p.Update(Snapshot{Time: noon.Add(time.Second), Batch: "batch_1", Status: "validating"})
	p.Update(at(2, 0))
	for i := range 100 {
		p.Update(at(2+float64(i)/10, int64(i/2)))
	}
	p.Message("upstream is gone")
	const gone = "upstream http://localhost:8000/v1 unreachable since 12:00"
	for i := range 100 {
		p.Update(with(at(12+float64(i)/10, 49), func(s *Snapshot) { s.WaitingFor = gone }))
	}
	p.Update(at(22, 49))
	p.Update(with(at(24, 97), func(s *Snapshot) { s.Status, s.Failed = "finalizing", 3 }))
	p.Update(with(at(24.1, 97), func(s *Snapshot) { s.Status, s.Failed, s.OutputTokens = "completed", 3, 5000 }))
}

var ended = Summary{
	Batch: "batch_1", Status: "completed", Total: 100, Completed: 97, Failed: 3,
	InputTokens: 12345, OutputTokens: 5000, Elapsed: 20 * time.Second,
	Codes:      map[string]int64{"invalid_value": 2, "server_error": 1},
	OutputFile: "out.jsonl", ErrorFile: "out.errors.jsonl",
}

const endedText = `batch_1 completed: 97 of 100 succeeded, 3 failed
  errors    invalid_value: 2, server_error: 1
  tokens    12,345 in, 5,000 out
  time      20.0 s, 5.0 requests/s
  output    out.jsonl
  failed    out.errors.jsonl
`

func TestPlain(t *testing.T) {
	var buf bytes.Buffer
	p := NewPlain(&buf)
	run(p)
	p.Summary(ended)
	p.Summary(Summary{Status: "again"}) // harmless
	p.Update(at(99, 99))                // too late, ignored
	want := `validating: 0:00 elapsed
in_progress: 0 of 100 (0%), 0 req/s, 0:02 elapsed, ETA –
in_progress: 25 of 100 (25%), 5.0 req/s, 0:07 elapsed, ETA 0:15
upstream is gone
in_progress: 49 of 100 (49%), 4.9 req/s, 0:12 elapsed, ETA –; waiting: upstream http://localhost:8000/v1 unreachable since 12:00
in_progress: 49 of 100 (49%), 0.82 req/s, 0:22 elapsed, ETA 1:02
finalizing: 100 of 100 (100%), 3 failed, 5.1 req/s, 0:24 elapsed, ETA 0:00
completed: 100 of 100 (100%), 3 failed, 5.0 req/s, 5,000 tokens, 0:24 elapsed
` + endedText + "again\n"
	got := buf.String()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPlainShowsTheLastSnapshotOnClose(t *testing.T) {
	var buf bytes.Buffer
	p := NewPlain(&buf)
	p.Update(at(0, 0))
	p.Update(at(1, 10)) // within 5 s of the line before
	p.Close()
	p.Close()
	if got := strings.Count(buf.String(), "\n"); got != 2 || !strings.Contains(buf.String(), "10 of 100") {
		t.Errorf("got\n%s", buf.String())
	}
	buf.Reset()
	p = NewPlain(&buf)
	p.Close()
	if buf.Len() > 0 {
		t.Errorf("without a snapshot: %q", buf.String())
	}
}

func TestJSON(t *testing.T) {
	var buf bytes.Buffer
	j := newJSON(&buf, func() time.Time { return noon })
	run(j)
	j.Summary(ended)

	lines := strings.Split(strings.TrimSuffix(buf.String(), "\n"), "\n")
	var events []string
	for _, line := range lines {
		var e struct{ Event, Status string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if n := len(events); n == 0 || events[n-1] != e.Event+" "+e.Status {
			events = append(events, e.Event+" "+e.Status)
		}
	}
	wantEvents := "progress validating,progress in_progress,message ,progress in_progress,progress finalizing,progress completed,summary completed"
	if got := strings.Join(events, ","); got != wantEvents {
		t.Errorf("events %s, want %s", got, wantEvents)
	}
	if len(lines) > 2+10+1+3+4 { // a line per second while it moves, not per snapshot
		t.Errorf("%d lines", len(lines))
	}

	// Every field, for those who parse them.
	for prefix, want := range map[string]string{
		`{"event":"progress","time":"2026-11-21T12:00:00.000Z"`: `{"event":"progress","time":"2026-11-21T12:00:00.000Z","batch":"batch_1","status":"validating","total":0,"completed":0,"failed":0,"already":0,"in_flight":0,"input_tokens":0,"output_tokens":0,"requests_per_second":0,"tokens_per_second":0,"elapsed_seconds":0,"eta_seconds":null,"deadline_at_risk":null,"waiting_for":null}`,
		`{"event":"progress","time":"2026-11-21T12:00:07.000Z"`: `{"event":"progress","time":"2026-11-21T12:00:07.000Z","batch":"batch_1","status":"in_progress","total":100,"completed":25,"failed":0,"already":0,"in_flight":0,"input_tokens":0,"output_tokens":0,"requests_per_second":5,"tokens_per_second":0,"elapsed_seconds":7,"eta_seconds":15,"deadline_at_risk":null,"waiting_for":null}`,
		`{"event":"message"`: `{"event":"message","time":"2026-11-21T12:00:00.000Z","message":"upstream is gone"}`,
		`{"event":"summary"`: `{"event":"summary","batch":"batch_1","status":"completed","total":100,"completed":97,"failed":3,"already":0,"unanswered":0,"input_tokens":12345,"output_tokens":5000,"elapsed_seconds":20,"requests_per_second":5,"error_codes":{"invalid_value":2,"server_error":1},"problems":[],"output_file":"out.jsonl","error_file":"out.errors.jsonl","next":null}`,
	} {
		found := ""
		for _, line := range lines {
			if strings.HasPrefix(line, prefix) {
				found = line
			}
		}
		if found != want {
			t.Errorf("got  %s\nwant %s", found, want)
		}
	}
}

// A screen is a writer that is no terminal, for mpb to draw on from its goroutine.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// visible returns what a terminal would show of text: mpb moves up n lines and clears what is
// below before it draws again.
func visible(t *testing.T, text string) []string {
	t.Helper()
	up := regexp.MustCompile(`\x1b\[([0-9]+)A\x1b\[J`)
	text = strings.ReplaceAll(text, home, "") // here the cursor is at the start of the line anyway
	var lines []string
	for text != "" {
		loc := up.FindStringSubmatchIndex(text)
		part := text
		if loc != nil {
			part = text[:loc[0]]
		}
		if part != "" {
			if !strings.HasSuffix(part, "\n") {
				t.Fatalf("cursor not at the start of a line after %q", part)
			}
			lines = append(lines, strings.Split(strings.TrimSuffix(part, "\n"), "\n")...)
		}
		if loc == nil {
			break
		}
		n := 0
		for _, c := range text[loc[2]:loc[3]] {
			n = n*10 + int(c-'0')
		}
		if n > len(lines) {
			t.Fatalf("moves up %d of %d lines", n, len(lines))
		}
		lines = lines[:len(lines)-n]
		text = text[loc[1]:]
	}
	return lines
}

func TestBar(t *testing.T) {
	var s screen
	var mu sync.Mutex
	now := noon
	b := newBar(&s, false, func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}, mpb.WithAutoRefresh(), mpb.WithWidth(60), mpb.WithRefreshRate(time.Millisecond))
	shows := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(s.String(), want); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("never shown: %q", want)
			}
		}
	}
	run := func(snap Snapshot) {
		mu.Lock()
		now = snap.Time
		mu.Unlock()
		b.Update(snap)
	}

	shows("starting  0:00 elapsed\n")
	run(at(1, 0))
	run(at(11, 50))
	shows(home + " 50% ███████████████████████░░░░░░░░░░░░░░░░░░░░░░░░ 50/100\n5.0 req/s  0:11 elapsed  ETA 0:10\n")
	b.Message("first message")
	slog.New(slog.NewTextHandler(Writer(b), nil)).Warn("second")
	run(with(at(12, 50), func(s *Snapshot) { s.WaitingFor = "a reason" }))
	shows("ETA –\nwaiting: a reason\n")
	run(with(at(20, 99), func(s *Snapshot) { s.Failed = 1; s.Status = "completed" }))
	b.Summary(ended)
	b.Close()
	b.Message("after the end")

	got := visible(t, s.String())
	if len(got) < 2 || got[0] != "first message" || !strings.Contains(got[1], "msg=second") {
		t.Fatalf("messages not above the bar:\n%s", strings.Join(got, "\n"))
	}
	want := "100% ██████████████████████████████████████████████ 100/100\n" +
		"completed  1 failed  5.3 req/s  0:20 elapsed\n" +
		endedText + "after the end"
	if text := strings.Join(got[2:], "\n"); text != want {
		t.Errorf("left on the screen:\n%s\nwant\n%s", text, want)
	}
}

// TestPrintersTogether is for the race detector: everything at once, and Close in between.
func TestPrintersTogether(t *testing.T) {
	var s screen
	for _, p := range []Printer{
		newBar(&s, true, time.Now, mpb.WithAutoRefresh(), mpb.WithRefreshRate(time.Millisecond)),
		NewPlain(&s), NewJSON(&s),
	} {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for i := range 50 {
					p.Update(Snapshot{Total: 100, Completed: int64(i)})
					p.Message("hello")
				}
			})
		}
		wg.Go(func() { p.Close() })
		wg.Go(func() { p.Summary(Summary{Status: "completed"}) })
		wg.Wait()
	}
}

func TestSummaryText(t *testing.T) {
	tests := []struct {
		name string
		s    Summary
		want string
	}{
		{"nothing known", Summary{Status: "cancelled"}, "cancelled\n"},
		{"all succeeded", Summary{Batch: "batch_1", Status: "completed", Total: 2, Completed: 2, OutputFile: "file-1"},
			"batch_1 completed: 2 of 2 succeeded\n  output    file-1\n"},
		{"expired", Summary{Status: "expired", Total: 10, Completed: 5, Failed: 1, Codes: map[string]int64{"batch_expired": 4, "b": 1, "a": 1}},
			"expired: 5 of 10 succeeded, 1 failed, 4 not answered\n  errors    batch_expired: 4, a: 1, b: 1\n"},
		{"interrupted, and resumed before", Summary{Status: "interrupted", Total: 1000, Completed: 600, Already: 500, Elapsed: 10 * time.Minute, Next: "The same command goes on."},
			"interrupted: 600 of 1,000 succeeded, 400 not answered (500 of them before)\n  time      10:00, 0.17 requests/s\nThe same command goes on.\n"},
		{"refused", Summary{Status: "failed", Problems: []Problem{
			{Line: 3, Code: "invalid_url", Param: "url", Message: "No."},
			{Line: 4, Code: "missing_required_parameter", Param: "custom_id", Message: "Missing required parameter: 'custom_id'."},
			{Code: "empty_file", Message: "Nothing\nthere."},
		}}, "failed\n  line 3: invalid_url: No. (url)\n  line 4: missing_required_parameter: Missing required parameter: 'custom_id'.\n  empty_file: Nothing there.\n"},
	}
	for _, tt := range tests {
		if got := tt.s.text(); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
}
