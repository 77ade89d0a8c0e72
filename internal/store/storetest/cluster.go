package storetest

import (
	"errors"
	"sync"
	"time"

	"offpeak/internal/batch"
)

// testPair: whoever is first says by which blob the database knows its blobs, and that one is kept.
func testPair(d *db) {
	p, err := d.Blobs(d.ctx())
	d.must(err)
	d.wantSame("a new database", p, batch.Part{})
	if err := d.Pair(d.ctx(), batch.Part{Key: "0123456789abcdef0123456789abcdef", Bytes: 1}); err == nil {
		d.Error("a blob that was never reserved is accepted")
	}
	parts := []batch.Part{d.part(10), d.part(20), d.part(30)}
	var at sync.WaitGroup
	errs := make([]error, len(parts))
	for i := range parts {
		at.Go(func() { errs[i] = d.Pair(d.ctx(), parts[i]) })
	}
	at.Wait()
	d.must(errors.Join(errs...))
	first, err := d.Blobs(d.ctx())
	d.must(err)
	d.must(d.Pair(d.ctx(), d.part(40)))
	again, err := d.Blobs(d.ctx())
	d.must(err)
	d.wantSame("later", again, first)

	// The others are nobody's, and go.
	d.clock.turn(25 * time.Hour)
	d.sweep()
	for _, p := range parts {
		d.wantSame("the blob is swept", d.deleted(p.Key)[0], p.Key != first.Key)
	}
}

// testTell: what goes on at a node is known to the others until it says otherwise, or is heard of no
// more.
func testTell(d *db) {
	b, other := d.running(1), d.running(1)
	busy := batch.Activity{InFlight: 7, Rate: 2.5}
	stuck := batch.Activity{WaitingFor: "upstream x down"}
	elsewhere := func(what, node string, want map[string][]batch.Activity) {
		d.Helper()
		got, err := d.Elsewhere(d.ctx(), node)
		d.must(err)
		d.wantSame(what, got, want)
	}
	elsewhere("before anybody tells", "", map[string][]batch.Activity{})
	if d.Alone {
		d.must(d.Tell(d.ctx(), d.node, map[string]batch.Activity{b.ID: busy}))
		elsewhere("at itself", d.node, map[string][]batch.Activity{})
		return
	}
	d.must(d.Tell(d.ctx(), d.node, map[string]batch.Activity{b.ID: busy, other.ID: stuck, "batch_dropped": busy}))
	d.must(d.Tell(d.ctx(), d.other, map[string]batch.Activity{b.ID: stuck}))
	elsewhere("at the first", d.node, map[string][]batch.Activity{b.ID: {stuck}})
	elsewhere("at the second", d.other, map[string][]batch.Activity{b.ID: {busy}, other.ID: {stuck}})
	d.must(d.Tell(d.ctx(), d.node, map[string]batch.Activity{other.ID: busy}))
	elsewhere("when it says otherwise", d.other, map[string][]batch.Activity{other.ID: {busy}})
	d.must(d.Tell(d.ctx(), d.node, nil))
	elsewhere("when it has nothing to do", d.other, map[string][]batch.Activity{})
	d.clock.turn(2 * lasts)
	elsewhere("when it is heard of no more", d.node, map[string][]batch.Activity{})
	d.heartbeat(d.other)
	elsewhere("when it is heard of again", d.node, map[string][]batch.Activity{b.ID: {stuck}})
	d.must(d.Leave(d.ctx(), d.other))
	elsewhere("when it has left", d.node, map[string][]batch.Activity{})
}
