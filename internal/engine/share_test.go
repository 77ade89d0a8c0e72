package engine_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// as has the bench make files and batches of the project.
func (b *bench) as(project string, weight int) {
	b.Helper()
	projects, err := b.store.Projects(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range projects {
		if p.Name == project {
			b.project = p.ID
			return
		}
	}
	p, err := b.store.CreateProject(b.Context(), project, weight)
	if err != nil {
		b.Fatal(err)
	}
	b.project = p.ID
}

// saying is an input of n requests that say a word.
func saying(word string, n int) []byte {
	return bytes.ReplaceAll(chat(n), []byte("question"), []byte(word+" question"))
}

// TestProjectsShareByWeight has four projects with weights 1:1:2:4 share an upstream, the first with a
// hundred times the work of the others in one batch. Each gets its due in every minute, whether
// there are many slots or few.
func TestProjectsShareByWeight(t *testing.T) {
	allowed := 0.05
	if *clustered {
		allowed = 0.1 // a claim takes a moment, in which others go first
	}
	for i, slots := range []int{5, 64} {
		if sparing(i, 2) {
			continue
		}
		t.Run(fmt.Sprintf("%d slots", slots), func(t *testing.T) {
			bubble(t, func(b *bench) {
				u := b.upstream(sim.Config{Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.9}, Slots: slots}, upstream.Config{MaxInFlight: slots})
				tap := u.tap()
				p := b.start(small(100))
				names := []string{"hugeone", "equal", "double", "fourfold"}
				weights := []int{1, 1, 2, 4}
				minutes := 3
				var ids []string
				for i, name := range names {
					b.as(name, weights[i])
					n := slots * 30 * (minutes + 3) * weights[i] / 8 // of 2 s each, for longer than is looked at
					if i == 0 {
						n *= 10
					}
					ids = append(ids, b.run(saying(name, n)))
				}
				time.Sleep(2 * time.Minute) // until what came first has made up for that
				for range minutes {
					start := time.Now()
					time.Sleep(time.Minute)
					all := tap.slots("", start, time.Now())
					if all < 0.995*float64(slots)*60 {
						b.Errorf("%.0f slot seconds were used, want %d", all, 60*slots)
					}
					for i, name := range names {
						got, due := tap.slots(name+" ", start, time.Now())/all, float64(weights[i])/8
						b.Logf("%s: %.3f of the slots, due %.3f", name, got, due)
						// With few slots, a call more or less in a minute is more than that.
						if tolerance := max(allowed*due, 3.8/all); got < due-tolerance || got > due+tolerance {
							b.Errorf("%s has %.3f of the slots, want %.3f", name, got, due)
						}
					}
				}
				for _, id := range ids[1:] {
					b.ends(id)
				}
				b.cancel(ids[0])
				b.ends(ids[0])
				p.drain()
			})
		})
	}
}

// TestSmallBesideHuge lets a small batch come after a huge one of the same project.
func TestSmallBesideHuge(t *testing.T) {
	for _, slots := range []int{1, 16} {
		t.Run(fmt.Sprintf("%d slots", slots), func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}, Slots: slots}, upstream.Config{MaxInFlight: slots})
				p := b.start()
				huge := b.run(chat(5000))
				b.recorded(huge, int64(5*slots))
				start := time.Now()
				x := b.ends(b.run(chat(10 * slots)))
				b.want(x, batch.Completed, int64(10*slots), int64(10*slots), 0)
				if took := time.Since(start); took > 25*time.Second { // alone it takes 10 s
					b.Errorf("the small batch took %v", took)
				}
				b.cancel(huge)
				b.ends(huge)
				p.drain()
			})
		})
	}
}

// TestNoSlotIdle has a project take what another leaves: all of it, at any time.
func TestNoSlotIdle(t *testing.T) {
	unraced(t)
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.9}, Slots: 32}, upstream.Config{MaxInFlight: 32})
		tap := u.tap()
		p := b.start(small(10))
		b.as("weighty", 10)
		var ids []string
		for range 20 { // small ones, more of them than are held at a time
			ids = append(ids, b.run(saying("weighty", 40)))
		}
		b.as("light", 1)
		ids = append(ids, b.run(saying("light", 1500)))
		time.Sleep(5 * time.Second)
		start := time.Now()
		for range 90 { // 2300 requests of 2 s each are enough for 140 s
			time.Sleep(time.Second)
			if n := tap.inFlight("", time.Now()); n != 32 {
				b.Errorf("%d calls in flight after %v", n, time.Since(start))
			}
		}
		for _, id := range ids {
			b.ends(id)
		}
		p.drain()
	})
}

// TestDeadlinePresses has two batches of a project of which one must have more than its share of the
// slots to be in time. It gets that, and the other goes on.
func TestDeadlinePresses(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.5}, Slots: 16}, upstream.Config{MaxInFlight: 16})
		tap := u.tap()
		p := b.start(small(50))
		calm := b.create(b.upload(saying("calm", 3000)), 24*time.Hour)
		time.Sleep(10 * time.Second)
		// At half of the slots it takes 200 s, with all of them 100 s.
		pressing := b.create(b.upload(saying("pressing", 800)), 150*time.Second)
		start := time.Now()
		x := b.ends(pressing)
		b.want(x, batch.Completed, 800, 800, 0)
		if n := tap.slots("calm", start, time.Now()) / time.Since(start).Seconds(); n < 1 {
			b.Errorf("the other batch had %.1f slots meanwhile", n)
		}
		b.cancel(calm)
		b.ends(calm)
		p.drain()
	})
}

// TestUrgentWithinLimits has a batch share a limit a minute with a larger one of its project. Half of it is
// not enough to be in time, so it gets what is.
func TestUrgentWithinLimits(t *testing.T) {
	for i, limits := range []upstream.Limits{{RequestsPerMinute: 60}, {TokensPerMinute: 6000}} {
		if sparing(i, 2) {
			continue
		}
		bubble(t, func(b *bench) {
			b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}, MedianTokens: 50, P99Tokens: 60}, upstream.Config{MaxInFlight: 50, Limits: limits})
			p := b.start(small(20))
			start := time.Now()
			long := b.run(stating(chat(600)))
			near := b.create(b.upload(stating(chat(160))), 4*time.Minute)
			x := b.ends(near)
			b.Logf("%+v: %d of 160 after %v; the other has %d", limits, x.Counts.Completed, time.Since(start), b.look(long).Counts.Completed)
			b.want(x, batch.Completed, 160, 160, 0)
			if n := b.look(long).Counts.Completed; n < 60 {
				b.Errorf("the other has %d answers, want 60 at least", n)
			}
			b.ends(long)
			p.drain()
		})
	}
}

// TestHopelessConcedes has two batches of a project press that end at the same time, of which one cannot be in
// time whatever it gets. It is not late together with the other.
func TestHopelessConcedes(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.5}}, upstream.Config{MaxInFlight: 8})
		p := b.start(small(20))
		hopeless := b.create(b.upload(chat(10_000)), 2*time.Minute)
		near := b.create(b.upload(chat(500)), 2*time.Minute)
		b.want(b.ends(near), batch.Completed, 500, 500, 0)
		x := b.ends(hopeless)
		b.Logf("the other has %d answers", x.Counts.Completed)
		if x.Counts.Completed < 300 {
			b.Errorf("the other has %d answers, want 300 at least", x.Counts.Completed)
		}
		p.drain()
	})
}
