package sched

import (
	"math"
	"time"
)

// A watch keeps the queue of an upstream just not empty, by what the upstream says of itself: it
// has calls for every slot, and nobody waits long. Of an upstream that serves people, too, it takes
// what they leave, and a few slots less, so that whoever comes finds one free. The more urgent the
// work is, the nearer it comes to the first way.
type watch struct {
	shared bool
	press  float64 // 0 to 1

	at     time.Time // of the last reading; zero: none
	full   float64   // calls that it works on when it has no slot free; 0: not known
	risen  time.Time // when that was raised to see if there is more
	rises  int       // since somebody waited
	doubts int       // readings in a row that do not know of our calls
}

const (
	// stale is how old a reading may be that is still believed.
	stale = 5 * time.Second
	// doubtful is after how many readings that do not know of our calls none is believed: they are
	// those of another server, or of one of several.
	doubtful = 5
)

// fresh reports whether there are readings to go by.
func (w *watch) fresh(now time.Time) bool {
	return !w.at.IsZero() && now.Sub(w.at) < stale && w.doubts < doubtful
}

// observe returns the limit after a reading, with so many calls in flight and the limit at want.
func (w *watch) observe(l Load, inFlight int, want float64, now time.Time) float64 {
	running, waiting, ours := float64(l.Running), float64(l.Waiting), float64(inFlight)
	w.at = now
	if running+waiting < ours/2-1 {
		w.doubts++
		return want
	}
	w.doubts = 0
	switch {
	case waiting > 0 && w.shared:
		w.full, w.risen, w.rises = running, now, 0
	case waiting > 0:
		// Perhaps those that wait have only just come: it goes down step by step. And perhaps many have
		// just ended, and those that wait are about to begin: ours that do not wait are worked on.
		w.full, w.risen, w.rises = max(running, ours-waiting, w.full-max(1, math.Floor(w.full/8))), now, 0
	case running > w.full && w.full > 0:
		w.full = running
	case w.full > 0 && running >= w.full-w.spare()-1 && now.Sub(w.risen) >= time.Second:
		// Perhaps there is more; if nobody ever waits, there is much more.
		w.full += max(1, math.Floor(w.full/16)) * float64(int(1)<<w.rises)
		w.risen = now
		if !w.shared {
			w.rises = min(w.rises+1, 4)
		}
	}
	if w.full == 0 { // nothing has ever waited
		if ours >= 0.9*want {
			return 2 * want
		}
		return want
	}
	// So many calls are to be there, of which all but ours are others'.
	left := w.full - w.spare() - max(0, running+waiting-ours)
	if w.shared {
		return left
	}
	// Who is not to yield gets its half, however many others always wait.
	return max(left, math.Floor(w.full/2))
}

// spare is how many slots are left free. Less than none is how many calls wait.
func (w *watch) spare() float64 {
	some := max(1, math.Floor(w.full/16))
	if !w.shared {
		return -some
	}
	return math.Round((1 - 2*w.press) * some)
}
