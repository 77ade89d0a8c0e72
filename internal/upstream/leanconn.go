package upstream

import (
	"cmp"
	"context"
	"errors"
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

	look func(fd uintptr) // made once, as it is needed for every call
	seen error            // by look
	one  [1]byte          // memory of look
}

func newLeanConn(c net.Conn) *leanConn {
	l := &leanConn{Conn: c}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			l.raw = raw
			l.look = func(fd uintptr) { _, l.seen = syscall.Read(int(fd), l.one[:]) }
		}
	}
	return l
}

// alive reports whether an idle connection may carry a call. It may not once the other side has closed
// it, or has said what it was not asked. Its deadline is to be set anew.
func (c *leanConn) alive() bool {
	if c.raw != nil {
		// The descriptor never blocks. Reading would, if only there is something to wait for.
		return c.raw.Control(c.look) == nil && (c.seen == syscall.EAGAIN || c.seen == syscall.EWOULDBLOCK)
	}
	c.SetReadDeadline(longAgo)
	_, err := c.Read(c.one[:])
	return errors.Is(err, os.ErrDeadlineExceeded)
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
	c.since = time.Now()
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
