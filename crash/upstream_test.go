package crash

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"offpeak/internal/sim"
)

// An upstream is a simulated one in this process that remembers every call.
type upstream struct {
	handler  http.Handler
	listener net.Listener
	server   *http.Server

	mu      sync.Mutex
	changed chan struct{} // closed with every event, and replaced
	life    int           // of the process that is served now: see next
	live    int           // connections
	answers map[int]int   // by life
	calls   []*call
	byBody  map[string][]*call
	held    chan struct{} // answers wait until it is closed; nil: they don't
	running int           // calls that are worked on
	limit   int           // of them at a time; 0: none
	beyond  []string      // when it was exceeded, by whom

	release func() // of a test that holds answers for another function to release
}

// A call is what came of one call.
type call struct {
	life   int
	key    string // of whoever made it
	body   string
	begun  time.Time
	ended  time.Time // zero: it is in flight, or was cut
	cut    time.Time // zero: it was not
	status int
	answer []byte
}

// stamp is how moments are told, as in the servers' logs.
const stamp = "15:04:05.000"

func (c *call) answered() bool { return !c.ended.IsZero() }

// newUpstream starts an upstream. With addr "" it takes a free port.
func newUpstream(t *testing.T, c sim.Config) *upstream {
	t.Helper()
	u := &upstream{handler: sim.New(c), changed: make(chan struct{}), byBody: map[string][]*call{}, answers: map[int]int{}}
	var err error
	if u.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	u.server = &http.Server{Handler: u, ConnState: func(_ net.Conn, s http.ConnState) {
		u.event(func() {
			switch s {
			case http.StateNew:
				u.live++
			case http.StateClosed:
				u.live--
			}
		})
	}}
	go u.server.Serve(u.listener)
	t.Cleanup(func() { u.server.Close() })
	return u
}

func (u *upstream) url() string { return "http://" + u.listener.Addr().String() + "/v1" }

// event notes that something happened.
func (u *upstream) event(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
	close(u.changed)
	u.changed = make(chan struct{})
}

// ServeHTTP implements http.Handler.
func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		u.handler.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	c := &call{body: string(body), key: strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), begun: time.Now()}
	var held chan struct{}
	defer func() {
		if !c.answered() {
			u.event(func() { c.cut = time.Now(); u.running-- })
		}
	}()
	u.event(func() {
		if u.running++; u.limit > 0 && u.running > u.limit {
			u.beyond = append(u.beyond, fmt.Sprintf("%d calls at %s, the last one by %s", u.running, c.begun.Format(stamp), c.key))
		}
		c.life = u.life
		u.calls = append(u.calls, c)
		u.byBody[c.body] = append(u.byBody[c.body], c)
		held = u.held
	})
	answer := httptest.NewRecorder()
	u.handler.ServeHTTP(answer, r) // panics if the client leaves
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	// Noted before it is written: whoever has the answer finds it noted.
	u.event(func() {
		c.ended, c.status, c.answer = time.Now(), answer.Code, answer.Body.Bytes()
		u.answers[c.life]++
		u.running--
	})
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	if _, err := w.Write(answer.Body.Bytes()); err != nil {
		u.event(func() {
			c.ended = time.Time{}
			u.answers[c.life]--
			u.running++
		})
		panic(http.ErrAbortHandler)
	}
}

// hold makes answers wait until release is called.
func (u *upstream) hold() (release func()) {
	held := make(chan struct{})
	u.event(func() { u.held = held })
	return sync.OnceFunc(func() {
		u.event(func() { u.held = nil })
		close(held)
	})
}

// await waits until there is what is waited for. look runs with u.mu held.
func (u *upstream) await(t *testing.T, what string, look func() bool) {
	t.Helper()
	late := time.After(patience)
	for {
		u.mu.Lock()
		done, changed := look(), u.changed
		u.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("waited %s in vain for %s at the upstream", patience, what)
		}
	}
}

// awaitAnswers waits until so many calls of this life were answered, or the process has ended.
func (u *upstream) awaitAnswers(t *testing.T, p *process, n int) {
	t.Helper()
	go func() {
		<-p.ended
		u.event(func() {})
	}()
	u.await(t, fmt.Sprintf("%d answers", n), func() bool { return u.answers[u.life] >= n || p.hasEnded() })
}

// next begins the life of the next process, once the last one is gone for good: what it had sent
// may arrive after its death.
func (u *upstream) next(t *testing.T) {
	t.Helper()
	u.await(t, "the last connection's end", func() bool { return u.live == 0 })
	u.event(func() { u.life++ })
}

// of returns the calls of a life.
func (u *upstream) of(life int) []*call {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(u.calls), func(c *call) bool { return c.life != life })
}

// times returns how often a body was sent, and how often answered.
func (u *upstream) times(body string) (calls, answered int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range u.byBody[body] {
		calls++
		if c.answered() {
			answered++
		}
	}
	return calls, answered
}

// answer returns the answer that a body got first.
func (u *upstream) answer(body string) (status int, text []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range u.byBody[body] {
		if c.answered() {
			return c.status, c.answer
		}
	}
	return 0, nil
}
