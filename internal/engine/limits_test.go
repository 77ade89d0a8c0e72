package engine_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// A census counts the calls that are in flight at an upstream, and whose they are.
type census struct {
	mu    sync.Mutex
	nodes map[string]int
	all   int
	most  int
	begun []time.Time
	busy  float64 // seconds that calls were in flight
	at    time.Time
}

const nodeHeader = "X-Node"

// census puts a census before whatever answers calls at u.
func (u *up) census() *census {
	c, behind := &census{nodes: map[string]int{}, at: time.Now()}, *u.handler.Load()
	u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			node := r.Header.Get(nodeHeader)
			c.change(node, 1)
			defer c.change(node, -1)
		}
		behind.ServeHTTP(w, r)
	}))
	return c
}

func (c *census) change(node string, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.busy += float64(c.all) * now.Sub(c.at).Seconds()
	c.at = now
	c.nodes[node] += by
	c.all += by
	c.most = max(c.most, c.all)
	if by > 0 {
		c.begun = append(c.begun, now)
	}
}

// of is how many calls of each of the nodes are in flight.
func (c *census) of(names ...string) (n []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		n = append(n, c.nodes[name])
	}
	return n
}

// used is how many calls were in flight on average while f ran.
func (c *census) used(f func()) float64 {
	begin, was := time.Now(), c.slotSeconds()
	f()
	return (c.slotSeconds() - was) / time.Since(begin).Seconds()
}

// slotSeconds is how long calls were in flight so far, all together.
func (c *census) slotSeconds() float64 {
	c.change("", 0)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.busy
}

// peak is how many calls were in flight at most.
func (c *census) peak() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most
}

// begins is when calls came.
func (c *census) begins() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.begun)
}

// perMinute is how many calls came in the minute in which most did.
func (c *census) perMinute() (most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := 0
	for i, at := range c.begun {
		for at.Sub(c.begun[first]) >= time.Minute {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// A fellow is a node beside others at one upstream.
type fellow struct {
	*process
	name   string
	faults *faults
}

// fellows runs a test on a bench where nodes share an upstream.
func fellows(t *testing.T, c sim.Config, f func(b *bench, u *up)) {
	t.Helper()
	bubble(t, func(b *bench) {
		b.shared, b.repeats = true, true
		b.reopen()
		f(b, b.upstream(c, upstream.Config{}))
	})
}

// fellow starts a node that uses the upstream with its settings, and what it asks of the store may fail.
func (b *bench) fellow(name string, u *up, c upstream.Config, decide ...func(op string, n, all int) fate) *fellow {
	b.Helper()
	c.Name, c.URL, c.Dialer, c.Headers = "up", u.config.URL, u.config.Dialer, map[string]string{nodeHeader: name}
	own, err := upstream.New(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(own.Close)
	n := &fellow{name: name, faults: newFaults(nil)}
	if len(decide) > 0 {
		n.faults.decide = decide[0]
	}
	n.process = b.start(n.faults.in, small(20), func(c *engine.Config) {
		c.Node, c.Upstreams = name, upstream.NewPool(own)
		*c = c.WithPoll(250 * time.Millisecond)
	})
	return n
}

// kill ends the node as kill -9 does.
func (n *fellow) kill() {
	n.faults.die()
	n.process.stop()
	n.process.abort()
	<-n.process.ended
}

// TestNodesShareALimit has nodes come, die and leave at an upstream with a stated limit. All together
// never exceed it, it is used up, and who is there has an equal share of it within seconds.
func TestNodesShareALimit(t *testing.T) {
	unraced(t)
	const limit = 8
	fellows(t, sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.5}}, func(b *bench, u *up) {
		c := u.census()
		cfg := upstream.Config{MaxInFlight: limit}
		shares := func(what string, least float64, names ...string) {
			b.Helper()
			counts := make([]float64, len(names))
			used := c.used(func() {
				for range 100 {
					time.Sleep(100 * time.Millisecond)
					for i, n := range c.of(names...) {
						counts[i] += float64(n) / 100
					}
				}
			})
			b.Logf("%s: %.1f in flight, %.1f by node", what, used, counts)
			if used < least {
				b.Errorf("%s: %.1f of %d slots are used, want %.1f", what, used, limit, least)
			}
			if fair := float64(limit) / float64(len(names)); slices.Min(counts) < 0.6*fair || slices.Max(counts) > 1.4*fair {
				b.Errorf("%s: the nodes have %.1f calls in flight, want about %.1f", what, counts, fair)
			}
		}
		id := b.run(chat(3000))
		n1 := b.fellow("one", u, cfg)
		time.Sleep(3 * time.Second)
		shares("one node", 7.5, "one")
		n2 := b.fellow("two", u, cfg)
		n3 := b.fellow("three", u, cfg)
		time.Sleep(5 * time.Second)
		shares("three nodes", 7, "one", "two", "three")
		n2.kill()
		time.Sleep(20 * time.Second)
		shares("one has died", 7, "one", "three")
		n1.drain()
		time.Sleep(3 * time.Second)
		shares("one has left", 7.5, "three")
		n4 := b.fellow("four", u, cfg)
		time.Sleep(5 * time.Second)
		shares("one came", 7, "four", "three")
		x := b.ends(id)
		b.want(x, batch.Completed, 3000, 3000, 0)
		if c.peak() != limit {
			b.Errorf("%d calls were in flight at a time, want %d", c.peak(), limit)
		}
		n3.drain()
		n4.drain()
	})
}

// TestMoreNodesThanSlots has three nodes share two slots, for calls that are short or long.
func TestMoreNodesThanSlots(t *testing.T) {
	unraced(t)
	for _, latency := range []time.Duration{300 * time.Millisecond, 8 * time.Second} {
		fellows(t, sim.Config{Timing: sim.Timing{Latency: latency}}, func(b *bench, u *up) {
			c := u.census()
			var nodes []*fellow
			for i := range 3 {
				nodes = append(nodes, b.fellow(fmt.Sprint("node ", i), u, upstream.Config{MaxInFlight: 2}))
			}
			id := b.run(chat(200))
			used := c.used(func() { b.want(b.ends(id), batch.Completed, 200, 200, 0) })
			b.Logf("calls of %v: %.2f of 2 slots were used", latency, used)
			if c.peak() != 2 || used < 1.6 {
				b.Errorf("calls of %v: %.2f of 2 slots were used, %d at most", latency, used, c.peak())
			}
			for _, n := range nodes {
				n.drain()
			}
		})
	}
}

// TestNodesShareRates has nodes come, die and leave at an upstream with a limit of requests or tokens a
// minute. In no minute do all together exceed it, and it is used.
func TestNodesShareRates(t *testing.T) {
	for _, test := range []struct {
		limits upstream.Limits
		within time.Duration
	}{
		{upstream.Limits{RequestsPerMinute: 120}, 7 * time.Minute},
		{upstream.Limits{TokensPerMinute: 12000}, 15 * time.Minute},
	} {
		fellows(t, sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.9}}, func(b *bench, u *up) {
			c, tap := u.census(), u.tap()
			cfg := upstream.Config{MaxInFlight: 50, Limits: test.limits}
			n1, n2 := b.fellow("one", u, cfg), b.fellow("two", u, cfg)
			start := time.Now()
			id := b.run(stating(chat(480)))
			time.Sleep(50 * time.Second)
			n3 := b.fellow("three", u, cfg)
			time.Sleep(40 * time.Second)
			n2.kill()
			time.Sleep(10 * time.Second)
			n1.drain()
			n4 := b.fellow("four", u, cfg)
			b.want(b.ends(id), batch.Completed, 480, 480, 0)
			took := time.Since(start)
			b.Logf("%+v: took %v, %d calls in the fullest minute", test.limits, took, c.perMinute())
			tap.wantKept(b, test.limits, 0)
			if took > test.within {
				b.Errorf("it took %v, want %v at most", took, test.within)
			}
			n3.drain()
			n4.drain()
		})
	}
}

// TestFirstCallAmongNodes has a batch come to nodes that have nothing to do: its first call goes out
// at once.
func TestFirstCallAmongNodes(t *testing.T) {
	fellows(t, sim.Config{Timing: sim.Timing{Latency: time.Second}}, func(b *bench, u *up) {
		c := u.census()
		var nodes []*fellow
		for i := range 3 {
			nodes = append(nodes, b.fellow(fmt.Sprint("node ", i), u, upstream.Config{MaxInFlight: 8, Limits: upstream.Limits{RequestsPerMinute: 1000}}))
		}
		time.Sleep(17 * time.Second)
		for range 3 {
			before, start := len(c.begins()), time.Now()
			id := b.run(chat(3))
			b.ends(id)
			first := c.begins()[before].Sub(start)
			b.Logf("the first call after %v", first)
			if first > 60*time.Millisecond {
				b.Errorf("the first call after %v", first)
			}
			time.Sleep(7 * time.Second)
		}
		for _, n := range nodes {
			n.drain()
		}
	})
}

// TestSlowShares has questions for shares take long, fail, or take effect and fail, while what nodes have
// to do comes and goes. Whatever a node sends meanwhile, all together never exceed the limit.
func TestSlowShares(t *testing.T) {
	const limit = 8
	fellows(t, sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.9}}, func(b *bench, u *up) {
		c := u.census()
		r := rand.New(rand.NewPCG(1, 2))
		var mu sync.Mutex
		draw := func(n int) int {
			mu.Lock()
			defer mu.Unlock()
			return r.IntN(n)
		}
		var nodes []*fellow
		var calm atomic.Bool // a node that drains has its time
		for i := range 3 {
			n := b.fellow(fmt.Sprint("node ", i), u, upstream.Config{MaxInFlight: limit}, func(op string, _, _ int) fate {
				if op != "Share" || calm.Load() {
					return done
				}
				time.Sleep(time.Duration(draw(700)) * time.Millisecond) // after what is used has been counted
				return []fate{done, done, done, lost, untold}[draw(5)]
			})
			nodes = append(nodes, n)
		}
		var ids []string
		for range 60 {
			ids = append(ids, b.run(chat(1+draw(12))))
			time.Sleep(time.Duration(draw(3000)) * time.Millisecond)
		}
		for _, id := range ids {
			x := b.ends(id)
			b.want(x, batch.Completed, x.Counts.Total, x.Counts.Total, 0)
		}
		if c.peak() != limit {
			b.Errorf("%d calls were in flight at a time, want %d", c.peak(), limit)
		}
		calm.Store(true)
		time.Sleep(time.Second) // until what is under way has ended
		for _, n := range nodes {
			n.drain()
		}
	})
}

// TestLowestLimitCounts has nodes whose settings differ.
func TestLowestLimitCounts(t *testing.T) {
	fellows(t, sim.Config{Timing: sim.Timing{Latency: time.Second}}, func(b *bench, u *up) {
		c := u.census()
		low := b.fellow("low", u, upstream.Config{MaxInFlight: 3, Limits: upstream.Limits{RequestsPerMinute: 90}})
		time.Sleep(time.Second)
		high := b.fellow("high", u, upstream.Config{MaxInFlight: 30})
		auto := b.fellow("auto", u, upstream.Config{Limits: upstream.Limits{RequestsPerMinute: 1000}})
		b.want(b.ends(b.run(chat(200))), batch.Completed, 200, 200, 0)
		if c.peak() != 3 || c.perMinute() > 90 {
			b.Errorf("%d calls in flight and %d in a minute, want 3 and 90", c.peak(), c.perMinute())
		}
		low.drain()
		high.drain()
		auto.drain()
	})
}

// TestNodesFindALimit has nodes share an upstream of which nobody has said how much it can do. Together
// they are about as fast as one would be.
func TestNodesFindALimit(t *testing.T) {
	unraced(t)
	took := map[int]time.Duration{}
	for _, nodes := range []int{1, 3} {
		fellows(t, sim.Config{Seed: 1, Slots: 32, Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.9}}, func(b *bench, u *up) {
			c := u.census()
			var all []*fellow
			for i := range nodes {
				all = append(all, b.fellow(fmt.Sprint("node ", i), u, upstream.Config{}))
			}
			start := time.Now()
			b.want(b.ends(b.run(chat(3000))), batch.Completed, 3000, 3000, 0)
			took[nodes] = time.Since(start)
			b.Logf("%d nodes: %v, at most %d in flight, %d calls", nodes, took[nodes], c.peak(), len(c.begins()))
			for _, n := range all {
				n.drain()
			}
		})
	}
	if float64(took[3]) > 1.1*float64(took[1]) {
		t.Errorf("three nodes take %v, one takes %v", took[3], took[1])
	}
}
