package engine_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// exams is an input of n requests that begin with one of sets of examples, shuffled.
func exams(n, sets int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	var buf bytes.Buffer
	var examples []string
	for s := range sets {
		var b strings.Builder
		for b.Len() < 4096 {
			fmt.Fprintf(&b, "Set %d of exam %d, example %x. ", s, seed, r.Uint64())
		}
		examples = append(examples, b.String())
	}
	for i := range n {
		buf.WriteString(line(fmt.Sprintf("r-%d", i), "m", examples[r.IntN(sets)]+fmt.Sprintf("And now %x?", r.Uint64())))
	}
	return buf.Bytes()
}

// TestPrefixOrder runs requests with 20 long prefixes, shuffled, at upstreams whose caches hold three
// of them. Nearly all are found in the cache, and no slot is idle for it.
func TestPrefixOrder(t *testing.T) {
	const n, slots = 3000, 16
	for _, ups := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(ups), func(t *testing.T) {
			bubble(t, func(b *bench) {
				var all []*up
				var taps []*tap
				for range ups {
					u := b.upstream(sim.Config{
						Timing: sim.Timing{Latency: time.Second, Prefill: time.Second, Jitter: 0.3}, Slots: slots,
						PrefixCache: 3 * 4300 / 64,
					}, upstream.Config{MaxInFlight: slots})
					all, taps = append(all, u), append(taps, u.tap())
				}
				p := b.start(func(c *engine.Config) { *c = c.WithSegmentLines(500) })
				time.Sleep(time.Second)
				id := b.run(exams(n, 20, 1))
				start := time.Now()
				b.want(b.ends(id), batch.Completed, n, n, 0)
				asked, hits := 0.0, 0.0
				for _, u := range all {
					asked += u.metric(b, "vllm:prefix_cache_queries_total")
					hits += u.metric(b, "vllm:prefix_cache_hits_total")
				}
				used := 0.0
				full := start.Add(time.Duration(n/ups/slots-3) * time.Second) // until then there is work for all
				for _, tap := range taps {
					used += tap.slots("", start.Add(time.Second), full)
				}
				of := full.Sub(start.Add(time.Second)).Seconds() * float64(ups*slots)
				b.Logf("%.3f of the tokens of prompts were cached, %.4f of the slots busy", hits/asked, used/of)
				if hits < 0.93*asked {
					b.Errorf("%.3f of the tokens of prompts were cached", hits/asked)
				}
				if used < 0.999*of {
					b.Errorf("%.4f of the slots were busy", used/of)
				}
				p.drain()
			})
		})
	}
}

// metric returns what the upstream says of itself under a name.
func (u *up) metric(b *bench, name string) (sum float64) {
	b.Helper()
	for l := range strings.Lines(string(u.get("/metrics"))) {
		var v float64
		if rest, ok := strings.CutPrefix(l, name); ok {
			if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &v); err != nil {
				b.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}
