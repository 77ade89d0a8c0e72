// Package client speaks the OpenAI Batch API: Offpeak's, OpenAI's, and that of any server like
// them. It covers batches, files and the list of models, for the command line and for tests;
// programs that want more take OpenAI's own libraries, which work just as well.
//
//	c, err := client.New("http://127.0.0.1:8080/v1", key, nil)
//	…
//	f, err := c.Upload(ctx, client.Upload{Name: "in.jsonl", Body: in, Size: -1})
//	b, err := c.CreateBatch(ctx, openai.CreateBatch{InputFileID: f.ID, …})
//
// Reading is retried: a GET that met 408, 429, a 5xx or a broken connection is sent again up
// to four times, after a random wait that grows, or after the Retry-After of the server where
// that is at most a minute. A connection that is refused is not: there is no server. Nothing else is ever sent twice, because a server that lost only
// its answer would then do the work twice.
//
// Errors of the server are of type [*Error]. There is no limit on the length of a call, since
// files may be large; a call is cut when for two minutes no byte of it moves, or when its
// context ends.
package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// A Client calls one server with one key. It may be used from many goroutines.
type Client struct {
	base string // without a slash at the end
	name string // base as it may be shown, without a password
	key  string
	hc   *http.Client

	idle  time.Duration                                    // how long a call may stand still
	pause func(ctx context.Context, d time.Duration) error // sleeps, but for tests
}

const (
	attempts      = 5                // of a GET
	backoffBase   = time.Second / 2  // the wait before attempt 2 is random up to this,
	backoffMax    = 8 * time.Second  // then up to twice as long each time
	maxRetryAfter = 60 * time.Second // what a server asks for beyond this ends the attempts
	idleTimeout   = 2 * time.Minute
)

// New returns a client of the API at baseURL, which ends in /v1 for most servers. An empty key
// sends none. hc may be nil; if it is not, it should have no Timeout, which would cut long
// downloads.
func New(baseURL, key string, hc *http.Client) (*Client, error) {
	u, err := url.Parse(baseURL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("base URL: %w", err)
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, fmt.Errorf("base URL %q is not like http://host:8080/v1", baseURL)
	case u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("base URL %q must end with its path", baseURL)
	}
	if hc == nil {
		hc = &http.Client{Transport: newTransport()}
	}
	u.Path = strings.TrimRight(u.Path, "/")
	own := *hc
	own.CheckRedirect = stayOrGet
	return &Client{
		base: u.String(), name: u.Redacted(), key: key, hc: &own,
		idle: idleTimeout, pause: pause,
	}, nil
}

func newTransport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ExpectContinueTimeout = 2 * time.Second // see Upload
	return t
}

// stayOrGet follows redirects of a GET only. Those of a POST would lose its body, and turn it
// into a GET that then misleads with its answer.
func stayOrGet(req *http.Request, via []*http.Request) error {
	if via[0].Method != http.MethodGet || len(via) >= 5 {
		return http.ErrUseLastResponse
	}
	return nil
}

// URL returns the base URL that c calls, for people to read: a password in it is blotted out.
func (c *Client) URL() string { return c.name }

// A call is one request to the API.
type call struct {
	method string
	path   string // below the base URL, escaped
	header http.Header
	body   io.Reader
	size   int64 // of body; -1 if unknown
}

// do sends a call, again where that is allowed, and gives the response to read if its status
// is 2xx. Closing the response's body is up to read.
func (c *Client) do(ctx context.Context, r call, read func(*http.Response) error) error {
	for attempt := 1; ; attempt++ {
		resp, err := c.once(ctx, r)
		if err == nil {
			err = read(resp)
		}
		if err == nil || r.method != http.MethodGet || attempt == attempts || !Temporary(err) || ctx.Err() != nil {
			return err
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return err // nothing runs there: a person had better hear of it at once
		}
		wait := rand.N(min(backoffMax, backoffBase<<(attempt-1)))
		if e, ok := errors.AsType[*Error](err); ok {
			if e.RetryAfter > maxRetryAfter {
				return err
			}
			wait = max(wait, e.RetryAfter)
		}
		if c.pause(ctx, wait) != nil {
			return err // which says more than that the wait was cut short
		}
	}
}

// once sends a call one time.
func (c *Client) once(ctx context.Context, r call) (*http.Response, error) {
	watch := newWatchdog(ctx, c.idle, c.name)
	req, err := http.NewRequestWithContext(watch.ctx, r.method, c.base+r.path, nil)
	if err != nil {
		watch.stop()
		return nil, err
	}
	if r.body != nil {
		req.Body, req.ContentLength = io.NopCloser(watchedRequest{watch, r.body}), r.size
	}
	maps.Copy(req.Header, r.header)
	req.Header.Set("User-Agent", "offpeak")
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	}

	resp, err := c.hc.Do(req)
	if err != nil {
		defer watch.stop()
		return nil, connError(watch.ctx, c.name, err)
	}
	watch.timer.Stop()
	resp.Body = watchedResponse{watch, resp.Body}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

// roundTrip sends in, if it isn't nil, as JSON and decodes the answer into out.
func (c *Client) roundTrip(ctx context.Context, method, path string, in, out any) error {
	r := call{method: method, path: path, header: http.Header{"Accept": {"application/json"}}}
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return err
		}
		r.body, r.size = bytes.NewReader(body), int64(len(body))
		r.header.Set("Content-Type", "application/json")
	}
	return c.do(ctx, r, func(resp *http.Response) error { return decode(resp, out) })
}

// maxAnswer bounds what is read of an answer that must be JSON; a full page of files is 3 MB.
const maxAnswer = 64 << 20

func decode(resp *http.Response, out any) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%s %s answered %s with %s", resp.Request.Method, resp.Request.URL.Redacted(), resp.Status, describe(resp, body))
	}
	return nil
}

// A ConnError says that the server could not be reached, or stopped answering. Such errors may
// pass, and are [Temporary].
type ConnError struct {
	URL string // base URL of the server
	Err error
}

// Error implements error.
func (e *ConnError) Error() string {
	if errors.Is(e.Err, syscall.ECONNREFUSED) {
		return fmt.Sprintf("cannot reach %s: %v; is the server running?", e.URL, e.Err)
	}
	return fmt.Sprintf("cannot reach %s: %v", e.URL, e.Err)
}

// Unwrap returns what the connection failed of.
func (e *ConnError) Unwrap() error { return e.Err }

// connError makes a ConnError of an error of net/http, unless the call's context says that the
// caller gave up.
func connError(ctx context.Context, base string, err error) error {
	if cause := context.Cause(ctx); cause != nil && cause != errIdle {
		return cause
	} else if cause != nil {
		err = cause
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err // all else in it is method and URL
	}
	return &ConnError{URL: base, Err: err}
}

// Temporary reports whether err may be gone when the same is tried again: the server was not
// reached, was overloaded, or failed on its own account.
func Temporary(err error) bool {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status == http.StatusRequestTimeout || e.Status == http.StatusTooManyRequests || e.Status >= 500
	}
	_, ok := errors.AsType[*ConnError](err)
	return ok
}

// pause sleeps for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return cmp.Or(context.Cause(ctx), ctx.Err())
	}
}
