package crash

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"offpeak/internal/sim"
)

// clusterSim is an upstream whose answers take a while, so that there is something to lose.
var clusterSim = sim.Config{Seed: 1, Timing: sim.Timing{Latency: 200 * time.Millisecond, Jitter: 0.9}, Always400: refused}

// clusterLimit is how many calls nodes have in flight together.
const clusterLimit = 24

// maxTakeover is how long it may take until others go on with what a lost node had in hand.
const maxTakeover = 20 * time.Second

// TestClusterTakeover kills one node after the other, in the middle of its work. Others go on with
// it; the killed one comes back at once, under its old name, and is none the less a new one.
func TestClusterTakeover(t *testing.T) {
	slow(t)
	t.Parallel()
	c := newCluster(t, newUpstream(t, clusterSim), clusterOptions{nodes: 3, limit: clusterLimit})
	c.startAll()
	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	r := chance(t)
	random := rand.New(rand.NewPCG(r.Uint64(), 0))
	load.Go(func() { c.busy(ctx, random, 600) })
	for _, n := range c.nodes {
		life := len(c.u.of(0))
		c.u.await(t, "calls of every node", func() bool { return len(c.u.calls) > life+200 })
		n.kill()
		n.start()
		time.Sleep(time.Duration(1+r.IntN(5)) * time.Second) // what is tried
	}
	stop()
	load.Wait()
	c.finish()
	c.report()
	for key, d := range c.takeovers() {
		if d > maxTakeover {
			t.Errorf("others took over from %s after %s, want at most %s", key, d, maxTakeover)
		}
	}
}

// TestClusterRounds breaks whatever a cluster stands on, and its nodes, several at a time and at
// random, while it works. After each round everything is sound, and whatever was recorded still is
// and was not sent again.
func TestClusterRounds(t *testing.T) {
	slow(t)
	t.Parallel()
	r := chance(t)
	c := newCluster(t, newUpstream(t, clusterSim), clusterOptions{nodes: 3, limit: clusterLimit, standby: true})
	c.startAll()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	random := rand.New(rand.NewPCG(r.Uint64(), 0))
	load.Go(func() { c.busy(ctx, random, 600) })
	w := &wreck{broken: map[target]bool{}}
	begun := time.Now()
	for i := range rounds(t, 20) {
		// One in seven rounds begins something that outlasts a lease, of a node or of all.
		var long target
		switch i % 14 {
		case 2, 8:
			long = target(c.nodes[r.IntN(len(c.nodes))].name)
		case 6:
			long = theDatabase
		}
		list := c.draw(r, w, long)
		var mended []<-chan struct{}
		for _, b := range list {
			time.Sleep(between(r, 0, 300*time.Millisecond))
			t.Logf("%5.1fs round %d: %s, for %s", time.Since(begun).Seconds(), i, b, b.lasts)
			if done := w.start(b); !b.long {
				mended = append(mended, done)
			}
		}
		for _, done := range mended {
			<-done
		}
		time.Sleep(between(r, 0, 2*time.Second)) // of work, so that there is something to break
		if w.is(theDatabase) {
			continue
		}
		if c.examine(); t.Failed() {
			t.FailNow()
		}
	}
	w.all.Wait()
	stop()
	load.Wait()
	c.finish()
	c.report()
	c.examineByCommand()
}
