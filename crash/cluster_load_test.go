package crash

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"offpeak/internal/lab"
	"offpeak/internal/sim"
)

// TestClusterLoad loses a node, then the primary of the database, then S3 for a minute, while three
// nodes work on many requests of 200 ms each, and prints what each of that cost. For more than a taste:
//
//	OFFPEAK_CLUSTER_LOAD=100000 go test ./crash -run TestClusterLoad -v -timeout 30m
func TestClusterLoad(t *testing.T) {
	slow(t)
	t.Parallel()
	n := int(setting(t, "OFFPEAK_CLUSTER_LOAD", 5000))
	limit, cut := 24, 4*time.Second
	if n >= 50_000 {
		limit, cut = 256, time.Minute
	}
	c := newCluster(t, newUpstream(t, sim.Config{Seed: 1, Slots: limit, Timing: sim.Timing{Latency: 200 * time.Millisecond}, Always400: refused}),
		clusterOptions{nodes: 3, limit: limit, standby: true})
	c.startAll()
	begun := time.Now()
	for range 5 {
		c.w.submit(t, c.nodes[0].client(), n/5)
	}
	reached := func(part float64) {
		t.Helper()
		for late := time.Now().Add(10 * patience); ; time.Sleep(10 * time.Millisecond) {
			c.u.mu.Lock()
			done := len(c.u.byBody)
			c.u.mu.Unlock()
			if float64(done) >= part*float64(n) {
				return
			}
			if time.Now().After(late) {
				t.Fatalf("%d requests were sent, of %d", done, n)
			}
		}
	}
	var events []event
	event := func(what string, do func()) {
		events = append(events, event{what: what, at: time.Now()})
		do()
	}
	reached(0.15)
	event("a node is killed", c.nodes[2].kill)
	reached(0.15)
	time.Sleep(maxTakeover) // others have taken over by then, and work goes on
	event("the primary is killed, and the standby promoted a second later", func() {
		c.pg.Kill()
		time.Sleep(time.Second)
		if err := c.pg.Promote(); err != nil {
			t.Fatal(err)
		}
	})
	if err := c.pg.Attach(); err != nil {
		t.Fatal(err)
	}
	reached(0.6)
	event(fmt.Sprintf("S3 swallows everything for %s", cut), func() {
		for _, n := range c.nodes {
			n.cut(lab.Swallow, false, true, false)
		}
		time.Sleep(cut)
	})
	c.finish()
	t.Log(c.costs(events, begun, n))
	for key, d := range c.takeovers() {
		if d > maxTakeover {
			t.Errorf("others took over from %s after %s, want at most %s", key, d, maxTakeover)
		}
	}
}

// An event is something that went wrong.
type event struct {
	what string
	at   time.Time
}

// costs tells what events cost, as a table.
func (c *cluster) costs(events []event, begun time.Time, n int) string {
	c.u.mu.Lock()
	calls := slices.Clone(c.u.calls)
	c.u.mu.Unlock()
	events = append([]event{{"(before)", begun}}, events...)
	last := calls[len(calls)-1].begun
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests in %.1f s, %d calls\n", n, last.Sub(begun).Seconds(), len(calls))
	fmt.Fprintf(&b, "%8s %8s %12s %12s  %s\n", "at", "calls/s", "longest", "calls made", "")
	fmt.Fprintf(&b, "%8s %8s %12s %12s  %s\n", "", "", "stall", "again", "")
	seen := map[string]int{}
	for i, e := range events {
		end := last
		if i+1 < len(events) {
			end = events[i+1].at
		}
		stall, at, made, again := time.Duration(0), e.at, 0, 0
		for _, call := range calls {
			if call.begun.Before(e.at) || !call.begun.Before(end) && end != last {
				continue
			}
			if i > 0 || made > 0 { // it takes a moment to begin
				stall = max(stall, call.begun.Sub(at))
			}
			at = call.begun
			made++
			if seen[call.body]++; seen[call.body] > 1 {
				again++
			}
		}
		stall = max(stall, end.Sub(at))
		fmt.Fprintf(&b, "%7.1fs %8.0f %11.2fs %12d  %s\n", e.at.Sub(begun).Seconds(), float64(made)/end.Sub(e.at).Seconds(), stall.Seconds(), again, e.what)
	}
	for key, d := range c.takeovers() {
		fmt.Fprintf(&b, "what %s had in hand others took over after %.1f s\n", key, d.Seconds())
	}
	return b.String()
}
