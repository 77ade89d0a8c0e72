// Package outage logs what fails again and again while something is away, such as a database: that it
// has begun, every now and then that it lasts, and that it is over.
//
//	claiming := outage.New(log, slog.LevelError, "claim segments")
//	for {
//		claiming.Note(claim())
//	}
package outage

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// every is how often is said at most that something fails, and how often that it works again.
const every = 10 * time.Second

// A Log logs the failures of one thing. It is safe for concurrent use.
type Log struct {
	log   *slog.Logger
	level slog.Level
	what  string

	mu     sync.Mutex
	failed int       // since it last worked, or since that was said
	since  time.Time // the first of them
	said   time.Time // when a failure was logged last
	open   bool      // a failure was logged, and not that it is over
}

// New returns a Log of what is done, in the words of a log line, and behind a semicolon what follows if
// that fails. Failures have the given level.
func New(log *slog.Logger, level slog.Level, what string) *Log {
	return &Log{log: log, level: level, what: what}
}

// Note notes how one attempt ended: with err, or well if that is nil. args go to the line, if there
// is one.
func (l *Log) Note(err error, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.worked()
		return
	}
	now := time.Now()
	if l.failed == 0 {
		l.since = now
	}
	l.failed++
	if !l.said.IsZero() && now.Sub(l.said) < every {
		return
	}
	args = append(args, "err", err)
	if l.failed > 1 {
		args = append(args, "failures", l.failed, "for", now.Sub(l.since).Round(time.Millisecond))
	}
	l.log.Log(context.Background(), l.level, l.what, args...)
	l.said, l.open = now, true
}

// worked notes that an attempt ended well. Where every other one fails, that is said no more often than
// the failures are.
func (l *Log) worked() {
	if l.open {
		what, _, _ := strings.Cut(l.what, ";")
		l.log.Info(what+": works again", "failures", l.failed, "after", time.Since(l.since).Round(time.Millisecond))
		l.open = false
	}
	l.failed = 0
}
