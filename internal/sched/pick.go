package sched

import (
	"cmp"

	"offpeak/internal/batch"
)

// A Standing is how matters stand for work that could be claimed.
type Standing struct {
	Room    bool    // its lane can take more of it
	Project int     // what its project has in hand in that lane
	Batch   int     // of that, what its batch has
	Urgency float64 // of its batch; less than 1 counts as 1
}

// Pick returns the index of the work to claim next, or -1 if there is none; look says how matters
// stand for each. Batches that are ending come first: they need no room and somebody waits for
// them. Of the others that have room, the project with the least in hand in the lane per weight is
// served, and of its batches the one with the least in hand per urgency; then the earliest
// deadline, then the oldest.
func Pick(work []batch.Work, look func(batch.Work) Standing) int {
	best := -1
	var least Standing
	for i, w := range work {
		s := look(w)
		if w.Ending == "" && !s.Room {
			continue
		}
		if best < 0 || before(w, work[best], s, least) {
			best, least = i, s
		}
	}
	return best
}

func before(a, b batch.Work, s, t Standing) bool {
	if (a.Ending != "") != (b.Ending != "") {
		return a.Ending != ""
	}
	order := cmp.Compare(per(s.Project, float64(a.Weight)), per(t.Project, float64(b.Weight)))
	if order == 0 && a.Project == b.Project && a.Lane == b.Lane {
		order = cmp.Compare(per(s.Batch, s.Urgency), per(t.Batch, t.Urgency))
	}
	return cmp.Or(order, a.Deadline.Compare(b.Deadline), cmp.Compare(a.Age, b.Age)) < 0
}

// per is how much of something there is for each unit of weight.
func per(n int, weight float64) float64 { return float64(n) / max(weight, 1) }
