package engine_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/store"
	"offpeak/internal/store/storetest"
	"offpeak/internal/upstream"
)

// A member is a node of several, with an upstream that is its alone, so that it can be seen what it
// sends.
type member struct {
	*process
	*faults
	up    *up
	lines int                                    // of a segment, at most
	away  atomic.Bool                            // nothing that it asks of the store and the blobs has an effect
	off   atomic.Bool                            // nothing that it asks of the blobs has
	mute  atomic.Bool                            // its heartbeats have none
	hook  atomic.Pointer[func(op string, n int)] // is called before each operation; nil: nothing is
}

// cluster runs a test on a bench that nodes share, each with its own upstream, once with a folder and
// once with PostgreSQL. There, time stands still while a query is under way.
func cluster(t *testing.T, nodes int, c sim.Config, slots int, f func(b *bench, m []*member)) {
	t.Helper()
	t.Run("folder", func(t *testing.T) {
		aboutFolders(t)
		t.Parallel()
		clusterOn(t, "", nodes, c, slots, f)
	})
	if race && !*clustered {
		return // with PostgreSQL they run without the race detector, and with S3: see .ci/test
	}
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		clusterOn(t, storetest.Postgres(t), nodes, c, slots, f)
	})
}

func clusterOn(t *testing.T, dsn string, nodes int, c sim.Config, slots int, f func(b *bench, m []*member)) {
	t.Helper()
	clusterOf(t, dsn, nodes, c, slots, 20, f)
}

func clusterOf(t *testing.T, dsn string, nodes int, c sim.Config, slots, lines int, f func(b *bench, m []*member)) {
	t.Helper()
	bubble(t, func(b *bench) {
		b.shared = true
		if f, ok := b.storage.(folder); ok && dsn != "" {
			b.storage = database{f, dsn}
		}
		b.doctor = b.newDoctor()
		b.reopen()
		members := make([]*member, nodes)
		for i := range members {
			members[i] = &member{lines: lines, up: b.upstream(c, upstream.Config{MaxInFlight: slots, Models: []string{"m"}})}
		}
		for i, m := range members {
			m.join(b, fmt.Sprint("node ", i))
		}
		f(b, members)
	})
}

// join starts the member's process.
func (m *member) join(b *bench, name string) {
	b.Helper()
	m.faults = newFaults(func(op string, _, _ int) fate {
		if m.away.Load() || m.off.Load() && strings.HasPrefix(op, "blob.") || m.mute.Load() && op == "Heartbeat" {
			return lost
		}
		return done
	})
	m.faults.before = func(op string, n int) {
		if f := m.hook.Load(); f != nil {
			(*f)(op, n)
		}
	}
	m.process = b.start(m.in, small(m.lines), func(c *engine.Config) {
		c.Node, c.Upstreams = name, upstream.NewPool(m.up.Upstream)
		*c = c.WithPoll(250 * time.Millisecond)
	})
}

// kill ends the member's process as kill -9 does. It takes 10 s if there was something to record, which
// the process would like to do.
func (m *member) kill() {
	m.die()
	m.process.stop()
	m.process.abort()
	<-m.process.ended
}

// die is ambiguous between the two that a member is made of.
func (m *member) die() { m.faults.die() }

// nodes returns the nodes in the given state, by name.
func (b *bench) nodes(state string) map[string]store.Node {
	b.Helper()
	all, err := b.store.Nodes(b.Context(), true)
	if err != nil {
		b.Fatal(err)
	}
	out := map[string]store.Node{}
	for _, n := range all {
		if n.State == state {
			out[n.Name] = n
		}
	}
	return out
}

func drainAll(members []*member) {
	for _, m := range members {
		m.process.drain()
	}
}

// sent is how often the requests of the input were sent, all together.
func (b *bench) sent(input []byte) (n int) {
	b.Helper()
	var parser batch.Parser
	for l := range batch.SplitLines(input, 1) {
		req, err := parser.Request(l)
		if err != nil {
			b.Fatal(err)
		}
		n += b.calls(req.Body)
	}
	return n
}

// TestNodeLoss kills a node in the middle of its work, again and again. Others go on with what it had
// within 20 s, and only what it had in flight is sent again.
func TestNodeLoss(t *testing.T) {
	cluster(t, 3, sim.Config{Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.5}}, 4, func(b *bench, m []*member) {
		text := chat(2000)
		id := b.run(text)
		time.Sleep(40 * time.Second)
		for i := range 6 {
			victim := m[i%3]
			name := fmt.Sprint("node ", i%3)
			held := b.nodes("live")[name].Held
			if held == 0 {
				b.Fatalf("%s holds nothing", name)
			}
			killed := time.Now()
			victim.kill()
			for b.nodes("dead")[name].Held > 0 || b.nodes("live")[name].ID != "" || b.nodes("silent")[name].ID != "" {
				if time.Since(killed) > time.Minute {
					b.Fatalf("%s is not taken for dead", name)
				}
				time.Sleep(100 * time.Millisecond)
			}
			took := time.Since(killed)
			b.Logf("%s held %d segments, free after %v", name, held, took)
			if took > 19*time.Second || took < 10*time.Second {
				b.Errorf("what %s held was free after %v, want soon after 15 s", name, took)
			}
			b.examine()
			victim.join(b, name)
			time.Sleep(10 * time.Second)
		}
		b.want(b.ends(id), batch.Completed, 2000, 2000, 0)
		// Four in flight, as many answered and not recorded.
		if n := b.sent(text) - 2000; n > 6*8 {
			b.Errorf("%d requests were sent again after 6 deaths, want %d at most", n, 6*8)
		}
		drainAll(m)
	})
}

// TestLastNodeLoss kills all nodes but one that joins at that moment. It need not have known them.
func TestLastNodeLoss(t *testing.T) {
	cluster(t, 2, sim.Config{Timing: sim.Timing{Latency: 2 * time.Second}}, 8, func(b *bench, m []*member) {
		text := chat(200)
		id := b.run(text)
		time.Sleep(7 * time.Second)
		m[0].kill()
		m[1].kill()
		before := b.sent(text)
		m[0].join(b, "next")
		for start := time.Now(); b.nodes("dead")["node 0"].ID == "" || b.sent(text) == before; time.Sleep(100 * time.Millisecond) {
			if time.Since(start) > 20*time.Second {
				b.Fatalf("after %v nothing of what dead nodes held is sent", time.Since(start))
			}
		}
		b.want(b.ends(id), batch.Completed, 200, 200, 0)
		m[0].process.drain()
	})
}

// TestNodeCutOff cuts a node off from the database for a minute. It sends nothing any more before
// others take what it held, joins anew once it can, and its answers count as far as they were
// recorded before.
func TestNodeCutOff(t *testing.T) {
	for _, test := range []struct {
		name  string
		cut   func(*member) *atomic.Bool
		least time.Duration // at least, and until it is taken for dead
	}{
		{"from the database", func(m *member) *atomic.Bool { return &m.away }, time.Minute},
		{"in its heartbeats", func(m *member) *atomic.Bool { return &m.mute }, 0}, // it records, as if nothing were wrong
	} {
		t.Run(test.name, func(t *testing.T) {
			clusterOf(t, storetest.Postgres(t), 2, sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.5}}, 4, 200, func(b *bench, m []*member) {
				text := chat(1000)
				id := b.run(text)
				time.Sleep(30 * time.Second)
				// When it joins anew it holds nothing, and has nothing to send before it has claimed something.
				var sent, beat atomic.Int64
				hook := func(op string, _ int) {
					switch op {
					case "Heartbeat":
						if !test.cut(m[0]).Load() {
							beat.Store(time.Now().UnixNano())
						}
					case "Join":
						sent.Store(int64(m[0].up.Calls().Calls))
					case "Claim":
						if before := sent.Swap(-1); before > 0 {
							time.Sleep(100 * time.Millisecond)
							if n := int64(m[0].up.Calls().Calls) - before; n > 0 {
								b.Errorf("the node sent %d requests between its joining anew and its first claim", n)
							}
						}
					}
				}
				m[0].hook.Store(&hook)
				for beat.Load() == 0 { // others count from the last heartbeat
					time.Sleep(100 * time.Millisecond)
				}
				test.cut(m[0]).Store(true)
				start := time.Unix(0, beat.Load())
				last, at := m[0].up.Calls().Calls, start
				for b.nodes("dead")["node 0"].ID == "" {
					if time.Since(start) > time.Minute {
						b.Fatal("the node is not taken for dead")
					}
					time.Sleep(100 * time.Millisecond)
					if n := m[0].up.Calls().Calls; n != last {
						last, at = n, time.Now()
					}
				}
				// It has so much in hand, or less if it was about to claim more.
				if after := at.Sub(start); after > 13100*time.Millisecond {
					b.Errorf("the node sent its last request %v after its last heartbeat, and was taken for dead after %v", after, time.Since(start))
				}
				time.Sleep(test.least - time.Since(start))
				test.cut(m[0]).Store(false)
				time.Sleep(10 * time.Second)
				if b.nodes("live")["node 0"].ID == "" {
					b.Error("the node has not joined anew")
				}
				if n := m[0].up.Calls().Calls; n == last {
					b.Error("the node sends nothing after it has joined anew")
				}
				b.want(b.ends(id), batch.Completed, 1000, 1000, 0)
				if n := b.sent(text) - 1000; n > 4+4+4*20 { // what it held in memory meanwhile is little, as it stopped
					b.Errorf("%d requests were sent again", n)
				}
				drainAll(m)
			})
		})
	}
}

// TestDatabaseAway takes the database from all nodes for a minute. Nobody is taken for dead and no call
// is made twice.
func TestDatabaseAway(t *testing.T) {
	for i, away := range []time.Duration{17 * time.Second, 3 * time.Second, time.Minute} {
		if sparing(i, 3) {
			continue
		}
		t.Run(away.String(), func(t *testing.T) {
			cluster(t, 3, sim.Config{Timing: sim.Timing{Latency: 20 * time.Second, Jitter: 0.5}}, 8, func(b *bench, m []*member) {
				text := chat(500)
				id := b.run(text)
				time.Sleep(30 * time.Second)
				for range 4 {
					before := b.nodes("live")
					for i, n := range m {
						time.AfterFunc(time.Duration(i)*700*time.Millisecond, func() { n.away.Store(true) })
					}
					time.Sleep(away)
					for i, n := range m {
						time.AfterFunc(time.Duration(i)*700*time.Millisecond, func() { n.away.Store(false) })
					}
					time.Sleep(25 * time.Second)
					for name, n := range b.nodes("live") {
						if before[name].ID != n.ID {
							b.Errorf("%s was taken for dead", name)
						}
					}
				}
				b.want(b.ends(id), batch.Completed, 500, 500, 0)
				b.wantCalls(text, 1)
				drainAll(m)
			})
		})
	}
}

// TestNodeLossInOutage kills a node as the database goes away, as a machine does that has them both, and
// does so again and again. What the node held goes on within 20 s of its death, however often the
// others could not be heard before.
func TestNodeLossInOutage(t *testing.T) {
	cluster(t, 3, sim.Config{Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.5}}, 4, func(b *bench, m []*member) {
		text := chat(1200)
		id := b.run(text)
		time.Sleep(30 * time.Second)
		for i, away := range []time.Duration{6 * time.Second, 2 * time.Second, 6500 * time.Millisecond} {
			victim, others := m[i%3], []*member{m[(i+1)%3], m[(i+2)%3]}
			name := fmt.Sprint("node ", i%3)
			before := b.nodes("live")
			killed := time.Now()
			victim.die()
			for _, o := range others {
				o.away.Store(true)
			}
			time.Sleep(away)
			for _, o := range others {
				o.away.Store(false)
			}
			for b.nodes("dead")[name].Held > 0 || b.nodes("live")[name].ID != "" || b.nodes("silent")[name].ID != "" {
				if time.Since(killed) > time.Minute {
					b.Fatalf("%s is not taken for dead", name)
				}
				time.Sleep(100 * time.Millisecond)
			}
			took := time.Since(killed)
			b.Logf("with the database away for %v, what %s held was free after %v", away, name, took)
			if took > 19*time.Second {
				b.Errorf("what %s held was free after %v, want 19 s at most", name, took)
			}
			live := b.nodes("live")
			for n, was := range before {
				if n != name && live[n].ID != was.ID {
					b.Errorf("%s was taken for dead", n)
				}
			}
			victim.kill()
			b.examine()
			victim.join(b, name)
			time.Sleep(5 * time.Second)
			// Once more, for a moment, before anything has come to rest.
			for _, o := range m {
				o.away.Store(true)
			}
			time.Sleep(5500 * time.Millisecond)
			for _, o := range m {
				o.away.Store(false)
			}
			time.Sleep(5 * time.Second)
		}
		b.want(b.ends(id), batch.Completed, 1200, 1200, 0)
		drainAll(m)
	})
}

// TestCutOffAsClockIsSet cuts a node off from the database just after its heartbeat, as the database's
// clock is set ahead and just before the heartbeat of another: to that one it has been silent for long.
// It waits until the node has stopped sending.
func TestCutOffAsClockIsSet(t *testing.T) {
	for i, step := range []time.Duration{16 * time.Second, time.Hour} {
		if sparing(i, 2) {
			continue
		}
		t.Run(step.String(), func(t *testing.T) {
			clusterOf(t, "", 2, sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.5}}, 4, 200, func(b *bench, m []*member) {
				var cut time.Time
				m[1].hook.Store(new(func(op string, n int) {
					if op == "Heartbeat" && n == 7 {
						time.Sleep(100 * time.Millisecond) // that of the other came at the same time
						b.ahead.Add(int64(step))
						m[0].away.Store(true)
						cut = time.Now()
					}
				}))
				id := b.run(chat(800))
				time.Sleep(32 * time.Second)
				last, at := m[0].up.Calls().Calls, time.Now()
				if cut.IsZero() {
					b.Fatal("there was no such heartbeat")
				}
				for b.nodes("dead")["node 0"].ID == "" {
					if time.Since(cut) > time.Minute {
						b.Fatal("the node is not taken for dead")
					}
					time.Sleep(50 * time.Millisecond)
					if n := m[0].up.Calls().Calls; n != last {
						last, at = n, time.Now()
					}
				}
				took := time.Since(cut)
				b.Logf("the last request was sent %v after the cut; the node was taken for dead after %v", at.Sub(cut), took)
				time.Sleep(20 * time.Second)
				if n := m[0].up.Calls().Calls; n != last || at.Sub(cut) < 10*time.Second {
					b.Errorf("%d requests were sent before the node was taken for dead and %d after, the last of the former %v after the cut", last, n-last, at.Sub(cut))
				}
				m[0].away.Store(false)
				b.want(b.ends(id), batch.Completed, 800, 800, 0)
				drainAll(m)
			})
		})
	}
}

// TestClockOfDatabase sets the clock of the database, by which nodes judge each other. Nobody dies of
// it, and who dies is missed soon.
func TestClockOfDatabase(t *testing.T) {
	for i, step := range []time.Duration{16 * time.Second, -time.Hour, time.Hour, -5 * time.Second} {
		if sparing(i, 2) {
			continue
		}
		t.Run(step.String(), func(t *testing.T) {
			cluster(t, 3, sim.Config{Timing: sim.Timing{Latency: time.Second}}, 4, func(b *bench, m []*member) {
				text := chat(600)
				id := b.create(b.upload(text), 24*time.Hour)
				time.Sleep(22300 * time.Millisecond)
				before := b.nodes("live")
				b.ahead.Add(int64(step))
				for range 30 {
					time.Sleep(time.Second)
					for name, n := range b.nodes("live") {
						if before[name].ID != n.ID {
							b.Fatalf("%s was taken for dead", name)
						}
					}
				}
				if len(b.nodes("live")) != 3 {
					b.Errorf("%d nodes live", len(b.nodes("live")))
				}
				m[2].kill()
				time.Sleep(20 * time.Second)
				if b.nodes("dead")["node 2"].ID == "" {
					b.Error("a node that died after the step is not missed")
				}
				b.want(b.ends(id), batch.Completed, 600, 600, 0)
				drainAll(m[:2])
			})
		})
	}
}

// TestTakenForDead declares nodes dead that live. They notice with their next heartbeat, give up what
// is not theirs any more and join anew.
func TestTakenForDead(t *testing.T) {
	cluster(t, 2, sim.Config{Timing: sim.Timing{Latency: 3 * time.Second}}, 8, func(b *bench, m []*member) {
		text := chat(400)
		id := b.run(text)
		waiting := b.upload(chat(10))
		time.Sleep(10 * time.Second)
		judge, err := b.store.Join(b.Context(), "judge")
		if err != nil {
			b.Fatal(err)
		}
		for range 3 {
			before := b.nodes("live")
			time.Sleep(1300 * time.Millisecond) // not just when they send heartbeats
			if _, err := b.store.Heartbeat(b.Context(), judge); err != nil {
				b.Fatal(err)
			}
			if _, err := b.store.Bury(b.Context(), judge, time.Time{}, time.Millisecond); err != nil {
				b.Fatal(err)
			}
			b.examine()
			time.Sleep(8 * time.Second)
			for name, n := range b.nodes("live") {
				if name != "judge" && (before[name].ID == n.ID || n.Held == 0) {
					b.Errorf("%s was declared dead, and is %+v", name, n)
				}
			}
			if n := len(b.nodes("live")); n != 3 {
				b.Errorf("%d nodes live", n)
			}
			b.examine()
		}
		other := b.create(waiting, time.Hour)
		b.want(b.ends(id), batch.Completed, 400, 400, 0)
		b.want(b.ends(other), batch.Completed, 10, 10, 0)
		drainAll(m)
	})
}

// TestNodeLeaves drains a node. The others need not wait for what it held, and nobody died.
func TestNodeLeaves(t *testing.T) {
	cluster(t, 2, sim.Config{Timing: sim.Timing{Latency: time.Second}}, 4, func(b *bench, m []*member) {
		text := chat(300)
		id := b.run(text)
		time.Sleep(10 * time.Second)
		m[0].process.drain()
		if n := b.nodes("left")["node 0"]; n.ID == "" || n.Held > 0 {
			b.Errorf("who has drained is %+v", n)
		}
		if dead := query[int64](b, "SELECT count(*) FROM segments WHERE deaths > 0")[0]; dead > 0 {
			b.Errorf("%d segments have seen a death", dead)
		}
		b.want(b.ends(id), batch.Completed, 300, 300, 0)
		b.wantCalls(text, 1)
		m[1].process.drain()
	})
}

// TestWorkSpreads runs small batches and wants all nodes to take their part, from the beginning to the
// end.
func TestWorkSpreads(t *testing.T) {
	for i, test := range []struct{ nodes, slots, requests int }{
		{2, 16, 200}, {3, 16, 200}, {3, 64, 200}, {3, 8, 100}, {4, 32, 1000}, {2, 4, 16},
	} {
		if sparing(i, 3) {
			continue
		}
		t.Run(fmt.Sprintf("%d requests at %d times %d", test.requests, test.nodes, test.slots), func(t *testing.T) {
			const each = 10 * time.Second
			t.Parallel()
			clusterOn(t, "", test.nodes, sim.Config{Timing: sim.Timing{Latency: each}}, test.slots, func(b *bench, m []*member) {
				time.Sleep(6 * time.Second) // now they know of each other
				start := time.Now()
				text := chat(test.requests)
				b.want(b.ends(b.run(text)), batch.Completed, int64(test.requests), int64(test.requests), 0)
				took := time.Since(start)
				rounds := (test.requests + test.nodes*test.slots - 1) / (test.nodes * test.slots)
				t.Logf("%v, %d rounds of %v", took, rounds, each)
				if most := time.Duration(rounds)*each + each + 2*time.Second; took > most {
					t.Errorf("it took %v, want %v at most", took, most)
				}
				b.wantCalls(text, 1)
				for i, n := range m {
					calls := n.up.Calls().Calls
					t.Logf("node %d sent %d", i, calls)
					share := test.requests / test.nodes
					if least, most := share/3, share*4/3+8; int(calls) < least || int(calls) > most {
						t.Errorf("node %d sent %d of %d requests, want from %d to %d", i, calls, test.requests, least, most)
					}
				}
				drainAll(m)
			})
		})
	}
}

// TestUpstreamAwayFromOneNode cuts one node off from its upstream. The others do its work before
// long, and it does its part again when the upstream is back.
func TestUpstreamAwayFromOneNode(t *testing.T) {
	for i, how := range []string{"refused", "throttled", "failing"} {
		if sparing(i, 3) {
			continue
		}
		t.Run(how, func(t *testing.T) {
			cluster(t, 2, sim.Config{Timing: sim.Timing{Latency: time.Second}}, 8, func(b *bench, m []*member) {
				text := chat(400)
				id := b.run(text)
				time.Sleep(5 * time.Second)
				back := func() { m[0].up.away.Store(false) }
				switch how {
				case "refused":
					m[0].up.away.Store(true)
				case "throttled":
					back = m[0].up.refuse(429)
				case "failing":
					back = m[0].up.refuse(500)
				}
				start := time.Now()
				died := int64(0) // owners of a segment, as far as is remembered
				for !b.look(id).Status.Terminal() && time.Since(start) < 10*time.Minute {
					died = max(died, query[int64](b, "SELECT max(deaths) FROM segments")[0])
					time.Sleep(200 * time.Millisecond)
				}
				b.want(b.ends(id), batch.Completed, 400, 400, 0)
				if took := time.Since(start); took > 100*time.Second {
					b.Errorf("with one of two upstreams away, the batch took %v", took)
				}
				// Of requests that failed it is passed on that they may be to blame, and of others it is not.
				if (died > 0) != (how == "failing") {
					b.Errorf("segments have seen %d deaths", died)
				}
				for name := range b.nodes("dead") {
					if strings.HasPrefix(name, "node") {
						b.Errorf("%s was taken for dead", name)
					}
				}
				back()
				time.Sleep(time.Minute)
				before := m[0].up.Calls().Calls
				b.want(b.ends(b.run(chat(200))), batch.Completed, 200, 200, 0)
				if n := m[0].up.Calls().Calls - before; n < 50 {
					b.Errorf("once its upstream is back, the node sends %d of 200", n)
				}
				drainAll(m)
			})
		})
	}
}

// TestSlowHeartbeat has the database take its time with a heartbeat and fall silent then. The lease is
// reckoned from when the heartbeat was sent: that is the least that others reckon.
func TestSlowHeartbeat(t *testing.T) {
	clusterOf(t, "", 2, sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.5}}, 4, 400, func(b *bench, m []*member) {
		var sent time.Time
		var slow atomic.Bool
		m[0].hook.Store(new(func(op string, n int) {
			switch {
			case slow.CompareAndSwap(true, false): // once, as this may come to pass after the node is back
				m[0].away.Store(true)
			case op == "Heartbeat" && n == 5:
				sent = time.Now()
				time.Sleep(4 * time.Second)
				slow.Store(true)
			}
		}))
		id := b.run(chat(1600)) // what the node holds lasts for longer than its lease
		last, at := 0, time.Now()
		for range 50 * 20 {
			time.Sleep(50 * time.Millisecond)
			if n := m[0].up.Calls().Calls; n != last {
				last, at = n, time.Now()
			}
		}
		if after := at.Sub(sent); sent.IsZero() || after < 11*time.Second || after > 13100*time.Millisecond {
			b.Errorf("the last request was sent %v after the last heartbeat, want 13s at most", after)
		}
		m[0].hook.Store(nil)
		m[0].away.Store(false)
		b.want(b.ends(id), batch.Completed, 1600, 1600, 0)
		drainAll(m)
	})
}

// TestStrayOfCluster commits a claim of a node long after the node has given it up. The node does not
// know of it, and gives it back with one of its next heartbeats.
func TestStrayOfCluster(t *testing.T) {
	cluster(t, 2, sim.Config{Timing: sim.Timing{Latency: time.Second}}, 4, func(b *bench, m []*member) {
		b.patience = 10 * time.Minute
		id := b.run(chat(200))
		time.Sleep(7 * time.Second)
		stray, err := b.store.Claim(b.Context(), b.nodes("live")["node 0"].ID, batch.Work{BatchID: id, Lane: batch.Lane{Model: "m", Endpoint: endpoint}})
		if stray == nil || err != nil {
			b.Fatalf("Claim() = %v, %v", stray, err)
		}
		time.Sleep(6 * time.Second)
		if held := query[int64](b, "SELECT count(*) FROM segments WHERE token = $1 AND sealed_at IS NULL", stray.Token)[0]; held > 0 {
			b.Error("the stray is still held")
		}
		b.want(b.ends(id), batch.Completed, 200, 200, 0)
		drainAll(m)
	})
}

// TestBlobsAwayFromOneNode cuts one node off from the blobs. The others seal what it has, execute and
// validate what it cannot read, nothing is sent again, and it does its part again later.
func TestBlobsAwayFromOneNode(t *testing.T) {
	cluster(t, 2, sim.Config{Timing: sim.Timing{Latency: time.Second}}, 8, func(b *bench, m []*member) {
		time.Sleep(6 * time.Second) // now they know of each other
		text := chat(400)
		id := b.run(text)
		time.Sleep(5 * time.Second)
		m[0].off.Store(true)
		start := time.Now()
		b.want(b.ends(id), batch.Completed, 400, 400, 0)
		// The other one takes a second for 8 of them.
		if took := time.Since(start); took > 50*time.Second {
			b.Errorf("with one of two nodes cut off, the batch took %v", took)
		}
		b.wantCalls(text, 1)
		start = time.Now()
		taken := m[0].faults.counts()
		b.want(b.ends(b.run(chat(40))), batch.Completed, 40, 40, 0)
		for _, op := range []string{"Claim", "ClaimValidating"} {
			if n := m[0].faults.counts()[op] - taken[op]; n > 0 {
				b.Errorf("while it is cut off, the node asks %d times for work (%s)", n, op)
			}
		}
		if took := time.Since(start); took > 15*time.Second {
			b.Errorf("with one of two nodes cut off, a batch of 40 took %v", took)
		}
		m[0].off.Store(false)
		time.Sleep(10 * time.Second)
		before := m[0].up.Calls().Calls
		b.want(b.ends(b.run(chat(200))), batch.Completed, 200, 200, 0)
		if n := m[0].up.Calls().Calls - before; n < 50 {
			b.Errorf("once it reaches the blobs again, the node sends %d of 200", n)
		}
		drainAll(m)
	})
}
