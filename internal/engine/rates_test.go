package engine_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// wantAtMost checks that the calls of no 60 seconds come to more than most.
func (t *tap) wantAtMost(b *bench, most int64, of func(tapped) int64) {
	b.Helper()
	var calls []tapped
	t.each("", func(c tapped) { calls = append(calls, c) })
	slices.SortFunc(calls, func(a, b tapped) int { return a.begin.Compare(b.begin) })
	first, sum := 0, int64(0)
	for _, c := range calls {
		sum += of(c)
		for c.begin.Sub(calls[first].begin) >= time.Minute {
			sum -= of(calls[first])
			first++
		}
		if sum > most {
			b.Errorf("from %v to %v there were %d, want %d at most", calls[first].begin, c.begin, sum, most)
			return
		}
	}
}

// wantKept checks that no minute has more than the limits allow, and over more tokens.
func (t *tap) wantKept(b *bench, limits upstream.Limits, over int64) {
	b.Helper()
	if n := limits.RequestsPerMinute; n > 0 {
		t.wantAtMost(b, int64(n), func(tapped) int64 { return 1 })
	}
	if n := limits.TokensPerMinute; n > 0 {
		t.wantAtMost(b, int64(n)+over, func(c tapped) int64 { return b.tokens(c.body) })
	}
}

// stating has every request of the input state how many tokens its answer may have. What it comes to is
// then known before it is sent, and a limit of tokens is kept to the token.
func stating(input []byte) []byte {
	return bytes.ReplaceAll(input, []byte(`"messages":`), []byte(`"max_tokens":100,"messages":`))
}

// TestRatesAreKept runs batches of several projects and models at an upstream with limits a minute.
// All together never exceed them, and they are used. Where requests do not state what they come to,
// that is reckoned from others, and one that comes to far more than any before may be too much.
func TestRatesAreKept(t *testing.T) {
	for _, test := range []struct {
		name   string
		limits upstream.Limits
		within time.Duration
		input  func([]byte) []byte
		over   int64 // so many times the largest, a limit of tokens may be missed
	}{
		{"requests", upstream.Limits{RequestsPerMinute: 120}, 4 * time.Minute, bytes.Clone, 0},
		{"tokens", upstream.Limits{TokensPerMinute: 6000}, 15 * time.Minute, stating, 0},
		{"tokens reckoned", upstream.Limits{TokensPerMinute: 6000}, 15 * time.Minute, bytes.Clone, 1},
		{"both", upstream.Limits{RequestsPerMinute: 100, TokensPerMinute: 20000}, 6 * time.Minute, bytes.Clone, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.9}, Faults: sim.Faults{Error: 0.05, Attempts: 1}}, upstream.Config{MaxInFlight: 50, Limits: test.limits})
				tap := u.tap()
				p := b.start(small(20))
				var ids []string
				start := time.Now()
				for i := range 3 {
					b.as(fmt.Sprint("project", i), 1+i)
					ids = append(ids, b.run(test.input(chat(80, "m", "n"))), b.run(test.input(chat(40, "n"))))
				}
				for _, id := range ids {
					x := b.ends(id)
					b.want(x, batch.Completed, x.Counts.Total, x.Counts.Total, 0)
				}
				took := time.Since(start)
				tokens, largest := int64(0), int64(0)
				count := func(c tapped) int64 { return b.tokens(c.body) }
				tap.each("", func(c tapped) { tokens, largest = tokens+count(c), max(largest, count(c)) })
				b.Logf("%d calls of %d tokens in %v", u.Calls().Calls, tokens, took)
				tap.wantKept(b, test.limits, test.over*largest)
				if took > test.within {
					b.Errorf("it took %v, want %v at most", took, test.within)
				}
				p.drain()
			})
		})
	}
}

// TestTokensOfLongAnswers: the first answers to end are the short ones, by far. What others come to is reckoned
// from how long they have taken so far as well: in a minute of which nothing was known before, little more of a
// limit of tokens is used than all and one of the longest.
func TestTokensOfLongAnswers(t *testing.T) {
	const limit = 60_000
	for seed := range uint64(6) {
		if sparing(int(seed), 6) {
			continue
		}
		bubble(t, func(b *bench) {
			u := b.upstream(sim.Config{
				Timing: sim.Timing{Decode: 10 * time.Millisecond}, MedianTokens: 200, P99Tokens: 3000, Seed: seed + 1,
			}, upstream.Config{MaxInFlight: 256, Limits: upstream.Limits{TokensPerMinute: limit}})
			tap := u.tap()
			p := b.start()
			start := time.Now()
			b.want(b.ends(b.run(chatAgain(600))), batch.Completed, 600, 600, 0)
			took := time.Since(start)
			all, largest := int64(0), int64(0)
			tap.each("", func(c tapped) { n := b.tokens(c.body); all, largest = all+n, max(largest, n) })
			b.Logf("%d tokens in %v, %d of one answer", all, took, largest)
			tap.wantAtMost(b, limit*115/100+largest, func(c tapped) int64 { return b.tokens(c.body) })
			if took > 9*time.Minute {
				b.Errorf("it took %v, want 9 minutes at most", took)
			}
			p.drain()
		})
	}
}

// TestRatesOutliveProcess ends processes and starts them again at an upstream with limits a minute, in all
// ways, in the middle of a minute: what the one before has sent counts, and until that is known nothing is
// sent. What it has not comes soon enough.
func TestRatesOutliveProcess(t *testing.T) {
	for _, test := range []struct {
		name   string
		limits upstream.Limits
		within time.Duration
	}{
		{"requests", upstream.Limits{RequestsPerMinute: 60}, 5 * time.Minute},
		{"tokens", upstream.Limits{TokensPerMinute: 4000}, 8 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.9}}, upstream.Config{MaxInFlight: 20, Limits: test.limits})
				tap := u.tap()
				p := b.start(small(20))
				start := time.Now()
				id := b.run(stating(chat(200)))
				for i, after := range []time.Duration{2 * time.Second, 70 * time.Second, 3 * time.Second, 65 * time.Second} {
					time.Sleep(after)
					if i%2 == 0 {
						p.die()
					} else {
						p.drain()
					}
					p = b.start(small(20), newFaults(func(op string, n, _ int) fate {
						if op == "Share" && n <= 3 {
							return lost
						}
						return done
					}).in)
					time.Sleep(4 * time.Second)
					// How many tokens an answer has nobody knows yet.
					if a := p.Activity(b.look(id)); test.limits.RequestsPerMinute > 0 && (a.ETA.IsZero() || !strings.Contains(a.WaitingFor, "a minute")) {
						b.Errorf("after start %d it is told to be done at %v, waiting for %q", i+2, a.ETA, a.WaitingFor)
					}
				}
				b.want(b.ends(id), batch.Completed, 200, 200, 0)
				took := time.Since(start)
				b.Logf("%d calls in %v", u.Calls().Calls, took)
				tap.wantKept(b, test.limits, 0)
				if took > test.within {
					b.Errorf("it took %v, want %v at most", took, test.within)
				}
				p.drain()
			})
		})
	}
}

// TestRatesAtRest has an upstream with limits a minute have nothing to do: nobody is told that they are
// used up, and who comes then is not kept waiting. Once they are used up it is told.
func TestRatesAtRest(t *testing.T) {
	bubble(t, func(b *bench) {
		u := b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second}}, upstream.Config{MaxInFlight: 20, Limits: upstream.Limits{RequestsPerMinute: 60, TokensPerMinute: 60000}})
		tap := u.tap()
		p := b.start(small(20))
		limited := func() bool { return !p.Upstreams()[0].LimitedUntil.IsZero() }
		for range 3 {
			time.Sleep(90 * time.Second)
			if limited() {
				b.Errorf("with nothing to do it is limited until %v", p.Upstreams()[0].LimitedUntil)
			}
			start := time.Now()
			b.ends(b.run(stating(chat(3))))
			tap.each("", func(c tapped) {
				if first := c.begin.Sub(start); first > 100*time.Millisecond {
					b.Errorf("a request went out after %v", first)
				}
			})
			if limited() {
				b.Error("with 3 requests of 60 it is limited")
			}
		}
		id := b.run(stating(chat(100)))
		time.Sleep(20 * time.Second)
		if !limited() {
			b.Error("with 60 requests of 60 it is not limited")
		}
		b.ends(id)
		p.drain()
	})
}

// tokens is what a request with the body comes to.
func (b *bench) tokens(body string) int64 {
	var answer struct {
		Usage struct {
			Total int64 `json:"total_tokens"`
		}
	}
	if err := json.Unmarshal(b.answer(endpoint, []byte(body)), &answer); err != nil {
		b.Error(err)
	}
	return cmp.Or(answer.Usage.Total, 1)
}

// TestLimitOfAnother has two upstreams of which one may get few tokens a minute. What fails at the other
// goes there again while that limit is used up, and nobody waits for it.
func TestLimitOfAnother(t *testing.T) {
	bubble(t, func(b *bench) {
		fast := sim.Timing{Latency: 100 * time.Millisecond}
		limited := b.upstream(sim.Config{Timing: fast}, upstream.Config{MaxInFlight: 16, Limits: upstream.Limits{TokensPerMinute: 3000}})
		b.upstream(sim.Config{Timing: fast, Faults: sim.Faults{Error: 0.1, Attempts: 1}}, upstream.Config{MaxInFlight: 16})
		tap := limited.tap()
		p := b.start(small(50))
		start := time.Now()
		b.want(b.ends(b.run(stating(chat(3000)))), batch.Completed, 3000, 3000, 0)
		if took := time.Since(start); took > 40*time.Second {
			b.Errorf("it took %v, want 40 s at most: the upstream without a limit can do 160 a second", took)
		}
		tap.wantAtMost(b, 3000, func(c tapped) int64 { return b.tokens(c.body) })
		p.drain()
	})
}
