package progress

import (
	"fmt"
	"math"

	"github.com/dustin/go-humanize"
)

// A field is one number of a view with its unit, as the bar and the plain lines show it.
type field struct {
	text string
	rank int // where there is no room for all, the highest rank goes first
	bad  bool
}

// fields returns what there is to say of v beside the count of answers, in reading order.
func (v view) fields() []field {
	var fs []field
	add := func(rank int, format string, args ...any) {
		fs = append(fs, field{text: fmt.Sprintf(format, args...), rank: rank})
	}
	if v.Failed > 0 {
		add(0, "%s failed", humanize.Comma(v.Failed))
		fs[len(fs)-1].bad = true
	}
	if v.Total > 0 {
		add(2, "%s req/s", rate(v.requestRate))
	}
	switch n := v.tokens(); {
	case n > 0 && v.tokenRate >= 1:
		add(4, "%s tokens (%s/s)", compact(n), compact(int64(math.Round(v.tokenRate))))
	case n > 0:
		add(4, "%s tokens", compact(n))
	}
	if v.InFlight > 0 && !v.ended() {
		add(5, "%s in flight", humanize.Comma(int64(v.InFlight)))
	}
	if v.Already > 0 {
		add(6, "%s from before", humanize.Comma(v.Already))
	}
	add(3, "%s elapsed", clock(v.elapsed))
	if v.Total > 0 && !v.ended() {
		if add(1, "ETA %s", v.etaText()); v.AtRisk {
			fs[len(fs)-1].text += ", after the deadline"
			fs[len(fs)-1].bad = true
		}
	}
	return fs
}

// ended reports whether v's status says that nothing more will happen.
func (v view) ended() bool {
	switch v.Status {
	case "completed", "failed", "expired", "cancelled":
		return true
	}
	return false
}

// fit drops fields, highest rank first, until the rest is at most width wide when joined with
// two spaces.
func fit(fs []field, width int) []field {
	for len(fs) > 1 && joined(fs) > width {
		worst := 0
		for i, f := range fs {
			if f.rank > fs[worst].rank {
				worst = i
			}
		}
		fs = append(fs[:worst:worst], fs[worst+1:]...)
	}
	return fs
}

func joined(fs []field) int {
	n := -2
	for _, f := range fs {
		n += 2 + cells(f.text)
	}
	return n
}
