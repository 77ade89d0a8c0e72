//go:build race

package scheduling_test

// race tells that the race detector watches.
const race = true
