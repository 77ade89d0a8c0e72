// Package upstream makes one call to one inference server and says what came of it.
//
// An Upstream sends a request body byte for byte, reads the answer whole, and puts it in a class:
// ok, throttled, transient, permanent or refused. It does not try again, hold back or choose;
// that is for its caller. A Pool is the set of configured upstreams with the models that each of
// them serves.
package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"offpeak/internal/batch"
)

// An Upstream is one configured inference server. It is safe for concurrent use.
type Upstream struct {
	cfg     Config
	base    *url.URL
	header  http.Header
	secrets []string // what must not be shown to anybody: see explain
	tls     [32]byte // of the files that cfg.TLS names
	rt      http.RoundTripper
	conns   *leanConns // nil: calls go by way of rt, too
	metrics *url.URL   // nil: it has none
	// small is held by calls that have an answer of more than ownAnswer bytes in hand, large by the one
	// that has an answer of more than smallAnswer, so that many at once do not fill the memory: calls
	// in flight may be thousands.
	small, large chan struct{}
	// spare is the memory of the last answer of more than smallAnswer bytes, until it is collected. It is
	// whose turn it is in large.
	spare weak.Pointer[[]byte]

	calls  atomic.Int64  // in flight
	looked atomic.Int64  // when its load was asked for last, in unix nanoseconds
	work   chan struct{} // of capacity 1: its load is of interest from now on

	mu     sync.Mutex
	models map[string]batch.ModelInfo
	state  listState
	err    error     // why the list was not read, the last time
	away   time.Time // since when
	load   Load
	since  time.Time // when it was made
}

const (
	ownAnswer   = 64 << 10 // what every call may have of an answer, however many there are
	smallAnswer = 1 << 20
	smallAtOnce = 32
)

// Close gives its idle connections up.
func (u *Upstream) Close() {
	if u.conns != nil {
		u.conns.close(0)
	}
	if t, ok := u.rt.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// A Class says what may be done about an answer.
type Class int

// The classes of answers.
const (
	OK        Class = iota // a 2xx that is one JSON object
	Throttled              // too much to do: wait, at least RetryAfter; this costs no attempt
	Transient              // may go better another time
	Permanent              // will not; the answer is the request's result
	Refused                // the upstream's own fault or absence: no request can do anything about it
	Aborted                // the context of the call ended
)

func (c Class) String() string {
	return [...]string{"ok", "throttled", "transient", "permanent", "refused", "aborted"}[c]
}

// An Answer is what came of a call.
type Answer struct {
	Class      Class
	Status     int    // HTTP status; 0 if there was no answer
	RequestID  string // the upstream's, else one of ours
	Body       []byte // valid until the caller's next call
	Usage      batch.Usage
	RetryAfter time.Duration
	// Cut tells that the connection broke after the request was sent: the request may be what
	// brought the upstream down.
	Cut bool
	// Timeout tells that time ran out, here or at a gateway.
	Timeout bool
	// Denied tells of a 403 or 404, which is about the request where the upstream serves others,
	// and about the upstream where it serves nobody.
	Denied bool
	// TooLarge tells of an answer over MaxAnswer.
	TooLarge bool
	Err      error // what to tell people, if Class is not OK
}

// A Caller holds what one worker uses again from call to call. Of an answer that is not quite small it
// keeps nothing.
type Caller struct {
	up     *Upstream
	wire   wire
	buf    bytes.Buffer
	turns  []chan struct{} // that it has for the answer in hand: see Release
	large  *[]byte         // what a large answer is read into
	parser batch.AnswerParser
	bodies batch.BodyParser
	// Memory of renamed and read.
	parts   [3][]byte
	limited io.LimitedReader
}

// NewCaller returns a caller for one goroutine.
func (u *Upstream) NewCaller() *Caller {
	c := &Caller{up: u}
	if u.conns != nil {
		c.wire = newLean(u)
	} else {
		c.wire = newStandard(u)
	}
	return c
}

// Call sends body to the endpoint, such as "/v1/chat/completions", and waits for the answer, at
// most until the upstream's timeout. It is sent byte for byte, except that in place of an alias the
// upstream's own name of the model goes out. The body must never change afterwards: an upstream may
// answer before it has read it all.
//
// Once the answer is not needed any more, Release lets others have as large ones.
func (c *Caller) Call(ctx context.Context, endpoint string, body []byte) Answer {
	c.Release()
	c.buf.Reset()
	if c.up.calls.Add(1) == 1 && c.up.metrics != nil {
		wake(c.up.work)
	}
	defer c.up.calls.Add(-1)
	a, err := c.roundTrip(ctx, time.Now().Add(c.up.cfg.Timeout), endpoint, body)
	c.wire.done()
	if err != nil { // there is no answer, or not all of it
		late, silent := errors.AsType[silence](err)
		switch {
		case ctx.Err() != nil:
			a = Answer{Class: Aborted, Err: context.Cause(ctx)}
		case silent:
			a = Answer{Class: Transient, Timeout: true, Err: late}
		case !c.wire.sent():
			a = Answer{Class: Refused, Err: c.up.explain("%w", err)}
		default:
			a = Answer{Class: Transient, Cut: true, Err: c.up.explain("%w", err)}
		}
	}
	if a.RequestID == "" || len(a.RequestID) > maxRequestID || c.up.isSecret(a.RequestID) {
		a.RequestID = batch.NewCallID()
	}
	if c.large != nil {
		*c.large = c.buf.Bytes()[:0] // it may have grown
	}
	if c.buf.Cap() > ownAnswer+bytes.MinRead {
		c.buf = bytes.Buffer{} // the answer has it now
	}
	return a
}

// Release gives the last call's answer up, if that is not done yet: its Body is not valid any more.
func (c *Caller) Release() {
	if c.large != nil {
		c.up.spare = weak.Make(c.large)
		c.large = nil
	}
	for _, turn := range c.turns {
		<-turn
	}
	c.turns = c.turns[:0]
}

// enlarge moves what there is of a large answer to memory for size bytes. That of the answer before it
// is used again as long as it is there, so that not several times as much waits to be collected.
func (c *Caller) enlarge(size int) {
	if c.large = c.up.spare.Value(); c.large == nil || cap(*c.large) < size {
		b := make([]byte, 0, size)
		c.large = &b
	}
	c.buf = *bytes.NewBuffer(append((*c.large)[:0], c.buf.Bytes()...))
}

// turn waits until the caller may have more of an answer.
func (c *Caller) turn(ctx context.Context, deadline time.Time, turns chan struct{}) error {
	ctx, cancel := context.WithDeadlineCause(ctx, deadline, noAnswer(c.up.cfg.Timeout))
	defer cancel()
	select {
	case turns <- struct{}{}:
		c.turns = append(c.turns, turns)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// maxRequestID is how long an upstream's request id may be for us to keep it.
const maxRequestID = 256

// roundTrip makes the call. It fails if there is no whole answer.
func (c *Caller) roundTrip(ctx context.Context, deadline time.Time, endpoint string, body []byte) (a Answer, err error) {
	h, err := c.wire.send(ctx, deadline, endpoint, c.renamed(body))
	if err != nil {
		return a, err
	}
	a = Answer{Status: h.status, RequestID: h.id, Class: classOf(h.status)}
	err = c.read(ctx, deadline, h)
	switch {
	case err == nil:
	case errors.Is(err, errTooLarge) && a.Class == OK:
		a.Class, a.TooLarge = Permanent, true
		a.Err = fmt.Errorf("the answer has more than %d bytes", c.up.cfg.MaxAnswer)
		return a, nil
	case errors.Is(err, errTooLarge), a.Class == Throttled, a.Class == Refused:
		// What was read of an error is enough to tell people.
	default:
		return a, fmt.Errorf("the connection broke off within the answer: %w", err)
	}
	a.Body = c.buf.Bytes()
	if a.Class == Permanent || a.Class == Transient {
		// It may become a line of somebody's error file, and our keys are not theirs. Some gateways
		// repeat what they were sent.
		for _, secret := range c.up.secrets {
			if bytes.Contains(a.Body, []byte(secret)) {
				a.Body = bytes.ReplaceAll(a.Body, []byte(secret), []byte("(key)"))
			}
		}
	}
	c.interpret(&a, h.header)
	return a, nil
}

// renamed returns the parts of the body as the upstream wants it.
func (c *Caller) renamed(body []byte) [][]byte {
	if len(c.up.cfg.Aliases) > 0 {
		if alias, from, to, ok := c.bodies.Model(body); ok {
			if model, ok := c.up.cfg.Aliases[alias]; ok {
				// The body may be large, and is not copied for this.
				return append(c.parts[:0], body[:from], batch.Quoted(model), body[to:])
			}
		}
	}
	return append(c.parts[:0], body)
}

// target is where calls of the endpoint go.
func (u *Upstream) target(endpoint string) *url.URL {
	return u.base.JoinPath(strings.TrimPrefix(endpoint, "/v1"))
}

var errTooLarge = errors.New("answer too large")

// read reads the body into c.buf. Beyond ownAnswer only a few calls at a time may read on, and beyond
// smallAnswer only one.
func (c *Caller) read(ctx context.Context, deadline time.Time, h head) error {
	if h.status == http.StatusSwitchingProtocols {
		return nil // what follows is no body, and may never end
	}
	most := c.up.cfg.MaxAnswer
	if h.length > most && classOf(h.status) == OK {
		return errTooLarge // no need to read it
	}
	var err error
	for _, step := range []struct {
		upTo  int64
		turns chan struct{} // to be had for what is beyond the step before
	}{{ownAnswer, nil}, {smallAnswer, c.up.small}, {most + 1, c.up.large}} {
		have := int64(c.buf.Len())
		if step.turns != nil {
			if err = c.turn(ctx, deadline, step.turns); err != nil {
				return err
			}
		}
		upTo := min(step.upTo, most+1)
		room := 0
		if h.length > have {
			room = int(min(h.length, upTo)-have) + bytes.MinRead // ReadFrom wants room for one read more to see the end
		}
		if step.turns == c.up.large {
			c.enlarge(int(have) + room)
		} else {
			c.buf.Grow(room)
		}
		c.limited = io.LimitedReader{R: c.wire, N: upTo - have}
		if _, err = c.buf.ReadFrom(&c.limited); err != nil || int64(c.buf.Len()) < upTo || upTo > most {
			break // there is no more, or it is too much
		}
	}
	if err == nil && int64(c.buf.Len()) > most {
		return errTooLarge
	}
	return err
}

// classOf says what a status means.
func classOf(status int) Class {
	switch s := status; {
	case s >= 200 && s < 300:
		return OK
	case s == 429, s == 503, s == 529:
		return Throttled
	case s == 401, s == 402, s == 407, s >= 300 && s < 400:
		return Refused
	case s == 408, s == 409, s == 425, s >= 500, s < 200:
		return Transient
	}
	return Permanent
}

// interpret fills in what a whole answer says beside its class. A 2xx must be one JSON object.
func (c *Caller) interpret(a *Answer, h http.Header) {
	s := a.Status
	switch a.Class {
	case OK:
		var err error
		if a.Usage, err = c.parser.Usage(a.Body); err != nil {
			a.Class = Transient
			a.Err = c.up.explain("HTTP %d with an answer that is no JSON object: %s", s, excerpt(a.Body))
		}
		return
	case Throttled:
		a.RetryAfter = retryAfter(h, time.Now())
	case Transient:
		a.Timeout = s == 504 || s == 408
	case Permanent:
		a.Denied = s == 403 || s == 404
	}
	if s >= 300 && s < 400 {
		a.Err = c.up.explain("HTTP %d: it redirects to %s; configure the URL it really has", s, excerpt([]byte(h.Get("Location"))))
		return
	}
	a.Err = c.up.explain("HTTP %d: %s%s", s, words(a.Body), c.up.keyHint(s))
}

// shortestKey is how long a key is that is kept out of what others see: shorter ones are words like
// "none".
const shortestKey = 8

// isSecret reports whether text, which an upstream sent, has one of its secrets in it.
func (u *Upstream) isSecret(text string) bool {
	return slices.ContainsFunc(u.secrets, func(secret string) bool { return strings.Contains(text, secret) })
}

// explain makes an error for people. Some upstreams repeat the key they were given.
func (u *Upstream) explain(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	for _, secret := range u.secrets {
		if strings.Contains(err.Error(), secret) {
			err = errors.New(strings.ReplaceAll(err.Error(), secret, "(key)"))
		}
	}
	return err
}

// retryAfter reads how long the upstream wants to be left alone. Some servers say it in
// milliseconds, in a header of their own.
func retryAfter(h http.Header, now time.Time) time.Duration {
	const most = time.Hour // what is longer is a mistake, or a way to stop us, and says nothing
	for _, f := range []struct {
		name string
		unit time.Duration
	}{{"Retry-After-Ms", time.Millisecond}, {"Retry-After", time.Second}} {
		v, err := strconv.ParseFloat(h.Get(f.name), 64)
		switch {
		case err != nil, math.IsNaN(v):
		case v > float64(most/f.unit): // beyond what a Duration holds, perhaps
			return 0
		default:
			return max(0, time.Duration(v*float64(f.unit)))
		}
	}
	if t, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		if wait := t.Sub(now); wait <= most {
			return max(0, wait)
		}
	}
	return 0
}

// keyHint says what to do about a status that is about the key.
func (u *Upstream) keyHint(status int) string {
	switch {
	case status != http.StatusUnauthorized:
		return ""
	case u.cfg.Key == "":
		return " (give its key in OFFPEAK_UPSTREAM_KEY, or with key_env in the config file)"
	}
	return " (is its key right? It comes from OFFPEAK_UPSTREAM_KEY, or key_env in the config file)"
}

// words returns what an answer that is an error says, fit for a message: the message in it if it
// has OpenAI's shape.
func words(body []byte) string {
	var e struct {
		Error struct{ Message string }
	}
	if json.Unmarshal(body, &e) == nil && e.Error.Message != "" {
		body = []byte(e.Error.Message)
	}
	return excerpt(body)
}

// excerpt returns the beginning of an answer, fit for a message.
func excerpt(body []byte) string {
	const most = 200 // characters
	head := body[:min(len(body), 4*most)]
	text := strings.Join(strings.Fields(string(bytes.ToValidUTF8(head, nil))), " ")
	if r := []rune(text); len(r) > most || len(head) < len(body) {
		text = string(r[:min(len(r), most)]) + "…"
	}
	if text == "" {
		return "(empty)"
	}
	return text
}

// plain takes the URL out of a client error: who reads it knows which upstream it is about.
func plain(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	if errors.Is(err, io.EOF) {
		return errors.New("it closed the connection without an answer")
	}
	return err
}
