package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// What the collector of garbage is told. At Go's own setting it runs many times a second for a heap
// of ten megabytes, which is most of what a request costs beside its call. It may be lazy as long as
// all is small, and no lazier than Go's own setting beyond that.
const (
	lazyPercent = 400
	lazyMemory  = 80 << 20 // with what is not Go's, the process then has less than 128 MiB
	lazyEvery   = 250 * time.Millisecond
)

// collectLazily has garbage be collected less often until ctx ends, unless the user has settings of
// their own (GOGC, GOMEMLIMIT).
func collectLazily(ctx context.Context, getenv func(string) string) {
	if getenv("GOGC") != "" || getenv("GOMEMLIMIT") != "" {
		return
	}
	debug.SetGCPercent(lazyPercent)
	limit := int64(lazyMemory)
	debug.SetMemoryLimit(limit)
	tick := time.NewTicker(lazyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		// A limit below what is in use would have the collector run all the time.
		if l := memoryLimit(readMemory()); l > limit || l < limit*3/4 {
			limit = l
			debug.SetMemoryLimit(limit)
		}
	}
}

// memory is what the runtime says of itself, in bytes.
type memory struct {
	live  int64 // what was in use after the last collection
	other int64 // what it has beside the heap, such as stacks
}

func readMemory() memory {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	metrics.Read(samples)
	n := func(i int) int64 { return int64(samples[i].Value.Uint64()) }
	return memory{live: n(0), other: n(1) - n(2) - n(3) - n(4) - n(5)}
}

// memoryLimit leaves the heap room to double, as Go does where nobody says otherwise.
func memoryLimit(m memory) int64 { return max(lazyMemory, 2*m.live+m.other) }
