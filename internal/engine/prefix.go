package engine

import (
	"bytes"
	"hash/fnv"
	"io"
	"math/bits"
	"slices"

	"offpeak/internal/batch"
)

// Upstreams keep what they worked out about the beginnings of prompts. Requests that begin alike
// are therefore sent one after the other, and to the upstream that had such requests before. A slot
// that is free takes whatever there is all the same.

// A prefix stands for a long beginning that requests of a lane have in common; 0: they have none.
type prefix uint64

const (
	// A beginning is long from this many bytes on. Shorter ones cost the upstream next to nothing.
	longPrefix = 512
	// mostPrefix is how far bodies are compared.
	mostPrefix = 16 << 10
	// mostHomes is of how many prefixes is known which upstream had them.
	mostHomes = 8192
)

// A run is a stretch of a hold's order in which requests have a prefix in common.
type run struct {
	hold     *hold
	from, to int32 // of what is unsent
}

// A family is the runs of one prefix, in the holds of a queue.
type family struct {
	prefix prefix
	runs   []run
	choice choice // by which whoever is in it came to it
}

// A choice is how a request came to its upstream.
type choice int

const (
	single choice = iota // it begins like no other
	kept                 // requests that begin alike went there before, or nowhere
	moved                // they went elsewhere; but that upstream was busy
)

func (f *family) unsent() (n int) {
	for _, r := range f.runs {
		n += int(r.to - r.from)
	}
	return n
}

// runs are the requests of a queue that were never sent. Every family stands in one of free, homed
// and begun.
type runs struct {
	families map[prefix]*family
	free     []*family           // which no upstream had before
	homed    map[*site][]*family // which that one had
	begun    map[*site]*family   // which that one is in
}

// add adds what is to be sent of h, which is sorted.
func (r *runs) add(h *hold) {
	if r.families == nil {
		r.families, r.homed, r.begun = map[prefix]*family{}, map[*site][]*family{}, map[*site]*family{}
	}
	h.cutRuns(func(p prefix, from, to int32) {
		f := r.families[p]
		if f == nil || p == 0 {
			f = &family{prefix: p}
			r.free = append(r.free, f)
			if p != 0 {
				r.families[p] = f
			}
		}
		f.runs = append(f.runs, run{h, from, to})
	})
}

// next returns what s is to send next: of the family it is in, then of those that are at home with
// it, then of those that nobody had. Before it has nothing to do it helps others out.
func (r *runs) next(s *site, homes *homes) (h *hold, i int32, ok bool) {
	f := r.begun[s]
	if f == nil {
		if f = r.begin(s, homes); f == nil {
			return nil, 0, false
		}
		if r.begun[s] = f; f.prefix != 0 {
			if f.choice = moved; homes.of(f.prefix) == s {
				f.choice = kept
			}
		}
	}
	n := &f.runs[0]
	return n.hold, n.hold.order[n.from], true
}

// advance notes that s sends what next returned.
func (r *runs) advance(s *site) choice {
	f := r.begun[s]
	f.runs[0].from++
	if f.runs[0].from == f.runs[0].to {
		f.runs = f.runs[1:]
	}
	r.trim(s)
	return f.choice
}

// trim has s be done with a family of which nothing is left.
func (r *runs) trim(s *site) {
	if f := r.begun[s]; f != nil && len(f.runs) == 0 {
		delete(r.begun, s)
		if r.families[f.prefix] == f {
			delete(r.families, f.prefix)
		}
	}
}

func (r *runs) begin(s *site, homes *homes) *family {
	for {
		if own := r.homed[s]; len(own) > 0 {
			r.homed[s] = own[1:]
			return own[0]
		}
		if len(r.free) == 0 {
			break
		}
		f := r.free[0]
		r.free = r.free[1:]
		home := homes.of(f.prefix)
		if home == nil || home == s {
			homes.settle(f.prefix, s)
			return f
		}
		r.homed[home] = append(r.homed[home], f)
	}
	var from *site
	for o, list := range r.homed {
		if len(list) > len(r.homed[from]) {
			from = o
		}
	}
	if list := r.homed[from]; len(list) > 0 {
		last := len(list) - 1
		r.homed[from] = list[:last]
		return list[last]
	}
	return r.split()
}

// split takes the second half of the largest family that somebody is in.
func (r *runs) split() *family {
	var from *site
	most := 0
	for o, f := range r.begun {
		if n := f.unsent(); n > most {
			from, most = o, n
		}
	}
	if from == nil {
		return nil
	}
	f := r.begun[from]
	half := &family{prefix: f.prefix}
	if n := len(f.runs); n > 1 {
		half.runs = slices.Clone(f.runs[n/2:])
		f.runs = f.runs[:n/2]
		return half
	}
	u := f.runs[0]
	middle := u.from + (u.to-u.from)/2
	half.runs = []run{{u.hold, middle, u.to}}
	if f.runs[0].to = middle; middle == u.from {
		f.runs = nil
		r.trim(from)
	}
	return half
}

// remove takes out what is left of h.
func (r *runs) remove(h *hold) {
	empty := func(f *family) bool {
		f.runs = slices.DeleteFunc(f.runs, func(u run) bool { return u.hold == h })
		if len(f.runs) > 0 {
			return false
		}
		if r.families[f.prefix] == f {
			delete(r.families, f.prefix)
		}
		return true
	}
	r.free = slices.DeleteFunc(r.free, empty)
	for s := range r.homed {
		r.homed[s] = slices.DeleteFunc(r.homed[s], empty)
	}
	for s, f := range r.begun {
		if empty(f) {
			delete(r.begun, s)
		}
	}
}

// leave has s, which gets no more calls, leave to others what it was in.
func (r *runs) leave(s *site) {
	r.free = append(r.free, r.homed[s]...)
	if f := r.begun[s]; f != nil {
		r.free = append(r.free, f)
	}
	delete(r.homed, s)
	delete(r.begun, s)
}

// homes tells which upstream had a prefix before.
type homes map[prefix]*site

func (m *homes) of(p prefix) *site {
	if s := (*m)[p]; s != nil && !s.retired {
		return s
	}
	return nil
}

func (m *homes) settle(p prefix, s *site) {
	if p == 0 {
		return
	}
	if *m == nil {
		*m = homes{}
	}
	if len(*m) >= mostHomes {
		for old := range *m { // whichever: to forget one costs the upstream one prompt
			delete(*m, old)
			break
		}
	}
	(*m)[p] = s
}

// cutRuns cuts the order of h into runs. How long a beginning must be that makes a run depends on
// how long those are that there are: where all requests begin with the same words and then with one
// of a few sets of examples, it is the examples that count.
func (h *hold) cutRuns(add func(p prefix, from, to int32)) {
	if len(h.order) == 0 {
		return
	}
	common := make([]int32, len(h.order)-1) // of each with the next
	var long []int32
	for k := range common {
		common[k] = int32(commonPrefix(h.requests[h.order[k]].Body, h.requests[h.order[k+1]].Body))
		if common[k] >= longPrefix {
			long = append(long, common[k])
		}
	}
	least := int32(longPrefix)
	if len(long) > 0 {
		slices.Sort(long)
		// A power of two, so that it is the same for segments that are much the same.
		least = max(least, 1<<(bits.Len32(uint32(long[len(long)/2]))-1))
	}
	for from := 0; from < len(h.order); {
		begins := func(k int) bool { return k < len(common) && common[k] >= least }
		to, p := from+1, prefix(0)
		if !begins(from) {
			for to < len(h.order) && !begins(to) {
				to++
			}
			// What begins like no other goes in the order of lines, in which the results are sealed:
			// then a group of them is unpacked once.
			slices.Sort(h.order[from:to])
		} else {
			for begins(to - 1) {
				to++
			}
			p = prefixOf(h.lease.Lane, h.requests[h.order[from]].Body[:least])
		}
		add(p, int32(from), int32(to))
		from = to
	}
}

func prefixOf(l batch.Lane, beginning []byte) prefix {
	m := fnv.New64a()
	io.WriteString(m, l.String())
	m.Write(beginning)
	return prefix(max(m.Sum64(), 1))
}

// commonPrefix is how many bytes a and b begin with in common, as far as that is looked at.
func commonPrefix(a, b []byte) int {
	const step = 64
	most := min(len(a), len(b), mostPrefix)
	n := 0
	for n+step <= most && bytes.Equal(a[n:n+step], b[n:n+step]) {
		n += step
	}
	for n < most && a[n] == b[n] {
		n++
	}
	return n
}
