package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// A conn is a connection to an upstream that lets an early answer be read.
//
// An upstream may refuse a request before it has read it all, and close: its body is too large, or
// the key is wrong. What we write then fails, and net/http would report that although the answer is
// there. So a conn hides the failure; reading tells what really happened: the answer, or the end.
//
// A failure before anything of a request was written is not hidden, since net/http then sends it on
// another connection.
type conn struct {
	net.Conn
	wrote atomic.Bool // of the request that the connection was taken for last
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.wrote.Store(true)
	}
	if c.wrote.Load() && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		return len(p), nil
	}
	return n, err
}

// taken notes that c, if it is one of ours, is about to carry another request.
func taken(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c, ok := c.(*conn); ok {
		c.wrote.Store(false)
	}
}

// dialer returns what has d open a conn.
func dialer(d Dialer) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &conn{Conn: c}, nil
	}
}

// dialer returns what makes the connections of an upstream.
func (c Config) dialer() Dialer {
	if c.Dialer != nil {
		return c.Dialer
	}
	return &net.Dialer{Timeout: c.Connect, KeepAlive: 15 * time.Second}
}
