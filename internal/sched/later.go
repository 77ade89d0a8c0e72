package sched

import "time"

// A Rival is an upstream that could take a call as well.
type Rival struct {
	Each  time.Duration // that a call takes there
	Slots float64       // that it has for such calls
}

// Later reports whether a call that takes so long would be done earlier by the others, as the last of so many
// that wait. Then it is better left to them, and a slot idle: near the end a slow upstream would have the fast
// ones wait for it. Of several the fastest never leaves anything to the others.
//
// A call may take longer than most, by half, and that is what would be waited for. What it costs to leave too
// much to the others is little, as they are faster, by half at least.
func Later(each time.Duration, waiting int, others []Rival) bool {
	const longer = 1.5
	rate, slots := 0.0, 0.0 // calls a second
	for _, o := range others {
		if o.Each > 0 {
			rate += o.Slots / o.Each.Seconds()
			slots += o.Slots
		}
	}
	return rate > 0 && each.Seconds() > longer*slots/rate && longer*each.Seconds() > (float64(waiting)+slots)/rate
}
