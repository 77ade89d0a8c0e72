package api

import (
	"bytes"
	"container/list"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"offpeak/internal/openai"
)

// Listen returns l for srv to serve on.
//
// What arrives there and is no HTTP, such as a path with a broken escape or a header without end,
// never comes to a handler: net/http answers it itself, in plain text. Here it gets the envelope and
// the headers of every other error (contract ER-01).
//
// There are at most so many connections. One more is accepted if another can be closed for it that
// is idle, the longest of them; clients open a new one then. If none is, it gets the answer that the
// server is overloaded, which a client understands better than silence; but calls for operators are
// answered. Beyond spareConns of those, new connections wait in the kernel's queue.
func Listen(srv *http.Server, l net.Listener, most int) net.Listener {
	limited := &listener{
		Listener: l, most: most, all: make(chan struct{}, most+spareConns), closed: make(chan struct{}),
	}
	inContext, onState := srv.ConnContext, srv.ConnState
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if inContext != nil {
			ctx = inContext(ctx, c)
		}
		return context.WithValue(ctx, connKey{}, c)
	}
	srv.ConnState = func(c net.Conn, s http.ConnState) {
		if c, ok := c.(*conn); ok {
			switch s {
			case http.StateIdle:
				c.answering.Store(false)
				limited.idles(c)
			case http.StateActive:
				limited.works(c)
			}
		}
		if onState != nil {
			onState(c, s)
		}
	}
	return limited
}

// spareConns is how many connections there may be beyond the limit, for a short time each.
const spareConns = 256

type connKey struct{}

// A listener bounds the connections that it has accepted.
type listener struct {
	net.Listener
	most   int
	all    chan struct{} // has an element for each connection
	closed chan struct{}
	close  sync.Once

	mu   sync.Mutex
	idle list.List // of *conn, the longest idle first
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.all <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.all
		return nil, err
	}
	return &conn{Conn: c, listener: l, surplus: len(l.all) > l.most && !l.evict()}, nil
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.close.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// evict closes the connection that has been idle for longest, if any is.
func (l *listener) evict() bool {
	l.mu.Lock()
	first := l.idle.Front()
	if first == nil {
		l.mu.Unlock()
		return false
	}
	c := first.Value.(*conn)
	l.idle.Remove(first)
	c.place, c.evicted = nil, true
	l.mu.Unlock()
	c.Close()
	return true
}

// idles notes that c waits for another request.
func (l *listener) idles(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.place = l.idle.PushBack(c)
	c.idle.Store(true)
}

// works notes that c waits no longer. It reports false if c was evicted: then what it has read must
// not be acted on, for its client takes the closed connection for a request that did not arrive.
func (l *listener) works(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.place != nil {
		l.idle.Remove(c.place)
		c.place = nil
	}
	c.idle.Store(false)
	return !c.evicted
}

// A conn rewrites what net/http answers by itself.
type conn struct {
	net.Conn
	listener  *listener
	surplus   bool        // there are too many
	answering atomic.Bool // a handler answers: what is written now is its business
	idle      atomic.Bool // there may be something for works to do
	gone      atomic.Bool // Close was called

	// Under the listener's mutex.
	place   *list.Element // in listener.idle
	evicted bool
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.idle.Load() && !c.listener.works(c) {
		return 0, net.ErrClosed
	}
	return n, err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	if !c.gone.Swap(true) {
		c.listener.works(c)
		<-c.listener.all
	}
	return c.Conn.Close()
}

// answering notes that a request has come to a handler. It reports whether there are so many
// connections that it should be told to come again.
func answering(r *http.Request) (surplus bool) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return false
	}
	c.answering.Store(true)
	if c.gone.Load() {
		panic(http.ErrAbortHandler) // it was sent behind another request, without waiting for the answer
	}
	return c.surplus
}

// bareHeaders are those of the errors that net/http writes itself, each in one call: status line,
// these headers, text.
var bareHeaders = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if c.answering.Load() {
		return c.Conn.Write(p)
	}
	line, text, ok := bytes.Cut(p, bareHeaders)
	if !ok || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) || bytes.ContainsAny(line, "\r\n") {
		return c.Conn.Write(p)
	}
	status, _, _ := strings.Cut(string(line), ": ")
	body, err := openai.Marshal(openai.ErrorResponse{Error: openai.Error{
		Type: "invalid_request_error", Message: fmt.Sprintf("Your request is not valid HTTP: %s.", text),
	}})
	if err != nil {
		return c.Conn.Write(p)
	}
	_, err = fmt.Fprintf(c.Conn, "%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n"+
		"X-Request-Id: req_%s\r\nOpenai-Version: %s\r\nOpenai-Processing-Ms: 0\r\n\r\n%s",
		status, len(body), strings.ToLower(rand.Text()), openaiVersion, body)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// CloseWrite lets net/http see to it that the answer is seen.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
