package crash

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"offpeak/internal/lab"
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
	r := chance(t)
	stop := c.load(r)
	for _, n := range c.nodes {
		life := len(c.u.of(0))
		c.u.await(t, "calls of every node", func() bool { return len(c.u.calls) > life+200 })
		n.kill()
		n.start()
		time.Sleep(time.Duration(1+r.IntN(5)) * time.Second) // what is tried
	}
	stop()
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
// and was not sent again. After twenty another cluster begins, since examining one takes the longer
// the more it has done.
func TestClusterRounds(t *testing.T) {
	slow(t)
	t.Parallel()
	r := chance(t)
	for left := rounds(t, 20); left > 0; left -= 20 {
		t.Run("", func(t *testing.T) { breakCluster(t, r, min(left, 20)) })
		if t.Failed() {
			return
		}
	}
}

func breakCluster(t *testing.T, r *rand.Rand, n int) {
	c := newCluster(t, newUpstream(t, clusterSim), clusterOptions{nodes: 4, limit: clusterLimit, standby: true, roles: []string{"all", "all", "worker", "api"}})
	c.startAll()
	stop := c.load(r)
	begun := time.Now()
	for i := range n {
		// Now and then something begins that outlasts leases, of a node or of all.
		var long target
		switch i % 14 {
		case 2, 8:
			long = target(c.nodes[r.IntN(len(c.nodes))].name)
		case 6:
			long = theDatabase
		}
		list := c.draw(r, long)
		var mended []<-chan struct{}
		for _, b := range list {
			time.Sleep(between(r, 0, 300*time.Millisecond))
			t.Logf("%5.1fs round %d: %s, for %s", time.Since(begun).Seconds(), i, b, b.lasts)
			if done := c.wreck.start(b); !b.long {
				mended = append(mended, done)
			}
		}
		for _, done := range mended {
			<-done
		}
		time.Sleep(between(r, 0, 2*time.Second)) // of work, so that there is something to break
		if c.wreck.is(theDatabase) {
			continue
		}
		if c.examine(); t.Failed() {
			t.FailNow()
		}
	}
	c.wreck.all.Wait()
	stop()
	c.finish()
	c.report()
	c.examineByCommand()
}

// TestClusterSilentStandby has a synchronous standby stand still, so that nothing can be committed
// for good, and then lose the primary, which knows more than the standby. Whatever was acknowledged,
// in whatever way clients and the database lost patience, is on the standby.
func TestClusterSilentStandby(t *testing.T) {
	slow(t)
	t.Parallel()
	c := newCluster(t, newUpstream(t, clusterSim), clusterOptions{nodes: 2, limit: clusterLimit, standby: true})
	c.startAll()
	c.w.submit(t, c.nodes[0].client(), 2000)
	c.u.await(t, "answers", func() bool { return len(c.u.calls) > 100 })
	c.pg.Pause(true)
	ctx, stop := context.WithTimeout(t.Context(), 14*time.Second) // longer than anybody's patience
	defer stop()
	acknowledged := len(c.w.files)
	var clients sync.WaitGroup
	for range 24 {
		clients.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				api := c.nodes[i%2].client()
				if file, err := c.w.upload(ctx, api, c.w.input(3)); err == nil {
					c.w.create(ctx, api, file)
				}
			}
		})
	}
	clients.Wait()
	t.Logf("%d uploads acknowledged meanwhile", len(c.w.files)-acknowledged)
	c.pg.Kill()
	c.pg.Resume(true)
	if err := c.pg.Promote(); err != nil {
		t.Fatal(err)
	}
	if err := c.pg.Attach(); err != nil {
		t.Fatal(err)
	}
	c.finish()
	c.report()
}

// TestClusterCutOff cuts one node off from something for good, in the middle of a batch. The others do
// what it cannot, and the batch ends in time.
func TestClusterCutOff(t *testing.T) {
	slow(t)
	for _, test := range []struct {
		what                      string
		way                       lab.Way
		database, blobs, upstream bool
	}{
		{"database refuses", lab.Refuse, true, false, false},
		{"database swallows", lab.Swallow, true, false, false},
		{"blobs refuse", lab.Refuse, false, true, false},
		{"blobs swallow", lab.Swallow, false, true, false},
		{"upstream refuses", lab.Refuse, false, false, true},
		{"everything refuses", lab.Refuse, true, true, true},
		{"everything swallows", lab.Swallow, true, true, true},
	} {
		t.Run(test.what, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, newUpstream(t, clusterSim), clusterOptions{nodes: 3, limit: clusterLimit})
			c.startAll()
			n := c.nodes[2]
			id := c.w.submit(t, c.nodes[0].client(), 1200)
			c.u.await(t, "calls of the node", func() bool {
				return len(c.u.calls) > 100 && slices.ContainsFunc(c.u.calls, func(call *call) bool { return call.key == n.key })
			})
			at := time.Now()
			n.cut(test.way, test.database, test.blobs, test.upstream)
			api := c.nodes[0].client()
			poll(t, "the end of the batch", func() bool {
				b, err := api.Batch(t.Context(), id)
				return err == nil && ended(*b)
			})
			took := time.Since(at)
			t.Logf("%s: the batch ended %.1f s after", test.what, took.Seconds())
			if took > maxTakeover+10*time.Second { // it takes 10 s undisturbed
				t.Errorf("%s: it took %s", test.what, took)
			}
			c.finish()
		})
	}
}

// TestClusterRate has three nodes keep to a number of requests a minute together, while one of them is
// killed and started again and again: none of them begins with a minute's worth.
func TestClusterRate(t *testing.T) {
	slow(t)
	t.Parallel()
	const minute = 1500
	u := newUpstream(t, sim.Config{Seed: 1, Timing: sim.Timing{Latency: 50 * time.Millisecond}, Always400: refused})
	c := newCluster(t, u, clusterOptions{nodes: 3, limit: 64, rate: minute})
	c.startAll()
	begun := time.Now()
	c.w.submit(t, c.nodes[0].client(), 3*minute)
	for time.Since(begun) < 75*time.Second {
		time.Sleep(8 * time.Second) // what is tried
		n := c.nodes[1]
		n.kill()
		n.start()
		poll(t, n.name, n.isUp)
	}
	calls := u.of(0)
	most, first := 0, 0
	for i, call := range calls {
		for call.begun.Sub(calls[first].begun) >= time.Minute {
			first++
		}
		most = max(most, i-first+1)
	}
	t.Logf("%d calls in %.0f s, no more than %d in a minute", len(calls), time.Since(begun).Seconds(), most)
	if most > minute {
		t.Errorf("%d calls in a minute, of %d allowed", most, minute)
	}
	if least := minute / 2; most < least {
		t.Errorf("no more than %d calls in a minute, of %d allowed", most, minute)
	}
}

// TestClusterSuspended stops nodes for longer than their leases, in the middle of their work, as a
// laptop's lid or a hypervisor does. When they wake up, others have done what they had in hand; they
// notice before they send any of it again.
func TestClusterSuspended(t *testing.T) {
	slow(t)
	t.Parallel()
	c := newCluster(t, newUpstream(t, clusterSim), clusterOptions{nodes: 4, limit: clusterLimit})
	c.startAll()
	stop := c.load(chance(t))
	c.awaitCalls(300)
	asleep := c.nodes[1:3]
	for _, n := range asleep {
		n.signal(syscall.SIGSTOP)
	}
	time.Sleep(maxTakeover) // by then others have what they had
	c.awaitCalls(300)
	c.examine()
	woken := time.Now()
	for _, n := range asleep {
		n.signal(syscall.SIGCONT)
	}
	c.awaitCalls(300)
	c.examine()
	stop()
	c.finish()
	c.report()
	late := 0
	for _, call := range c.u.of(0) {
		if call.begun.After(woken) && call.begun.Before(woken.Add(100*time.Millisecond)) && slices.ContainsFunc(asleep, func(n *node) bool { return n.key == call.key }) {
			late++
		}
	}
	t.Logf("%d calls of theirs in the first 100 ms", late)
}
