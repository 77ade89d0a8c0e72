package progress

import (
	"fmt"
	"math"
	"time"

	"github.com/dustin/go-humanize"
)

// unknown stands for a number that cannot be told.
const unknown = "–"

// compact writes n in at most six characters, rounded down: 9,999, 12.3k, 450M.
func compact(n int64) string {
	unit, name := int64(1e9), "G"
	switch {
	case n < 1e4:
		return humanize.Comma(n)
	case n < 1e6:
		unit, name = 1e3, "k"
	case n < 1e9:
		unit, name = 1e6, "M"
	}
	if n >= 100*unit {
		return fmt.Sprintf("%d%s", n/unit, name)
	}
	return fmt.Sprintf("%d.%d%s", n/unit, n%unit*10/unit, name)
}

// rate writes a number per second with as many digits as mean something.
func rate(r float64) string {
	switch {
	case r == 0:
		return "0"
	case r < 1:
		return fmt.Sprintf("%.2f", r)
	case r < 10:
		return fmt.Sprintf("%.1f", r)
	}
	return humanize.Comma(int64(math.Round(r)))
}

// clock writes d as 0:45, 1:02:03 or 3d 4h.
func clock(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	switch {
	case s < 3600:
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	case s < 48*3600:
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%dd %dh", s/86400, s/3600%24)
}

// etaText writes the time left, or that it cannot be told.
func (v view) etaText() string {
	if !v.etaKnown {
		return unknown
	}
	return clock(v.eta)
}
