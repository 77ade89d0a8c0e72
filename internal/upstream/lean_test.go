package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const emptyAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

// A script is a connection on which writes go as it stands here. The other side says the same of each
// request of which it gets anything.
type script struct {
	net.Conn
	says   string
	writes []written // in their order; after the last all goes well
	asked  int       // requests that were written whole
	unread []byte
	broken bool
}

// A written is what comes of one write.
type written struct {
	n   int
	err error
}

func newScript(says string, writes ...written) *script { return &script{says: says, writes: writes} }

func (s *script) Write(p []byte) (int, error) {
	w := written{n: len(p)}
	if len(s.writes) > 0 && s.writes[0].err != nil {
		w = s.writes[0]
	}
	s.writes = s.writes[min(1, len(s.writes)):]
	if w.n > 0 {
		s.unread = append(s.unread[:0], s.says...)
	}
	if w.err == nil {
		s.asked++
	}
	s.broken = w.err != nil
	return w.n, w.err
}

func (s *script) Read(p []byte) (int, error) {
	n := copy(p, s.unread)
	s.unread = s.unread[:copy(s.unread, s.unread[n:])]
	switch {
	case n > 0:
		return n, nil
	case s.broken:
		return 0, io.EOF
	}
	return 0, os.ErrDeadlineExceeded
}

func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// A request of which nothing was written goes over another connection, and any other is never sent
// again: what came of it, the answer tells.
func TestLeanWrites(t *testing.T) {
	epipe := &net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)}
	other := errors.New("no route to host")
	well := written{}
	const refusal = "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct {
		name  string
		conns []*script // in the order in which they are made; then nobody listens
		calls []want
		sent  []int // requests, by connection
	}{
		{"all is well", []*script{newScript(emptyAnswer)}, []want{{class: OK, status: 200}, {class: OK, status: 200}}, []int{2}},
		{"a dead connection", []*script{newScript(emptyAnswer, well, written{0, epipe}), newScript(emptyAnswer)},
			[]want{{class: OK, status: 200}, {class: OK, status: 200}}, []int{1, 1}},
		{"a reset connection", []*script{newScript(emptyAnswer, well, written{0, syscall.ECONNRESET}), newScript(emptyAnswer)},
			[]want{{class: OK, status: 200}, {class: OK, status: 200}}, []int{1, 1}},
		{"a dead connection, and nobody listens", []*script{newScript(emptyAnswer, well, written{0, epipe})},
			[]want{{class: OK, status: 200}, {class: Refused, err: "nobody"}}, []int{1}},
		{"a new connection that is dead", []*script{newScript(emptyAnswer, written{0, epipe}), newScript(emptyAnswer)},
			[]want{{class: Transient, flags: "cut", err: "broken pipe"}, {class: OK, status: 200}}, []int{0, 1}},
		{"closed within the request", []*script{newScript("", written{50, epipe}), newScript(emptyAnswer)},
			[]want{{class: Transient, flags: "cut", err: "it closed the connection"}, {class: OK, status: 200}}, []int{0, 1}},
		{"closed within a later request", []*script{newScript(emptyAnswer, well, written{50, epipe}), newScript(emptyAnswer)},
			[]want{{class: OK, status: 200}, {class: OK, status: 200}, {class: OK, status: 200}}, []int{1, 1}},
		{"refused within the request", []*script{newScript(refusal, written{50, epipe}), newScript(emptyAnswer)},
			[]want{{class: Permanent, status: 413, err: "HTTP 413"}, {class: OK, status: 200}}, []int{0, 1}},
		{"another failure", []*script{newScript(emptyAnswer, well, written{0, other}), newScript(emptyAnswer)},
			[]want{{class: OK, status: 200}, {class: Transient, flags: "cut", err: "no route"}, {class: OK, status: 200}}, []int{1, 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			made := 0
			u := newUpstream(t, "http://host", func(cfg *Config) {
				cfg.MetricsURL = NoMetrics
				cfg.Dialer = dialerFunc(func() (net.Conn, error) {
					if made++; made > len(c.conns) {
						return nil, errors.New("nobody listens")
					}
					return c.conns[made-1], nil
				})
			})
			caller := u.NewCaller()
			for _, w := range c.calls {
				w.check(t, caller.Call(t.Context(), chat, []byte(`{"x":1}`)))
			}
			for i, s := range c.conns {
				if s.asked != c.sent[i] {
					t.Errorf("over connection %d went %d requests, want %d", i+1, s.asked, c.sent[i])
				}
			}
		})
	}
}

// A connection that the upstream closed while it was idle, or on which it said something of its own,
// is noticed before the next request.
func TestLeanStaleConnections(t *testing.T) {
	for _, c := range []struct {
		name string
		then func(net.Conn)
	}{
		{"closed", func(conn net.Conn) { conn.Close() }},
		{"reset", reset},
		{"a word too much", func(conn net.Conn) { io.WriteString(conn, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n") }},
	} {
		for _, size := range []int{8, smallRequest, safeRequest} { // each is written in a way of its own
			t.Run(fmt.Sprint(c.name, " ", size), func(t *testing.T) {
				var mu sync.Mutex
				conns, requests := 0, 0
				addr := listen(t, func(conn net.Conn) {
					mu.Lock()
					conns++
					mu.Unlock()
					r := bufio.NewReader(conn)
					for {
						if _, err := readRequest(r); err != nil {
							return
						}
						mu.Lock()
						requests++
						mu.Unlock()
						io.WriteString(conn, emptyAnswer)
						c.then(conn)
					}
				})
				u := newUpstream(t, "http://"+addr)
				caller := u.NewCaller()
				for range 20 {
					want{class: OK, status: 200}.check(t, caller.Call(t.Context(), chat, []byte(answerOf(size))))
					if idle := u.conns.take(); idle != nil { // else it was there together with the answer
						for idle.alive() {
							time.Sleep(time.Millisecond) // until it has come here
						}
						u.conns.put(idle)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if conns != 20 || requests != 20 {
					t.Errorf("%d requests over %d connections, want 20 over 20", requests, conns)
				}
			})
		}
	}
}

// Idle connections are closed in time, the ones that were used last stay for the longest, and Close
// closes all of them.
func TestLeanIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		open, made := 0, 0
		c := Config{URL: "http://host", MetricsURL: NoMetrics, MaxInFlight: 3}
		inMemory(&c, func(conn net.Conn) {
			mu.Lock()
			open++
			made++
			mu.Unlock()
			r := bufio.NewReader(conn)
			for {
				if _, err := readRequest(r); err != nil {
					break
				}
				time.Sleep(time.Second)
				io.WriteString(conn, emptyAnswer)
			}
			mu.Lock()
			open--
			mu.Unlock()
		})
		u, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		calls := func(n int) {
			var all sync.WaitGroup
			for range n {
				all.Go(func() { want{class: OK, status: 200}.check(t, u.NewCaller().Call(t.Context(), chat, []byte(`{}`))) })
			}
			all.Wait()
		}
		check := func(wantOpen, wantMade int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if open != wantOpen || made != wantMade {
				t.Errorf("%d connections are open, %d were made; want %d and %d", open, made, wantOpen, wantMade)
			}
		}
		calls(3)
		check(3, 3)
		calls(5) // more than are to be kept
		check(3, 5)
		for range 10 {
			calls(1)
			time.Sleep(time.Second)
		}
		check(1, 5) // the others have had nothing to do
		time.Sleep(idleTimeout - 2*time.Second)
		check(1, 5)
		time.Sleep(time.Second)
		check(0, 5)
		calls(2)
		check(2, 7)
		u.Close()
		check(0, 7)
		calls(1) // of somebody who had it in hand
		check(1, 8)
		time.Sleep(idleTimeout)
		check(0, 8)
	})
}

// An upstream that answers before it has read the request, and neither reads on nor closes, is
// understood all the same, however large the request is.
func TestLeanEarlyAnswer(t *testing.T) {
	addr := listen(t, func(conn net.Conn) {
		io.WriteString(conn, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy")
		<-t.Context().Done()
	})
	for _, size := range []int{8, smallRequest, safeRequest, safeRequest + 1, 1 << 20, 32 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			a := newUpstream(t, "http://"+addr).NewCaller().Call(t.Context(), chat, []byte(answerOf(size)))
			want{class: Throttled, status: 429, retryAfter: 7 * time.Second, err: "busy"}.check(t, a)
		})
	}
}

// A call that is given up, whenever that is, does nothing to the next one of its caller.
func TestLeanAbortedCalls(t *testing.T) {
	const seed = 7
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	addr := listen(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for {
			if _, err := readRequest(r); err != nil {
				return
			}
			io.WriteString(conn, emptyAnswer)
		}
	})
	caller := newUpstream(t, "http://"+addr).NewCaller()
	body := []byte(answerOf(2 * safeRequest))
	aborted := 0
	for i := range 2000 {
		ctx, stop := context.WithCancel(t.Context())
		defer time.AfterFunc(time.Duration(random.Int64N(int64(200*time.Microsecond))), stop).Stop()
		a := caller.Call(ctx, chat, body[:2+random.IntN(len(body)-2)])
		switch a.Class {
		case Aborted:
			aborted++
		case OK:
		default:
			t.Fatalf("call %d: %s, %v; want it answered or aborted", i, a.Class, a.Err)
		}
		if a := caller.Call(t.Context(), chat, []byte(`{}`)); a.Class != OK {
			t.Fatalf("after call %d (%s): %s, %v", i, a.Class, a.Class, a.Err)
		}
	}
	t.Logf("%d of 2000 calls were given up", aborted)
}

// Calls that have a context in common end with it, the first and any later one, and what it leaves behind
// does nothing to a call with another.
func TestLeanCommonContext(t *testing.T) {
	begun := make(chan struct{}, 1)
	addr := listen(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for {
			body, err := readRequest(r)
			if err != nil {
				return
			}
			if bytes.Contains(body, []byte("hang")) {
				begun <- struct{}{}
				continue
			}
			io.WriteString(conn, emptyAnswer)
		}
	})
	caller := newUpstream(t, "http://"+addr).NewCaller()
	for answered := range 3 {
		ctx, stop := context.WithCancel(t.Context())
		for range answered {
			want{class: OK, status: 200}.check(t, caller.Call(ctx, chat, []byte(`{}`)))
		}
		go func() {
			<-begun
			stop()
		}()
		for _, when := range []string{"in hand", "to come"} {
			if a := caller.Call(ctx, chat, []byte(`{"x":"hang"}`)); a.Class != Aborted {
				t.Errorf("after %d calls, one that is %s as the context ends: %s, %v", answered, when, a.Class, a.Err)
			}
		}
		want{class: OK, status: 200}.check(t, caller.Call(t.Context(), chat, []byte(`{}`)))
	}
}

// What needs net/http gets it.
func TestLeanFor(t *testing.T) {
	for raw, want := range map[string]bool{
		"http://host/v1": true, "http://Host-1.example:8000/v1": true, "http://127.0.0.1:1/v1": true, "http://[::1]:8000/v1": true,
		"https://host/v1": false, "http://höst/v1": false, "http://[fe80::1%25eth0]/v1": false, "http://host:/v1": false,
	} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if got := leanFor(u); got != want {
			t.Errorf("%s: lean %v, want %v", raw, got, want)
		}
	}
}

// answered is a server that takes a request and answers with raw, in pieces, and then closes.
func answered(raw []byte, piece int) dialerFunc {
	return func() (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			if _, err := readRequest(bufio.NewReader(theirs)); err != nil {
				return
			}
			for rest := raw; len(rest) > 0; {
				n := min(max(piece, 1), len(rest))
				if _, err := theirs.Write(rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
		}()
		return ours, nil
	}
}

// FuzzAnswers gives the same bytes as an answer to both wires, and wants them to say the same of it.
func FuzzAnswers(f *testing.F) {
	log.SetOutput(io.Discard) // net/http complains of answers nobody asked for
	f.Cleanup(func() { log.SetOutput(os.Stderr) })
	const ok = "HTTP/1.1 200 OK\r\n"
	const body = `{"id":"x","usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}`
	withLength := fmt.Sprintf("Content-Length: %d\r\n", len(body))
	for _, raw := range []string{
		"", "\r\n", "HTTP/1.1", "HTTP/1.1 200", "HTTP/1.1 200\r\n\r\n", emptyAnswer,
		ok + withLength + "X-Request-Id: req-1\r\n\r\n" + body,
		ok + withLength + "\r\n" + body + "more",
		ok + withLength + "\r\n" + body[:20],
		ok + withLength + withLength + "\r\n" + body,
		ok + withLength + "Content-Length: 3\r\n\r\n" + body,
		ok + "Content-Length: +2\r\n\r\n{}", ok + "Content-Length: -2\r\n\r\n{}", ok + "Content-Length: 2 \r\n\r\n{}",
		ok + "Content-Length: 0x2\r\n\r\n{}", ok + "Content-Length:\r\n\r\n{}", ok + "Content-Length: 2,2\r\n\r\n{}",
		ok + "Content-Length: 99999999999999999999\r\n\r\n{}", ok + "Content-Length : 2\r\n\r\n{}", ok + "content-length:2\r\n\r\n{}",
		ok + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		ok + "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n1\r\n{\r\n1;a=b\r\n}\r\n0\r\nX: y\r\n\r\n",
		ok + "Transfer-Encoding: chunked\r\nContent-Length: 100\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		ok + "Content-Length: 2\r\nTransfer-Encoding: gzip\r\n\r\n{}", ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
		ok + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nbroken\r\n\r\n",
		ok + "Connection: close\r\n\r\n{}", ok + "Connection: close\r\nContent-Length: 2\r\n\r\n{}", ok + "\r\n{}",
		ok + "Connection: Keep-Alive, x\r\nContent-Length: 2\r\n\r\n{}",
		ok + " folded: x\r\nContent-Length: 2\r\n\r\n{}", ok + "A: b\r\n folded\r\nContent-Length: 2\r\n\r\n{}",
		ok + "A: b\nContent-Length: 2\n\n{}", ok + "A: \x01\r\nContent-Length: 2\r\n\r\n{}", ok + "A: \xff\r\nContent-Length: 2\r\n\r\n{}",
		ok + ": b\r\nContent-Length: 2\r\n\r\n{}", ok + "A b: c\r\nContent-Length: 2\r\n\r\n{}", ok + "A\r\nContent-Length: 2\r\n\r\n{}",
		ok + "X-Request-Id:  a b \t\r\nX-Request-Id: second\r\nContent-Length: 2\r\n\r\n{}",
		ok + "X-Request-Id:\r\nX-Request-Id: second\r\nContent-Length: 2\r\n\r\n{}",
		ok + "A: b\rC: d\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 200  OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 299 x\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 2000 x\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 20x x\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.0 200 OK\r\n\r\n{}", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\n{}", "http/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 100 Continue\r\n\r\n" + emptyAnswer, "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n" + emptyAnswer,
		"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n" + emptyAnswer,
		"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n{}", "HTTP/1.1 199 Odd\r\n\r\n" + emptyAnswer,
		"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\nContent-Length: 4\r\n\r\nbusy", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
		"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 000 None\r\n\r\n", "HTTP/1.1 -20 None\r\n\r\n", "HTTP/1.1 999 x\r\nContent-Length: 0\r\n\r\n",
		ok + "A: " + strings.Repeat("x", 5000) + "\r\nContent-Length: 2\r\n\r\n{}",
		ok + "A: " + strings.Repeat("x", maxHeader) + "\r\nContent-Length: 2\r\n\r\n{}",
	} {
		f.Add([]byte(raw), 1<<20)
		f.Add([]byte(raw), 7)
	}
	f.Fuzz(func(t *testing.T, raw []byte, piece int) {
		if len(raw) > 2*maxHeader {
			return
		}
		var answers [2]Answer
		for i := range answers {
			u := newUpstream(t, "http://host", func(c *Config) {
				c.MetricsURL, c.standard, c.Dialer = NoMetrics, i == 0, answered(raw, piece)
			})
			a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
			a.Body = bytes.Clone(a.Body)
			if !bytes.Contains(bytes.ToLower(raw), []byte("request-id")) {
				a.RequestID = "" // of ours
			}
			answers[i] = a
		}
		s, l := answers[0], answers[1]
		differ := (s.Err == nil) != (l.Err == nil) || !bytes.Equal(s.Body, l.Body)
		if s.RequestID != l.RequestID && bytes.Contains(raw, []byte(s.RequestID)) {
			differ = true
		}
		errs := [2]error{s.Err, l.Err}
		s.Err, l.Err, s.Body, l.Body, s.RequestID, l.RequestID = nil, nil, nil, nil, "", ""
		if differ || fmt.Sprint(s) != fmt.Sprint(l) {
			t.Errorf("%.300q in pieces of %d\nnet/http: %+v %q %v\n    lean: %+v %q %v", raw, piece, s, answers[0].Body, errs[0], l, answers[1].Body, errs[1])
		}
	})
}

// TestLeanAllocations counts what a call takes anew: little, as there are as many as tens of thousands
// in a second.
func TestLeanAllocations(t *testing.T) {
	conn := newScript("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: req-1\r\nContent-Length: 55\r\n\r\n" +
		`{"usage":{"prompt_tokens":1,"completion_tokens":2}}    `)
	u := newUpstream(t, "http://host", func(c *Config) {
		c.MetricsURL = NoMetrics
		c.Dialer = dialerFunc(func() (net.Conn, error) { return conn, nil })
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	caller, body := u.NewCaller(), []byte(answerOf(300))
	n := testing.AllocsPerRun(1000, func() {
		if a := caller.Call(ctx, chat, body); a.Class != OK {
			t.Fatal(a.Err)
		}
	})
	if n > 3 { // two watch for the end of the context, one is the id
		t.Errorf("%v allocations for a call, want 3 at most", n)
	}
}
