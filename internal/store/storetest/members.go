package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/store"
)

// lasts is how long a heartbeat lasts where there are several nodes.
const lasts = 15 * time.Second

// heartbeat sends one for the node, which must be a live one.
func (d *db) heartbeat(node string) batch.Heartbeat {
	d.Helper()
	h, err := d.Heartbeat(d.ctx(), node)
	d.must(err)
	return h
}

// bury has the node judge the others.
func (d *db) bury(node string) batch.Burial {
	d.Helper()
	b, err := d.Store.Bury(d.ctx(), node, time.Time{}, lasts)
	d.must(err)
	return b
}

func (d *db) wantDeclared(what string, node string) {
	d.Helper()
	if _, err := d.Heartbeat(d.ctx(), node); !errors.Is(err, batch.ErrDeclaredDead) {
		d.Errorf("%s: heartbeat: %v, want %v", what, err, batch.ErrDeclaredDead)
	}
}

// testHeartbeat looks what a node is told, and who is told that it is dead.
func testHeartbeat(d *db) {
	if d.Alone {
		d.wantSame("heartbeat of a process alone", d.heartbeat(d.node), batch.Heartbeat{At: d.clock.Now(), Nodes: 1})
		d.must(d.Leave(d.ctx(), d.node))
		d.heartbeat(d.node)
		return
	}
	for range 3 {
		d.clock.turn(5 * time.Second)
		d.wantSame("heartbeat", d.heartbeat(d.node), batch.Heartbeat{Lasts: lasts, At: d.clock.Now(), Nodes: 2})
	}
	// However late it comes: nobody has said otherwise.
	d.clock.turn(time.Hour)
	d.heartbeat(d.other)
	d.must(d.Leave(d.ctx(), d.other))
	d.wantDeclared("a node that left", d.other)
	d.wantDeclared("a node that never was", "unknown")
	if h := d.heartbeat(d.node); h.Nodes != 1 {
		d.Errorf("%d nodes live after the other left", h.Nodes)
	}
}

// testBury declares a node dead that is silent, and not a moment too soon. What it held is free, and
// no write of it is accepted.
func testBury(d *db) {
	if !d.Alone {
		defer func() { // of a later heartbeat it knows nothing
			heard := d.heartbeat(d.node).At
			d.clock.turn(2 * lasts)
			d.heartbeat(d.node)
			b, err := d.Store.Bury(d.ctx(), d.node, heard, lasts)
			d.must(err)
			if len(b.Nodes) > 0 {
				d.Errorf("judged by a heartbeat that was not considered: %v", b.Nodes)
			}
		}()
	}
	b, waiting := d.running(3), d.validating()
	held := d.claim(b)
	d.record(held, tally(3, 0), "before")
	ours, err := d.Claim(d.ctx(), d.other, work(b, "m"))
	d.must(err)
	released := d.claim(b)
	d.must(d.Release(d.ctx(), *released))
	a := d.admission(waiting)
	if d.Alone {
		d.clock.turn(time.Hour)
		if buried := d.bury(d.other); len(buried.Nodes)+buried.Segments+buried.Batches > 0 {
			d.Errorf("where a process is alone, %+v is buried", buried)
		}
		d.record(held, tally(1, 0), "an hour later")
		d.must(d.Admit(d.ctx(), a, "m", nil))
		return
	}
	d.heartbeat(d.node)
	for range 5 {
		d.clock.turn(3 * time.Second)
		d.heartbeat(d.other)
		if buried := d.bury(d.other); len(buried.Nodes)+buried.Segments+buried.Batches > 0 {
			d.Errorf("at %v %+v is buried", d.clock.Now(), buried)
		}
		d.record(held, tally(1, 0), "still here")
	}
	d.clock.turn(time.Millisecond)
	if buried := d.bury("unknown"); len(buried.Nodes) > 0 {
		d.Errorf("a node that never was buries %+v", buried)
	}
	d.wantSame("burial", d.bury(d.other), batch.Burial{Nodes: []string{"test"}, Segments: 1, Batches: 1})
	d.wantSame("burial again", d.bury(d.other), batch.Burial{})
	d.wantDeclared("a node that was buried", d.node)
	d.wantLost("record of the dead", writes[0].call(d, *held))
	d.wantLost("seal of the dead", writes[1].call(d, *held))
	d.wantLost("admission of the dead", d.Admit(d.ctx(), a, "m", nil))

	// It joins anew under the same name, and gets what is free as anybody does.
	d.node, err = d.Join(d.ctx(), "test")
	d.must(err)
	if l := d.claim(b); l.ID != held.ID || l.Deaths != 1 || l.Tally != tally(8, 0) {
		d.Errorf("claimed %+v, want segment %d after 1 death with all that was recorded", *l, held.ID)
	}
	if got := len(d.journal(held.ID)); got != 6 {
		d.Errorf("the journal has %d groups, want 6", got)
	}
	d.admission(waiting)
	d.record(ours, tally(1, 0), "what others hold is not touched")
}

// testBuryHeldByTheDead commits claims of a node after others have buried it: they were under way.
func testBuryHeldByTheDead(d *db) {
	if d.Alone {
		d.Skip("nobody is buried")
	}
	b, waiting := d.running(2), d.validating()
	d.clock.turn(lasts + time.Second)
	d.heartbeat(d.other)
	d.wantSame("burial", d.bury(d.other), batch.Burial{Nodes: []string{"test"}})
	held, a := d.claim(b), d.admission(waiting)
	d.wantSame("burial of what came late", d.bury(d.other), batch.Burial{Segments: 1, Batches: 1})
	d.wantLost("record of the dead", writes[0].call(d, *held))
	d.wantLost("admission of the dead", d.Admit(d.ctx(), a, "m", nil))
	// A node that left with something in hand has it no more either.
	l, err := d.Claim(d.ctx(), d.other, work(b, "m"))
	d.must(err)
	d.must(d.Leave(d.ctx(), d.other))
	next, err := d.Join(d.ctx(), "next")
	d.must(err)
	d.wantSame("burial of what was left", d.bury(next), batch.Burial{Segments: 1})
	d.wantLost("record of who left", writes[0].call(d, *l))
}

// testBuryAtOnce lets many bury many, while those write that are buried.
func testBuryAtOnce(d *db) {
	if d.Alone {
		d.Skip("nobody is buried")
	}
	const nodes, each = 4, 6
	b := d.running(nodes * each)
	leases := make([][]*batch.Lease, nodes)
	for i := range nodes {
		node, err := d.Join(d.ctx(), fmt.Sprint("dying ", i))
		d.must(err)
		for range each {
			l, err := d.Claim(d.ctx(), node, work(b, "m"))
			d.must(err)
			leases[i] = append(leases[i], l)
		}
	}
	d.clock.turn(lasts + time.Second)
	judges := []string{d.node, d.other}
	for _, judge := range judges {
		d.heartbeat(judge)
	}
	var burials [2 * nodes]batch.Burial
	recorded := make([]int64, nodes)
	concurrently(3*nodes, func(i int) {
		if i < 2*nodes {
			var err error
			if burials[i], err = d.Store.Bury(d.ctx(), judges[i%2], time.Time{}, lasts); err != nil {
				d.Error(err)
			}
			return
		}
		i -= 2 * nodes
		var groups []batch.Group
		for _, l := range leases[i] {
			groups = append(groups, group(l, tally(1, 0), "x"))
		}
		lost, err := d.Record(d.ctx(), groups)
		if err != nil {
			d.Error(err)
		}
		recorded[i] = int64(each - len(lost))
	})
	d.bury(d.node) // what was about to be written is left to the next look
	var dead []string
	for _, b := range burials {
		dead = append(dead, b.Nodes...)
	}
	slices.Sort(dead)
	if len(slices.Compact(slices.Clone(dead))) != nodes || len(dead) != nodes {
		d.Errorf("buried: %q, want each of %d once", dead, nodes)
	}
	var free, want int64
	for range nodes * each {
		free += d.claim(b).Tally.Completed
	}
	for _, n := range recorded {
		want += n
	}
	if free != want {
		d.Errorf("%d results are recorded, %d were acknowledged", free, want)
	}
}

// testClockOfNodes sets the clock by which nodes judge each other.
func testClockOfNodes(d *db) {
	if d.Alone {
		d.Skip("nobody is judged")
	}
	d.heartbeat(d.node)
	d.heartbeat(d.other)
	// Ahead: both look silent, and neither judges before it has been heard itself.
	d.clock.turn(time.Hour)
	for _, judge := range []string{d.node, d.other} {
		if b := d.bury(judge); len(b.Nodes) > 0 {
			d.Errorf("after the clock was set ahead, %q are buried", b.Nodes)
		}
	}
	d.heartbeat(d.node)
	d.heartbeat(d.other)
	// Back: who dies now is not believed to live for an hour.
	d.clock.turn(-time.Hour)
	d.heartbeat(d.other)
	d.wantSame("burial when the clock was set back", d.bury(d.other), batch.Burial{})
	d.clock.turn(lasts)
	d.heartbeat(d.other)
	d.wantSame("burial", d.bury(d.other), batch.Burial{})
	d.clock.turn(time.Millisecond)
	d.wantSame("burial", d.bury(d.other), batch.Burial{Nodes: []string{"test"}})
}

// testNodes lists nodes.
func testNodes(d *db) {
	b := d.running(3)
	d.claim(b)
	d.claim(b)
	start := d.clock.Now()
	list := func(ended bool, want ...store.Node) {
		d.Helper()
		nodes, err := d.Nodes(d.ctx(), ended)
		d.must(err)
		slices.SortFunc(nodes, func(a, b store.Node) int { return strings.Compare(a.Name, b.Name) })
		if !same(nodes, want) {
			d.Errorf("Nodes(%v) = %+v, want %+v", ended, nodes, want)
		}
	}
	other := store.Node{ID: d.other, Name: "other", State: "live", StartedAt: start, HeartbeatAt: start}
	node := store.Node{ID: d.node, Name: "test", State: "live", StartedAt: start, HeartbeatAt: start, Held: 2}
	if d.Alone {
		node.HeartbeatAt = time.Time{}
		list(false, node) // the other one's process has ended: there is room for one
		d.clock.turn(time.Hour)
		list(false, node)
		d.must(d.Leave(d.ctx(), d.node))
		list(false)
		return
	}
	list(false, other, node)
	d.clock.turn(lasts + time.Second)
	d.heartbeat(d.other)
	other.HeartbeatAt, node.State = d.clock.Now(), "silent"
	list(false, other, node)
	d.bury(d.other)
	node.EndedAt, node.State, node.Held = d.clock.Now(), "dead", 0
	list(false, other)
	list(true, other, node)
	d.clock.turn(time.Second)
	d.must(d.Leave(d.ctx(), d.other))
	other.HeartbeatAt, other.EndedAt, other.State = d.clock.Now(), d.clock.Now(), "left"
	list(false)
	list(true, other, node)
	d.clock.turn(time.Second)
	d.must(d.Leave(d.ctx(), d.other)) // who has left stays so
	d.must(d.Leave(d.ctx(), d.node))
	list(true, other, node)
}

// testNodesGo drops the rows of nodes that ended long ago, unless they hold something.
func testNodesGo(d *db) {
	b, waiting := d.running(3), d.validating()
	d.seal(d.claim(b), 10, 0)
	d.must(d.Release(d.ctx(), *d.claim(b)))
	done := d.validating()
	for range 2 { // of them, one is admitted
		a, err := d.ClaimValidating(d.ctx(), d.node)
		d.must(err)
		if a.Batch.ID == done.ID {
			d.must(d.Admit(d.ctx(), *a, "m", nil))
		} else {
			d.must(d.ReleaseValidating(d.ctx(), *a))
		}
		if a.Batch.ID == waiting.ID {
			d.cancel(waiting.ID)
		}
	}
	busy, err := d.Join(d.ctx(), "busy")
	d.must(err)
	validator, err := d.Join(d.ctx(), "validator")
	d.must(err)
	held, err := d.Claim(d.ctx(), busy, work(b, "m"))
	d.must(err)
	d.validating()
	validation, err := d.ClaimValidating(d.ctx(), validator)
	d.must(err)
	all := func() (names []string) {
		nodes, err := d.Nodes(d.ctx(), true)
		d.must(err)
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		slices.Sort(names)
		return names
	}
	for _, n := range []string{d.node, d.other, busy, validator} {
		d.must(d.Leave(d.ctx(), n))
	}
	for _, step := range []struct {
		after time.Duration
		want  string
	}{{6 * 24 * time.Hour, "[busy other test validator]"}, {25 * time.Hour, "[busy validator]"}} {
		d.clock.turn(step.after)
		d.sweep()
		if got := fmt.Sprint(all()); got != step.want {
			d.Errorf("after %v more there are %v, want %v", step.after, got, step.want)
		}
	}
	d.must(d.Release(d.ctx(), *held))
	d.must(d.ReleaseValidating(d.ctx(), *validation))
	d.sweep()
	if got := all(); len(got) > 0 {
		d.Errorf("of nodes that have given back all there are %v", got)
	}
}
