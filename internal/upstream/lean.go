package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// lean is a wire of plain HTTP/1.1. The caller itself writes a request and reads its answer: no other
// goroutine has to be woken for either, which halves what a call costs. Time-outs are deadlines of the
// connection.
//
// What an answer is, is for http.ReadResponse to say, save for the plainest: see parseHead.
type lean struct {
	up  *Upstream
	in  *bufio.Reader // of the connection, by way of limited
	out []byte        // the head of a request, with its body if that is small

	endpoint      string // of the last call
	before, after []byte // what stands before and after the length of the body in a request's head

	watched     context.Context // of the last call: when it ends, the call in hand does
	stop        func() bool     // ends the watch
	interrupt   func()          // is abort
	interrupted chan struct{}   // has room for one: abort has run

	// Of the call in hand.
	conn     *leanConn
	got      bool // a connection
	whole    bool // all of the request is in out
	deadline time.Time
	first    time.Time   // when the answer must have begun; zero: whenever
	within   bool        // the answer has begun
	limit    int64       // of bytes to be read: a head that never ends would fill the memory
	left     int64       // of the body, if there is none in body
	body     io.Reader   // by http.ReadResponse, where it read the head
	end      bool        // the body was read to its end
	keep     bool        // the answer lets the connection carry another call
	broken   bool        // the request could not be written to its end
	unsent   bool        // out is written by whoever reads first
	early    error       // what came of reading the beginning of the answer, if that went with writing
	writing  chan error  // gets what came of writing a large request; nil: it is written
	vector   net.Buffers // memory of write
	memory   [4][]byte   // of vector

	mu      sync.Mutex // guards aborted and conn, and with them deadlines: none may be set after abort
	aborted bool       // what is watched has ended
}

const (
	leanBuffer = 4 << 10
	// A request up to smallRequest is put together in one place, which costs less than to point to its
	// parts. Up to safeRequest it is sure to find room in the buffers of the two sockets, so that
	// writing it cannot wait for an upstream that has answered already and reads no more.
	smallRequest = 4 << 10
	safeRequest  = 16 << 10
	// spareWrite is how long an answer that is there waits for its request to be written, so that the
	// connection can be kept.
	spareWrite = 50 * time.Millisecond
)

func newLean(u *Upstream) *lean {
	l := &lean{up: u, interrupted: make(chan struct{}, 1)}
	l.in = bufio.NewReaderSize(limited{l}, leanBuffer)
	l.interrupt = l.abort
	return l
}

// leanFor reports whether calls to base can go over lean wires: what those do not know must not be
// needed.
func leanFor(base *url.URL) bool {
	if base.Scheme != "http" || strings.ContainsFunc(base.Host, unusualInHost) || strings.HasSuffix(base.Host, ":") {
		return false
	}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: base})
	return proxy == nil && err == nil
}

// unusualInHost reports whether a character of a host is one that net/http would have to translate.
func unusualInHost(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._[]:", r))
}

func (l *lean) sent() bool { return l.got }

func (l *lean) send(ctx context.Context, deadline time.Time, endpoint string, parts [][]byte) (head, error) {
	l.forget()
	if err := ctx.Err(); err != nil {
		return head{}, err
	}
	l.watch(ctx)
	l.deadline = deadline
	l.compose(endpoint, parts)
	for {
		if err := l.connect(ctx); err != nil {
			return head{}, err
		}
		n, err := l.write(parts)
		if err == nil || n > 0 && hasClosed(err) {
			// If it has closed after a part of the request, its answer may be there all the same: it
			// refuses what it need not read. Reading tells.
			l.broken = err != nil
			break
		}
		if l.conn.fresh || !hasClosed(err) {
			return head{}, l.why(err)
		}
		l.drop() // nothing of the request was written: the connection was dead already
	}
	h, err := l.readHead()
	if err != nil {
		return head{}, l.why(err)
	}
	l.within, l.limit = true, math.MaxInt64
	if l.up.cfg.BetweenBytes == 0 && !l.first.IsZero() {
		l.wait(l.deadline)
	}
	return h, nil
}

// forget makes l ready for the next call.
func (l *lean) forget() {
	l.got, l.first, l.within, l.limit = false, time.Time{}, false, maxHeader
	l.left, l.body, l.end, l.keep, l.broken = 0, nil, false, false, false
	l.unsent, l.early = false, nil
}

// watch has the call in hand end when ctx does. Many calls in a row have the same one, and it costs
// something to begin.
func (l *lean) watch(ctx context.Context) {
	if ctx == l.watched {
		return
	}
	if l.stop != nil && !l.stop() {
		<-l.interrupted
	}
	l.aborted = false
	l.watched, l.stop = ctx, context.AfterFunc(ctx, l.interrupt)
}

// compose writes the head of a request into l.out, and what else is small enough.
func (l *lean) compose(endpoint string, parts [][]byte) {
	if endpoint != l.endpoint {
		l.endpoint = endpoint
		l.before, l.after = l.up.requestHead(endpoint)
	}
	n := lengthOf(parts)
	l.out = append(l.out[:0], l.before...)
	l.out = strconv.AppendInt(l.out, int64(n), 10)
	l.out = append(l.out, l.after...)
	l.whole = len(l.out)+n <= smallRequest
	if l.whole {
		for _, p := range parts {
			l.out = append(l.out, p...)
		}
	}
}

// requestHead returns what stands before and after the length of the body in the head of a request.
func (u *Upstream) requestHead(endpoint string) (before, after []byte) {
	before = fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: ", u.target(endpoint).RequestURI(), u.base.Host)
	after = []byte("\r\n")
	names := make([]string, 0, len(u.header))
	for name := range u.header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range u.header[name] {
			after = fmt.Appendf(after, "%s: %s\r\n", name, value)
		}
	}
	return before, append(after, "\r\n"...)
}

// connect gets a connection that is idle, or a new one.
func (l *lean) connect(ctx context.Context) error {
	for {
		c := l.up.conns.take()
		if c == nil {
			break
		}
		if l.whole && c.raw != nil || c.alive() { // an exchange looks for itself
			l.attach(c)
			return nil
		}
		c.Close()
	}
	dialCtx, cancel := context.WithDeadlineCause(ctx, l.deadline, noAnswer(l.up.cfg.Timeout))
	defer cancel()
	c, err := l.up.conns.dial(dialCtx)
	if err != nil {
		if dialCtx.Err() != nil {
			err = context.Cause(dialCtx)
		}
		return err
	}
	l.attach(c)
	return nil
}

// attach makes c the connection of the call in hand, and sets until when it is waited for.
func (l *lean) attach(c *leanConn) {
	l.in.Reset(limited{l})
	until := l.deadline
	if limit := l.up.cfg.FirstByte; limit > 0 {
		if first := time.Now().Add(limit); first.Before(until) {
			l.first, until = first, first
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.got = c, true
	if l.aborted {
		until = longAgo
	}
	c.SetDeadline(until)
}

// drop gives the connection up, as if there had been none.
func (l *lean) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn.Close()
	l.conn, l.got = nil, false
}

// wait sets until when the upstream may be silent.
func (l *lean) wait(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.aborted {
		l.conn.SetDeadline(until)
	}
}

// abort has the call in hand end.
func (l *lean) abort() {
	l.mu.Lock()
	l.aborted = true
	if l.conn != nil {
		l.conn.SetDeadline(longAgo)
	}
	l.mu.Unlock()
	l.interrupted <- struct{}{}
}

// longAgo is a deadline that has passed on whatever clock.
var longAgo = time.Unix(1, 0)

// why returns the reason for which the call failed with err.
func (l *lean) why(err error) error {
	if l.writing != nil && errors.Is(err, net.ErrClosed) {
		err = <-l.writing // it has closed the connection
		l.writing <- err
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return plain(err)
	}
	switch {
	case !time.Now().Before(l.deadline):
		return noAnswer(l.up.cfg.Timeout)
	case !l.within:
		return noBeginning(l.up.cfg.FirstByte)
	}
	return noMore(l.up.cfg.BetweenBytes)
}

// write writes the request. With a small one, it reads the beginning of the answer as well. A large one
// goes on being written while the answer is waited for.
func (l *lean) write(parts [][]byte) (n int64, err error) {
	if l.whole {
		l.unsent = true
		if _, err := l.in.Peek(1); l.conn.writeErr == nil {
			l.early = err
		}
		return int64(l.conn.wrote), l.conn.writeErr
	}
	if lengthOf(parts) <= safeRequest {
		l.vector = append(append(l.memory[:0], l.out), parts...)
		return l.vector.WriteTo(l.conn.Conn)
	}
	// The head alone tells if the connection is dead.
	if n, err := l.conn.Write(l.out); err != nil {
		return int64(n), err
	}
	l.writing = make(chan error, 1)
	go func(c net.Conn, rest net.Buffers, written chan<- error) {
		_, err := rest.WriteTo(c)
		written <- err
		if err != nil && !hasClosed(err) {
			c.Close() // whoever waits for the answer is to know at once
		}
	}(l.conn.Conn, slices.Clone(parts), l.writing)
	return int64(len(l.out)), nil
}

// hasClosed reports whether writing failed since the other side has closed the connection.
func hasClosed(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// readHead reads the head of the answer, and what may stand before it.
func (l *lean) readHead() (head, error) {
	if l.early != nil {
		return head{}, l.early
	}
	if _, err := l.in.Peek(1); err != nil {
		return head{}, err
	}
	for {
		there, _ := l.in.Peek(l.in.Buffered())
		if h, n, ok := parseHead(there); ok {
			l.in.Discard(n)
			l.left, l.keep = h.length, true
			return h, nil
		}
		resp, err := http.ReadResponse(l.in, nil)
		switch {
		case l.limit <= 0:
			return head{}, fmt.Errorf("the header of its answer has more than %d bytes", maxHeader)
		case err != nil:
			return head{}, err
		case resp.StatusCode >= 100 && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols:
			continue // the answer is still to come
		}
		l.body, l.keep = resp.Body, !resp.Close && resp.StatusCode >= 200
		return head{status: resp.StatusCode, length: resp.ContentLength, id: resp.Header.Get("X-Request-Id"), header: resp.Header}, nil
	}
}

// limited reads from the connection of the call in hand.
type limited struct{ *lean }

func (r limited) Read(p []byte) (n int, err error) {
	if r.limit <= 0 {
		return 0, io.EOF
	}
	if limit := r.up.cfg.BetweenBytes; r.within && limit > 0 {
		until := time.Now().Add(limit)
		if until.After(r.deadline) {
			until = r.deadline
		}
		r.wait(until)
	}
	p = p[:min(int64(len(p)), r.limit)]
	if r.unsent {
		r.unsent = false
		n, err = r.conn.exchange(r.out, p)
	} else {
		n, err = r.conn.Read(p)
	}
	r.limit -= int64(n)
	return n, err
}

// Read reads the answer's body.
func (l *lean) Read(b []byte) (n int, err error) {
	switch {
	case l.body != nil:
		n, err = l.body.Read(b)
	case l.left == 0:
		err = io.EOF
	default:
		n, err = l.in.Read(b[:min(int64(len(b)), l.left)])
		if l.left -= int64(n); err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
	}
	if err == io.EOF {
		l.end = true
	} else if err != nil {
		err = l.why(err)
	}
	return n, err
}

func (l *lean) done() {
	c := l.conn
	if c == nil {
		return
	}
	l.mu.Lock()
	l.conn = nil
	keep := l.end && l.keep && !l.broken && !l.aborted && l.in.Buffered() == 0 // more than the answer is nothing to go on with
	l.mu.Unlock()
	if l.writing != nil {
		if keep {
			c.SetWriteDeadline(time.Now().Add(spareWrite))
		} else {
			c.Close()
		}
		keep = <-l.writing == nil && keep
		l.writing = nil
	}
	if keep {
		l.up.conns.put(c)
	} else {
		c.Close()
	}
}

// parseHead reads the head of an answer at the beginning of b, if it is of the plainest kind: all of it
// is there, it is a 2xx with a body of a known length, and nothing in it is unusual. It returns how
// long it is. What it does not know, http.ReadResponse does.
func parseHead(b []byte) (h head, n int, ok bool) {
	const start = "HTTP/1.1 2"
	if len(b) < len(start)+4 || string(b[:len(start)]) != start {
		return head{}, 0, false
	}
	tens, ones := b[len(start)]-'0', b[len(start)+1]-'0'
	after := b[len(start)+2]
	h = head{status: 200 + 10*int(tens) + int(ones), length: -1}
	if tens > 9 || ones > 9 || after != ' ' && after != '\r' || h.status == http.StatusNoContent {
		return head{}, 0, false
	}
	for first := true; ; first = false {
		end := bytes.IndexByte(b[n:], '\n')
		if end < 1 || b[n+end-1] != '\r' {
			return head{}, 0, false
		}
		line := b[n : n+end-1]
		n += end + 1
		switch {
		case len(line) == 0:
			return h, n, h.length >= 0
		case !isText(line):
			return head{}, 0, false
		case !first:
			if !h.field(line) {
				return head{}, 0, false
			}
		}
	}
}

// field notes a line of a head. It is not ok if it is unusual, or says how the answer or its
// connection are to be dealt with.
func (h *head) field(line []byte) (ok bool) {
	colon := bytes.IndexByte(line, ':')
	if colon < 1 {
		return false
	}
	name, value := line[:colon], bytes.Trim(line[colon+1:], " \t")
	for _, c := range name {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	is := func(known string) bool { return len(name) == len(known) && strings.EqualFold(string(name), known) }
	switch len(name) {
	case len("Content-Length"):
		if is("Content-Length") {
			if h.length >= 0 || len(value) == 0 || len(value) > 18 {
				return false
			}
			h.length = 0
			for _, c := range value {
				if c < '0' || c > '9' {
					return false
				}
				h.length = 10*h.length + int64(c-'0')
			}
		}
	case len("X-Request-Id"):
		if is("X-Request-Id") && h.id == "" {
			h.id = string(value)
		}
	case len("Connection"):
		return !is("Connection") || strings.EqualFold(string(value), "keep-alive")
	case len("Transfer-Encoding"):
		return !is("Transfer-Encoding")
	case len("Trailer"):
		return !is("Trailer")
	}
	return true
}

// isText reports whether line has no control characters in it but tabs.
func isText(line []byte) bool {
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
