//go:build !race

package scheduling_test

const race = false
