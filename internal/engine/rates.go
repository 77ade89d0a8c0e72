package engine

import (
	"bytes"
	"strconv"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
)

// A tokens tells what requests of a lane come to in tokens, from what others came to. It is for
// limits of tokens per minute, and tells rather too much than too little: what was reserved and not
// used comes back, what was used and not reserved is gone.
type tokens struct {
	perByte float64         // of a prompt
	answer  sched.Estimator // of tokens of an answer
}

const (
	// firstPerByte and firstAnswer are where nothing is known; firstAnswer at least, and no less than
	// this part of the limit: so many are sent until the first is answered.
	firstPerByte = 1.0 / 3
	firstAnswer  = 512
	firstPart    = 1.0 / 16
)

// estimate returns what a request with the body may come to, which is one of so many in flight that
// share a limit of so many tokens per minute.
func (t *tokens) estimate(body []byte, inFlight int, limit int64) int64 {
	perByte, answer := t.perByte, t.answer.Reserve(inFlight)
	if perByte == 0 {
		perByte = firstPerByte
	}
	if !t.answer.Known() {
		answer = max(firstAnswer, firstPart*float64(limit))
	}
	if stated := statedMost(body); stated > 0 {
		answer = float64(stated)
	}
	return int64(perByte*float64(len(body))+answer) + 1
}

// learn notes what a request with the body came to.
func (t *tokens) learn(body []byte, u batch.Usage) {
	if u.Input > 0 && len(body) > 0 {
		upper(&t.perByte, float64(u.Input)/float64(len(body)))
	}
	if u.Output > 0 {
		t.answer.Learn(float64(u.Output))
	}
}

// upper has q follow what only a few values lie above.
func upper(q *float64, v float64) {
	if *q == 0 {
		*q = v
	} else if v > *q {
		*q += (v - *q) / 2
	} else {
		*q += (v - *q) / 64
	}
}

// statedMost returns how long an answer the body asks for at most, or 0 if it does not say. A key
// that stands within a text of the prompt has a backslash before its quotes.
func statedMost(body []byte) (most int64) {
	for _, key := range []string{`"max_tokens"`, `"max_completion_tokens"`, `"max_output_tokens"`} {
		at := bytes.LastIndex(body, []byte(key))
		if at < 0 {
			continue
		}
		rest := bytes.TrimLeft(body[at+len(key):], " \t\r\n:")
		end := 0
		for end < len(rest) && rest[end] >= '0' && rest[end] <= '9' {
			end++
		}
		if n, err := strconv.ParseInt(string(rest[:end]), 10, 64); err == nil {
			most = max(most, n)
		}
	}
	return most
}

// limited returns how long s has to wait for its limit of requests or tokens a minute, and which of
// them it is, before it may be sent something that comes to n tokens.
func (s *site) limited(n int64, now time.Time) (wait time.Duration, by string) {
	if s.requests.Limit() > 0 {
		wait, by = s.requests.Wait(1, now), "requests"
	}
	if w := s.tokens.Wait(n, now); w > wait {
		wait, by = w, "tokens"
	}
	return wait, by
}
