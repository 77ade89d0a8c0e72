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
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

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
	metrics *url.URL // nil: it has none
	// large is held by the call that reads an answer of more than smallAnswer bytes, so that
	// many of those at once do not fill the memory.
	large chan struct{}

	calls  atomic.Int64  // in flight
	looked atomic.Int64  // when its load was asked for last, in unix nanoseconds
	work   chan struct{} // of capacity 1: its load is of interest from now on

	mu     sync.Mutex
	models map[string]batch.ModelInfo
	state  listState
	err    error     // why the list is unread
	away   time.Time // since when
	load   Load
	since  time.Time // when it was made
}

const smallAnswer = 1 << 20

// Close gives its idle connections up.
func (u *Upstream) Close() {
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

// A Caller holds what one worker uses again from call to call. Of a large answer it keeps nothing.
type Caller struct {
	up     *Upstream
	buf    bytes.Buffer
	parser batch.AnswerParser
	bodies batch.BodyParser

	endpoint string // of the last call
	target   *url.URL

	trace     httptrace.ClientTrace
	connected atomic.Bool // the last attempt to get a connection succeeded
	// Of the call in hand, where they are wanted: they end it when its upstream is silent for long.
	first, between *time.Timer
}

// NewCaller returns a caller for one goroutine.
func (u *Upstream) NewCaller() *Caller {
	c := &Caller{up: u}
	c.trace = httptrace.ClientTrace{
		GetConn: func(string) { c.connected.Store(false) },
		GotConn: func(i httptrace.GotConnInfo) {
			c.connected.Store(true)
			taken(i.Conn)
			if c.first != nil {
				c.first.Reset(u.cfg.FirstByte)
			}
		},
	}
	return c
}

// Call sends body to the endpoint, such as "/v1/chat/completions", and waits for the answer, at
// most until the upstream's timeout. It is sent byte for byte, except that in place of an alias the
// upstream's own name of the model goes out. The body must never change afterwards: an upstream may
// answer before it has read it all.
func (c *Caller) Call(ctx context.Context, endpoint string, body []byte) Answer {
	c.buf.Reset()
	c.connected.Store(false)
	callCtx, cancel := context.WithTimeout(ctx, c.up.cfg.Timeout)
	defer cancel()
	if c.up.calls.Add(1) == 1 && c.up.metrics != nil {
		wake(c.up.work)
	}
	defer c.up.calls.Add(-1)
	callCtx, heard := c.listen(callCtx)
	defer heard()
	a, err := c.roundTrip(callCtx, endpoint, body)
	if err != nil { // there is no answer, or not all of it
		switch {
		case ctx.Err() != nil:
			a = Answer{Class: Aborted, Err: context.Cause(ctx)}
		case errors.Is(context.Cause(callCtx), errSilent):
			a = Answer{Class: Transient, Timeout: true, Err: context.Cause(callCtx)}
		case callCtx.Err() != nil:
			a = Answer{Class: Transient, Timeout: true, Err: fmt.Errorf("no answer within %s", c.up.cfg.Timeout)}
		case !c.connected.Load():
			a = Answer{Class: Refused, Err: c.up.explain("%w", err)}
		default:
			a = Answer{Class: Transient, Cut: true, Err: c.up.explain("%w", err)}
		}
	}
	if a.RequestID == "" || len(a.RequestID) > maxRequestID {
		a.RequestID = batch.NewToken()
	}
	if c.buf.Cap() > smallAnswer {
		c.buf = bytes.Buffer{} // the answer has it now
	}
	return a
}

// maxRequestID is how long an upstream's request id may be for us to keep it.
const maxRequestID = 256

// roundTrip makes the call. It fails if there is no whole answer.
func (c *Caller) roundTrip(ctx context.Context, endpoint string, body []byte) (a Answer, err error) {
	if endpoint != c.endpoint {
		c.endpoint, c.target = endpoint, c.up.base.JoinPath(strings.TrimPrefix(endpoint, "/v1"))
	}
	open, length := c.renamed(body)
	req := (&http.Request{
		Method: http.MethodPost, URL: c.target, Host: c.target.Host, Header: c.up.header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: open(), ContentLength: int64(length),
		// The transport calls this only to send a request again of which nothing was written.
		GetBody: func() (io.ReadCloser, error) { return open(), nil },
	}).WithContext(httptrace.WithClientTrace(ctx, &c.trace))
	resp, err := c.up.rt.RoundTrip(req) // follows no redirects
	if c.first != nil {
		c.first.Stop()
	}
	if err != nil {
		return a, plain(err)
	}
	defer resp.Body.Close()
	if c.between != nil {
		resp.Body = patient{resp.Body, c.between, c.up.cfg.BetweenBytes}
	}
	a = Answer{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id"), Class: classOf(resp.StatusCode)}
	err = c.read(ctx, resp)
	switch {
	case err == nil:
	case errors.Is(err, errTooLarge) && a.Class == OK:
		a.Class, a.TooLarge = Permanent, true
		a.Err = fmt.Errorf("the answer has more than %d bytes", c.up.cfg.MaxAnswer)
		return a, nil
	case errors.Is(err, errTooLarge), a.Class == Throttled, a.Class == Refused:
		// What was read of an error is enough to tell people.
	default:
		return a, fmt.Errorf("the connection broke off within the answer: %w", plain(err))
	}
	a.Body = c.buf.Bytes()
	c.interpret(&a, resp.Header)
	return a, nil
}

// renamed returns what reads the body as the upstream wants it, and how long that is.
func (c *Caller) renamed(body []byte) (open func() io.ReadCloser, length int) {
	if len(c.up.cfg.Aliases) > 0 {
		if alias, from, to, ok := c.bodies.Model(body); ok {
			if model, ok := c.up.cfg.Aliases[alias]; ok {
				name := batch.Quoted(model) // the body may be large, and is not copied for this
				return func() io.ReadCloser {
					return io.NopCloser(io.MultiReader(bytes.NewReader(body[:from]), bytes.NewReader(name), bytes.NewReader(body[to:])))
				}, len(body) - (to - from) + len(name)
			}
		}
	}
	return func() io.ReadCloser { return io.NopCloser(bytes.NewReader(body)) }, len(body)
}

// errSilent is why a call ends whose upstream says nothing for too long.
var errSilent = errors.New("the upstream is silent")

// A silence is errSilent in words.
type silence string

func (s silence) Error() string        { return string(s) }
func (s silence) Is(target error) bool { return target == errSilent }

// listen has a call end whose upstream is silent for too long, as far as that is bounded: from the
// connection to the answer, and within the answer. The call is over when heard is called.
func (c *Caller) listen(ctx context.Context) (_ context.Context, heard func()) {
	first, between := c.up.cfg.FirstByte, c.up.cfg.BetweenBytes
	c.first, c.between = nil, nil
	if first == 0 && between == 0 {
		return ctx, func() {}
	}
	ctx, give := context.WithCancelCause(ctx)
	arm := func(limit time.Duration, says string) *time.Timer {
		if limit == 0 {
			return nil
		}
		t := time.AfterFunc(limit, func() { give(silence(fmt.Sprintf(says, limit))) })
		t.Stop()
		return t
	}
	c.first = arm(first, "no answer began within %s")
	c.between = arm(between, "nothing came for %s within the answer")
	return ctx, func() {
		if c.first != nil {
			c.first.Stop()
		}
		give(nil)
	}
}

// A patient reader waits for each byte only so long.
type patient struct {
	io.ReadCloser
	timer *time.Timer
	limit time.Duration
}

func (p patient) Read(b []byte) (int, error) {
	p.timer.Reset(p.limit)
	defer p.timer.Stop()
	return p.ReadCloser.Read(b)
}

var errTooLarge = errors.New("answer too large")

// read reads the body into c.buf. Beyond smallAnswer only one call at a time may read on.
func (c *Caller) read(ctx context.Context, resp *http.Response) error {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil // what follows is no body, and may never end
	}
	most, length := c.up.cfg.MaxAnswer, resp.ContentLength
	if length > most && classOf(resp.StatusCode) == OK {
		return errTooLarge // no need to read it
	}
	if length > 0 && length <= smallAnswer {
		c.buf.Grow(int(length) + bytes.MinRead) // ReadFrom wants room for one read more to see the end
	}
	_, err := c.buf.ReadFrom(io.LimitReader(resp.Body, min(smallAnswer, most+1)))
	if err == nil && c.buf.Len() >= smallAnswer && int64(c.buf.Len()) <= most {
		select {
		case c.up.large <- struct{}{}:
			defer func() { <-c.up.large }()
		case <-ctx.Done():
			return ctx.Err()
		}
		if length > smallAnswer && length <= most {
			c.buf.Grow(int(length) - c.buf.Len() + bytes.MinRead)
		}
		_, err = c.buf.ReadFrom(io.LimitReader(resp.Body, most-smallAnswer+1))
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
		a.Err = c.up.explain("HTTP %d: it redirects to %s; configure the URL it really has", s, h.Get("Location"))
		return
	}
	a.Err = c.up.explain("HTTP %d: %s%s", s, words(a.Body), c.up.keyHint(s))
}

// explain makes an error for people. Some upstreams repeat the key they were given.
func (u *Upstream) explain(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	for _, secret := range u.secrets {
		if len(secret) >= 8 && strings.Contains(err.Error(), secret) { // shorter ones are words like "none"
			err = errors.New(strings.ReplaceAll(err.Error(), secret, "(key)"))
		}
	}
	return err
}

// retryAfter reads how long the upstream wants to be left alone. Some servers say it in
// milliseconds, in a header of their own.
func retryAfter(h http.Header, now time.Time) time.Duration {
	const most = time.Hour // longer is a mistake, or a way to stop us
	for _, f := range []struct {
		name string
		unit time.Duration
	}{{"Retry-After-Ms", time.Millisecond}, {"Retry-After", time.Second}} {
		v, err := strconv.ParseFloat(h.Get(f.name), 64)
		switch {
		case err != nil, math.IsNaN(v):
		case v >= float64(most/f.unit): // beyond what a Duration holds, perhaps
			return most
		default:
			return max(0, time.Duration(v*float64(f.unit)))
		}
	}
	if t, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		return min(max(0, t.Sub(now)), most)
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
