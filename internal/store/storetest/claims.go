package storetest

import (
	"fmt"
	"slices"

	"pgregory.net/rapid"

	"offpeak/internal/batch"
)

// testAnyClaims lets several owners do anything in any order to the segments of a batch, under
// leases that are good or not, and compares with a model what the store makes of it.
func testAnyClaims(d *db) {
	rapid.Check(d.T, func(t *rapid.T) {
		m := &model{db: d, T: t, n: rapid.IntRange(1, 4).Draw(t, "segments")}
		m.start()
		t.Repeat(map[string]func(*rapid.T){
			"":               m.compare,
			"claim":          m.claimOne,
			"record":         m.recordSome,
			"repeat record":  m.repeatRecord,
			"seal":           m.sealOne,
			"repeat seal":    m.repeatSeal,
			"release":        m.releaseOne,
			"release strays": m.releaseStrays,
			"another joins":  m.join,
		})
		m.end()
	})
}

// A model is what the segments of one batch should be like.
type model struct {
	*db
	*rapid.T
	n        int
	batch    batch.Batch
	segments []segment
	leases   []batch.Lease // every lease that anybody ever had, as it was at some moment
	groups   [][]batch.Group
	seals    []sealed
}

// A segment is one as it should be.
type segment struct {
	id      int64
	token   string // of the newest claim; empty: free
	owner   string
	seq     int64
	tally   batch.Tally
	journal []string
	deaths  int
	sealed  bool
}

// sealed is a seal that took effect.
type sealed struct {
	lease       batch.Lease
	output, bad batch.Part
}

// must fails the run, so that a shorter one is looked for that fails, too.
func (m *model) must(err error) {
	if err != nil {
		m.T.Fatal(err)
	}
}

func (m *model) start() {
	m.batch = m.db.running(m.n)
	for range m.n { // each of them once, to learn their ids
		l := m.db.claim(m.batch)
		m.segments = append(m.segments, segment{id: l.ID, token: l.Token, owner: m.node, seq: l.Seq})
		m.leases = append(m.leases, *l)
	}
}

func (m *model) segment(id int64) *segment {
	i := slices.IndexFunc(m.segments, func(s segment) bool { return s.id == id })
	return &m.segments[i]
}

// good reports whether a write under l should take effect.
func (m *model) good(l batch.Lease) bool {
	s := m.segment(l.ID)
	return s.token == l.Token && s.seq == l.Seq && !s.sealed
}

func (m *model) claimOne(t *rapid.T) {
	owner := rapid.SampledFrom([]string{m.node, m.other}).Draw(t, "owner")
	l, err := m.Claim(m.ctx(), owner, work(m.batch, "m"))
	m.must(err)
	free := slices.IndexFunc(m.segments, func(s segment) bool { return s.token == "" && !s.sealed })
	if (l == nil) != (free < 0) || l != nil && l.ID != m.segments[free].id {
		t.Fatalf("Claim() = %+v, want the segment at %d", l, free)
	}
	if l == nil {
		return
	}
	s := &m.segments[free]
	if l.Tally != s.tally || l.Deaths != s.deaths || l.Seq <= s.seq {
		t.Fatalf("Claim() = %+v, want %+v", *l, *s)
	}
	s.token, s.owner, s.seq = l.Token, owner, l.Seq
	m.leases = append(m.leases, *l)
}

// recordSome records groups of up to three segments under any leases.
func (m *model) recordSome(t *rapid.T) {
	var groups []batch.Group
	for range rapid.IntRange(1, 3).Draw(t, "groups") {
		l := m.anyLease(t)
		if slices.ContainsFunc(groups, func(g batch.Group) bool { return g.Lease.ID == l.ID }) {
			continue
		}
		add := tally(rapid.Int64Range(0, 3).Draw(t, "completed"), rapid.Int64Range(0, 3).Draw(t, "failed"))
		groups = append(groups, group(&l, add, fmt.Sprintf("group %d-%d", len(m.groups), len(groups))))
	}
	m.groups = append(m.groups, groups)
	m.record(t, groups, false)
}

// repeatRecord does a former Record again, as it was.
func (m *model) repeatRecord(t *rapid.T) {
	if len(m.groups) == 0 {
		t.Skip("nothing was recorded yet")
	}
	m.record(t, rapid.SampledFrom(m.groups).Draw(t, "groups"), true)
}

func (m *model) record(t *rapid.T, groups []batch.Group, again bool) {
	lost, err := m.Record(m.ctx(), slices.Clone(groups))
	m.must(err)
	for _, g := range groups {
		s := m.segment(g.Lease.ID)
		// Repeated, it is known again as long as it was the last write.
		applied := s.token == g.Lease.Token && s.seq == g.Lease.Seq+1 && !s.sealed
		if applied && !again && !slices.Contains(s.journal, string(g.Data)) {
			continue // two writes of one owner at one seq: nothing an owner does
		}
		if want := !m.good(g.Lease) && !applied; slices.Contains(lost, s.id) != want {
			t.Fatalf("Record(%+v) loses %v; the segment is %+v", g, lost, *s)
		}
		if m.good(g.Lease) {
			s.seq++
			s.tally, s.deaths = g.Tally, 0
			s.journal = append(s.journal, string(g.Data))
			l := g.Lease
			l.Seq, l.Tally = s.seq, s.tally
			m.leases = append(m.leases, l)
		}
	}
}

func (m *model) sealOne(t *rapid.T) {
	l := m.anyLease(t)
	good, s := m.good(l), m.segment(l.ID)
	if s.sealed && s.token == l.Token && s.seq == l.Seq+1 {
		return // see repeatSeal
	}
	out, bad := m.db.part(10), m.db.part(5)
	last, err := m.Seal(m.ctx(), l, out, bad)
	if !good {
		m.wantLost(fmt.Sprintf("seal under %+v of %+v", l, *s), err)
		return
	}
	m.must(err)
	s.sealed, s.journal, s.seq = true, nil, s.seq+1
	m.seals = append(m.seals, sealed{l, out, bad})
	if want := !slices.ContainsFunc(m.segments, func(s segment) bool { return !s.sealed }); last != want {
		t.Fatalf("Seal() = %v, want %v", last, want)
	}
}

func (m *model) repeatSeal(t *rapid.T) {
	if len(m.seals) == 0 {
		t.Skip("nothing is sealed yet")
	}
	s := rapid.SampledFrom(m.seals).Draw(t, "seal")
	_, err := m.Seal(m.ctx(), s.lease, s.output, s.bad)
	m.must(err)
}

func (m *model) releaseOne(t *rapid.T) {
	l := m.anyLease(t)
	s := m.segment(l.ID)
	err := m.Release(m.ctx(), l)
	switch {
	case m.good(l), s.token == l.Token && s.seq == l.Seq+1 && !s.sealed: // or one group behind
		m.must(err)
		s.token, s.owner = "", ""
	default:
		m.wantLost(fmt.Sprintf("release under %+v of %+v", l, *s), err)
	}
}

func (m *model) releaseStrays(t *rapid.T) {
	owner := rapid.SampledFrom([]string{m.node, m.other}).Draw(t, "owner")
	known := rapid.SampledFrom(m.segments).Draw(t, "known").token
	m.must(m.ReleaseStrays(m.ctx(), owner, []string{known}))
	for i := range m.segments {
		if s := &m.segments[i]; s.owner == owner && s.token != known && !s.sealed {
			s.token, s.owner = "", ""
		}
	}
}

// join lets another process take over where there can be but one.
func (m *model) join(t *rapid.T) {
	if !m.Alone {
		t.Skip("other nodes' leases are judged by their heartbeats")
	}
	var err error
	m.node, err = m.Join(m.ctx(), "next")
	m.must(err)
	for i := range m.segments {
		if s := &m.segments[i]; s.token != "" && !s.sealed {
			s.token, s.owner = "", ""
			s.deaths++
		}
	}
}

func (m *model) anyLease(t *rapid.T) batch.Lease {
	// The newest are the most interesting.
	i := rapid.IntRange(0, min(len(m.leases), 6)-1).Draw(t, "lease")
	return m.leases[len(m.leases)-1-i]
}

// compare looks whether the batch is as the model says.
func (m *model) compare(t *rapid.T) {
	var want batch.Counts
	open := 0
	var usage batch.Usage
	for _, s := range m.segments {
		want.Total += 10
		want.Completed += s.tally.Completed
		want.Failed += s.tally.Failed
		usage.Add(s.tally.Usage)
		if !s.sealed {
			open++
		}
		if got := m.db.journal(s.id); !slices.Equal(got, s.journal) {
			t.Fatalf("segment %+v has the journal %q", s, got)
		}
	}
	got := m.db.batch(m.batch.ID)
	if got.Counts != want || got.Usage != usage || (got.Status == batch.Finalizing) != (open == 0) {
		t.Fatalf("the batch is %s with %+v and %+v; want %+v and %+v, %d segments open",
			got.Status, got.Counts, got.Usage, want, usage, open)
	}
}

// end seals what is open and finalizes the batch.
func (m *model) end() {
	for _, s := range m.segments {
		if s.token != "" && !s.sealed {
			m.must(m.ReleaseStrays(m.ctx(), s.owner, nil))
		}
	}
	for i := range m.segments {
		if s := &m.segments[i]; !s.sealed {
			l := m.db.claim(m.batch)
			_, _, _ = m.db.seal(l, 10, 5)
			s.sealed = true
		}
	}
	b := m.db.finalized(m.batch.ID)
	f, err := m.File(m.ctx(), b.Project, b.OutputFileID)
	m.must(err)
	if f.Bytes != int64(10*m.n) || len(f.Parts) != m.n || b.Status != batch.Completed {
		m.db.Errorf("finalized: %+v with the output %+v", b, f)
	}
}
