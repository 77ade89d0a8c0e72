package engine_test

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// TestLongDrainBesideOthers drains a node whose calls take longer than its lease lasts. It goes on to send
// heartbeats, so that nobody takes over what it is about to record.
func TestLongDrainBesideOthers(t *testing.T) {
	clusterOn(t, "", 2, sim.Config{Timing: sim.Timing{Latency: 25 * time.Second}}, 4, func(b *bench, m []*member) {
		time.Sleep(6 * time.Second) // now they know of each other
		text := chat(16)
		id := b.run(text)
		time.Sleep(3 * time.Second)
		if m[0].up.Calls().Calls == 0 {
			b.Fatal("the node has nothing in flight")
		}
		start := time.Now()
		m[0].process.drain()
		if took := time.Since(start); took < 20*time.Second {
			b.Errorf("to drain took %v, less than a lease lasts", took)
		}
		if dead := b.nodes("dead"); len(dead) > 0 || b.nodes("left")["node 0"].ID == "" {
			b.Errorf("%v were taken for dead", dead)
		}
		if died := query[int64](b, "SELECT count(*) FROM segments WHERE deaths > 0")[0]; died > 0 {
			b.Errorf("%d segments have seen a death", died)
		}
		b.want(b.ends(id), batch.Completed, 16, 16, 0)
		b.wantCalls(text, 1)
		m[1].process.drain()
	})
}

// TestGivenBackWithItsAnswers has a node whose answers cannot be recorded for a while, and whose upstream
// lets nothing more through. What it gives back to others then, it gives back with the answers.
func TestGivenBackWithItsAnswers(t *testing.T) {
	clusterOn(t, "", 2, sim.Config{Timing: sim.Timing{Latency: time.Second}}, 8, func(b *bench, m []*member) {
		time.Sleep(6 * time.Second) // now they know of each other
		slow := time.Now().Add(25 * time.Second)
		m[0].hook.Store(new(func(op string, _ int) {
			if op == "Record" {
				time.Sleep(time.Until(slow))
			}
		}))
		text := chat(200)
		id := b.run(text)
		time.Sleep(2500 * time.Millisecond)
		calls := m[0].up.Calls().Calls
		if calls < 8 {
			b.Fatalf("the node has made %d calls", calls)
		}
		m[0].up.refuse(429)
		time.Sleep(time.Until(slow) - time.Second)
		if n := m[0].faults.counts()["Release"]; n > 0 {
			b.Errorf("%d segments were given back without their answers", n)
		}
		b.want(b.ends(id), batch.Completed, 200, 200, 0)
		if m[0].faults.counts()["Release"] == 0 {
			b.Error("nothing was given back")
		}
		b.wantCalls(text, 1)
		drainAll(m)
	})
}

// TestRecordedWhenTakenForDead declares a node dead that has answers to record. As long as nobody has taken
// away what it held, they count.
func TestRecordedWhenTakenForDead(t *testing.T) {
	fellows(t, sim.Config{Timing: sim.Timing{Latency: time.Second}}, func(b *bench, u *up) {
		var away atomic.Bool
		n := b.fellow("one", u, upstream.Config{MaxInFlight: 8}, func(op string, _, _ int) fate {
			if away.Load() && (op == "Record" || op == "Bury") {
				return lost
			}
			return done
		})
		text := chat(12)
		away.Store(true)
		id := b.run(text)
		time.Sleep(1500 * time.Millisecond)
		u.refuse(429)
		time.Sleep(time.Second)
		before := b.nodes("live")["one"].ID
		// As if whoever declared it dead had not come to free what it held.
		if err := b.store.Leave(b.Context(), before); err != nil {
			b.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		away.Store(false)
		time.Sleep(10 * time.Second)
		if id := b.nodes("live")["one"].ID; id == "" || id == before {
			b.Errorf("the node has not joined anew")
		}
		u.handle(u.Server)
		b.want(b.ends(id), batch.Completed, 12, 12, 0)
		b.wantCalls(text, 1)
		n.drain()
	})
}

// comes waits until so many calls of nodes one and two are in flight.
func (c *census) comes(b *bench, what string, within time.Duration, one, two int) {
	b.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		n := c.of("one", "two")
		if n[0] == one && n[1] == two {
			b.Logf("%s: %d calls are in flight after %v", what, n, time.Since(start))
			return
		}
		if time.Since(start) > within {
			b.Errorf("%s: after %v %d calls are in flight, want %d and %d", what, within, n, one, two)
			return
		}
	}
}

// TestDrainLendsItsSlots drains a node that has one long call in flight. The slots of those that end
// before are others' at once.
func TestDrainLendsItsSlots(t *testing.T) {
	fellows(t, sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.5}}, func(b *bench, u *up) {
		var come atomic.Bool
		u.handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost && come.CompareAndSwap(false, true) {
				time.Sleep(25 * time.Second)
			}
			u.Server.ServeHTTP(w, r)
		}))
		c := u.census()
		n1 := b.fellow("one", u, upstream.Config{MaxInFlight: 8})
		long := b.run(chat(1))
		time.Sleep(100 * time.Millisecond)
		n2 := b.fellow("two", u, upstream.Config{MaxInFlight: 8})
		id := b.run(chat(300))
		c.comes(b, "with both", 7*time.Second, 4, 4)
		n1.stop()
		c.comes(b, "while one drains", 3*time.Second, 1, 7)
		n1.drain()
		b.want(b.ends(long), batch.Completed, 1, 1, 0)
		b.want(b.ends(id), batch.Completed, 300, 300, 0)
		if c.peak() != 8 {
			b.Errorf("%d calls were in flight at a time, want 8", c.peak())
		}
		n2.drain()
	})
}

// TestSlotsOfTheDead cuts a node off from the database until it is taken for dead, and another has all
// slots of their upstream. When it is back it has none until it is granted some.
func TestSlotsOfTheDead(t *testing.T) {
	fellows(t, sim.Config{Timing: sim.Timing{Latency: time.Second}}, func(b *bench, u *up) {
		c := u.census()
		var away atomic.Bool
		n1 := b.fellow("one", u, upstream.Config{MaxInFlight: 8}, func(string, int, int) fate {
			if away.Load() {
				return lost
			}
			return done
		})
		n2 := b.fellow("two", u, upstream.Config{MaxInFlight: 8})
		id := b.run(chat(500))
		c.comes(b, "with both", 10*time.Second, 4, 4)
		away.Store(true)
		c.comes(b, "while one is dead", 22*time.Second, 0, 8)
		away.Store(false)
		c.comes(b, "with both again", 10*time.Second, 4, 4)
		if c.peak() != 8 {
			b.Errorf("%d calls were in flight at a time, want 8", c.peak())
		}
		b.want(b.ends(id), batch.Completed, 500, 500, 0)
		n1.drain()
		n2.drain()
	})
}

// TestLonePoisonAmongNodes has nodes share an upstream, and sends nothing but a request that brings it
// down. They pass it on until there were owners enough; the last one keeps it and finds it guilty.
func TestLonePoisonAmongNodes(t *testing.T) {
	fellows(t, sim.Config{Timing: sim.Timing{Latency: time.Second}, Models: []sim.Model{{ID: "m"}}}, func(b *bench, u *up) {
		b.patience = 30 * time.Minute
		u.handle(front(u, func([]byte) int {
			u.away.Store(true)
			time.AfterFunc(30*time.Second, func() { u.away.Store(false) })
			panic(http.ErrAbortHandler)
		}))
		var nodes []*fellow
		for i := range 2 {
			nodes = append(nodes, b.fellow(fmt.Sprint("node ", i), u, upstream.Config{MaxInFlight: 8}))
		}
		time.Sleep(6 * time.Second) // now they know of each other
		start := time.Now()
		b.want(b.ends(b.run([]byte(line("bad", "m", "wrong")))), batch.Completed, 1, 0, 1)
		b.Logf("it took %v", time.Since(start))
		for _, n := range nodes {
			b.Logf("%s gave back %d", n.name, n.faults.counts()["Release"])
			n.drain()
		}
	})
}
