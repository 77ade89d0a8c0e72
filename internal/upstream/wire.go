package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// A wire carries the calls of one Caller to its upstream, one at a time, and brings back the answers.
// There are two: standard is net/http, which knows TLS, HTTP/2 and proxies; lean is HTTP/1.1 over
// connections that the caller itself writes and reads.
//
// Both fail with a silence where the upstream took longer than it may.
type wire interface {
	// send sends a request, whose body is what the parts come to, and waits for the head of the answer.
	// A request of which anything was written is never sent again. The parts must never change
	// afterwards.
	send(ctx context.Context, deadline time.Time, endpoint string, parts [][]byte) (head, error)
	// Read reads the answer's body.
	io.Reader
	// done ends the call. If the answer was read to its end, the connection may carry another one.
	done()
	// sent reports whether the last call got a connection, so that its upstream may have the request.
	sent() bool
}

// A head is what stands before the body of an answer.
type head struct {
	status int
	length int64 // of the body; -1: nobody knows yet
	id     string
	header http.Header // nil of a 2xx on the lean wire: nothing of it matters but the id
}

// A silence is why a call ends whose upstream says nothing for too long.
type silence string

func (s silence) Error() string { return string(s) }

func noAnswer(limit time.Duration) silence { return silence("no answer within " + limit.String()) }
func noBeginning(limit time.Duration) silence {
	return silence("no answer began within " + limit.String())
}
func noMore(limit time.Duration) silence {
	return silence("nothing came for " + limit.String() + " within the answer")
}

// lengthOf is how long a body of the parts is.
func lengthOf(parts [][]byte) (n int) {
	for _, p := range parts {
		n += len(p)
	}
	return n
}

// standard is a wire over net/http.
type standard struct {
	up       *Upstream
	endpoint string // of the last call
	request  http.Request

	trace     httptrace.ClientTrace
	connected atomic.Bool // the last attempt to get a connection succeeded

	// Of the call in hand.
	ctx            context.Context
	cancel         context.CancelCauseFunc
	timer          *time.Timer // ends it at its deadline
	first, between *time.Timer // end it when its upstream is silent for long; nil: that is not bounded
	body           io.ReadCloser
}

func newStandard(u *Upstream) *standard {
	s := &standard{up: u}
	s.trace = httptrace.ClientTrace{
		GetConn: func(string) { s.connected.Store(false) },
		GotConn: func(i httptrace.GotConnInfo) {
			s.connected.Store(true)
			taken(i.Conn)
			if s.first != nil {
				s.first.Reset(u.cfg.FirstByte)
			}
		},
	}
	s.request = http.Request{
		Method: http.MethodPost, Host: u.base.Host, Header: u.header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	return s
}

func (s *standard) sent() bool { return s.connected.Load() }

func (s *standard) send(ctx context.Context, deadline time.Time, endpoint string, parts [][]byte) (h head, err error) {
	s.connected.Store(false)
	s.listen(ctx, deadline)
	if endpoint != s.endpoint {
		s.endpoint, s.request.URL = endpoint, s.up.target(endpoint)
	}
	s.request.ContentLength = int64(lengthOf(parts))
	s.request.Body = open(parts)
	// The transport calls this only to send a request again of which nothing was written.
	s.request.GetBody = func() (io.ReadCloser, error) { return open(parts), nil }
	resp, err := s.up.rt.RoundTrip(s.request.WithContext(httptrace.WithClientTrace(s.ctx, &s.trace))) // follows no redirects
	if s.first != nil {
		s.first.Stop()
	}
	if err != nil {
		return head{}, s.why(err)
	}
	s.body = resp.Body
	return head{status: resp.StatusCode, length: resp.ContentLength, id: resp.Header.Get("X-Request-Id"), header: resp.Header}, nil
}

// open returns a reader of what the parts come to.
func open(parts [][]byte) io.ReadCloser {
	if len(parts) == 1 {
		return io.NopCloser(bytes.NewReader(parts[0]))
	}
	var readers []io.Reader
	for _, p := range parts {
		readers = append(readers, bytes.NewReader(p))
	}
	return io.NopCloser(io.MultiReader(readers...))
}

// listen has the call end at its deadline, and when its upstream is silent for too long, as far as
// that is bounded: from the connection to the answer, and within the answer.
func (s *standard) listen(ctx context.Context, deadline time.Time) {
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	give := s.cancel
	s.timer = time.AfterFunc(time.Until(deadline), func() { give(noAnswer(s.up.cfg.Timeout)) })
	arm := func(limit time.Duration, why silence) *time.Timer {
		if limit == 0 {
			return nil
		}
		t := time.AfterFunc(limit, func() { give(why) })
		t.Stop()
		return t
	}
	s.first = arm(s.up.cfg.FirstByte, noBeginning(s.up.cfg.FirstByte))
	s.between = arm(s.up.cfg.BetweenBytes, noMore(s.up.cfg.BetweenBytes))
}

// why returns the reason for which the call failed with err.
func (s *standard) why(err error) error {
	if late, ok := errors.AsType[silence](context.Cause(s.ctx)); ok {
		return late
	}
	return plain(err)
}

func (s *standard) Read(b []byte) (int, error) {
	if s.between != nil {
		s.between.Reset(s.up.cfg.BetweenBytes)
		defer s.between.Stop()
	}
	n, err := s.body.Read(b)
	if err != nil && err != io.EOF {
		err = s.why(err)
	}
	return n, err
}

func (s *standard) done() {
	if s.body != nil {
		s.body.Close()
		s.body = nil
	}
	s.timer.Stop()
	if s.first != nil {
		s.first.Stop()
	}
	s.cancel(nil)
}
