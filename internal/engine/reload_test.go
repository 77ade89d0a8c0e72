package engine_test

import (
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// TestReload adds upstreams and takes others away while a batch runs. No request is lost, and none is
// sent twice.
func TestReload(t *testing.T) {
	bubble(t, func(b *bench) {
		config := sim.Config{Timing: sim.Timing{Latency: 10 * time.Second, Jitter: 0.5}}
		one := b.upstream(config, upstream.Config{MaxInFlight: 8})
		two := b.upstream(config, upstream.Config{MaxInFlight: 8})
		three := b.upstream(config, upstream.Config{MaxInFlight: 8})
		taps := []*tap{one.tap(), two.tap(), three.tap()}
		p := b.start(small(20))
		p.pool.Replace(one.Upstream, two.Upstream)
		text := chat(400)
		id := b.run(text)
		want := func(what string, counts ...int) {
			b.Helper()
			for i, n := range counts {
				if got := taps[i].inFlight("", time.Now()); got != n {
					b.Errorf("%s: %d calls in flight at upstream %d, want %d", what, got, i, n)
				}
			}
		}
		b.recorded(id, 30)
		want("at first", 8, 8, 0)
		p.pool.Replace(one.Upstream, two.Upstream, three.Upstream)
		time.Sleep(time.Second)
		want("one more", 8, 8, 8)
		p.pool.Replace(two.Upstream, three.Upstream)
		time.Sleep(time.Second)
		if n := taps[0].inFlight("", time.Now()); n == 0 {
			b.Error("calls in flight were cut")
		}
		want("one less", taps[0].inFlight("", time.Now()), 8, 8)
		time.Sleep(20 * time.Second)
		want("later", 0, 8, 8)
		p.pool.Replace() // what is in flight goes on, and the rest waits
		time.Sleep(time.Minute)
		want("none", 0, 0, 0)
		if a := p.Activity(b.look(id)); a.WaitingFor == "" || a.InFlight != 0 {
			b.Errorf("without upstreams: %+v", a)
		}
		p.pool.Replace(one.Upstream)
		b.want(b.ends(id), batch.Completed, 400, 400, 0)
		b.wantCalls(text, 1)
		p.drain()
	})
}

// configured returns the upstream of other settings, as a reload makes it.
func (b *bench) configured(c upstream.Config) *upstream.Upstream {
	b.Helper()
	u, err := upstream.New(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(u.Close)
	return u
}

// TestReloadKeepsLimits gives an upstream other settings while it has calls in flight. It never has
// more than it is to have, and not more in a minute.
func TestReloadKeepsLimits(t *testing.T) {
	bubble(t, func(b *bench) {
		config := sim.Config{Timing: sim.Timing{Latency: 10 * time.Second, Jitter: 0.9}}
		one := b.upstream(config, upstream.Config{Name: "up", MaxInFlight: 8, Limits: upstream.Limits{RequestsPerMinute: 30}})
		tap := one.tap()
		p := b.start(small(20))
		id := b.run(chat(100))
		most := 0
		for i := range 30 {
			time.Sleep(1500 * time.Millisecond)
			c := one.config
			c.Weight = 1 + i%5 // nothing that matters, but another upstream for all that
			if i >= 15 {
				c.MaxInFlight = 5
			}
			u := b.configured(c)
			p.pool.Replace(u)
			most = max(most, tap.inFlight("", time.Now()))
		}
		if most != 8 {
			b.Errorf("up to %d calls in flight, want 8", most)
		}
		if n := tap.inFlight("", time.Now()); n > 5 {
			b.Errorf("%d calls in flight, want 5", n)
		}
		b.want(b.ends(id), batch.Completed, 100, 100, 0)
		tap.wantAtMost(b, 30, func(tapped) int64 { return 1 })
		p.drain()
	})
}

// TestReloadUnderAnotherName calls an upstream something else, takes it away and brings it back: it is the
// same server, and what it was sent before counts.
func TestReloadUnderAnotherName(t *testing.T) {
	bubble(t, func(b *bench) {
		config := sim.Config{Timing: sim.Timing{Latency: 10 * time.Second, Jitter: 0.9}}
		one := b.upstream(config, upstream.Config{Name: "up", MaxInFlight: 8, Limits: upstream.Limits{RequestsPerMinute: 30}})
		other := b.upstream(config, upstream.Config{Models: []string{"another"}})
		tap := one.tap()
		p := b.start(small(20))
		id := b.run(chat(100))
		most := 0
		for i := range 20 {
			time.Sleep(1500 * time.Millisecond)
			c := one.config
			c.Name = []string{"up", "", "gpu"}[i%3]
			u := b.configured(c)
			if i%4 == 3 { // away for a moment
				p.pool.Replace(other.Upstream)
				time.Sleep(10 * time.Millisecond)
			}
			p.pool.Replace(u, other.Upstream)
			time.Sleep(10 * time.Millisecond)
			most = max(most, tap.inFlight("", time.Now()))
		}
		if most != 8 {
			b.Errorf("up to %d calls in flight, want 8", most)
		}
		b.want(b.ends(id), batch.Completed, 100, 100, 0)
		tap.wantAtMost(b, 30, func(tapped) int64 { return 1 })
		p.drain()
	})
}
