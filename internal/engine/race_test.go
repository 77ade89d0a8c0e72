//go:build race

package engine_test

// race tells that the race detector watches, with which everything takes ten times as long.
const race = true
