package sched

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// TestScenarios holds the automatic limit against the best fixed one, which somebody would have to
// find by trying: how much longer the same requests take, what share of the slots is idle before the
// last 64 requests, and how many calls are refused. Three seeds each; all times are those of the
// model.
func TestScenarios(t *testing.T) {
	refuse := func(took float64, when func(m *model, now float64, r *rand.Rand) bool) func(*model, float64, *rand.Rand) (Outcome, float64, time.Duration) {
		return func(m *model, now float64, r *rand.Rand) (Outcome, float64, time.Duration) {
			if when(m, now, r) {
				return Throttled, took, 0
			}
			return Answered, 0, 0
		}
	}
	// A quota for each minute of the clock, and an answer that says when the next begins.
	quota := func(n int) func(*model, float64, *rand.Rand) (Outcome, float64, time.Duration) {
		return func(m *model, now float64, _ *rand.Rand) (Outcome, float64, time.Duration) {
			if minute := math.Floor(now / 60); minute != m.minute {
				m.minute, m.calls = minute, 0
			}
			if m.calls++; m.calls > n {
				return Throttled, 0.05, time.Duration((60*(m.minute+1) - now) * float64(time.Second))
			}
			return Answered, 0, 0
		}
	}
	changes := func(at float64, before, after int) func(float64) int {
		return func(now float64) int {
			if now < at {
				return before
			}
			return after
		}
	}
	for _, c := range []struct {
		scenario
		fixed   []int   // limits to compare with
		longer  float64 // at most, than with the best of them: until only 64 requests are left
		idle    float64 // share of slot seconds after the first 20 s, at most
		refused float64 // calls per request, at most
	}{
		{scenario{name: "64 slots and a queue", n: 5000, slots: always(64)}, []int{64, 70}, 1.05, 0.02, 0},
		{scenario{name: "the same for longer", n: 20000, slots: always(64)}, []int{64, 70}, 1.02, 0.02, 0},
		{scenario{name: "the same, work of answers not known", n: 10000, slots: always(64), blind: true}, []int{64, 70}, 1.05, 0.06, 0},
		{scenario{name: "even answers, work not known", n: 20000, slots: always(64), blind: true, even: true}, []int{64, 70}, 1.05, 0.02, 0},
		{scenario{name: "even answers", n: 20000, slots: always(64), even: true}, []int{64, 70}, 1.05, 0.02, 0},
		{scenario{name: "1 slot", n: 300, slots: always(1)}, []int{1, 2}, 1.01, 0.01, 0},
		{scenario{name: "4 slots", n: 1000, slots: always(4)}, []int{4, 5}, 1.02, 0.02, 0},
		{scenario{name: "256 slots", n: 20000, slots: always(256)}, []int{256, 280}, 1.05, 0.02, 0},
		{scenario{name: "1 % stray 429", n: 5000, slots: always(64), refuses: refuse(0.005, func(_ *model, _ float64, r *rand.Rand) bool { return r.Float64() < 0.01 })}, []int{64, 70}, 1.05, 0.02, 0.015},
		{scenario{name: "5 % stray 429", n: 5000, slots: always(64), refuses: refuse(0.005, func(_ *model, _ float64, r *rand.Rand) bool { return r.Float64() < 0.05 })}, []int{64, 70}, 1.05, 0.03, 0.06},
		{scenario{name: "429 above 64", n: 5000, slots: always(64), refuses: refuse(0.005, func(m *model, _ float64, _ *rand.Rand) bool { return m.ours >= 64 })}, []int{64, 70}, 1.05, 0.02, 0.01},
		{scenario{name: "429 above 64, told after 300 ms", n: 5000, slots: always(64), refuses: refuse(0.3, func(m *model, _ float64, _ *rand.Rand) bool { return m.ours >= 64 })}, []int{64, 70}, 1.05, 0.02, 0.05},
		{scenario{name: "429 when full, with others in bursts", n: 5000, slots: always(64), people: bursts(12), refuses: refuse(0.005, func(m *model, _ float64, _ *rand.Rand) bool { return len(m.busy) >= 64 })}, []int{64, 70}, 1.15, 0.12, 0.16},
		{scenario{name: "429 and Retry-After above 400 a minute", n: 3000, slots: always(64), refuses: quota(400)}, []int{32, 64}, 1.02, 1, 0.03},
		{scenario{name: "503 for a minute", n: 5000, slots: always(64), refuses: refuse(0.005, func(_ *model, now float64, _ *rand.Rand) bool { return now > 100 && now < 160 })}, []int{64, 70}, 1.05, 1, 0.02},
		{scenario{name: "lost for half a minute", n: 5000, slots: always(64), lost: [2]float64{100, 130}}, []int{64, 70}, 1.05, 0.02, 0.03},
		{scenario{name: "speed falls with the calls, 256 slots", n: 10000, slots: always(256), speed: soft(48)}, []int{128, 192, 256, 280}, 1.05, 0.05, 0},
		{scenario{name: "32 slots become 128", n: 15000, slots: changes(150, 32, 128)}, []int{128, 140}, 1.08, 0.12, 0},
		{scenario{name: "128 slots become 32", n: 10000, slots: changes(150, 128, 32)}, []int{128, 140}, 1.05, 0.02, 0},
		{scenario{name: "64 slots, with readings", n: 5000, slots: always(64), metrics: 1}, []int{64, 70}, 1.02, 0.01, 0},
		{scenario{name: "4 slots, with readings", n: 1000, slots: always(4), metrics: 1}, []int{4, 5}, 1.01, 0.01, 0},
		{scenario{name: "256 slots, with readings", n: 20000, slots: always(256), metrics: 1}, []int{256, 280}, 1.02, 0.02, 0},
		{scenario{name: "32 slots become 128, with readings", n: 15000, slots: changes(150, 32, 128), metrics: 1}, []int{128, 140}, 1.03, 0.03, 0},
		{scenario{name: "speed falls with the calls, with readings", n: 10000, slots: always(256), speed: soft(48), metrics: 1}, []int{192, 256, 280}, 1.05, 0.03, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const seeds = 3
			fixedSpan, fixedFull := make([]float64, len(c.fixed)), make([]float64, len(c.fixed))
			var sum run
			limit, later := "", 0.0
			for c.seed = range uint64(seeds) {
				for i, n := range c.fixed {
					r := c.drive(&fixed{n: n})
					fixedSpan[i] += r.makespan
					fixedFull[i] += r.full
				}
				g := NewGate(GateConfig{})
				r := c.drive(g)
				sum.makespan += r.makespan
				sum.full += r.full
				sum.idle += r.idle / seeds
				sum.refused += r.refused
				later = max(later, r.idleLater)
				limit += fmt.Sprintf(" %d", g.Limit())
			}
			best := 0
			for i := range fixedFull {
				if fixedFull[i] < fixedFull[best] {
					best = i
				}
			}
			longer := sum.full / fixedFull[best]
			refused := float64(sum.refused) / float64(seeds*c.n)
			t.Logf("%.0f s; ÷ best fixed (%d): %.3f, until 64 are left %.3f; idle %.1f %%, at most %.1f %% after 20 s; refused %.2f %%; limits at the end%s",
				sum.makespan/seeds, c.fixed[best], sum.makespan/fixedSpan[best], longer, 100*sum.idle, 100*later, 100*refused, limit)
			if longer > c.longer || later > c.idle || refused > c.refused {
				t.Errorf("at most %.3f times as long, %.1f %% idle, %.2f %% refused are wanted", c.longer, 100*c.idle, 100*c.refused)
			}
		})
	}
}

// One refusal for no reason while the limit is looked for costs what a call costs, and not the way up.
func TestStrayRefusalOnTheWayUp(t *testing.T) {
	const seeds = 5
	took := func(refused int) (full float64) {
		for seed := range uint64(seeds) {
			calls := 0
			s := scenario{n: 2000, slots: always(64), seed: seed, refuses: func(*model, float64, *rand.Rand) (Outcome, float64, time.Duration) {
				if calls++; calls == refused {
					return Throttled, 0.005, 0
				}
				return Answered, 0, 0
			}}
			full += s.drive(NewGate(GateConfig{})).full / seeds
		}
		return full
	}
	without := took(0)
	for _, call := range []int{1, 10, 16, 20, 30, 50, 70, 100} {
		with := took(call)
		t.Logf("call %d refused: %.1f s until 64 requests are left, %.1f s more than if none is", call, with, with-without)
		if with > without+3 {
			t.Errorf("call %d refused: it takes %.1f s longer, want 3 at most", call, with-without)
		}
	}
}
