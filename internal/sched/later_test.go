package sched

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestLater(t *testing.T) {
	fast := []Rival{{time.Second, 10}} // 10 calls a second
	for _, c := range []struct {
		each    time.Duration
		waiting int
		others  []Rival
		want    bool
	}{
		{10 * time.Second, 1000, fast, false}, // there is more than enough to do
		{10 * time.Second, 141, fast, false},  // done after 15.1 s by the other
		{10 * time.Second, 139, fast, true},   // after 14.9 s
		{time.Second, 1, fast, false},         // as fast as the other
		{1400 * time.Millisecond, 1, fast, false},
		{1600 * time.Millisecond, 1, fast, true},
		{10 * time.Second, 1, nil, false}, // nobody else
		{10 * time.Second, 1, []Rival{{0, 10}}, false},
		{10 * time.Second, 1, []Rival{{time.Second, 0}}, false},
		{10 * time.Second, 210, append(fast, Rival{2 * time.Second, 10}), false},
		{10 * time.Second, 195, append(fast, Rival{2 * time.Second, 10}), true},
	} {
		if got := Later(c.each, c.waiting, c.others); got != c.want {
			t.Errorf("%v, %d waiting, beside %v: %v", c.each, c.waiting, c.others, got)
		}
	}
}

// However fast they are, somebody takes what waits.
func TestLaterForSome(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Rival {
			return Rival{
				time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "each")), rapid.Float64Range(0, 1000).Draw(t, "slots"),
			}
		}), 1, 6).Draw(t, "all")
		waiting := rapid.IntRange(1, 10).Draw(t, "waiting")
		for i, a := range all {
			others := append(append([]Rival{}, all[:i]...), all[i+1:]...)
			if !Later(a.Each, waiting, others) {
				return
			}
		}
		t.Fatal("everybody leaves it to the others")
	})
}
