package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"offpeak/internal/batch"
)

// holdOf makes a hold of bodies, sorted as claiming does.
func holdOf(bodies ...string) *hold {
	h := &hold{requests: make([]request, len(bodies)), lease: batch.Lease{Segment: batch.Segment{Lane: batch.Lane{Model: "m"}}}}
	for i, body := range bodies {
		h.requests[i].Body = []byte(body)
		h.order = append(h.order, int32(i))
	}
	slices.SortFunc(h.order, func(a, b int32) int { return bytes.Compare(h.requests[a].Body, h.requests[b].Body) })
	return h
}

// TestRunsOfPrefixes cuts segments into runs.
func TestRunsOfPrefixes(t *testing.T) {
	examples := func(set int) string { return strings.Repeat(fmt.Sprintf("example %d. ", set), 200) } // 2,200 bytes
	preamble := strings.Repeat("You are helpful. ", 40)                                               // 680 bytes
	for _, c := range []struct {
		name   string
		bodies []string
		want   []int // requests in each run; negative: without a prefix
	}{
		{"none", nil, nil},
		{"one", []string{"a"}, []int{-1}},
		{"short ones", []string{"a", "ab", "b"}, []int{-3}},
		{"a long one", []string{preamble + "a", preamble + "b", preamble + "c"}, []int{3}},
		{"long and short", []string{"a", "b", preamble + "a", preamble + "b", "z"}, []int{2, -3}},
		{"two long ones side by side", []string{examples(1) + "a", examples(1) + "b", examples(2) + "a", examples(2) + "b"}, []int{2, 2}},
		{"a preamble and then examples", []string{
			preamble + examples(1) + "a", preamble + examples(1) + "b", preamble + examples(2) + "a", preamble + examples(2) + "b",
		}, []int{2, 2}},
		{"the same body", []string{preamble, preamble, preamble}, []int{3}},
	} {
		h := holdOf(c.bodies...)
		var got []int
		end := int32(0)
		h.cutRuns(func(p prefix, from, to int32) {
			if from != end || to <= from {
				t.Errorf("%s: a run from %d to %d after %d", c.name, from, to, end)
			}
			end = to
			if p == 0 {
				got = append(got, int(from-to))
			} else {
				got = append(got, int(to-from))
			}
		})
		if slices.Sort(got); end != int32(len(c.bodies)) || !slices.Equal(got, sorted(c.want)) {
			t.Errorf("%s: runs of %v, want %v", c.name, got, c.want)
		}
	}
}

func sorted(a []int) []int { return slices.Sorted(slices.Values(a)) }

// TestPrefixIsTheSameInEverySegment wants a prefix known again in the next segment.
func TestPrefixIsTheSameInEverySegment(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		var b strings.Builder
		for b.Len() < n {
			fmt.Fprintf(&b, "%x ", r.Uint64())
		}
		return b.String()
	}
	var sets []string
	for range 5 {
		sets = append(sets, text(3000))
	}
	seen := map[prefix]int{}
	for range 4 {
		var bodies []string
		for range 100 {
			bodies = append(bodies, sets[r.IntN(len(sets))]+text(10+r.IntN(500)))
		}
		holdOf(bodies...).cutRuns(func(p prefix, _, _ int32) { seen[p]++ })
	}
	if len(seen) != 5 || seen[0] != 0 {
		t.Errorf("%d prefixes %v, want 5", len(seen), seen)
	}
}

// TestRunsGiveEachOnce has sites take from runs, come and go, while segments come and are taken
// away: each request is given out once, and nobody goes without while there is one.
func TestRunsGiveEachOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r runs
		var known homes
		sites := []*site{{}, {}, {}}
		left := map[*hold]map[int32]bool{}
		n := 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"add", "take", "take", "take", "take", "take", "remove", "leave"}).Draw(t, "step") {
			case "add":
				var bodies []string
				for i := range rapid.IntRange(0, 12).Draw(t, "bodies") {
					set := rapid.IntRange(0, 4).Draw(t, "set")
					bodies = append(bodies, strings.Repeat(fmt.Sprint("prefix", set), set*60)+fmt.Sprint(i))
				}
				h := holdOf(bodies...)
				left[h] = map[int32]bool{}
				for _, i := range h.order {
					left[h][i] = true
				}
				n += len(bodies)
				r.add(h)
			case "take":
				s := rapid.SampledFrom(sites).Draw(t, "site")
				h, i, ok := r.next(s, &known)
				if ok != (n > 0) {
					t.Fatalf("something to send: %v, and %d are left", ok, n)
				}
				if !ok {
					continue
				}
				if again, j, _ := r.next(s, &known); again != h || i != j {
					t.Fatal("asked again it is another")
				}
				if !left[h][i] {
					t.Fatalf("request %d for the second time, or of a segment that is gone", i)
				}
				delete(left[h], i)
				r.advance(s)
				n--
			case "remove":
				for h := range left {
					n -= len(left[h])
					delete(left, h)
					r.remove(h)
					break
				}
			case "leave":
				r.leave(rapid.SampledFrom(sites).Draw(t, "site"))
			}
		}
		for n > 0 {
			if _, _, ok := r.next(sites[0], &known); !ok {
				t.Fatalf("%d are left, and nobody gets them", n)
			}
			r.advance(sites[0])
			n--
		}
		if _, _, ok := r.next(sites[1], &known); ok || len(r.families) > 0 || len(r.begun) > 0 {
			t.Fatal("something is left of nothing")
		}
	})
}

// TestHomesAreBounded forgets prefixes once there are very many.
func TestHomesAreBounded(t *testing.T) {
	var known homes
	s := &site{}
	for p := range 3 * mostHomes {
		known.settle(prefix(p), s)
	}
	if len(known) != mostHomes || known.of(0) != nil {
		t.Errorf("%d prefixes are known", len(known))
	}
	s.retired = true
	for p := range known {
		if known.of(p) != nil {
			t.Fatal("at home where nothing is sent any more")
		}
	}
}
