package engine

import (
	"testing"
	"time"

	"offpeak/internal/upstream"
)

// TestBlame: a request fails only at an upstream that answers others; what looks like an outage
// costs it nothing, however long that lasts.
func TestBlame(t *testing.T) {
	const calls = 1000
	cut := upstream.Answer{Class: upstream.Transient, Cut: true}
	broken := upstream.Answer{Class: upstream.Transient, Status: 500}
	proxied := upstream.Answer{Class: upstream.Transient, Status: 502}
	slow := upstream.Answer{Class: upstream.Transient, Timeout: true}
	for _, c := range []struct {
		name    string
		answer  upstream.Answer
		once    upstream.Answer // instead, the third time, if it says anything
		alone   bool
		probe   bool // each call was to find out whether the upstream is back
		others  bool // somebody else is answered before each call
		failing int  // others that fail as well
		before  bool // the upstream answered somebody, once
		lists   bool // it has said what it serves
		dies    bool // it refuses everybody after each call, for a while
		want    int  // the call that is the last; 0: there is none
	}{
		{name: "500 while others are answered", answer: broken, others: true, want: 1 + maxAttempts},
		{name: "timeouts while others are answered", answer: slow, others: true, want: 1 + maxTimeouts},
		{name: "one timeout among 500s, while others are answered", answer: broken, once: slow, others: true, want: 1 + maxAttempts},
		{name: "500 for everybody from the start", answer: broken, failing: 10},
		{name: "500 for everybody after better times", answer: broken, failing: 10, before: true},
		{name: "cut for everybody from the start", answer: cut, failing: 10},
		{name: "cut for everybody, each alone", answer: cut, alone: true, failing: 10},
		{name: "cut for everybody, each alone, after better times", answer: cut, alone: true, failing: 10, before: true},
		{name: "cut with others in flight, who are answered later", answer: cut, others: true},
		{name: "cut alone, while others are answered in between", answer: cut, alone: true, others: true, want: 1 + maxAttempts},
		{name: "cut alone, with nobody to compare with, from the start", answer: cut, alone: true},
		{name: "cut alone, with nobody to compare with, after better times", answer: cut, alone: true, before: true, want: 1 + 4*maxAttempts},
		{name: "cut alone by one that says what it serves", answer: cut, alone: true, lists: true, want: 1 + 4*maxAttempts},
		{name: "cut alone by one that dies of it", answer: cut, alone: true, lists: true, dies: true, want: 1 + 4*maxAttempts},
		{name: "cut alone by one that dies of it, while others are answered in between", answer: cut, alone: true, others: true, dies: true, want: 1 + maxAttempts},
		{name: "cut for everybody, each alone, by one that says what it serves", answer: cut, alone: true, failing: 10, lists: true},
		{name: "cut not alone by one that dies and comes back", answer: cut, before: true, lists: true, dies: true},
		{name: "500 by one that dies and comes back", answer: broken, before: true, lists: true, dies: true},
		// Calls are 15 s apart.
		{name: "500 with nobody to compare with, after better times", answer: broken, before: true, want: 1 + maxAttempts},
		{name: "502 with nobody to compare with, after better times", answer: proxied, before: true, want: 1 + 4*maxAttempts},
		{name: "500 as a probe, with nobody to compare with, after better times", answer: broken, probe: true, before: true, want: 1 + 4*maxAttempts},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, s := &Engine{}, &site{failing: map[*request]bool{}, listed: func() bool { return c.lists }}
			for range c.failing {
				s.failing[new(request)] = true
			}
			h := &hold{requests: make([]request, 1)}
			now := time.Unix(1_000_000, 0)
			if c.before {
				s.answered = now
			}
			last := 0
			for n := 1; n <= calls && last == 0; n++ {
				now = now.Add(15 * time.Second)
				if c.others && n > 1 {
					s.answered = now
				}
				now = now.Add(time.Millisecond)
				answer := c.answer
				if c.once.Class != 0 && n == 3 {
					answer = c.once
				}
				if _, final := e.failed(s, &call{hold: h, alone: c.alone, probe: c.probe}, answer, now); final {
					last = n
				}
				if c.dies {
					s.refused = now.Add(time.Second)
				}
			}
			if last != c.want {
				t.Errorf("the last call was %d, want %d", last, c.want)
			}
		})
	}
}
