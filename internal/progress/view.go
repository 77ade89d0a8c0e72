package progress

import "time"

// A tracker turns the snapshots of one piece of work into what printers show of it.
type tracker struct {
	last    Snapshot
	started time.Time
	pace    pace
}

// A view is a Snapshot and what follows from those before it.
type view struct {
	Snapshot
	requestRate float64 // per second
	tokenRate   float64
	elapsed     time.Duration
	eta         time.Duration
	etaKnown    bool
}

// update takes in s, at now if s does not say when.
func (t *tracker) update(s Snapshot, now time.Time) {
	if s.Time.IsZero() {
		s.Time = now
	}
	if t.started.IsZero() {
		t.started = s.Time
	}
	if !s.Started.IsZero() {
		t.started = s.Started
	}
	t.last = s
	if s.Total > 0 {
		// Before the total is known nothing is sent; counting that time would only delay the
		// first useful rate.
		t.pace.add(s.Time, s.Done(), s.tokens())
	}
}

// view returns how things stand at now, which is not before the last snapshot.
func (t *tracker) view(now time.Time) view {
	v := view{Snapshot: t.last}
	if !t.started.IsZero() {
		v.elapsed = max(0, now.Sub(t.started)) // a server's clock may be ahead of ours
	}
	v.requestRate, v.tokenRate = t.pace.rate()
	all := v.Total > 0 && v.Done() >= v.Total
	switch few := len(t.pace.samples) < 2; {
	case few && all && v.elapsed > 0:
		v.requestRate = float64(v.Done()-v.Already) / v.elapsed.Seconds()
	case few:
		v.requestRate = v.Rate
	}
	switch {
	case all:
		v.etaKnown = true
	case !v.ETA.IsZero():
		v.eta, v.etaKnown = max(0, v.ETA.Sub(now)), true
	case v.Total > 0 && v.WaitingFor == "":
		if eta, ok := t.pace.eta(v.Total - v.Done()); ok {
			v.eta, v.etaKnown = max(0, eta-now.Sub(v.Time)), true
		}
	}
	return v
}

// percent returns the part that is done, rounded down: only all of it is 100.
func (v view) percent() int64 {
	if v.Total <= 0 {
		return 0
	}
	return min(100, v.Done()*100/v.Total)
}
