package outage_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/outage"
)

// lines returns what f has logged, one line each, without the times.
func lines(t *testing.T, f func(l *outage.Log)) string {
	t.Helper()
	var out bytes.Buffer
	synctest.Test(t, func(*testing.T) {
		f(outage.New(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		})), slog.LevelWarn, "do it; else wait"))
	})
	return out.String()
}

var errAway = errors.New("away")

// TestOutage has something fail 20 times a second for 25 s. That is said at once, every 10 s, and when
// it is over, with how often it was.
func TestOutage(t *testing.T) {
	got := lines(t, func(l *outage.Log) {
		l.Note(nil)
		for range 500 {
			l.Note(errAway, "node", "a")
			time.Sleep(50 * time.Millisecond)
		}
		l.Note(nil)
		l.Note(nil)
		time.Sleep(time.Hour)
		l.Note(errAway)
		l.Note(nil)
	})
	want := `level=WARN msg="do it; else wait" node=a err=away
level=WARN msg="do it; else wait" node=a err=away failures=201 for=10s
level=WARN msg="do it; else wait" node=a err=away failures=401 for=20s
level=INFO msg="do it: works again" failures=500 after=25s
level=WARN msg="do it; else wait" err=away
level=INFO msg="do it: works again" failures=1 after=0s
`
	if got != want {
		t.Errorf("logged:\n%swant:\n%s", got, want)
	}
}

// TestFlicker has every other attempt fail. That is no reason to log more.
func TestFlicker(t *testing.T) {
	got := lines(t, func(l *outage.Log) {
		for range 500 {
			l.Note(errAway)
			time.Sleep(50 * time.Millisecond)
			l.Note(nil)
		}
	})
	if n := strings.Count(got, "\n"); n != 6 {
		t.Errorf("in 25 s it logs %d lines, want 6:\n%s", n, got)
	}
}
