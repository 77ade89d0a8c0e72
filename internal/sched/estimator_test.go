package sched

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestEstimator has things of several kinds follow each other, so many open at once, and counts how often
// they came to more than was set aside for them.
func TestEstimator(t *testing.T) {
	const rounds = 20_000
	for _, kind := range []struct {
		name string
		next func(*rand.Rand) float64
		idle float64 // how many times the mean may be set aside
	}{
		{"alike", func(*rand.Rand) float64 { return 300 }, 1.3},
		{"even", func(r *rand.Rand) float64 { return 10 + 90*r.Float64() }, 1.7},
		{"heavy-tailed", func(r *rand.Rand) float64 { return 200 * math.Exp(1.1*r.NormFloat64()) }, 2.6},
		{"few large", func(r *rand.Rand) float64 {
			if r.IntN(50) == 0 {
				return 4000
			}
			return 20
		}, 6.5},
	} {
		t.Run(kind.name, func(t *testing.T) {
			for _, most := range []int{16, 64} {
				r := rand.New(rand.NewPCG(1, uint64(most)))
				var e Estimator
				type item struct{ reserved, used float64 }
				var open []item
				over, reserved, used := 0, 0.0, 0.0
				for range rounds {
					if len(open) == most {
						i := r.IntN(most)
						e.Learn(open[i].used)
						open[i] = open[most-1]
						open = open[:most-1]
					}
					next := item{e.Reserve(len(open) + 1), kind.next(r)}
					if !e.Known() {
						next.reserved = 5000
					}
					open = append(open, next)
					all := item{}
					for _, i := range open {
						all.reserved += i.reserved
						all.used += i.used
					}
					reserved += all.reserved
					used += all.used
					if all.used > all.reserved {
						over++
					}
				}
				if share := float64(over) / rounds; share > 0.01 {
					t.Errorf("%d open: came to more than set aside in %.2f %% of rounds, want at most 1", most, 100*share)
				}
				if ratio := reserved / used; ratio > kind.idle {
					t.Errorf("%d open: %.2f times as much was set aside as used, want at most %v", most, ratio, kind.idle)
				}
			}
		})
	}
}

func TestEstimatorKnowsNothing(t *testing.T) {
	var e Estimator
	if e.Known() || e.Reserve(1) != 0 {
		t.Errorf("Known() = %v, Reserve(1) = %v of nothing", e.Known(), e.Reserve(1))
	}
	e.Learn(100)
	if got := e.Reserve(1); got < 400 {
		t.Errorf("after one of 100, Reserve(1) = %v, want at least 400: others may differ", got)
	}
}
