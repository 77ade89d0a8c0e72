package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"offpeak/internal/progress"
)

// newLogger returns a logger that writes to standard error.
func newLogger(s *streams, level, format string) *slog.Logger {
	var l slog.Level
	l.UnmarshalText([]byte(level)) // one of its names, as the flag makes sure
	o := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(s.Err, o))
	}
	return slog.New(slog.NewTextHandler(s.Err, o))
}

// A shortLog prints the records that matter to somebody who waits, as a sentence each and not
// twice in a row.
type shortLog struct {
	slog.Handler // nil: there are no groups here
	p            progress.Printer

	mu   sync.Mutex
	last string
	at   time.Time
}

// Enabled implements slog.Handler.
func (*shortLog) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }

// WithAttrs implements slog.Handler: there is one batch, which needs no name.
func (l *shortLog) WithAttrs([]slog.Attr) slog.Handler { return l }

// Handle implements slog.Handler.
func (l *shortLog) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "err" {
			text += ": " + a.Value.String()
		}
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if text != l.last || r.Time.Sub(l.at) > time.Minute {
		l.last, l.at = text, r.Time
		l.p.Message(text)
	}
	return nil
}
