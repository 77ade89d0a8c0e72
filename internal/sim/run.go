package sim

import (
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Running is a [Server] that listens. Its SetDown and Calls are at hand.
type Running struct {
	*Server
	listener net.Listener
	http     *http.Server
	live     sync.WaitGroup // the accepting goroutine, and one for each connection
	served   error          // why accepting ended; read after live is done
}

// Start starts a server as cfg describes it on addr, such as "127.0.0.1:0" for a free port.
// Whoever starts it closes it.
func Start(cfg Config, addr string) (*Running, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := New(cfg)
	r := &Running{Server: s, listener: l}
	r.http = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       cfg.IdleTimeout,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew: // reported by the accepting goroutine, which is counted itself
				r.live.Add(1)
			case http.StateClosed:
				r.live.Done()
			}
		},
	}
	r.live.Go(func() { r.served = r.http.Serve(l) })
	return r, nil
}

// Addr returns the address that the server listens on, with its real port.
func (r *Running) Addr() string { return r.listener.Addr().String() }

// URL returns the base URL to give to a client, such as http://127.0.0.1:8000/v1. A server that
// listens on all addresses is named by its loopback address.
func (r *Running) URL() string {
	addr := r.listener.Addr().(*net.TCPAddr)
	host := addr.IP.String()
	if addr.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(addr.Port)) + "/v1"
}

// Close stops listening and cuts every connection, as kill -9 would, and returns when no
// goroutine of the server is left.
func (r *Running) Close() error {
	err := r.http.Close()
	r.live.Wait()
	if err == nil && !errors.Is(r.served, http.ErrServerClosed) {
		err = r.served
	}
	return err
}
