package client

import (
	"context"
	"errors"
	"io"
	"time"
)

// errIdle is why a watchdog ends a call.
var errIdle = errors.New("the connection stood still for too long")

// A watchdog ends a call of which no byte moves. A limit on the whole call would have to know
// how large a file is and how fast the line; this one suits a batch object and a 10 GB file.
// It runs only while the network is waited for, not while the caller's own reader or writer is.
type watchdog struct {
	ctx    context.Context // of the call; ends with errIdle as its cause
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
	server string // its URL, for errors
}

func newWatchdog(ctx context.Context, idle time.Duration, server string) *watchdog {
	ctx, cancel := context.WithCancelCause(ctx)
	return &watchdog{
		ctx: ctx, cancel: cancel, idle: idle, server: server,
		timer: time.AfterFunc(idle, func() { cancel(errIdle) }),
	}
}

// stop ends the watch, and the call with it.
func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// A watchedRequest is the body of a request. The transport reads as fast as it can write, so
// that the time from one Read to the next is the network's.
type watchedRequest struct {
	watch *watchdog
	r     io.Reader
}

// Read implements io.Reader.
func (r watchedRequest) Read(p []byte) (int, error) {
	r.watch.timer.Stop()
	n, err := r.r.Read(p)
	r.watch.timer.Reset(r.watch.idle)
	return n, err
}

// A watchedResponse is the body of a response, where the time within Read is the network's. Its
// Close ends the watch.
type watchedResponse struct {
	watch *watchdog
	rc    io.ReadCloser
}

// Read implements io.Reader.
func (r watchedResponse) Read(p []byte) (int, error) {
	r.watch.timer.Reset(r.watch.idle)
	n, err := r.rc.Read(p)
	r.watch.timer.Stop()
	if err != nil && err != io.EOF {
		err = connError(r.watch.ctx, r.watch.server, err)
	}
	return n, err
}

// Close implements io.Closer.
func (r watchedResponse) Close() error {
	r.watch.stop()
	return r.rc.Close()
}
