package progress

import (
	"fmt"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/mattn/go-runewidth"
)

// maxFrame is how wide a frame gets on a wide terminal; a longer bar says no more.
const maxFrame = 100

// frame lays v out in lines that are at most width cells wide, so that none wraps:
//
//	 62% ████████████████████████████░░░░░░░░░░░░░░░░░ 31,245/50,000
//	3 failed  412 req/s  1.2M tokens (18.3k/s)  256 in flight  1:15 elapsed  ETA 0:45
//	waiting: upstream http://localhost:8000/v1 unreachable since 12:03
//
// The last line is there only while v waits for something. There is always at least one line.
func (v view) frame(width int, color bool) []string {
	width = min(width, maxFrame)
	paint := func(style, text string) string {
		if !color || text == "" {
			return text
		}
		return style + text + reset
	}
	var lines []string
	if v.Total > 0 {
		count := humanize.Comma(v.Done()) + "/" + humanize.Comma(v.Total)
		percent := fmt.Sprintf("%3d%%", v.percent())
		if room := width - cells(percent) - cells(count) - 2; room >= 4 {
			full, empty := bar(v.Done(), v.Total, room)
			lines = append(lines, percent+" "+paint(cyan, full)+paint(dim, empty)+" "+count)
		} else {
			lines = append(lines, clip(percent+" "+count, width))
		}
	}

	var fs []field
	if v.Status != "in_progress" { // that is what the bar itself says
		status := strings.ReplaceAll(v.Status, "_", " ")
		if status == "" {
			status = "starting"
		}
		fs = append(fs, field{text: status, rank: -1})
	}
	fs = fit(append(fs, v.fields()...), width)
	var numbers []string
	for _, f := range fs {
		text := clip(f.text, width)
		if f.bad {
			text = paint(red, text)
		}
		numbers = append(numbers, text)
	}
	lines = append(lines, strings.Join(numbers, "  "))

	if v.WaitingFor != "" && !v.ended() {
		// Its end ("since 12:03") matters most, so this one is folded rather than cut.
		folded := strings.Split(runewidth.Wrap("waiting: "+oneLine(v.WaitingFor), width), "\n")
		for _, line := range folded[:min(len(folded), 3)] {
			lines = append(lines, paint(yellow, line))
		}
	}
	return lines
}

// bar returns the two parts of a bar that is room cells long. It is full only when done is
// total, and not empty once anything is done.
func bar(done, total int64, room int) (full, empty string) {
	n := min(room, int(float64(done)/float64(total)*float64(room)))
	switch {
	case n == room && done < total:
		n--
	case n == 0 && done > 0:
		n++
	}
	// Where these characters are two cells wide (East Asian locales) there are half as many.
	wide := cells("█")
	return strings.Repeat("█", n/wide), strings.Repeat("░", room/wide-n/wide)
}

// cells returns how many columns of a terminal s takes.
func cells(s string) int { return runewidth.StringWidth(s) }

// clip cuts s so that it is at most width cells wide.
func clip(s string, width int) string { return runewidth.Truncate(s, width, "…") }

// oneLine returns s with line breaks and other control characters as spaces.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// The styles of the bar, as ANSI escape sequences.
const (
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	cyan   = "\x1b[36m"
	dim    = "\x1b[2m"
	reset  = "\x1b[0m"
)
