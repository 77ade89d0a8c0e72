package lab

import (
	"context"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// A Way is what a relay does with connections.
type Way int

// Ways.
const (
	// Pass passes everything on.
	Pass Way = iota
	// Refuse resets connections, and refuses new ones.
	Refuse
	// Swallow accepts connections and whatever is sent, and passes none of it on, not even that
	// somebody hung up. Connections that had something swallowed are reset when that ends.
	Swallow
	// Stall is Swallow, but everything is passed on when it ends.
	Stall
)

func (w Way) String() string { return [...]string{"pass", "refuse", "swallow", "stall"}[w] }

// A Relay stands between a client and a server, and can be cut.
type Relay struct {
	// Addr is where it listens.
	Addr   string
	target string

	mu       sync.Mutex
	listener net.Listener
	way      Way
	delay    time.Duration // before each piece from the server
	piece    int
	changed  chan struct{} // closed with each change, and replaced
	pairs    map[*pair]bool
	closed   bool
	running  sync.WaitGroup
}

// A pair is a connection from a client, and the one to the server.
type pair struct {
	client, server net.Conn
	lossy          bool // something was swallowed
	gone           chan struct{}
	once           sync.Once
}

// NewRelay starts a relay to an address.
func NewRelay(target string) (*Relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{Addr: l.Addr().String(), target: target, listener: l, changed: make(chan struct{}), pairs: map[*pair]bool{}, piece: 64 << 10}
	r.running.Go(func() { r.accept(l) })
	return r, nil
}

// Set has the relay go another way from now on.
func (r *Relay) Set(w Way) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || w == r.way {
		return nil
	}
	r.way = w
	close(r.changed)
	r.changed = make(chan struct{})
	if w == Refuse {
		r.listener.Close()
		r.listener = nil
	}
	for p := range r.pairs {
		if w == Refuse || p.lossy && w != Swallow {
			p.reset()
		}
	}
	if w != Refuse && r.listener == nil {
		return r.listen()
	}
	return nil
}

// listen takes the old address again, for which somebody may have borrowed the port. r.mu is held.
func (r *Relay) listen() (err error) {
	for range 200 {
		if r.listener, err = net.Listen("tcp", r.Addr); err == nil {
			l := r.listener
			r.running.Go(func() { r.accept(l) })
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// Slow has everything that the server says from now on come in pieces of so many bytes, each so much
// later; with 0 as fast as it can.
func (r *Relay) Slow(piece int, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.delay, r.piece = delay, piece; piece == 0 {
		r.piece = 64 << 10
	}
}

// Reset resets the connections that there are.
func (r *Relay) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.pairs {
		p.reset()
	}
}

// Close ends the relay and its connections.
func (r *Relay) Close() error {
	err := r.Set(Refuse)
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.running.Wait()
	return err
}

func (r *Relay) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		p := &pair{client: c, gone: make(chan struct{})}
		r.mu.Lock()
		if r.way == Refuse || r.closed {
			p.reset()
			r.mu.Unlock()
			continue
		}
		r.pairs[p] = true
		r.mu.Unlock()
		r.running.Go(func() { r.serve(p) })
	}
}

func (r *Relay) serve(p *pair) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.pairs, p)
		p.reset()
	}()
	if !r.may(p) {
		io.Copy(io.Discard, p.client) // until it is reset, or hangs up
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	server, err := new(net.Dialer).DialContext(ctx, "tcp", r.target)
	cancel()
	if err != nil {
		return
	}
	r.mu.Lock()
	p.server = server
	r.mu.Unlock()
	select {
	case <-p.gone: // reset before there was a server to reset
		server.Close()
		return
	default:
	}
	var both sync.WaitGroup
	both.Go(func() { r.copy(p, p.server, p.client) })
	both.Go(func() { r.copy(p, p.client, p.server) })
	both.Wait()
}

// copy passes on one direction.
func (r *Relay) copy(p *pair, to, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		r.mu.Lock()
		piece, delay := r.piece, r.delay
		r.mu.Unlock()
		if from == p.client {
			piece, delay = len(buf), 0
		}
		n, err := from.Read(buf[:min(piece, len(buf))])
		if delay > 0 {
			select {
			case <-time.After(delay):
			case <-p.gone:
			}
		}
		if !r.may(p) {
			if err != nil {
				<-p.gone // the other side does not learn of it before the relay is mended
				return
			}
			continue
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				p.reset()
				return
			}
		}
		if err == io.EOF {
			to.(*net.TCPConn).CloseWrite()
			return
		}
		if err != nil {
			p.reset()
			return
		}
	}
}

// may waits until it is known if the next piece may pass, and says so.
func (r *Relay) may(p *pair) bool {
	for {
		r.mu.Lock()
		way, changed := r.way, r.changed
		if way == Swallow {
			p.lossy = true
		}
		lossy := p.lossy
		r.mu.Unlock()
		if way != Stall {
			return way == Pass && !lossy
		}
		select {
		case <-changed:
		case <-p.gone:
			return false
		}
	}
}

// reset ends both connections at once. It may be called again.
func (p *pair) reset() {
	p.once.Do(func() { close(p.gone) })
	for _, c := range []net.Conn{p.client, p.server} {
		if c != nil {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}
}

// signal sends a signal to a process, and to those that it has started.
func signal(pid int, s syscall.Signal) {
	for _, p := range append(children(pid), pid) {
		syscall.Kill(p, s)
	}
}
