package sched

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"offpeak/internal/batch"
)

// A registry is what nodes have on record of one limit.
type registry struct {
	rows   map[string]batch.Holding
	search batch.Search
}

func newRegistry() *registry { return &registry{rows: map[string]batch.Holding{}} }

// share grants the node its share, and records it.
func (r *registry) share(node string, c batch.Claim, now time.Time) batch.Grant {
	d := batch.Division{Node: node, Now: now, Mine: c, Had: r.rows[node], Search: r.search}
	for _, h := range r.rows {
		if h.Node != node {
			d.Others = append(d.Others, h)
		}
	}
	g, s := Divide(d)
	r.rows[node] = batch.Holding{
		Node: node, Stated: c.Stated, Auto: c.Auto, Granted: g.Holds, Uses: c.Uses, Wants: c.Wants, Least: c.Least, Since: g.Since,
	}
	r.search = s
	return g
}

// A member is a node with a gate.
type member struct {
	id    string
	gate  *Gate
	max   int // stated; 0: auto
	may   int
	told  float64 // what it has said that its gate found
	asked time.Time
}

func (m *member) room(now time.Time) int { return min(m.gate.Room(now), m.may-m.gate.InFlight()) }

func (m *member) ask(r *registry, now time.Time) {
	m.asked = now
	in := m.gate.InFlight()
	found := m.gate.Found()
	c := batch.Claim{
		Limit: batch.LimitCalls, Stated: int64(m.max), Auto: m.gate.Auto(), Least: 1,
		Keeps: int64(max(in, m.may)), Uses: int64(in), Wants: int64(max(in, m.gate.Useful(now))),
	}
	if m.gate.Auto() && found != m.told {
		c.Found = int64(found)
	}
	g := r.share(m.id, c, now)
	m.may = int(g.May)
	m.told = found
	m.gate.Share(Portion{
		Of: int(g.Of), Fair: g.Fair, Nodes: g.Nodes, Others: int(g.Others), Most: m.max, Leads: g.Leads, Found: found,
	}, now)
	if !g.Leads {
		m.told = m.gate.Found()
	}
}

// A cluster is several nodes that share an upstream, as a limiter. Each asks for its share every half
// second, and at once when its gate has found something.
type cluster struct {
	nodes []*member
	reg   *registry
	begun bool
}

func newCluster(n int, c GateConfig) *cluster {
	cl := &cluster{reg: newRegistry()}
	for i := range n {
		cl.nodes = append(cl.nodes, &member{id: fmt.Sprint("node", i), gate: NewGate(c), max: c.Max})
	}
	return cl
}

const asking = 500 * time.Millisecond

// best returns the node with the most room.
func (c *cluster) best(now time.Time) (i, room int) {
	for k, m := range c.nodes {
		if !c.begun {
			m.ask(c.reg, now)
			m.asked = now.Add(-asking * time.Duration(k) / time.Duration(len(c.nodes)))
		}
		if now.Sub(m.asked) >= asking || m.gate.Found() != m.told && now.Sub(m.asked) >= 50*ms {
			m.ask(c.reg, now)
		}
		if r := m.room(now); r > room {
			i, room = k, r
		}
	}
	c.begun = true
	return i, room
}

func (c *cluster) Room(now time.Time) int {
	_, room := c.best(now)
	return room
}

func (c *cluster) Send(now time.Time) int64 {
	i, _ := c.best(now)
	return c.nodes[i].gate.Send(now)*int64(len(c.nodes)) + int64(i)
}

func (c *cluster) Done(ticket int64, r Report, now time.Time) {
	n := int64(len(c.nodes))
	c.nodes[ticket%n].gate.Done(ticket/n, r, now)
}

func (c *cluster) Observe(l Load, now time.Time) {
	for _, m := range c.nodes {
		m.gate.Observe(l, now)
	}
}

func (c *cluster) Next(now time.Time) time.Time {
	var next time.Time
	for _, m := range c.nodes {
		for _, at := range []time.Time{m.asked.Add(asking), m.gate.Next(now)} {
			if !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	return next
}

// losing has the first node die with what it holds, at that time. Its calls end at the upstream, and
// nobody hears of them.
type losing struct {
	*cluster
	at time.Time
}

func (c *losing) Room(now time.Time) int {
	if m := c.nodes[0]; !c.at.IsZero() && !now.Before(c.at) && len(c.nodes) > 1 {
		delete(c.reg.rows, m.id)
		m.may, m.asked = 0, now.Add(24*time.Hour)
	}
	return c.cluster.Room(now)
}

// TestNodesFindOneLimit has one, two and three nodes use one upstream, each with a gate that could find
// the limit. Together they are as fast as with the best fixed limit, stray 429s or not, and also if the
// one that finds it dies; and there is no race for more.
func TestNodesFindOneLimit(t *testing.T) {
	throttle := func(when func(m *model, r *rand.Rand) bool) func(*model, float64, *rand.Rand) (Outcome, float64, time.Duration) {
		return func(m *model, _ float64, r *rand.Rand) (Outcome, float64, time.Duration) {
			if when(m, r) {
				return Throttled, 0.005, 0
			}
			return Answered, 0, 0
		}
	}
	for _, c := range []struct {
		scenario
		max     int
		dies    time.Duration
		fixed   int
		longer  float64 // at most, than with the fixed limit: until only 64 requests are left
		most    int64   // the limit at the end
		refused float64 // calls per request, at most
	}{
		{scenario: scenario{name: "64 slots and a queue", n: 10000, slots: always(64)}, fixed: 70, longer: 1.06, most: 300},
		{scenario: scenario{name: "256 slots", n: 20000, slots: always(256)}, fixed: 280, longer: 1.07, most: 600},
		{scenario: scenario{name: "4 slots", n: 1000, slots: always(4)}, fixed: 5, longer: 1.05, most: 300},
		{scenario: scenario{name: "even answers", n: 20000, slots: always(64), even: true}, fixed: 70, longer: 1.06, most: 300},
		{scenario: scenario{name: "even answers, work not known", n: 20000, slots: always(64), even: true, blind: true}, fixed: 70, longer: 1.06, most: 300},
		{scenario: scenario{name: "with readings", n: 10000, slots: always(64), metrics: 1}, fixed: 70, longer: 1.03, most: 80},
		{scenario: scenario{name: "4 slots with readings", n: 1000, slots: always(4), metrics: 1}, fixed: 5, longer: 1.03, most: 12},
		{scenario: scenario{name: "speed falls with the calls", n: 10000, slots: always(256), speed: soft(48)}, fixed: 256, longer: 1.08, most: 400},
		{scenario: scenario{name: "5 % stray 429", n: 10000, slots: always(64), refuses: throttle(func(_ *model, r *rand.Rand) bool { return r.Float64() < 0.05 })}, fixed: 70, longer: 1.06, most: 300, refused: 0.06},
		{scenario: scenario{name: "429 above 64", n: 10000, slots: always(64), refuses: throttle(func(m *model, _ *rand.Rand) bool { return m.ours >= 64 })}, fixed: 64, longer: 1.05, most: 700, refused: 0.05},
		{scenario: scenario{name: "429 above 64, 100 allowed", n: 10000, slots: always(64), refuses: throttle(func(m *model, _ *rand.Rand) bool { return m.ours >= 64 })}, max: 100, fixed: 64, longer: 1.05, most: 100, refused: 0.05},
		{scenario: scenario{name: "64 allowed", n: 10000, slots: always(64)}, max: 64, fixed: 64, longer: 1.02, most: 64},
		{scenario: scenario{name: "the finder dies", n: 10000, slots: always(64)}, dies: 100 * time.Second, fixed: 70, longer: 1.06, most: 300},
		{scenario: scenario{name: "the finder dies, even answers", n: 20000, slots: always(64), even: true}, dies: 100 * time.Second, fixed: 70, longer: 1.06, most: 300},
	} {
		for nodes := 1; nodes <= 3; nodes++ {
			t.Run(fmt.Sprintf("%s, %d nodes", c.name, nodes), func(t *testing.T) {
				t.Parallel()
				c := c // with a seed of its own
				best, sum, most, limits := 0.0, run{}, int64(0), ""
				const seeds = 3
				for c.seed = range uint64(seeds) {
					best += c.drive(&fixed{n: c.fixed}).full
					cl := newCluster(nodes, GateConfig{Max: c.max})
					l := limiter(cl)
					if c.dies > 0 {
						l = &losing{cl, epoch.Add(c.dies)}
					}
					r := c.drive(l)
					sum.full += r.full
					sum.refused += r.refused
					found := int64(c.max)
					if c.max == 0 {
						found = cl.reg.search.Found
					}
					limits += fmt.Sprintf(" %d (", found)
					for _, m := range cl.nodes {
						limits += fmt.Sprintf("%d ", m.gate.Limit())
					}
					limits += fmt.Sprintf("at the end; most in flight %d)", r.most)
					most = max(most, found)
					if c.max > 0 && r.most > c.max {
						t.Errorf("%d calls in flight, %d are allowed", r.most, c.max)
					}
				}
				refused := float64(sum.refused) / seeds / float64(c.n)
				t.Logf("÷ fixed (%d): %.3f; refused %.2f %%; limits%s", c.fixed, sum.full/best, 100*refused, limits)
				if sum.full/best > c.longer || most > c.most || refused > c.refused {
					t.Errorf("at most %.3f times as long, a limit of %d and %.2f %% refused are wanted", c.longer, c.most, 100*c.refused)
				}
			})
		}
	}
}
