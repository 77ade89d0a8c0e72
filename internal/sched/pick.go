package sched

import (
	"cmp"

	"offpeak/internal/batch"
)

// A Share is what a project has running in a lane.
type Share struct {
	Project string
	Lane    batch.Lane
}

// Pick returns the index of the work to claim next, or -1 if there is none. Batches that are
// ending come first: they need no room and somebody waits for them. Otherwise room says whether a
// lane can take work, and among what remains the project with the least running in that lane per
// weight is served, then the earliest deadline, then the oldest.
func Pick(work []batch.Work, running map[Share]int, room func(batch.Lane) bool) int {
	best := -1
	for i, w := range work {
		if w.Ending == "" && !room(w.Lane) {
			continue
		}
		if best < 0 || before(w, work[best], running) {
			best = i
		}
	}
	return best
}

func before(a, b batch.Work, running map[Share]int) bool {
	if (a.Ending != "") != (b.Ending != "") {
		return a.Ending != ""
	}
	load := func(w batch.Work) float64 {
		return float64(running[Share{w.Project, w.Lane}]) / float64(max(w.Weight, 1))
	}
	return cmp.Or(
		cmp.Compare(load(a), load(b)),
		a.Deadline.Compare(b.Deadline),
		cmp.Compare(a.Age, b.Age),
	) < 0
}
