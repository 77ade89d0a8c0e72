package engine

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
	"offpeak/internal/upstream"
)

// at is an instant by the wall clock and the monotonic clock of a machine.
func at(wall, mono time.Duration) instant { return instant{1_000_000*time.Hour + wall, mono} }

// TestLeaseEndsByEitherClock has the lease end with whichever clock comes to its end first: a
// machine that was suspended shows it on the wall clock alone, and one whose wall clock was set back on
// the monotonic clock alone.
func TestLeaseEndsByEitherClock(t *testing.T) {
	end := at(0, 0).add(13 * time.Second)
	for _, test := range []struct {
		name       string
		wall, mono time.Duration
		want       bool
	}{
		{"at once", 0, 0, true},
		{"in time", 12999 * time.Millisecond, 12999 * time.Millisecond, true},
		{"over", 13 * time.Second, 13 * time.Second, false},
		{"suspended for an hour", time.Hour, time.Second, false},
		{"wall clock set ahead", 14 * time.Second, time.Second, false},
		{"wall clock set back", -time.Hour, 12 * time.Second, true},
		{"wall clock set back, and over", -time.Hour, 13 * time.Second, false},
	} {
		if got := at(test.wall, test.mono).before(end); got != test.want {
			t.Errorf("%s: the lease holds: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestMayJudge lets a node judge others only when its own heartbeats have come through for so long that
// everybody has been heard, and when for as long as a heartbeat lasts its own clocks and that of the
// database have gone on alike.
func TestMayJudge(t *testing.T) {
	type beat struct{ wall, mono, database, took time.Duration } // since the beginning; took it to be answered
	const s = time.Second
	// row is of heartbeats every 5 s, from then on with the clocks set by so much.
	row := func(from, to time.Duration, set beat) (beats []beat) {
		for d := from; d <= to; d += 5 * s {
			beats = append(beats, beat{d + set.wall, d + set.mono, d + set.database, set.took})
		}
		return beats
	}
	even := func(from, to time.Duration) []beat { return row(from, to, beat{}) }
	after := func(to time.Duration, set beat) []beat { return append(even(0, 20*s), row(25*s, to, set)...) }
	for _, test := range []struct {
		name   string
		beats  []beat
		failed int           // of the beats, the one that fails
		after  time.Duration // the last, it is asked
		want   bool
	}{
		{"too soon", even(0, 10*s), -1, 4 * s, false},
		{"long enough", even(0, 15*s), -1, 0, true},
		{"a second later", even(0, 15*s), -1, s, true},
		{"no answer to the last", even(0, 30*s), -1, 7 * s, false},
		{"one failed", even(0, 25*s), 3, 4 * s, false},
		{"one failed 10 s ago", even(0, 30*s), 3, 0, true},
		{"one failed long ago", even(0, 40*s), 3, 0, true},
		{"the last one failed", even(0, 40*s), 8, 0, false},
		{"one is missing", append(even(0, 20*s), even(31*s, 36*s)...), -1, 4 * s, false},
		{"one was missing", append(even(0, 20*s), even(31*s, 41*s)...), -1, 0, true},
		{"suspended", after(35*s, beat{time.Hour, 0, time.Hour, 0}), -1, 4 * s, false},
		{"was suspended", after(40*s, beat{time.Hour, 0, time.Hour, 0}), -1, 0, true},
		{"wall clock set back", after(35*s, beat{-time.Hour, 0, 0, 0}), -1, 4 * s, false},
		{"wall clock set ahead", after(35*s, beat{time.Hour, 0, 0, 0}), -1, 4 * s, false},
		{"the database's clock set ahead", after(35*s, beat{0, 0, time.Hour, 0}), -1, 4 * s, false},
		{"the database's clock set ahead a little", after(35*s, beat{0, 0, 2100 * time.Millisecond, 0}), -1, 4 * s, false},
		{"the database's clock was set ahead", after(40*s, beat{0, 0, time.Hour, 0}), -1, 0, true},
		{"the database's clock set back", after(35*s, beat{0, 0, -time.Hour, 0}), -1, 4 * s, false},
		{"set ahead while none came through", append(even(0, 20*s), row(60*s, 70*s, beat{0, 0, 3 * s, 0})...), -1, 4 * s, false},
		{"none came through", append(even(0, 20*s), even(60*s, 70*s)...), -1, 0, true},
		{"noted late", after(30*s, beat{0, 0, 4 * s, 4 * s}), -1, 0, true},
		{"one was noted late", append(after(25*s, beat{0, 0, 4 * s, 4 * s}), even(30*s, 30*s)...), -1, 0, true},
		{"one was noted later than it was answered", append(after(25*s, beat{0, 0, 4 * s, s}), even(30*s, 30*s)...), -1, 0, false},
		{"the database's clock is an hour ahead of ours", row(0, 20*s, beat{0, 0, time.Hour, 0}), -1, 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMembership()
			m.become("node")
			var last instant
			for i, b := range test.beats {
				last = at(b.wall, b.mono)
				if i == test.failed {
					m.failing = true
					continue
				}
				m.note("node", last, last.add(b.took), batch.Heartbeat{Lasts: 15 * s, At: time.UnixMilli(0).Add(b.database)})
			}
			if _, silent, ok := m.mayJudge(last.add(test.after)); ok != test.want || ok && silent != 15*s {
				t.Errorf("mayJudge() = %v after %v, want %v", ok, silent, test.want)
			}
		})
	}
}

// TestAwaitLease has a worker that is about to send wait for the lease, and no longer than its call may
// take.
func TestAwaitLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(Config{Upstreams: upstream.NewPool()})
		e.member.become("node")
		ctx, cancel := context.WithCancel(t.Context())
		waited := 0
		wait := func() { e.awaitLease(ctx); waited++ }
		go wait()
		synctest.Wait()
		if waited != 0 {
			t.Fatal("it does not wait")
		}
		e.renew("node", e.instant(time.Now()), batch.Heartbeat{Lasts: 15 * time.Second})
		synctest.Wait()
		if waited != 1 {
			t.Fatal("it waits, though the lease is there")
		}
		time.Sleep(13 * time.Second)
		go wait()
		synctest.Wait()
		if waited != 1 {
			t.Fatal("it does not wait, though the lease has ended")
		}
		cancel()
		synctest.Wait()
		if waited != 2 {
			t.Fatal("it waits, though its call has ended")
		}
	})
}

// TestSuspendedBeforeSending has the lease end between the choice of a call and its being sent, as it does
// for a process that is stopped there. The call waits for the lease, and goes on with it.
func TestSuspendedBeforeSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		up, err := upstream.New(upstream.Config{URL: "http://up/v1", MaxInFlight: 1, Models: []string{"m"}, Transport: roundTrip(
			func(r *http.Request) (*http.Response, error) {
				calls++
				return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader("{}")), Header: http.Header{}, Request: r}, nil
			})})
		if err != nil {
			t.Fatal(err)
		}
		defer up.Close()
		e := New(Config{Upstreams: upstream.NewPool(up)})
		e.alarm = time.AfterFunc(time.Hour, e.ring)
		defer e.alarm.Stop()
		e.member.become("node")
		e.renew("node", e.instant(time.Now()), batch.Heartbeat{Nodes: 1})

		h := holdOf("{}")
		h.open, h.lease.Lane.Endpoint = 1, "/v1/chat/completions"
		h.ctx, h.cancel = context.WithCancelCause(t.Context())
		h.lane = &lane{Lane: h.lease.Lane}
		e.lanes[h.lease.Lane] = h.lane
		e.route(h.lane)
		h.lane.queue(batch.Work{Lane: h.lease.Lane}, time.Now()).add(h, time.Now())
		h.queue.pace = &sched.Pace{}
		e.mu.Lock()
		c := e.take(e.sites[0])
		e.sites[0].busy++
		e.draining = true // the worker ends after its call
		e.mu.Unlock()

		if c == nil {
			t.Fatal("there is nothing to send")
		}
		end := e.instant(time.Now()).add(time.Second)
		e.member.end.Store(&end)
		time.Sleep(time.Hour)
		go e.work(e.sites[0], c)
		synctest.Wait()
		if calls != 0 {
			t.Error("a call is sent without a lease")
		}
		e.renew("node", e.instant(time.Now()), batch.Heartbeat{Nodes: 1})
		synctest.Wait()
		if calls != 1 {
			t.Errorf("%d calls are sent once the lease is renewed", calls)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
