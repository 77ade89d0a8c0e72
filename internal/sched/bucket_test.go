package sched

import (
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// full returns a bucket of which all may be taken here.
func full(perMinute int) *Bucket {
	b := &Bucket{}
	b.Share(int64(perMinute), int64(perMinute))
	return b
}

// In no 60 seconds, whenever they begin, more is taken than the limit, and as soon as something may
// be taken nothing is kept back.
func TestBucketNeverExceedsItsLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 500).Draw(t, "limit")
		b, now := full(limit), epoch
		type taking struct {
			at   time.Time
			n    int64 // what it came to, or is reserved
			open bool
		}
		var all []taking
		in := func(from, to time.Time) (sum int64) { // not at from itself
			for _, x := range all {
				if x.at.After(from) && !x.at.After(to) {
					sum += x.n
				}
			}
			return sum
		}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"take", "take", "take", "wait", "settle", "settle", "pass"}).Draw(t, "step") {
			case "take":
				n := rapid.Int64Range(1, int64(limit)).Draw(t, "n")
				wait := b.Wait(n, now)
				if rapid.Bool().Draw(t, "wait for it") {
					now = now.Add(wait)
					if wait := b.Wait(n, now); wait != 0 {
						t.Fatalf("after the wait, another wait of %v", wait)
					}
				} else if wait > 0 {
					// It need not wait longer than until what was taken a minute ago is forgotten.
					if sum := in(now.Add(wait-window-2*grain), now); sum+n <= int64(limit) {
						t.Fatalf("%d may be taken after %v, though only %d of %d were taken in the minute before", n, wait, sum, limit)
					}
					continue
				}
				b.Take(n, now)
				all = append(all, taking{now, n, true})
			case "settle":
				if len(all) == 0 {
					continue
				}
				i := rapid.IntRange(0, len(all)-1).Draw(t, "which")
				if x := &all[i]; x.open {
					used := rapid.Int64Range(0, x.n).Draw(t, "used")
					b.Settle(x.at, x.n, used, now)
					x.n, x.open = used, false
				}
			case "wait":
				now = now.Add(time.Duration(rapid.IntRange(0, 5_000).Draw(t, "ms")) * ms)
			case "pass":
				now = now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "s")) * time.Second)
			}
			for _, x := range all { // a minute that is fullest ends with a taking
				if sum := in(x.at.Add(-time.Minute), x.at); sum > int64(limit) {
					t.Fatalf("%d in the minute before %v, %d are allowed", sum, x.at.Sub(epoch), limit)
				}
			}
		}
	})
}

func TestBucketIsUsedUp(t *testing.T) {
	const limit = 600
	b, now := full(limit), epoch
	taken := 0
	for now.Before(epoch.Add(time.Hour)) {
		now = now.Add(b.Wait(1, now))
		b.Take(1, now)
		taken++
		if len(b.taken) > 700 {
			t.Fatalf("%d takings are kept", len(b.taken))
		}
	}
	t.Logf("%d taken in an hour, %d are allowed", taken, 60*limit)
	if taken < 60*limit*98/100 || taken > 61*limit {
		t.Errorf("%d taken in an hour, want nearly %d", taken, 60*limit)
	}
}

// Tokens: what a call comes to is known at its end, and mostly less than was reserved.
func TestBucketSettles(t *testing.T) {
	b := full(1000)
	b.Take(800, epoch)
	if wait := b.Wait(300, epoch); wait != window {
		t.Errorf("300 beside 800 of 1000 after %v, want %v", wait, window)
	}
	b.Settle(epoch, 800, 100, epoch.Add(time.Second))
	if wait := b.Wait(900, epoch.Add(time.Second)); wait != 0 {
		t.Errorf("900 beside 100 of 1000 after %v, want now", wait)
	}
	if wait := b.Wait(901, epoch.Add(time.Second)); wait != window-time.Second {
		t.Errorf("901 beside 100 of 1000 after %v, want %v", wait, window-time.Second)
	}
	// More than was reserved counts from when it is known.
	b.Take(100, epoch.Add(10*time.Second))
	b.Settle(epoch.Add(10*time.Second), 100, 500, epoch.Add(20*time.Second))
	if wait := b.Wait(401, epoch.Add(20*time.Second)); wait != window-20*time.Second {
		t.Errorf("401 beside 600 of 1000 after %v, want %v", wait, window-20*time.Second)
	}
	// A call of long ago gives nothing back: it does not count any more.
	b.Take(1000, epoch.Add(10*time.Minute))
	b.Settle(epoch.Add(time.Minute), 800, 0, epoch.Add(10*time.Minute))
	if wait := b.Wait(1, epoch.Add(10*time.Minute)); wait != window {
		t.Errorf("1 beside 1000 of 1000 after %v, want %v", wait, window)
	}
}

// What is more than a minute's limit may be taken when nothing else was.
func TestBucketLetsTheLargePass(t *testing.T) {
	b := full(100)
	if wait := b.Wait(5000, epoch); wait != 0 {
		t.Errorf("waits %v", wait)
	}
	b.Take(5000, epoch)
	if wait := b.Wait(5000, epoch.Add(time.Second)); wait != window-time.Second {
		t.Errorf("waits %v", wait)
	}
}

func TestBucketWithoutLimit(t *testing.T) {
	b := full(0)
	for range 1000 {
		b.Take(1<<40, epoch)
	}
	b.Settle(epoch, 1, 1<<50, epoch)
	if wait := b.Wait(1<<60, epoch); wait != 0 {
		t.Errorf("waits %v", wait)
	}
}

// An API with a quota of its own: whoever keeps to the limit is never throttled.
func TestBucketKeepsToAQuota(t *testing.T) {
	const quota = 300
	b, r, now := full(quota), rand.New(rand.NewPCG(1, 2)), epoch
	var arrived []time.Time
	for range 5000 {
		now = now.Add(max(b.Wait(1, now), time.Duration(r.Int64N(int64(150*ms)))))
		b.Take(1, now)
		at := now.Add(time.Duration(r.Int64N(int64(200 * ms)))) // on its way
		arrived = append(arrived, at)
		in := 0
		for _, a := range arrived[max(0, len(arrived)-2*quota):] {
			if at.Sub(a) < time.Minute && !a.After(at) {
				in++
			}
		}
		if in > quota {
			t.Fatalf("%d calls have come in a minute, %d are allowed", in, quota)
		}
	}
}

// A share of a limit is kept to, and what is more than the share waits for a larger one. What was
// taken of a larger share before still counts.
func TestBucketKeepsToItsShare(t *testing.T) {
	b := full(1000)
	b.Share(1000, 300)
	b.Take(200, epoch)
	if spent := b.Spent(epoch); spent != 200 {
		t.Errorf("%d are spent, want 200", spent)
	}
	for n, want := range map[int64]time.Duration{100: 0, 101: window, 301: window, 5000: window} {
		if wait := b.Wait(n, epoch); wait != want {
			t.Errorf("%d beside 200 of 300 after %v, want %v", n, wait, want)
		}
	}
	b.Share(1000, 100)
	if wait := b.Wait(1, epoch.Add(time.Second)); wait != window-time.Second {
		t.Errorf("1 beside 200 of 100 after %v, want %v", wait, window-time.Second)
	}
	if spent := b.Spent(epoch.Add(window)); spent != 0 {
		t.Errorf("%d are spent after a minute", spent)
	}
	if wait := b.Wait(300, epoch.Add(window)); wait != window { // more than the share, however long nothing was taken
		t.Errorf("300 of a share of 100 after %v", wait)
	}
	b.Share(1000, 1000)
	if wait := b.Wait(5000, epoch.Add(window)); wait != 0 {
		t.Errorf("more than all, when all is ours and nothing was taken, after %v", wait)
	}
}
