package engine

import (
	"log/slog"

	"offpeak/internal/outage"
)

// outages log what fails again and again while the database or the blobs are away.
type outages struct {
	join, claim, validate, release, finalize, expire, sweep, vacuum, record, seal, share, bury, beat, tell *outage.Log
}

func newOutages(log *slog.Logger) outages {
	serious := func(what string) *outage.Log { return outage.New(log, slog.LevelError, what) }
	slight := func(what string) *outage.Log { return outage.New(log, slog.LevelWarn, what) }
	return outages{
		join:     serious("join"),
		claim:    serious("claim segments"),
		validate: serious("claim a batch to validate"),
		release:  slight("give back what is held"),
		finalize: serious("finalize batches"),
		expire:   serious("end batches whose deadline has passed"),
		sweep:    serious("sweep"),
		vacuum:   slight("vacuum the journal"),
		record:   serious("record results; sending stops until that works"),
		seal:     serious("seal segment"),
		share:    slight("share the limits of upstreams; what is held until now holds on"),
		bury:     serious("free the work of dead nodes"),
		tell:     outage.New(log, slog.LevelDebug, "tell what goes on"),
		beat:     slight("heartbeat; trying again every second"),
	}
}
