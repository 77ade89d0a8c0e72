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
