package crash

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"offpeak/internal/lab"
)

// A target is what a breakage breaks. Nothing is broken twice at a time.
type target string

// Targets beside nodes, which are theirs by name.
const (
	theDatabase target = "database"
	theBlobs    target = "blobs"
)

// A breakage is something that goes wrong, and is mended.
type breakage struct {
	what   string
	target target
	lasts  time.Duration
	// mend breaks it, waits, mends it, and returns.
	run func(lasts time.Duration)
	// long: rounds go on meanwhile.
	long bool
}

func (b breakage) String() string { return fmt.Sprintf("%s: %s", b.target, b.what) }

// between draws a duration.
func between(r *rand.Rand, from, to time.Duration) time.Duration {
	return (from + time.Duration(r.Int64N(int64(to-from)))).Round(time.Millisecond)
}

// ways in which a connection goes wrong.
var ways = []lab.Way{lab.Refuse, lab.Swallow, lab.Stall}

// breakNode draws what happens to a node. A long one lasts longer than its lease.
func (c *cluster) breakNode(r *rand.Rand, n *node, long bool) breakage {
	b := breakage{target: target(n.name), long: long, lasts: between(r, 300*time.Millisecond, 4*time.Second)}
	if long {
		b.lasts = between(r, 21*time.Second, 26*time.Second)
	}
	switch r.IntN(7) {
	case 0: // back at once, as a process is that fell
		b.what, b.lasts, b.long = "killed and started", 0, false
		b.run = func(time.Duration) { n.kill(); n.start() }
	case 1:
		b.what = "killed, and started later"
		b.run = func(d time.Duration) { n.kill(); time.Sleep(d); n.start() }
	case 2:
		b.what, b.lasts, b.long = "asked to stop, and started", 0, false
		b.run = func(time.Duration) { n.stop(); n.start() }
	case 3:
		b.what = "suspended"
		b.run = func(d time.Duration) {
			n.signal(syscall.SIGSTOP)
			time.Sleep(d)
			n.signal(syscall.SIGCONT)
		}
	default: // a network that is cut somewhere, or everywhere
		way := ways[r.IntN(len(ways))]
		from := 1 + r.IntN(7) // of its three relays any, but one
		database, blobs, upstream := from&1 > 0, from&2 > 0, from&4 > 0
		if upstream && way == lab.Stall {
			way = lab.Swallow // else calls come after somebody else has made them again, which nobody can prevent
		}
		b.what = fmt.Sprintf("%s of database: %t, blobs: %t, upstream: %t", way, database, blobs, upstream)
		b.run = func(d time.Duration) {
			n.cut(way, database, blobs, upstream)
			time.Sleep(d)
			n.cut(lab.Pass, database, blobs, upstream)
		}
	}
	return b
}

// breakDatabase draws what happens to the database. A long one lasts longer than leases.
func (c *cluster) breakDatabase(r *rand.Rand, long bool) breakage {
	b := breakage{target: theDatabase, lasts: between(r, 300*time.Millisecond, 4*time.Second), long: long}
	check := func(err error) {
		if err != nil {
			c.t.Error(err)
		}
	}
	if long {
		b.what, b.lasts = "suspended", between(r, 28*time.Second, 32*time.Second)
		b.run = func(d time.Duration) { c.pg.Pause(false); time.Sleep(d); c.pg.Resume(false) }
		return b
	}
	failover := func(d time.Duration) {
		c.pg.Kill()
		time.Sleep(d)
		check(c.pg.Promote())
		check(c.pg.Attach())
	}
	most := 4
	if c.o.standby {
		most = 8
	}
	switch r.IntN(most) {
	case 0:
		b.what, b.lasts = "all connections ended", 0
		b.run = func(time.Duration) { check(c.pg.Terminate()) }
	case 1:
		b.what, b.lasts = "crashed, and started", 0
		b.run = func(time.Duration) { check(c.pg.Restart(true)) }
	case 2:
		b.what, b.lasts = "stopped, and started", 0
		b.run = func(time.Duration) { check(c.pg.Restart(false)) }
	case 3:
		b.what = "suspended"
		b.run = func(d time.Duration) { c.pg.Pause(false); time.Sleep(d); c.pg.Resume(false) }
	case 4:
		b.what = "standby suspended, so that nothing is committed"
		b.run = func(d time.Duration) { c.pg.Pause(true); time.Sleep(d); c.pg.Resume(true) }
	case 5: // what waited for the standby is known to the primary alone, and lost with it
		b.what, b.lasts = "standby suspended, primary killed, standby promoted", between(r, 300*time.Millisecond, 12*time.Second)
		b.run = func(d time.Duration) {
			c.pg.Pause(true)
			time.Sleep(d)
			c.pg.Kill()
			c.pg.Resume(true)
			check(c.pg.Promote())
			check(c.pg.Attach())
		}
	default:
		b.what = "primary killed, standby promoted"
		b.run = failover
	}
	return b
}

// breakBlobs draws what happens to the S3 server.
func (c *cluster) breakBlobs(r *rand.Rand) breakage {
	b := breakage{target: theBlobs, lasts: between(r, 300*time.Millisecond, 4*time.Second)}
	if r.IntN(2) == 0 {
		b.what = "suspended"
		b.run = func(d time.Duration) { c.s3.Pause(); time.Sleep(d); c.s3.Resume() }
		return b
	}
	b.what = "killed, and started"
	b.run = func(d time.Duration) {
		c.s3.Kill()
		time.Sleep(d)
		if err := c.s3.Restart(); err != nil {
			c.t.Error(err)
		}
	}
	return b
}

// A wreck is what is broken at the moment.
type wreck struct {
	mu     sync.Mutex
	broken map[target]bool
	mended map[target]time.Time // last
	all    sync.WaitGroup
}

// lately reports whether something was broken within the last so long.
func (w *wreck) lately(t target, ago time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken[t] || time.Since(w.mended[t]) < ago
}

func (w *wreck) is(t target) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken[t]
}

// start breaks something, and returns what is closed when it is mended.
func (w *wreck) start(b breakage) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken[b.target] = true
	mended := make(chan struct{})
	w.all.Go(func() {
		defer close(mended)
		b.run(b.lasts)
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.broken, b.target)
		w.mended[b.target] = time.Now()
	})
	return mended
}

// draw draws what is broken in a round: one to three things that are not broken yet.
func (c *cluster) draw(r *rand.Rand, long target) (list []breakage) {
	drawn := map[target]bool{}
	add := func(b breakage) {
		if !c.wreck.is(b.target) && !drawn[b.target] {
			drawn[b.target] = true
			list = append(list, b)
		}
	}
	if long == theDatabase {
		add(c.breakDatabase(r, true))
	}
	for range 1 + r.IntN(3) {
		switch n := r.IntN(10); {
		case n < 3:
			add(c.breakDatabase(r, false))
		case n < 4:
			add(c.breakBlobs(r))
		default:
			node := c.nodes[r.IntN(len(c.nodes))]
			add(c.breakNode(r, node, long == target(node.name)))
		}
	}
	return list
}
