package main

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ live, other, want int64 }{
		{5 * mib, 10 * mib, lazyMemory},
		{30 * mib, 20 * mib, lazyMemory},
		{60 * mib, 20 * mib, 140 * mib}, // as much as without us
		{1000 * mib, 20 * mib, 2020 * mib},
	} {
		if got := memoryLimit(memory{c.live, c.other}); got != c.want {
			t.Errorf("%d MiB live and %d beside: limit of %d MiB, want %d", c.live/mib, c.other/mib, got/mib, c.want/mib)
		}
	}
	runtime.GC() // what is live is known after one
	m := readMemory()
	if m.live <= 0 || m.other <= 0 || m.other > 1<<30 {
		t.Errorf("the runtime says %+v", m)
	}
}

// Who has settings of their own keeps them.
func TestCollectLazily(t *testing.T) {
	was := debug.SetGCPercent(100)
	defer debug.SetGCPercent(was)
	defer debug.SetMemoryLimit(math.MaxInt64)
	ended, end := context.WithCancel(t.Context())
	end()
	for _, c := range []struct {
		set     string
		percent int
	}{{"GOGC", 100}, {"GOMEMLIMIT", 100}, {"", lazyPercent}} {
		debug.SetGCPercent(100)
		debug.SetMemoryLimit(math.MaxInt64)
		collectLazily(ended, func(name string) string {
			if name == c.set {
				return "1"
			}
			return ""
		})
		if got := debug.SetGCPercent(100); got != c.percent {
			t.Errorf("with %q set: GOGC is %d, want %d", c.set, got, c.percent)
		}
		if limited := debug.SetMemoryLimit(-1) < math.MaxInt64; limited != (c.set == "") {
			t.Errorf("with %q set: limited %v", c.set, limited)
		}
	}
}
