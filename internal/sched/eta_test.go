package sched

import "testing"

func TestETAOfHeavyTails(t *testing.T) {
	for _, n := range []int{500, 2000, 5000, 20000} {
		for seed := uint64(1); seed <= 4; seed++ {
			s := scenario{n: n, slots: always(64), seed: seed, pace: &Pace{}, eta: []float64{0.1, 0.5, 0.9}}
			r := s.drive(NewGate(GateConfig{Max: 64}))
			for i, told := range r.told {
				t.Logf("%d seed %d at %.0f%%: %.0f s left; off by %+.3f, before %+.3f", n, seed, 100*[]float64{0.1, 0.5, 0.9}[i], r.makespan-told[0], (told[1]-r.makespan)/(r.makespan-told[0]), (r.toldOld[i]-r.makespan)/(r.makespan-told[0]))
			}
		}
	}
}
