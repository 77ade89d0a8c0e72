package sched

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"offpeak/internal/batch"
)

// A holder is a node as the limit sees it: it has calls in flight, and wants more.
type holder struct {
	id        string
	stated    int64
	uses, may int64
	wants     int64 // beyond what it uses
	least     int64
	died      bool
}

func (h *holder) ask(r *registry, now time.Time, heard bool) {
	g := r.share(h.id, batch.Claim{
		Limit: batch.LimitCalls, Stated: h.stated, Least: h.least,
		Keeps: max(h.uses, h.may), Uses: h.uses, Wants: h.uses + h.wants,
	}, now)
	if heard {
		h.may = g.May
	}
}

// TestDivideKeepsTheLimit lets nodes ask for their shares, make calls, end them, come, leave and miss
// answers in any order. All together never have more calls in flight than the limit.
func TestDivideKeepsTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Int64Range(1, 40).Draw(t, "limit")
		least := rapid.Int64Range(1, 3).Draw(t, "least")
		r, now := newRegistry(), epoch
		var nodes []*holder
		come := func() {
			nodes = append(nodes, &holder{id: fmt.Sprint("n", len(nodes)), stated: limit, least: least})
		}
		come()
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			h := nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, "node")]
			now = now.Add(time.Duration(rapid.IntRange(0, 2000).Draw(t, "ms")) * ms)
			switch rapid.SampledFrom([]string{"ask", "ask", "ask", "miss", "want", "send", "send", "end", "come", "die"}).Draw(t, "step") {
			case "ask":
				if !h.died {
					h.ask(r, now, true)
				}
			case "miss": // the answer is lost
				if !h.died {
					h.ask(r, now, false)
				}
			case "want":
				h.wants = rapid.Int64Range(0, 50).Draw(t, "wants")
			case "send":
				if n := min(h.wants, h.may-h.uses); !h.died && n > 0 {
					n = rapid.Int64Range(1, n).Draw(t, "n")
					h.uses += n
					h.wants -= n
				}
			case "end":
				if h.uses > 0 {
					h.uses -= rapid.Int64Range(1, h.uses).Draw(t, "n")
				}
			case "come":
				if len(nodes) < 5 {
					come()
				}
			case "die": // its calls end with it
				h.died, h.uses, h.may = true, 0, 0
				delete(r.rows, h.id)
			}
			uses, may, holds := int64(0), int64(0), int64(0)
			for _, h := range nodes {
				uses += h.uses
				may += max(h.may, h.uses)
				holds += r.rows[h.id].Granted
				if max(h.may, h.uses) > r.rows[h.id].Granted {
					t.Fatalf("%s may use %d and uses %d, and %d are on record", h.id, h.may, h.uses, r.rows[h.id].Granted)
				}
			}
			if uses > limit || may > limit || holds > limit {
				t.Fatalf("%d in use, %d allowed and %d on record, of %d", uses, may, holds, limit)
			}
		}
	})
}

// TestDivideIsFair has nodes with constant wants come to their shares within a few rounds: everybody
// as much as everybody else save those who want less, and nothing is left while somebody wants it.
func TestDivideIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, now := newRegistry(), epoch
		var nodes []*holder
		limit := rapid.Int64Range(4, 100).Draw(t, "limit")
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			nodes = append(nodes, &holder{id: fmt.Sprint("n", i), stated: limit, least: 1, wants: rapid.Int64Range(0, 100).Draw(t, "wants")})
		}
		nodes[0].ask(r, now, true) // the first one to come takes what it can get
		nodes[0].uses, nodes[0].wants = nodes[0].may, nodes[0].wants-nodes[0].may
		for range 4 {
			for _, h := range nodes {
				now = now.Add(100 * ms)
				h.ask(r, now, true)
				if h.uses > h.may { // calls end
					h.wants += h.uses - h.may
				} else {
					h.wants -= min(h.wants, h.may-h.uses)
				}
				h.uses = min(h.may, h.uses+h.wants+h.may)
			}
		}
		total, uses, least, most := int64(0), int64(0), limit, int64(0)
		for _, h := range nodes {
			h.uses = min(h.uses, h.may)
			total += h.uses + h.wants
			uses += h.may
			if h.wants > 0 {
				least = min(least, h.may)
			}
			most = max(most, h.may)
		}
		if want := min(total, limit); uses < want {
			t.Fatalf("%d of %d are granted, %d are wanted", uses, limit, total)
		}
		if most > least+1 {
			t.Fatalf("somebody who wants more has %d, somebody else %d", least, most)
		}
	})
}

// TestDivideGoesRound has more nodes than slots: nobody waits for ever, and nobody has a slot for so
// short a time that handing it on is all that happens.
func TestDivideGoesRound(t *testing.T) {
	for _, took := range []time.Duration{200 * ms, 2 * time.Second, 10 * time.Second} {
		r := newRegistry()
		nodes := []*holder{
			{id: "a", stated: 2, least: 1, wants: 1e6}, {id: "b", stated: 2, least: 1, wants: 1e6}, {id: "c", stated: 2, least: 1, wants: 1e6},
		}
		had := map[string]time.Duration{}
		ends := map[*holder]time.Time{}
		waits, longest, busy := map[string]time.Time{}, time.Duration(0), time.Duration(0)
		const step = 100 * ms
		for now := epoch; now.Before(epoch.Add(10 * time.Minute)); now = now.Add(step) {
			for i, h := range nodes {
				if h.uses > 0 && !now.Before(ends[h]) {
					h.uses = 0
				}
				if (int(now.Sub(epoch)/step)+i)%5 == 0 {
					h.ask(r, now, true)
				}
				if h.uses == 0 && h.may > 0 {
					h.uses, ends[h] = 1, now.Add(took)
				}
				if h.uses > 0 {
					had[h.id] += step
					busy += step
					waits[h.id] = now
				} else if since, ok := waits[h.id]; ok {
					longest = max(longest, now.Sub(since))
				}
			}
		}
		t.Logf("calls of %v: had %v, the longest wait %v, in use %.0f %%", took, had, longest, 100*busy.Minutes()/20)
		if longest > 4*max(took, tenure) || len(had) < 3 {
			t.Errorf("somebody waits %v for calls of %v", longest, took)
		}
		if busy < 20*time.Minute*8/10 {
			t.Errorf("the slots are in use for %v of 20 min", busy)
		}
		for id, d := range had {
			if d < busy/4 {
				t.Errorf("%s had a slot for %v of %v", id, d, busy)
			}
		}
	}
}

// TestDivideRemembersTheDead counts what an ended node spent, and does not let it have a share.
func TestDivideRemembersTheDead(t *testing.T) {
	g, _ := Divide(batch.Division{
		Node: "b", Now: epoch,
		Mine:   batch.Claim{Limit: batch.LimitRequests, Stated: 100, Wants: 200, Least: 1},
		Others: []batch.Holding{{Node: "a", Stated: 10, Granted: 70, Wants: 100, Least: 1, Ended: true}},
	})
	if g.Of != 100 || g.May != 30 || g.Nodes != 1 || g.Fair != 100 {
		t.Errorf("grant %+v, want 30 of 100", g)
	}
}

// TestDivideTakesTheLowest lets the lowest limit count that any node states.
func TestDivideTakesTheLowest(t *testing.T) {
	for _, test := range []struct {
		mine, other int64
		auto        bool // the other's
		of          int64
	}{{8, 4, false, 4}, {4, 8, false, 4}, {0, 4, false, 4}, {4, 0, false, 4}, {0, 0, false, 0}, {500, 0, true, 70}, {50, 0, true, 50}} {
		g, _ := Divide(batch.Division{
			Node: "a", Now: epoch, Search: batch.Search{Node: "b", Found: 70, At: epoch},
			Mine:   batch.Claim{Limit: batch.LimitCalls, Stated: test.mine, Wants: 1000, Least: 1},
			Others: []batch.Holding{{Node: "b", Stated: test.other, Auto: test.auto, Wants: 1000, Least: 1}},
		})
		if g.Of != test.of || g.Leads || g.May > test.of/2 {
			t.Errorf("of %d and %d: %+v, want %d", test.mine, test.other, g, test.of)
		}
	}
}
