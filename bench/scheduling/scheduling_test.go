package scheduling_test

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

var requests = flag.Int("requests", 1500, "requests of a scenario")

// A run is what came of one batch on one upstream.
type run struct {
	makespan time.Duration
	full     time.Duration // until there were no more requests open than slots
	work     float64       // slot-seconds that were busy
	idle     float64       // share of slot-seconds idle while there were more requests open than slots
	refused  int64         // calls
}

const slots = 64

// heavy is an upstream of 64 slots with a queue and answers of 2 s in the median, 30 s at p99.
func heavy() sim.Config {
	return sim.Config{
		Slots: slots, MedianTokens: 100, P99Tokens: 1500, Timing: sim.Timing{Decode: 20 * time.Millisecond},
		Context: 1 << 20, Seed: 7,
	}
}

// makespan runs one batch of n requests to its end. trouble, if not nil, happens to the upstream
// meanwhile.
func makespan(t *testing.T, n, maxInFlight int, cfg sim.Config, trouble func(*station)) (r run) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := w.upstream(cfg, upstream.Config{MaxInFlight: maxInFlight})
		w.start()
		g := watch(s)
		defer g.stop()
		if trouble != nil {
			go trouble(s)
		}
		text := chat(n, "m", "everything")
		start := time.Now()
		id := w.create(batch.DefaultProject, text, 24*time.Hour)
		full := time.Duration(0) // until when there was enough for every slot
		var busy float64
		w.ends(batch.DefaultProject, id, 100*time.Millisecond, func(b batch.Batch) {
			if b.Counts.Total == 0 || b.Counts.Total-b.Counts.Completed > slots {
				full, busy = time.Since(start), g.read()
			}
		})
		r = run{full: full, work: g.read(), refused: s.refused.Load()}
		r.makespan = time.Since(start)
		r.idle = 1 - busy/(full.Seconds()*slots)
		w.stop()
	})
	return r
}

// fixed returns limits that an operator might set, one of which is best.
func fixed() []int {
	if *requests < 4000 {
		return []int{64, 72}
	}
	return []int{56, 64, 72, 96}
}

// spare skips what takes too long where the race detector watches. Whether there are races is what
// internal/engine tests.
func spare(t *testing.T) {
	t.Helper()
	if race {
		t.Skip("with the race detector this takes ten times as long, and it measures nothing else")
	}
}

// finding is what it may cost to find out how many calls an upstream can use, at the beginning.
const finding = 5 * time.Second

// TestMakespan compares an upstream without settings with the best fixed limit, and with the bound
// that nobody can beat: all work, on all slots, all the time.
func TestMakespan(t *testing.T) {
	spare(t)
	for _, test := range []struct {
		name    string
		cfg     func(*sim.Config)
		trouble func(*station)
		lost    time.Duration // for which the upstream was away
		most    float64       // makespan ÷ best fixed limit
		idle    float64       // share of slot-seconds idle, at most
		refused float64       // share of calls refused, at most
		once    int64         // and so many when an outage begins and ends
	}{
		{name: "queue, with /metrics", most: 1.05, idle: 0.02},
		{name: "queue, without", cfg: func(c *sim.Config) { c.NoMetrics = true }, most: 1.05, idle: 0.02},
		{name: "1 % stray 429, without", cfg: func(c *sim.Config) { c.NoMetrics, c.Faults.Throttle = true, 0.01 }, most: 1.05, idle: 0.02, refused: 0.02},
		{name: "1 % stray 429, with", cfg: func(c *sim.Config) { c.Faults.Throttle = 0.01 }, most: 1.05, idle: 0.02, refused: 0.02},
		{name: "429 above 64", cfg: func(c *sim.Config) { c.NoMetrics, c.MaxInFlight = true, 64 }, most: 1.05, idle: 0.02, refused: 0.03},
		{name: "503 for a minute", cfg: func(c *sim.Config) { c.NoMetrics, c.DownStatus = true, 503 },
			trouble: down(40*time.Second, time.Minute), lost: time.Minute, most: 1.05, idle: 1, once: 250},
		{name: "lost and back", cfg: func(c *sim.Config) { c.NoMetrics = true },
			trouble: gone(40*time.Second, time.Minute), lost: time.Minute, most: 1.05, idle: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := heavy()
			if test.cfg != nil {
				test.cfg(&cfg)
			}
			best, at := time.Duration(0), 0
			for _, n := range fixed() {
				if cfg.MaxInFlight > 0 && n > cfg.MaxInFlight {
					continue
				}
				if r := makespan(t, *requests, n, cfg, test.trouble); best == 0 || r.makespan < best {
					best, at = r.makespan, n
				}
			}
			r := makespan(t, *requests, 0, cfg, test.trouble)
			bound := r.work/slots + test.lost.Seconds()
			ratio := r.makespan.Seconds() / best.Seconds()
			share := float64(r.refused) / float64(int64(*requests)+r.refused)
			row(t, test.name, "%6.0f s  ÷ best fixed (%d) %.3f  ÷ bound %.3f  idle %.3f  refused %3d (%.2f %%)",
				r.makespan.Seconds(), at, ratio, r.makespan.Seconds()/bound, r.idle, r.refused, 100*share)
			most, idle := test.most, test.idle+finding.Seconds()/r.full.Seconds()
			if *requests < 4000 {
				most += finding.Seconds() / best.Seconds()
			}
			if ratio > most {
				t.Errorf("makespan is %.3f of the best fixed limit's, want %.3f at most", ratio, most)
			}
			if r.idle > idle {
				t.Errorf("%.3f of the slots were idle, want %.3f at most", r.idle, idle)
			}
			if most := int64(test.refused*float64(*requests)) + test.once; r.refused > most {
				t.Errorf("%d calls were refused, want %d at most", r.refused, most)
			}
		})
	}
}

// down has an upstream answer DownStatus, or cut connections, for a while.
func down(after, how time.Duration) func(*station) {
	return func(s *station) {
		time.Sleep(after)
		s.SetDown(true)
		time.Sleep(how)
		s.SetDown(false)
	}
}

// gone cuts an upstream's connections and refuses new ones for a while.
func gone(after, how time.Duration) func(*station) {
	return func(s *station) {
		time.Sleep(after)
		s.away.Store(true)
		s.SetDown(true)
		time.Sleep(how)
		s.SetDown(false)
		s.away.Store(false)
	}
}

// row prints a row of the table.
func row(t *testing.T, name, format string, args ...any) {
	t.Helper()
	t.Logf("| %-38s %s", name, fmt.Sprintf(format, args...))
}

// TestLanes runs a model that answers at once beside one that takes 3 s a call, in one batch and in
// two. Each ends as if it were alone. The limits are given, as how soon they are found is luck here.
func TestLanes(t *testing.T) {
	spare(t)
	const fastN, slowN = 3000, 400
	world := func(t *testing.T) *world {
		w := newWorld(t)
		w.upstream(sim.Config{Slots: slots, Models: []sim.Model{{ID: "fast", Timing: &sim.Timing{Latency: 50 * time.Millisecond}}, {ID: "unused"}}}, upstream.Config{MaxInFlight: slots})
		w.upstream(sim.Config{Slots: slots, Models: []sim.Model{{ID: "slow", Timing: &sim.Timing{Latency: 3 * time.Second}}}}, upstream.Config{MaxInFlight: slots})
		w.start()
		time.Sleep(time.Second) // the lists of models are read
		return w
	}
	alone := func(t *testing.T, text []byte) (took time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			w := world(t)
			start := time.Now()
			w.ends(batch.DefaultProject, w.create(batch.DefaultProject, text, 24*time.Hour), 10*time.Millisecond, nil)
			took = time.Since(start)
			w.stop()
		})
		return took
	}
	fast, slow := chat(fastN, "fast", "birds"), chat(slowN, "slow", "stones")
	fastAlone, slowAlone := alone(t, fast), alone(t, slow)

	var fastTook, slowTook time.Duration
	synctest.Test(t, func(t *testing.T) {
		w := world(t)
		start := time.Now()
		var wg sync.WaitGroup
		for _, b := range []struct {
			text []byte
			took *time.Duration
		}{{slow, &slowTook}, {fast, &fastTook}} {
			id := w.create(batch.DefaultProject, b.text, 24*time.Hour)
			wg.Go(func() {
				w.ends(batch.DefaultProject, id, 10*time.Millisecond, nil)
				*b.took = time.Since(start)
			})
		}
		wg.Wait()
		w.stop()
	})
	f, s := fastTook.Seconds()/fastAlone.Seconds(), slowTook.Seconds()/slowAlone.Seconds()
	row(t, "50 ms and 3 s a call, two batches", "fast %.2f s, %.2f of alone; slow %.1f s, %.2f of alone", fastTook.Seconds(), f, slowTook.Seconds(), s)
	if f > 1.1 || s > 1.1 {
		t.Error("want 1.1 of alone at most")
	}

	// In one batch the fast model's last answer counts, since the batch ends with the slow one.
	synctest.Test(t, func(t *testing.T) {
		w := world(t)
		mixed := append(bytes.Clone(slow), bytes.ReplaceAll(fast, []byte(`"custom_id":"r-`), []byte(`"custom_id":"f-`))...)
		lines := slices.Collect(bytes.Lines(mixed))
		rand.New(rand.NewPCG(1, 1)).Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		start := time.Now()
		id := w.create(batch.DefaultProject, bytes.Join(lines, nil), 24*time.Hour)
		w.ends(batch.DefaultProject, id, 10*time.Millisecond, func(batch.Batch) {
			if fastTook = time.Since(start); w.ups[0].served.Load() < fastN {
				f = fastTook.Seconds() / fastAlone.Seconds()
			}
		})
		s = time.Since(start).Seconds() / slowAlone.Seconds()
		w.stop()
	})
	row(t, "50 ms and 3 s a call, one batch", "fast %.2f of alone; slow %.2f of alone", f, s)
	if f > 1.2 || s > 1.1 {
		t.Error("want 1.2 and 1.1 of alone at most")
	}
}

// TestShares has four projects of weights 1:1:2:4 on one upstream, one of them with forty times
// the work. While all have work, each gets its share of the slots, over the whole time and in every
// minute of it.
func TestShares(t *testing.T) {
	spare(t)
	const most = 8
	minutes, off := most, 0.05
	if *requests < 4000 {
		minutes, off = most/2, 0.08 // it is an average
	}
	weights, work := []int{1, 1, 2, 4}, []int{60_000, 1500, 3000, 6000}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.upstream(heavy(), upstream.Config{})
		w.start()
		var projects, batches []string
		for i, weight := range weights {
			projects = append(projects, w.project(fmt.Sprintf("p%d", i), weight))
		}
		batches = append(batches, w.create(projects[0], chat(work[0], "m", "the first"), 24*time.Hour))
		time.Sleep(30 * time.Second) // the others come while it runs
		for i, p := range projects[1:] {
			batches = append(batches, w.create(p, chat(work[i+1], "m", fmt.Sprintf("project %d", i)), 24*time.Hour))
		}
		time.Sleep(time.Minute) // until calls that began before have ended
		var got, total [most][4]float64
		for minute := range minutes {
			for range 300 {
				time.Sleep(200 * time.Millisecond)
				sum := 0
				for i, id := range batches {
					n := w.engine.Activity(batch.Batch{ID: id, Project: projects[i], Status: batch.InProgress}).InFlight
					got[minute][i] += float64(n)
					sum += n
				}
				for i := range batches {
					total[minute][i] += float64(sum)
				}
			}
		}
		for i, weight := range weights {
			due := float64(weight) / 8
			all, of, worst := 0.0, 0.0, 0.0
			for minute := range minutes {
				x := got[minute][i] / total[minute][i] / due
				worst = max(worst, max(x, 1/x)-1)
				all, of = all+got[minute][i], of+total[minute][i]
			}
			x := all / of / due
			row(t, fmt.Sprintf("share of %d in 8, %d requests", weight, work[i]), "%.3f of its due in %d minutes; %.3f off in the worst of them", x, minutes, worst)
			if max(x, 1/x)-1 > off {
				t.Errorf("weight %d gets %.3f of its due, want it within %.2f", weight, x, off)
			}
		}
		for i, p := range projects {
			if b := w.look(p, batches[i]); b.Status != batch.InProgress {
				t.Errorf("project %d had no work left", i)
			}
		}
		w.stop()
	})
}

// TestShared has people use an upstream in bursts, with and without a batch beside them.
func TestShared(t *testing.T) {
	spare(t)
	for _, metrics := range []bool{true, false} {
		span := min(30*time.Minute, time.Duration(*requests)*time.Minute/200)
		cfg := heavy()
		cfg.NoMetrics = !metrics
		cfg.MedianTokens, cfg.P99Tokens = 100, 300
		cfg.Models = []sim.Model{{ID: "m"}, {ID: "people", Timing: &sim.Timing{Latency: 200 * time.Millisecond, Decode: 5 * time.Millisecond}}}
		if !metrics {
			cfg.MaxInFlight = slots + 8 // of a server that throttles, since nothing else says that it is full
		}
		people := func(t *testing.T, withBatch bool) (latency []time.Duration, busy, refused, own float64) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				s := w.upstream(cfg, upstream.Config{Shared: true})
				w.start()
				g := watch(s)
				defer g.stop()
				if withBatch {
					w.create(batch.DefaultProject, chat(60_000, "m", "the night"), 24*time.Hour)
					time.Sleep(2 * time.Minute)
				}
				var mu sync.Mutex
				var wg sync.WaitGroup
				dice := rand.New(rand.NewPCG(3, 3))
				start, before := time.Now(), g.read()
				for n := 0; time.Since(start) < span; n++ {
					// A burst of half a minute with up to 20 people, then half a minute of one or two.
					gap := 40 * time.Millisecond
					if int(time.Since(start)/(30*time.Second))%2 == 1 {
						gap = 2 * time.Second
					}
					time.Sleep(time.Duration(dice.ExpFloat64() * float64(gap)))
					wg.Go(func() {
						took, pushed := s.ask([]byte(fmt.Sprintf(`{"model":"people","messages":[{"role":"user","content":"person %d"}]}`, n)))
						mu.Lock()
						latency = append(latency, took)
						refused += float64(pushed)
						mu.Unlock()
					})
				}
				wg.Wait()
				busy = (g.read() - before) / (time.Since(start).Seconds() * slots)
				for _, d := range latency {
					own += d.Seconds() / (time.Since(start).Seconds() * slots)
				}
				w.stop()
			})
			slices.Sort(latency)
			return latency, busy, refused / float64(len(latency)), own
		}
		at := func(l []time.Duration, q int) float64 { return l[len(l)*q/100].Seconds() }
		alone, _, _, own := people(t, false)
		with, busy, refused, _ := people(t, true)
		used := (busy - own) / (1 - own)
		name := map[bool]string{true: "with /metrics", false: "without"}[metrics]
		row(t, "people beside a batch, "+name, "p50 %.2f p95 %.2f p99 %.2f s alone, %.2f %.2f %.2f s with it (p95 ×%.2f); %.2f of their calls refused; batch gets %.2f of what is spare",
			at(alone, 50), at(alone, 95), at(alone, 99), at(with, 50), at(with, 95), at(with, 99), at(with, 95)/at(alone, 95), refused, used)
		if at(with, 95) > 1.2*at(alone, 95) {
			t.Errorf("p95 of people is %.2f of alone, want 1.2 at most", at(with, 95)/at(alone, 95))
		}
		if refused > 0.2 {
			t.Errorf("%.2f of people's calls were refused, want 0.2 at most", refused)
		}
		if least := map[bool]float64{true: 0.9, false: 0.6}[metrics]; used < least {
			t.Errorf("batch gets %.2f of what is spare, want %.2f at least", used, least)
		}
	}
}

// TestETA asks when batches will be done, and looks how wrong the answer was. There are several, as
// how long the very last call of one takes is luck; and few slots, so that it is not all there is.
// What the first 150 of 1,500 answers come to on average is luck, too: one in a hundred is fifteen
// times as long as most, and all that anybody can know of the others' mean is 14 % off as a rule.
func TestETA(t *testing.T) {
	spare(t)
	small := max(1, 6000/float64(*requests))
	batches := int(5 * min(small, 2.4))
	shares := []int{10, 50, 90}
	var off, aside, worst [3]float64
	for seed := range uint64(batches) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			cfg := heavy()
			cfg.Slots, cfg.Seed = slots/4, seed
			w.upstream(cfg, upstream.Config{})
			w.start()
			start := time.Now()
			id := w.create(batch.DefaultProject, chat(*requests, "m", "time"), 24*time.Hour)
			var told [3]time.Time
			b := w.ends(batch.DefaultProject, id, time.Second, func(b batch.Batch) {
				for i, share := range shares {
					if told[i].IsZero() && b.Counts.Total > 0 && 100*b.Counts.Completed >= int64(share)*b.Counts.Total {
						told[i] = w.engine.Activity(b).ETA
					}
				}
			})
			for i := range shares {
				x := told[i].Sub(b.CompletedAt).Seconds() / b.CompletedAt.Sub(start).Seconds()
				aside[i] += x / float64(batches)
				off[i] += max(x, -x) / float64(batches)
				worst[i] = max(worst[i], x, -x)
			}
			w.stop()
		})
	}
	for i, most := range []float64{0.1 * math.Sqrt(small), 0.1, 0.15} {
		row(t, fmt.Sprintf("time of arrival at %d %% done", shares[i]), "off by %.1f %% of the whole time, by %.1f %% in the worst of %d batches, on average %+.1f %%",
			100*off[i], 100*worst[i], batches, 100*aside[i])
		if off[i] > most {
			t.Errorf("at %d %% done it is off by %.3f, want %.2f at most", shares[i], off[i], most)
		}
	}
}

// TestPrefixes sends eight-shot prompts of 20 kinds, shuffled, through an upstream whose prefix
// cache holds a few of them.
func TestPrefixes(t *testing.T) {
	spare(t)
	const kinds = 20
	prefixes, questions := shots(t, kinds)
	n := min(*requests, 4000)
	input := func(sorted bool) []byte {
		dice := rand.New(rand.NewPCG(5, 5))
		var buf bytes.Buffer
		for i := range n {
			messages := turns(append(slices.Clone(prefixes[dice.IntN(kinds)]), fmt.Sprintf("%s (%d)", questions[i%len(questions)], i)))
			if sorted {
				buf.Write(lineWith(i, struct {
					Model    string              `json:"model"`
					Messages []map[string]string `json:"messages"`
				}{"m", messages}))
				continue
			}
			// What stands first is all that differs to whoever sorts bodies; the upstream looks at the
			// messages alone.
			buf.Write(lineWith(i, struct {
				User     string              `json:"user"`
				Model    string              `json:"model"`
				Messages []map[string]string `json:"messages"`
			}{fmt.Sprintf("%016x", dice.Uint64()), "m", messages}))
		}
		return buf.Bytes()
	}
	for _, ups := range []int{1, 2} {
		measure := func(sorted bool) (took time.Duration, hits float64) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				for range ups {
					w.upstream(sim.Config{
						Slots: slots, MedianTokens: 60, P99Tokens: 200, Seed: 7, Context: 1 << 20, PrefixCache: 400,
						Timing: sim.Timing{Decode: 10 * time.Millisecond, Prefill: 400 * time.Millisecond},
					}, upstream.Config{})
				}
				w.start()
				start := time.Now()
				w.ends(batch.DefaultProject, w.create(batch.DefaultProject, input(sorted), 24*time.Hour), 100*time.Millisecond, nil)
				took = time.Since(start)
				asked, found := uint64(0), uint64(0)
				for _, s := range w.ups {
					a, f := s.PrefixTokens()
					asked, found = asked+a, found+f
				}
				hits = float64(found) / float64(asked)
				w.stop()
			})
			return took, hits
		}
		without, missed := measure(false)
		with, hits := measure(true)
		row(t, fmt.Sprintf("20 prefixes shuffled, upstreams: %d", ups), "%.1f s with prefix order, %.1f s without: ÷ %.2f; hit rate %.2f against %.2f",
			with.Seconds(), without.Seconds(), with.Seconds()/without.Seconds(), hits, missed)
		if hits < 0.9 {
			t.Errorf("the hit rate is %.2f, want 0.9", hits)
		}
	}
}

// shots returns beginnings of conversations, each of eight solved problems, and questions.
func shots(t *testing.T, kinds int) (prefixes [][]string, questions []string) {
	problems := problems(t)
	for k := range kinds {
		var p []string
		for i := range 8 {
			x := problems[(8*k+i)%len(problems)]
			p = append(p, x.Question, x.Answer)
		}
		prefixes = append(prefixes, p)
	}
	for _, x := range problems {
		questions = append(questions, x.Question)
	}
	return prefixes, questions
}

type problem struct{ Question, Answer string }

// problems are those of ../../../shared/data where they are present, else some of our own.
func problems(t *testing.T) (list []problem) {
	list = readProblems(t)
	if len(list) > 0 {
		return list
	}
	t.Log("shared/data is not here: the problems are made up")
	for i := range 400 {
		list = append(list, problem{
			fmt.Sprintf("A baker has %d trays with %d rolls each and sells %d. %s How many rolls are left?", i+3, i%7+4, i%11, strings.Repeat("The shop opens at eight. ", 8)),
			fmt.Sprintf("%d times %d is %d, less %d. %s", i+3, i%7+4, (i+3)*(i%7+4), i%11, strings.Repeat("So we count. ", 10)),
		})
	}
	return list
}
