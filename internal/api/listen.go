package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"offpeak/internal/openai"
)

// Listen returns l for srv to serve on. What arrives there and is no HTTP, such as a path with a
// broken escape or a header without end, never comes to a handler: net/http answers it itself, in
// plain text. Here it gets the envelope and the headers of every other error (contract ER-01).
func Listen(srv *http.Server, l net.Listener) net.Listener {
	inContext, onState := srv.ConnContext, srv.ConnState
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if inContext != nil {
			ctx = inContext(ctx, c)
		}
		return context.WithValue(ctx, connKey{}, c)
	}
	srv.ConnState = func(c net.Conn, s http.ConnState) {
		if c, ok := c.(*conn); ok && s == http.StateIdle {
			c.answering.Store(false)
		}
		if onState != nil {
			onState(c, s)
		}
	}
	return listener{l}
}

type connKey struct{}

type listener struct{ net.Listener }

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

// A conn rewrites what net/http answers by itself.
type conn struct {
	net.Conn
	answering atomic.Bool // a handler answers: what is written now is its business
}

// answering notes that a request has come to a handler.
func answering(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		c.answering.Store(true)
	}
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
