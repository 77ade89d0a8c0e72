package storetest

import (
	"context"
	"testing"
	"time"

	"offpeak/internal/batch"
)

// Standby runs the test of a database whose synchronous standby stands still while stall(true) was
// called last: nothing that only the primary knows is taken for committed.
func Standby(t *testing.T, shared Database, stall func(bool)) {
	d := &db{T: t, Database: shared, clock: &clock{now: time.UnixMilli(1_767_323_045_678)}}
	d.open()
	l := d.claim(d.running(1))
	g := []batch.Group{group(l, tally(1, 0), "answer")}
	impatiently := func() error {
		ctx, cancel := context.WithTimeout(d.ctx(), time.Second)
		defer cancel()
		_, err := d.Record(ctx, g)
		return err
	}
	stall(true)
	if impatiently() == nil {
		d.Error("Record() succeeds without the standby")
	}
	// Whoever gives up a commit has the primary show it all the same, which is not to be trusted.
	if impatiently() == nil {
		d.Error("Record() again succeeds without the standby")
	}
	stall(false)
	if lost, err := d.Record(d.ctx(), g); err != nil || len(lost) > 0 {
		d.Errorf("Record() with the standby = %v, %v", lost, err)
	}
}
