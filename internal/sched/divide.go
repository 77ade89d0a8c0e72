package sched

import (
	"cmp"
	"slices"
	"time"

	"offpeak/internal/batch"
)

const (
	// tenure is how long a node keeps what there is too little of to go round, so that not all time
	// is spent on handing it on.
	tenure = 5 * time.Second
	// silence is after what time another node searches for the limit, if the one that does has no
	// use for more than it has.
	silence = 15 * time.Second
)

// Divide decides what a node is granted of a limit that holds for all nodes together, and what is
// known of the limit from then on.
//
// Everybody gets as much as everybody else, save those who want less (max-min). A node grows only out
// of what nobody holds, and what it gives up it holds until it does not use it any more. So whatever
// the order in which nodes ask, and whichever answers get lost, what all of them use is never more
// than the limit, save for as long as calls last that were sent when it was higher.
//
// It is the same for calls in flight and for what is spent in a minute: there a call ends when it
// was sent a minute ago.
func Divide(d batch.Division) (batch.Grant, batch.Search) {
	m := d.Mine
	g := batch.Grant{Upstream: m.Upstream, Limit: m.Limit, Nodes: 1, Holds: m.Keeps, May: m.Keeps, Since: d.Now}
	stated, auto := m.Stated, m.Auto
	held := int64(0)
	for _, o := range d.Others {
		held += o.Granted
		if o.Ended {
			continue
		}
		g.Nodes++
		g.Others += o.Uses
		auto = auto || o.Auto
		if o.Stated > 0 && (stated == 0 || o.Stated < stated) {
			stated = o.Stated
		}
	}
	limit := stated
	g.Stated = stated
	if auto {
		limit, g.Leads = search(&d, g.Nodes, cmp.Or(stated, most))
	}
	if limit == 0 {
		return g, d.Search
	}
	g.Of = limit
	g.Fair = level(limit, parties(&d, limit, limit))
	target := inTurn(limit, parties(&d, limit, m.Wants), d.Now)[0]
	g.Holds = max(m.Keeps, min(target, limit-held))
	g.May = min(g.Holds, target)
	if m.Wants > 0 && serves(g.Holds, m.Least, limit) == serves(d.Had.Granted, m.Least, limit) && !d.Had.Since.IsZero() {
		g.Since = d.Had.Since
	}
	return g, d.Search
}

// search returns the limit where it is to be found, at most the given one, and whether this node is
// the one to find it. One node does, for all, with what it knows of the others' calls: if everybody
// tried on their own, each would find that more calls bring it more, at the cost of the others.
func search(d *batch.Division, nodes int, most int64) (limit int64, leads bool) {
	s, m := &d.Search, d.Mine
	led := s.Node == d.Node
	gone := !led && !slices.ContainsFunc(d.Others, func(o batch.Holding) bool { return o.Node == s.Node && !o.Ended && o.Auto })
	hungry := m.Wants*int64(nodes) > s.Found
	if leads = m.Auto && (led || gone || hungry && d.Now.Sub(s.At) > silence); leads {
		if m.Found > 0 && (led || s.Found == 0) {
			s.Found = m.Found
		}
		if !led || hungry {
			s.At = d.Now
		}
		s.Node = d.Node
	}
	limit = min(max(s.Found, 1), most)
	if leads {
		s.Found = limit
	}
	return limit, leads
}

// A party is one of those among whom something is divided.
type party struct {
	node         string
	wants, least int64
	has          bool
	since        time.Time
}

// parties returns those who take part, this node with the given wants first.
func parties(d *batch.Division, limit, wants int64) []party {
	all := []party{{d.Node, min(wants, limit), min(d.Mine.Least, limit), serves(d.Had.Granted, d.Mine.Least, limit), d.Had.Since}}
	for _, o := range d.Others {
		if !o.Ended {
			all = append(all, party{o.Node, min(o.Wants, limit), min(o.Least, limit), serves(o.Granted, o.Least, limit), o.Since})
		}
	}
	return all
}

// serves reports whether so much is of use to somebody.
func serves(n, least, limit int64) bool { return n > 0 && n >= min(least, limit) }

// shares divides the limit: as much for everybody, save those who want less.
func shares(limit int64, p []party) []int64 {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(p[a].wants, p[b].wants), cmp.Compare(p[a].node, p[b].node))
	})
	out := make([]int64, len(p))
	for k, i := range order {
		out[i] = min(p[i].wants, limit/int64(len(order)-k))
		limit -= out[i]
	}
	return out
}

// level is what the first party gets at most, which wants everything. It need not be whole.
func level(limit int64, p []party) float64 {
	left, n := float64(limit), len(p)
	slices.SortFunc(p[1:], func(a, b party) int { return cmp.Compare(a.wants, b.wants) })
	for _, q := range p[1:] {
		if float64(q.wants) > left/float64(n) {
			break
		}
		left -= float64(q.wants)
		n--
	}
	return left / float64(n)
}

// inTurn divides the limit likewise. Where a share would be too small to be of use, some get what is of
// use and the others nothing: first those who came to it just now, then those who have waited longest.
func inTurn(limit int64, p []party, now time.Time) []int64 {
	out := shares(limit, p)
	short := false
	for i, q := range p {
		short = short || q.wants > 0 && out[i] < min(q.least, q.wants)
	}
	if !short {
		return out
	}
	rank := func(q party) int {
		switch {
		case q.has && now.Sub(q.since) < tenure:
			return 0
		case !q.has:
			return 1
		}
		return 2
	}
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(rank(p[a]), rank(p[b])), p[a].since.Compare(p[b].since), cmp.Compare(p[a].node, p[b].node))
	})
	var served []party
	var at []int
	for _, i := range order {
		q := p[i]
		out[i] = 0
		if n := min(q.least, q.wants); n > 0 && n <= limit {
			out[i] = n
			limit -= n
			q.wants -= n
			served, at = append(served, q), append(at, i)
		}
	}
	for k, more := range shares(limit, served) {
		out[at[k]] += more
	}
	return out
}
