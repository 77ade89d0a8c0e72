package upstream

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A leanConn is a connection for lean wires. Nobody reads it while it is idle.
type leanConn struct {
	net.Conn
	raw   syscall.RawConn // nil: it has none
	since time.Time       // when it became idle

	// What is done with the descriptor itself, which never blocks. Made once, as it is needed for every call.
	look func(fd uintptr)
	step func(fd uintptr) bool
	seen error   // by look
	one  [1]byte // memory of look

	fresh bool // it has not carried a call yet

	// Of the exchange in hand.
	out, in       []byte
	begun         bool // what could be written of out is
	wrote, read   int
	answered      bool // read and err are what came of reading
	writeErr, err error
}

func newLeanConn(c net.Conn) *leanConn {
	l := &leanConn{Conn: c, fresh: true}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			l.raw = raw
			l.look = func(fd uintptr) { _, l.seen = syscall.Read(int(fd), l.one[:]) }
			l.step = func(fd uintptr) bool { return l.advance(int(fd)) }
		}
	}
	return l
}

// alive reports whether an idle connection may carry a call. It may not once the other side has closed
// it, or has said what it was not asked. Its deadline is to be set anew.
func (c *leanConn) alive() bool {
	if c.raw != nil {
		// Reading would block, if only there is something to wait for.
		return c.raw.Control(c.look) == nil && wouldBlock(c.seen)
	}
	c.SetReadDeadline(longAgo)
	_, err := c.Read(c.one[:])
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// exchange writes a small request and reads the beginning of its answer, if the connection may carry a
// call. wrote and writeErr say then how much of out was written, and why not all of it was.
//
// All is done with the descriptor that is there, so that reading begins once there is something: to write
// first and to read then is to look in vain each time.
func (c *leanConn) exchange(out, in []byte) (n int, err error) {
	c.begun, c.wrote, c.writeErr, c.answered, c.read, c.err = false, 0, nil, false, 0, nil
	var waited error
	if c.raw != nil {
		c.out, c.in = out, in
		waited = c.raw.Read(c.step)
		c.out, c.in = nil, nil
		if c.writeErr != nil {
			c.writeErr = c.failed("write", c.writeErr)
			return 0, c.writeErr
		}
	}
	if c.wrote < len(out) { // there is no descriptor, or was no room for it, or no time
		n, c.writeErr = c.Write(out[c.wrote:])
		if c.wrote += n; c.writeErr != nil {
			return 0, c.writeErr
		}
		if !c.answered {
			return c.Read(in)
		}
	}
	switch {
	case !c.answered:
		return 0, waited
	case c.err != nil:
		return 0, c.failed("read", c.err)
	case c.read == 0:
		return 0, io.EOF
	}
	return c.read, nil
}

// advance does what can be done of the exchange in hand without waiting, and reports whether that was all.
// That there is something to read is told once: what there is before the request is written has to be
// looked for, since nobody may tell of it any more.
func (c *leanConn) advance(fd int) (done bool) {
	n, err := again(syscall.Read, fd, c.in)
	if c.answered = !wouldBlock(err); c.answered {
		c.read, c.err = max(n, 0), err
	}
	if c.begun {
		return c.answered
	}
	c.begun = true
	if c.answered && !c.fresh {
		c.writeErr = syscall.EPIPE // it has closed, or has said what it was not asked
		return true
	}
	if n, err = again(syscall.Write, fd, c.out); err != nil && !wouldBlock(err) {
		c.writeErr = err
	}
	c.wrote = max(n, 0)
	return c.answered || c.wrote < len(c.out)
}

// again has a system call made again that a signal has interrupted.
func again(call func(int, []byte) (int, error), fd int, b []byte) (n int, err error) {
	for {
		if n, err = call(fd, b); err != syscall.EINTR {
			return n, err
		}
	}
}

func wouldBlock(err error) bool { return err == syscall.EAGAIN || err == syscall.EWOULDBLOCK }

// failed is what net says of a system call that fails.
func (c *leanConn) failed(what string, err error) error {
	return &net.OpError{Op: what, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(what, err)}
}

// leanConns are the connections to an upstream that no call needs at the moment. They are closed when
// they have been idle for idleTimeout.
type leanConns struct {
	dialer Dialer
	addr   string
	most   int

	mu    sync.Mutex
	idle  []*leanConn // the one that was used last at the end: of those that are too many, the others get old
	timer *time.Timer // closes those that are old, while there are any
}

func newLeanConns(c Config, base *url.URL) *leanConns {
	addr := net.JoinHostPort(base.Hostname(), cmp.Or(base.Port(), "80"))
	return &leanConns{dialer: c.dialer(), addr: addr, most: cmp.Or(c.MaxInFlight, manyConnections)}
}

// dial makes a connection.
func (p *leanConns) dial(ctx context.Context) (*leanConn, error) {
	c, err := p.dialer.DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return nil, err
	}
	return newLeanConn(c), nil
}

// take returns an idle connection, which may be dead, or nil.
func (p *leanConns) take() *leanConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return nil
	}
	c := p.idle[last]
	p.idle[last] = nil
	p.idle = p.idle[:last]
	return c
}

// put keeps a connection for later.
func (p *leanConns) put(c *leanConn) {
	c.since, c.fresh = time.Now(), false
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) >= p.most {
		c.Close()
		return
	}
	p.idle = append(p.idle, c)
	if p.timer == nil {
		p.timer = time.AfterFunc(idleTimeout, func() { p.close(idleTimeout) })
	}
}

// close closes the connections that have been idle for so long.
func (p *leanConns) close(age time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	n := 0 // those that are idle for the longest come first
	for n < len(p.idle) && now.Sub(p.idle[n].since) >= age {
		p.idle[n].Close()
		n++
	}
	p.idle = slices.Delete(p.idle, 0, n)
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	if len(p.idle) > 0 {
		p.timer = time.AfterFunc(p.idle[0].since.Add(idleTimeout).Sub(now), func() { p.close(idleTimeout) })
	}
}
