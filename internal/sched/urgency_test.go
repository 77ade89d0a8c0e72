package sched

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestUrgency(t *testing.T) {
	const each = 10 * time.Second
	for _, c := range []struct {
		remaining int64
		each      time.Duration
		fair      float64
		left      time.Duration
		want      float64
	}{
		{1000, each, 10, time.Hour, 1},            // needs 3 slots
		{1000, each, 10, 1000 * time.Second, 1},   // needs just its share
		{1000, each, 10, 500 * time.Second, 2},    // needs twice its share
		{1000, each, 10, 125 * time.Second, 8},    // and so on
		{1000, each, 10, time.Second, 16},         // but there is an end to it
		{1000, each, 10, 0, 16},                   // even where it is late
		{1000, each, 10, -time.Hour, 16},          //
		{1000, each, 0.5, 10000 * time.Second, 2}, // half a slot is one every other moment
		{1000, each, 0, time.Hour, 16},            // nothing is never enough
		{1000, 0, 10, time.Second, 1},             // nobody knows yet
		{0, each, 10, time.Second, 1},             // nothing to do
		{math.MaxInt64, each, 1, time.Second, 16}, // no overflow
	} {
		if got := Urgency(c.remaining, c.each, c.fair, c.left); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%d of %v, share %v, %v left: %v, want %v", c.remaining, c.each, c.fair, c.left, got, c.want)
		}
	}
}

// More to do, less time, a smaller share: never less urgent.
func TestUrgencyBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		remaining := rapid.Int64Range(0, 1e9).Draw(t, "remaining")
		each := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "each"))
		fair := rapid.Float64Range(0, 1000).Draw(t, "fair")
		left := time.Duration(rapid.Int64Range(-int64(time.Hour), int64(48*time.Hour)).Draw(t, "left"))
		got := Urgency(remaining, each, fair, left)
		if got < 1 || got > 16 {
			t.Fatalf("%v", got)
		}
		for _, more := range []float64{
			Urgency(remaining+1+remaining/4, each, fair, left), Urgency(remaining, each, fair, left-time.Minute),
			Urgency(remaining, each, fair/2, left),
		} {
			if remaining > 0 && each > 0 && more < got {
				t.Fatalf("%v, and with more need for it %v", got, more)
			}
		}
	})
}

// Three batches of one project share 16 slots. The one whose deadline is near gets what it needs to be
// in time, if that can be had, and the others get the rest: they never stop.
func TestUrgencyPressesInProportion(t *testing.T) {
	const slots, each = 16, 10 * time.Second
	for _, c := range []struct {
		name   string
		hours  float64 // of the first batch's deadline
		inTime bool
		share  float64 // of slots that the others have at least until then
	}{
		{"no hurry", 4, true, 0.6},
		{"twice its share", 0.9, true, 0.35},
		{"most of it", 0.7, true, 0.15},
		{"more than there is", 0.3, false, 0.05},
	} {
		r := rand.New(rand.NewPCG(3, 4))
		left := []int64{3000, 1_000_000, 1_000_000} // the first needs 1875 s of everything
		deadline := []time.Time{epoch.Add(time.Duration(c.hours * float64(time.Hour))), epoch.Add(9999 * time.Hour), epoch.Add(9999 * time.Hour)}
		accounts := make([]Account, 3)
		var ends []time.Time
		var of []int
		had := make([]float64, 3)
		now, pause := epoch, 0.0 // the longest time in which one of the others got nothing
		served := []time.Time{epoch, epoch, epoch}
		for left[0] > 0 && now.Before(deadline[0].Add(2*time.Hour)) {
			for len(ends) < slots {
				var contenders []Contender
				var who []int
				for i := range accounts {
					if left[i] == 0 {
						continue
					}
					// What the others have once the first has what it needs.
					time := deadline[i].Sub(now)*19/20 - each
					needs := float64(left[0]) * each.Seconds() / max(deadline[0].Sub(now).Seconds()*19/20-each.Seconds(), 1)
					fair := max(1, min(slots/3.0, (slots-needs)/2))
					urgency := Urgency(left[i], each, fair, time)
					k := accounts[i].Contender(urgency, now)
					k.Deadline, k.Age = deadline[i], int64(i)
					contenders, who = append(contenders, k), append(who, i)
				}
				i := who[Next(contenders)]
				left[i]--
				accounts[i].Send(now)
				if i > 0 {
					pause = max(pause, now.Sub(served[i]).Seconds())
					served[i] = now
				}
				took := time.Duration((0.5 + r.Float64()) * float64(each))
				if now.Before(deadline[0]) {
					had[i] += took.Seconds()
				}
				ends, of = append(ends, now.Add(took)), append(of, i)
			}
			first := 0
			for k := range ends {
				if ends[k].Before(ends[first]) {
					first = k
				}
			}
			now = ends[first]
			accounts[of[first]].Done(now)
			last := len(ends) - 1
			ends[first], of[first] = ends[last], of[last]
			ends, of = ends[:last], of[:last]
		}
		others := (had[1] + had[2]) / (had[0] + had[1] + had[2])
		t.Logf("%s: sent after %.2f h of %.2f h; the others had %.2f of the slots, and paused for %.0f s at most", c.name, now.Sub(epoch).Hours(), c.hours, others, pause)
		if inTime := !now.After(deadline[0]); inTime != c.inTime {
			t.Errorf("%s: in time: %v", c.name, inTime)
		}
		if others < c.share {
			t.Errorf("%s: the others had %.3f of the slots, want %.3f at least", c.name, others, c.share)
		}
		if pause > 120 {
			t.Errorf("%s: one of the others got nothing for %.0f s", c.name, pause)
		}
	}
}

func TestConcede(t *testing.T) {
	for _, c := range []struct{ urgency, part, want float64 }{
		{1, 0.5, 1}, {1, 9, 1}, {7, 0.9, 7}, {7, 1, 7}, {7, 1.25, 4}, {7, 1.5, 1}, {16, 100, 1}, {16, math.Inf(1), 1},
	} {
		if got := Concede(c.urgency, c.part); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("urgency %v, %v of all: %v, want %v", c.urgency, c.part, got, c.want)
		}
	}
}
