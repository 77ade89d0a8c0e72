package progress

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFrame(t *testing.T) {
	running := view{
		Snapshot: Snapshot{
			Status: "in_progress", Total: 50000, Completed: 31242, Failed: 3, InFlight: 256,
			InputTokens: 1000000, OutputTokens: 234567,
		},
		requestRate: 412.4, tokenRate: 18312, elapsed: 75 * time.Second,
		eta: 45 * time.Second, etaKnown: true,
	}
	waiting := running
	waiting.etaKnown = false
	waiting.WaitingFor = "upstream http://localhost:8000/v1 unreachable since 12:03"
	validating := view{Snapshot: Snapshot{Status: "validating"}, elapsed: 3 * time.Second}
	done := view{Snapshot: Snapshot{Status: "completed", Total: 3, Completed: 3}, requestRate: 0.5, elapsed: 6 * time.Second, etaKnown: true}

	tests := []struct {
		name  string
		view  view
		width int
		want  []string
	}{
		{"running", running, 80, []string{
			" 62% ██████████████████████████████████████░░░░░░░░░░░░░░░░░░░░░░░ 31,245/50,000",
			"3 failed  412 req/s  1.2M tokens (18.3k/s)  1:15 elapsed  ETA 0:45",
		}},
		{"running, wide", running, 300, []string{
			" 62% ██████████████████████████████████████████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░ 31,245/50,000",
			"3 failed  412 req/s  1.2M tokens (18.3k/s)  256 in flight  1:15 elapsed  ETA 0:45",
		}},
		{"running, narrow", running, 39, []string{
			" 62% ████████████░░░░░░░░ 31,245/50,000",
			"3 failed  412 req/s  ETA 0:45",
		}},
		{"running, far too narrow", running, 12, []string{
			" 62% 31,245…",
			"3 failed",
		}},
		{"waiting", waiting, 80, []string{
			" 62% ██████████████████████████████████████░░░░░░░░░░░░░░░░░░░░░░░ 31,245/50,000",
			"3 failed  412 req/s  1.2M tokens (18.3k/s)  256 in flight  1:15 elapsed  ETA –",
			"waiting: upstream http://localhost:8000/v1 unreachable since 12:03",
		}},
		{"waiting, narrow", waiting, 39, []string{
			" 62% ████████████░░░░░░░░ 31,245/50,000",
			"3 failed  412 req/s  ETA –",
			"waiting: upstream http://localhost:8000",
			"/v1 unreachable since 12:03",
		}},
		{"validating", validating, 80, []string{"validating  0:03 elapsed"}},
		{"before the first snapshot", view{}, 80, []string{"starting  0:00 elapsed"}},
		{"completed", done, 40, []string{
			"100% ███████████████████████████████ 3/3",
			"completed  0.50 req/s  0:06 elapsed",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.view.frame(tt.width, false)
			if !slices.Equal(got, tt.want) {
				t.Errorf("frame(%d):\n%s\nwant\n%s", tt.width, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}

	// No width makes a line too wide, or panics; colors take no room.
	for _, v := range []view{running, waiting, validating, done, {}} {
		for width := range 200 {
			plain, colored := v.frame(width, false), v.frame(width, true)
			for i, line := range plain {
				if cells(line) > width && width > 1 {
					t.Errorf("frame(%d) has a line of %d cells: %q", width, cells(line), line)
				}
				if got := stripped(colored[i]); got != line {
					t.Errorf("frame(%d) with color, without it: %q, want %q", width, got, line)
				}
			}
		}
	}
	if got := strings.Join(running.frame(80, false), ""); strings.Contains(got, "\x1b") {
		t.Errorf("escape sequence without color: %q", got)
	}
	if got := running.frame(80, true)[1]; !strings.Contains(got, red+"3 failed"+reset) {
		t.Errorf("failures are not red: %q", got)
	}
}

func TestFrameKeepsControlCharactersOut(t *testing.T) {
	v := view{Snapshot: Snapshot{Status: "in_progress", WaitingFor: "a\x1b[2Jb\nc"}}
	if got := strings.Join(v.frame(80, false), "|"); strings.ContainsAny(got, "\x1b\n") {
		t.Errorf("frame = %q", got)
	}
}

func TestBarParts(t *testing.T) {
	tests := []struct {
		done, total int64
		full, empty int
	}{
		{0, 100, 0, 10},
		{1, 100, 1, 9},
		{50, 100, 5, 5},
		{99, 100, 9, 1},
		{999999, 1000000, 9, 1},
		{100, 100, 10, 0},
		{101, 100, 10, 0},
	}
	for _, tt := range tests {
		full, empty := bar(tt.done, tt.total, 10)
		if cells(full) != tt.full || cells(empty) != tt.empty {
			t.Errorf("bar(%d, %d) = %q, %q, want %d and %d cells", tt.done, tt.total, full, empty, tt.full, tt.empty)
		}
	}
}

func TestFormats(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                                   "0:00",
		45 * time.Second:                    "0:45",
		59*time.Second + 700e6:              "1:00",
		62*time.Minute + 3*time.Second:      "1:02:03",
		47*time.Hour + 59*time.Minute:       "47:59:00",
		76*time.Hour + 20*time.Minute + 1e9: "3d 4h",
	} {
		if got := clock(d); got != want {
			t.Errorf("clock(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[int64]string{
		0: "0", 9999: "9,999", 10000: "10.0k", 12345: "12.3k", 123456: "123k", 999999: "999k",
		1e6: "1.0M", 1234567: "1.2M", 999999999: "999M", 1e9: "1.0G", 123e9: "123G",
	} {
		if got := compact(n); got != want {
			t.Errorf("compact(%d) = %q, want %q", n, got, want)
		}
	}
	for r, want := range map[float64]string{0: "0", 0.031: "0.03", 4.24: "4.2", 412.4: "412", 12345.6: "12,346"} {
		if got := rate(r); got != want {
			t.Errorf("rate(%v) = %q, want %q", r, got, want)
		}
	}
}

// stripped returns s without the styles of the bar.
func stripped(s string) string {
	return strings.NewReplacer(red, "", yellow, "", cyan, "", dim, "", reset, "").Replace(s)
}
