package sched

import (
	"time"

	"offpeak/internal/batch"
)

// Together returns what goes on for b at all nodes: here, and at others that have to do with it.
func Together(b batch.Batch, here batch.Activity, others []batch.Activity, now time.Time) batch.Activity {
	all := here
	moves := here.InFlight > 0 && here.WaitingFor == ""
	alone := true // with what it has
	for _, a := range others {
		all.InFlight += a.InFlight
		all.Rate += a.Rate
		if all.WaitingFor == "" {
			all.WaitingFor = a.WaitingFor
		}
		moves = moves || a.InFlight > 0 && a.WaitingFor == ""
		alone = alone && a.InFlight == 0
	}
	if alone && here.InFlight > 0 {
		return here
	}
	if moves {
		all.WaitingFor = ""
	}
	all.ETA, all.AtRisk = time.Time{}, false
	if left := b.Counts.Total - b.Counts.Completed - b.Counts.Failed; b.Status == batch.InProgress && all.WaitingFor == "" && all.Rate > 0 {
		all.ETA = now.Add(time.Duration(float64(left) / all.Rate * float64(time.Second)))
		all.AtRisk = all.ETA.After(b.ExpiresAt)
	}
	return all
}
