package sched

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"offpeak/internal/batch"
)

var (
	laneA = batch.Lane{Model: "a", Endpoint: "/v1/chat/completions"}
	laneB = batch.Lane{Model: "b", Endpoint: "/v1/chat/completions"}
)

func anyRoom(batch.Lane) bool { return true }

// standing looks at a project's share alone.
func standing(running map[Share]int, room func(batch.Lane) bool) func(batch.Work) Standing {
	return func(w batch.Work) Standing {
		return Standing{Room: room(w.Lane), Project: running[Share{w.Project, w.Lane}]}
	}
}

// A Share is what a project has running in a lane.
type Share struct {
	Project string
	Lane    batch.Lane
}

func TestPick(t *testing.T) {
	hour := func(n int) time.Time { return epoch.Add(time.Duration(n) * time.Hour) }
	onlyB := func(l batch.Lane) bool { return l == laneB }
	noRoom := func(batch.Lane) bool { return false }
	type running = map[Share]int
	for _, c := range []struct {
		name    string
		work    []batch.Work
		running running
		room    func(batch.Lane) bool
		want    int
	}{
		{"nothing", nil, nil, anyRoom, -1},
		{"one", []batch.Work{{Lane: laneA}}, nil, anyRoom, 0},
		{"no room", []batch.Work{{Lane: laneA}, {Lane: laneB}}, nil, noRoom, -1},
		{"room in one lane", []batch.Work{{Lane: laneA, Deadline: hour(1)}, {Lane: laneB, Deadline: hour(9)}}, nil, onlyB, 1},
		{"ending needs no room", []batch.Work{{Lane: laneA}, {Lane: laneA, Ending: batch.Cancelled}}, nil, noRoom, 1},
		{"ending first", []batch.Work{{Lane: laneB, Deadline: hour(1)}, {Lane: laneA, Deadline: hour(9), Ending: batch.Expired}}, nil, onlyB, 1},
		{"ending first, however much its project has", []batch.Work{{Lane: laneA, Project: "p"}, {Lane: laneA, Project: "q", Ending: batch.Cancelled}}, running{{"q", laneA}: 9}, anyRoom, 1},
		{"least running", []batch.Work{{Project: "p", Lane: laneA, Deadline: hour(1)}, {Project: "q", Lane: laneA, Deadline: hour(9)}}, running{{"p", laneA}: 2, {"q", laneA}: 1}, anyRoom, 1},
		{"least running per weight", []batch.Work{{Project: "p", Weight: 4, Lane: laneA}, {Project: "q", Weight: 1, Lane: laneA}}, running{{"p", laneA}: 7, {"q", laneA}: 2}, anyRoom, 0},
		{"running elsewhere does not count", []batch.Work{{Project: "p", Lane: laneA, Deadline: hour(1)}, {Project: "q", Lane: laneA, Deadline: hour(9)}}, running{{"p", laneB}: 9}, anyRoom, 0},
		{"weight 0 is 1", []batch.Work{{Project: "p", Weight: 0, Lane: laneA}, {Project: "q", Weight: 1, Lane: laneA}}, running{{"p", laneA}: 1, {"q", laneA}: 2}, anyRoom, 0},
		{"earliest deadline", []batch.Work{{Lane: laneA, Deadline: hour(3), Age: 1}, {Lane: laneA, Deadline: hour(2), Age: 2}, {Lane: laneB, Deadline: hour(4), Age: 0}}, nil, anyRoom, 1},
		{"oldest", []batch.Work{{Lane: laneA, Deadline: hour(3), Age: 7}, {Lane: laneA, Deadline: hour(3), Age: 5}, {Lane: laneA, Deadline: hour(3), Age: 6}}, nil, anyRoom, 1},
		{"all the same", []batch.Work{{Lane: laneA}, {Lane: laneA}}, nil, anyRoom, 0},
	} {
		if got := Pick(c.work, standing(c.running, c.room)); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

func TestPickKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lanes := []batch.Lane{laneA, laneB, {Model: "c"}}
		hasRoom := map[batch.Lane]bool{}
		for _, l := range lanes {
			hasRoom[l] = rapid.Bool().Draw(t, "room")
		}
		room := func(l batch.Lane) bool { return hasRoom[l] }
		weights, running := map[string]int{}, map[Share]int{}
		for _, p := range []string{"p", "q", "r"} {
			weights[p] = rapid.IntRange(1, 4).Draw(t, "weight")
			for _, l := range lanes {
				running[Share{p, l}] = rapid.IntRange(0, 4).Draw(t, "running")
			}
		}
		work := make([]batch.Work, rapid.IntRange(0, 12).Draw(t, "works"))
		for i := range work {
			p := rapid.SampledFrom([]string{"p", "q", "r"}).Draw(t, "project")
			work[i] = batch.Work{
				BatchID: fmt.Sprint(i), Project: p, Weight: weights[p], Lane: rapid.SampledFrom(lanes).Draw(t, "lane"),
				Ending:   rapid.SampledFrom([]batch.Status{"", "", "", batch.Expired, batch.Cancelled}).Draw(t, "ending"),
				Deadline: epoch.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "deadline")) * time.Hour),
				Age:      int64(i),
			}
		}
		work = rapid.Permutation(work).Draw(t, "order")

		i := Pick(work, standing(running, room))
		if i < 0 {
			for _, w := range work {
				if w.Ending != "" || room(w.Lane) {
					t.Fatalf("nothing picked, and yet there is %+v", w)
				}
			}
			return
		}
		got := work[i]
		if got.Ending == "" && !room(got.Lane) {
			t.Fatalf("picked %+v, whose lane has no room", got)
		}
		for _, w := range work {
			if w.Ending == "" && !room(w.Lane) || w.BatchID == got.BatchID {
				continue
			}
			// Per weight, without dividing.
			mine, its := running[Share{got.Project, got.Lane}]*w.Weight, running[Share{w.Project, w.Lane}]*got.Weight
			switch {
			case got.Ending != "" && w.Ending == "":
			case got.Ending == "" && w.Ending != "", mine > its,
				mine == its && got.Deadline.After(w.Deadline), mine == its && got.Deadline.Equal(w.Deadline) && got.Age > w.Age:
				t.Fatalf("picked %+v (running %d), before it comes %+v (running %d)",
					got, running[Share{got.Project, got.Lane}], w, running[Share{w.Project, w.Lane}])
			}
		}
		shuffled := rapid.Permutation(work).Draw(t, "another order")
		if j := Pick(shuffled, standing(running, room)); shuffled[j].BatchID != got.BatchID {
			t.Fatalf("picked %s, and of the same work in another order %s", got.BatchID, shuffled[j].BatchID)
		}
	})
}

// Projects with work without end share a lane by their weights.
func TestPickSharesByWeight(t *testing.T) {
	weights := map[string]int{"p": 1, "q": 2, "r": 5}
	var work []batch.Work
	for p, weight := range weights {
		work = append(work, batch.Work{Project: p, Weight: weight, Lane: laneA, Age: int64(weight)})
	}
	r := rand.New(rand.NewPCG(1, 2))
	running, picked := map[Share]int{}, map[string]int{}
	var slots []string // projects of what runs
	for range 100_000 {
		if len(slots) == 40 { // full: something ends
			i := r.IntN(len(slots))
			running[Share{slots[i], laneA}]--
			slots[i] = slots[len(slots)-1]
			slots = slots[:len(slots)-1]
		}
		p := work[Pick(work, standing(running, anyRoom))].Project
		running[Share{p, laneA}]++
		slots = append(slots, p)
		picked[p]++
	}
	for p, weight := range weights {
		if got, want := float64(picked[p])/100_000, float64(weight)/8; got < 0.97*want || got > 1.03*want {
			t.Errorf("project with weight %d of 8 got a share of %.3f, want %.3f", weight, got, want)
		}
	}
}
