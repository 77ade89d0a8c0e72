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
	"crypto/tls"
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

// Config describes an upstream.
type Config struct {
	// URL is where its API begins, such as "http://localhost:8000/v1".
	URL string
	// Key goes to the upstream as a bearer token. It is never logged or stored. Empty: none.
	Key string
	// Models it serves. Nil: those that its /models lists.
	Models []string
	// MaxInFlight is how many calls it gets at a time. Zero: 64.
	MaxInFlight int
	// Timeout bounds a call. Zero: an hour, since for a model the first byte may be the whole answer.
	Timeout time.Duration
	// MaxAnswer is how large an answer may be, in bytes. Zero: 64 MiB.
	MaxAnswer int64
	// Transport makes connections, and tells net/http/httptrace of them. Nil: one of its own.
	Transport http.RoundTripper
}

// Defaults of Config.
const (
	DefaultMaxInFlight = 64
	DefaultTimeout     = time.Hour
	DefaultMaxAnswer   = 64 << 20
)

// An Upstream is one configured inference server. It is safe for concurrent use.
type Upstream struct {
	cfg    Config
	base   *url.URL
	header http.Header
	rt     http.RoundTripper
	// large is held by the call that reads an answer of more than smallAnswer bytes, so that
	// many of those at once do not fill the memory.
	large chan struct{}

	mu     sync.Mutex
	models map[string]batch.ModelInfo
	state  listState
	err    error // why the list is unread
}

const smallAnswer = 1 << 20

// New returns the upstream that c describes. Its errors are for the user who wrote c, and show
// nothing that may be secret.
func New(c Config) (*Upstream, error) {
	u, err := parseURL(c.URL)
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	// Keys come from files and secret stores, often with a line break at their end.
	if c.Key = strings.TrimSpace(c.Key); strings.ContainsFunc(c.Key, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, fmt.Errorf("upstream %s: its key has a control character in it", u)
	}
	if c.MaxInFlight == 0 {
		c.MaxInFlight = DefaultMaxInFlight
	}
	if c.MaxInFlight < 0 {
		return nil, fmt.Errorf("upstream %s: max-in-flight is %d, want at least 1", u, c.MaxInFlight)
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.MaxAnswer == 0 {
		c.MaxAnswer = DefaultMaxAnswer
	}
	up := &Upstream{
		cfg: c, base: u, rt: c.Transport, large: make(chan struct{}, 1),
		header: http.Header{
			"Content-Type": {"application/json"}, "Accept": {"application/json"}, "User-Agent": {"offpeak"},
		},
	}
	if c.Key != "" {
		up.header.Set("Authorization", "Bearer "+c.Key)
	}
	if up.rt == nil {
		up.rt = transport(c.MaxInFlight)
	}
	if c.Models != nil {
		up.state, up.models = listRead, map[string]batch.ModelInfo{}
		for _, id := range c.Models {
			up.models[id] = batch.ModelInfo{ID: id, Created: time.Now()}
		}
	}
	return up, nil
}

// parseURL reads where an upstream's API begins.
func parseURL(raw string) (*url.URL, error) {
	const example = "want a URL like http://localhost:8000/v1"
	u, err := url.Parse(strings.TrimRight(strings.TrimSpace(raw), "/"))
	switch {
	case strings.Contains(raw, "@"):
		return nil, errors.New("its URL has a user or password in it: put the key into the environment or the config file")
	case err != nil:
		return nil, fmt.Errorf("%w; %s", plain(err), example)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, fmt.Errorf("the URL of %s has a query or fragment in it; %s", u.Host, example)
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return nil, fmt.Errorf("the URL is %q; %s", raw, example)
	case u.Path == "":
		u.Path = "/v1"
	}
	return u, nil
}

// maxHeader bounds the header of an answer. There may be as many as calls in flight.
const maxHeader = 256 << 10

// transport keeps as many connections as there may be calls: with net/http's default of two, most
// calls would open one.
func transport(maxInFlight int) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dial,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConns:        maxInFlight,
		MaxIdleConnsPerHost: maxInFlight,
		// Servers in Python and Node close a connection that was idle for 5 s. We must be faster:
		// a request that meets the closing is lost, and nobody knows whether it was read.
		IdleConnTimeout:        4 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		ExpectContinueTimeout:  time.Second,
	}
}

// Name identifies the upstream in logs, metrics and messages: its URL, which holds no secret.
func (u *Upstream) Name() string { return u.base.String() }

// MaxInFlight is how many calls it gets at a time.
func (u *Upstream) MaxInFlight() int { return u.cfg.MaxInFlight }

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

	endpoint string // of the last call
	target   *url.URL

	trace     httptrace.ClientTrace
	connected atomic.Bool // the last attempt to get a connection succeeded
}

// NewCaller returns a caller for one goroutine.
func (u *Upstream) NewCaller() *Caller {
	c := &Caller{up: u}
	c.trace = httptrace.ClientTrace{
		GetConn: func(string) { c.connected.Store(false) },
		GotConn: func(i httptrace.GotConnInfo) { c.connected.Store(true); taken(i.Conn) },
	}
	return c
}

// Call sends body to the endpoint, such as "/v1/chat/completions", and waits for the answer, at
// most until the upstream's timeout. The body must never change afterwards: an upstream may answer
// before it has read it all.
func (c *Caller) Call(ctx context.Context, endpoint string, body []byte) Answer {
	c.buf.Reset()
	c.connected.Store(false)
	callCtx, cancel := context.WithTimeout(ctx, c.up.cfg.Timeout)
	defer cancel()
	a, err := c.roundTrip(callCtx, endpoint, body)
	if err != nil { // there is no answer, or not all of it
		switch {
		case ctx.Err() != nil:
			a = Answer{Class: Aborted, Err: context.Cause(ctx)}
		case callCtx.Err() != nil:
			a = Answer{Class: Transient, Timeout: true, Err: fmt.Errorf("no answer within %s", c.up.cfg.Timeout)}
		case !c.connected.Load():
			a = Answer{Class: Refused, Err: c.up.explain("%w", err)}
		default:
			a = Answer{Class: Transient, Cut: true, Err: c.up.explain("%w", err)}
		}
	}
	if a.RequestID == "" || len(a.RequestID) > maxRequestID || len(c.up.cfg.Key) >= shortestKey && strings.Contains(a.RequestID, c.up.cfg.Key) {
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
	req := (&http.Request{
		Method: http.MethodPost, URL: c.target, Host: c.target.Host, Header: c.up.header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
		// The transport calls this only to send a request again of which nothing was written.
		GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	}).WithContext(httptrace.WithClientTrace(ctx, &c.trace))
	resp, err := c.up.rt.RoundTrip(req) // follows no redirects
	if err != nil {
		return a, plain(err)
	}
	defer resp.Body.Close()
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
	if key := c.up.cfg.Key; (a.Class == Permanent || a.Class == Transient) && len(key) >= shortestKey && bytes.Contains(a.Body, []byte(key)) {
		// It may become a line of somebody's error file, and the key is not theirs. Some gateways
		// repeat what they were sent.
		a.Body = bytes.ReplaceAll(a.Body, []byte(key), []byte("(key)"))
	}
	c.interpret(&a, resp.Header)
	return a, nil
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
		a.Err = c.up.explain("HTTP %d: it redirects to %s; configure the URL it really has", s, excerpt([]byte(h.Get("Location"))))
		return
	}
	a.Err = c.up.explain("HTTP %d: %s%s", s, words(a.Body), c.up.keyHint(s))
}

// shortestKey is how long a key is that is kept out of what others see: shorter ones are words like
// "none".
const shortestKey = 8

// explain makes an error for people. Some upstreams repeat the key they were given.
func (u *Upstream) explain(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if len(u.cfg.Key) >= shortestKey && strings.Contains(err.Error(), u.cfg.Key) {
		return errors.New(strings.ReplaceAll(err.Error(), u.cfg.Key, "(key)"))
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
