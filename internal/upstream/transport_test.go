package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// listen serves raw connections with handle, each in a goroutine of its own, until the test ends.
// A connection is closed when handle returns.
func listen(t testing.TB, handle func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() {
		l.Close()
		stop()
		conns.Wait()
	})
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				handle(conn)
			})
		}
	})
	return l.Addr().String()
}

// readRequest reads one request and its body from a raw connection.
func readRequest(r *bufio.Reader) (body []byte, err error) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(req.Body)
}

// hang keeps a connection until the other side closes it.
func hang(conn net.Conn) { io.Copy(io.Discard, conn) }

// reset closes a connection as a crashing process does.
func reset(conn net.Conn) {
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

// nobody returns an address at which nobody listens.
func nobody(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// What the transport itself has to say becomes a class, too.
func TestConnectionFailures(t *testing.T) {
	refused := func(err string) want { return want{class: Refused, err: err} }
	cut := func(err string) want { return want{class: Transient, flags: "cut", err: err} }
	timeout := want{class: Transient, flags: "timeout", err: "no answer within 100ms"}
	tlsServer := httptest.NewUnstartedServer(http.NotFoundHandler()) // with a certificate that nobody trusts
	tlsServer.Config.ErrorLog = log.New(t.Output(), "", 0)
	tlsServer.StartTLS()
	t.Cleanup(tlsServer.Close)

	// afterRequest returns a server that reads a request, says something and then does more.
	afterRequest := func(says string, then func(net.Conn)) func(net.Conn) {
		return func(conn net.Conn) {
			if _, err := readRequest(bufio.NewReader(conn)); err != nil {
				return
			}
			io.WriteString(conn, says)
			if then != nil {
				then(conn)
			}
		}
	}
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	large := answerOf(2 << 20)
	for _, c := range []struct {
		name string
		url  string         // where to; empty: http to handle
		raw  func(net.Conn) // the server there
		want want
	}{
		{"nobody listens", "http://" + nobody(t), nil, refused("connection refused")},
		{"no such host", "http://no-such-host.invalid", nil, refused("no such host")},
		{"no such port", "http://127.0.0.1:99999", nil, refused("invalid port")},
		{"no such scheme there", "https://", hang, timeout},
		{"untrusted certificate", tlsServer.URL, nil, refused("certificate")},
		{"http on an https port", "http://" + tlsServer.Listener.Addr().String(), nil, want{class: Permanent, status: 400, err: "HTTP 400: Client sent an HTTP request to an HTTPS server."}},
		{"https on an http port", "https://", func(conn net.Conn) { io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n") }, refused("does not look like a TLS handshake")},
		{"closes in the TLS handshake", "https://", func(net.Conn) {}, refused("")},
		{"TLS alert", "https://", func(conn net.Conn) { io.WriteString(conn, "\x15\x03\x01\x00\x02\x02\x28") }, refused("handshake failure")},

		{"closes without answer", "", afterRequest("", nil), cut("it closed the connection without an answer")},
		{"resets without answer", "", afterRequest("", reset), cut("connection reset")},
		{"closes within the status", "", afterRequest("HTTP/1.1 20", nil), cut("malformed HTTP status")},
		{"closes within the headers", "", afterRequest(head+"Content-Le", nil), cut("malformed MIME header")},
		{"closes before the body", "", afterRequest(head+"Content-Length: 10\r\n\r\n", nil), cut("the connection broke off within the answer: unexpected EOF")},
		{"closes within the body", "", afterRequest(head+"Content-Length: 100\r\n\r\n{\"a\":1}", nil), cut("broke off within the answer")},
		{"closes within a chunk", "", afterRequest(head+"Transfer-Encoding: chunked\r\n\r\n100\r\n{\"a\":1}", nil), cut("broke off within the answer")},
		{"closes between chunks", "", afterRequest(head+"Transfer-Encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n", nil), cut("broke off within the answer")},
		{"closes within a large body", "", afterRequest(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(large)+1, large), nil), cut("broke off within the answer")},
		{"resets within the body", "", afterRequest(head+"Content-Length: 100\r\n\r\n{\"a\":1}", reset), cut("broke off within the answer")},
		{"closes within an error", "", afterRequest("HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{\"error\":", nil), cut("broke off within the answer")},
		{"closes within a throttle", "", afterRequest("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 100\r\n\r\nbusy", nil), want{class: Throttled, status: 503, retryAfter: 3 * time.Second, err: "HTTP 503: busy"}},
		{"closes within a refusal", "", afterRequest("HTTP/1.1 401 Unauthorized\r\nContent-Length: 100\r\n\r\nno", nil), want{class: Refused, status: 401, err: "HTTP 401: no"}},
		{"speaks something else", "", afterRequest("SSH-2.0-OpenSSH_9.6\r\n", nil), cut("malformed HTTP")},

		{"says nothing", "", hang, timeout},
		{"stops within the headers", "", afterRequest(head, hang), timeout},
		{"stops within the body", "", afterRequest(head+"Content-Length: 100\r\n\r\n{", hang), timeout},
		{"stops within a large body", "", afterRequest(fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(large)+1, large), hang), timeout},

		{"continue", "", afterRequest("HTTP/1.1 100 Continue\r\n\r\n"+head+"Content-Length: 2\r\n\r\n{}", nil), want{class: OK, status: 200}},
		{"early hints", "", afterRequest("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"+head+"Content-Length: 2\r\n\r\n{}", nil), want{class: OK, status: 200}},
		{"another protocol", "", afterRequest("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", hang), want{class: Transient, status: 101, err: "HTTP 101: (empty)"}},
		{"body up to the end", "", afterRequest(head+"Connection: close\r\n\r\n{}", nil), want{class: OK, status: 200}},
		{"HTTP/1.0", "", afterRequest("HTTP/1.0 200 OK\r\n\r\n{}", nil), want{class: OK, status: 200}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			base := c.url
			if c.raw != nil {
				base = strings.TrimSuffix(strings.TrimSuffix(base, "//"), ":")
				if base == "" {
					base = "http"
				}
				base += "://" + listen(t, c.raw)
			}
			u := newUpstream(t, base+"/v1", func(cfg *Config) {
				if c.want.flags == "timeout" {
					cfg.Timeout = 100 * time.Millisecond
				}
			})
			a := u.NewCaller().Call(t.Context(), chat, []byte(`{"x":1}`))
			w := c.want
			if w.err == "" && w.class != OK {
				w.err = a.Err.Error() // any will do
			}
			w.check(t, a)
		})
	}
}

// Whenever the context ends, the call ends, for the context's reason.
func TestAborted(t *testing.T) {
	cause := errors.New("the batch has ended")
	for _, c := range []struct {
		name string
		says string // by the upstream before it hangs; "" is nothing
	}{
		{"while waiting", ""},
		{"within the headers", "HTTP/1.1 200 OK\r\n"},
		{"within the body", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, stop := context.WithCancelCause(t.Context())
			addr := listen(t, func(conn net.Conn) {
				readRequest(bufio.NewReader(conn))
				io.WriteString(conn, c.says)
				stop(cause)
				hang(conn)
			})
			a := newUpstream(t, "http://"+addr).NewCaller().Call(ctx, chat, []byte(`{}`))
			want{class: Aborted, err: "the batch has ended"}.check(t, a)
			if !errors.Is(a.Err, cause) {
				t.Errorf("error %v, want the cause", a.Err)
			}
		})
	}
	t.Run("before", func(t *testing.T) {
		ctx, stop := context.WithCancelCause(t.Context())
		stop(cause)
		u := newUpstream(t, "http://"+listen(t, func(net.Conn) { t.Error("called although the context had ended") }))
		want{class: Aborted, err: "the batch has ended"}.check(t, u.NewCaller().Call(ctx, chat, []byte(`{}`)))
	})
	t.Run("deadline", func(t *testing.T) {
		ctx, stop := context.WithDeadline(t.Context(), time.Now().Add(50*time.Millisecond))
		defer stop()
		u := newUpstream(t, "http://"+listen(t, hang))
		want{class: Aborted, err: "deadline exceeded"}.check(t, u.NewCaller().Call(ctx, chat, []byte(`{}`)))
	})
}

// A caller is of use after every kind of failure.
func TestCallerAfterFailures(t *testing.T) {
	n := 0
	addr := listen(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for {
			if _, err := readRequest(r); err != nil {
				return
			}
			switch n++; n % 4 {
			case 0:
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", 2<<20, answerOf(2<<20))
			case 1:
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
				return
			case 2:
				return
			case 3:
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\":1} ")
			}
		}
	})
	c := newUpstream(t, "http://"+addr).NewCaller()
	for i, class := range []Class{Transient, Transient, OK, OK, Transient, Transient, OK, OK} {
		if a := c.Call(t.Context(), chat, []byte(`{}`)); a.Class != class {
			t.Errorf("call %d: %s, %v; want %s", i+1, a.Class, a.Err, class)
		}
	}
}

// No request is sent twice by one call once a byte of it was written, though its connection was
// used before and net/http repeats other methods then.
func TestNeverSentTwice(t *testing.T) {
	for _, c := range []struct {
		name  string
		close func(net.Conn)
	}{{"closed", func(conn net.Conn) { conn.Close() }}, {"reset", reset}} {
		t.Run(c.name, func(t *testing.T) {
			var mu sync.Mutex
			times := map[string]int{}
			addr := listen(t, func(conn net.Conn) {
				r := bufio.NewReader(conn)
				for n := 1; ; n++ {
					body, err := readRequest(r)
					if err != nil {
						return
					}
					mu.Lock()
					times[string(body)]++
					mu.Unlock()
					if n == 2 { // an answer made the connection one to be used again; then it breaks
						c.close(conn)
						return
					}
					io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
				}
			})
			caller := newUpstream(t, "http://"+addr).NewCaller()
			for i := range 20 {
				body := fmt.Sprintf(`{"n":%d}`, i)
				a := caller.Call(t.Context(), chat, []byte(body))
				if i%2 == 0 {
					want{class: OK, status: 200}.check(t, a)
				} else if a.Class != Transient || !a.Cut {
					t.Errorf("call %d: %s, cut %v, %v; want transient, cut", i, a.Class, a.Cut, a.Err)
				}
				mu.Lock()
				if times[body] != 1 {
					t.Errorf("request %s was seen %d times, want once", body, times[body])
				}
				mu.Unlock()
			}
		})
	}
}

// An upstream that closes connections as soon as it has answered loses no call and sees none twice,
// whichever side is faster.
func TestClosedIdleConnections(t *testing.T) {
	var mu sync.Mutex
	times := map[string]int{}
	addr := listen(t, func(conn net.Conn) {
		body, err := readRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		mu.Lock()
		times[string(body)]++
		mu.Unlock()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") // and it closes, saying nothing of that
	})
	caller := newUpstream(t, "http://"+addr).NewCaller()
	cut := 0
	for i := range 300 {
		body := fmt.Sprintf(`{"n":%d}`, i)
		a := caller.Call(t.Context(), chat, []byte(body))
		mu.Lock()
		seen := times[body]
		mu.Unlock()
		switch {
		case a.Class == OK && seen == 1:
		case a.Class == Transient && a.Cut && seen == 0: // it met the closing
			cut++
		default:
			t.Fatalf("call %d: %s, cut %v, %v; the request was seen %d times", i, a.Class, a.Cut, a.Err, seen)
		}
	}
	t.Logf("%d of 300 calls met the closing of their connection", cut)
}

// After an upstream went away, a dead connection in the pool does not hide that nobody listens.
func TestGoneAfterReuse(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{}`) }))
	u := newUpstream(t, s.URL)
	want{class: OK, status: 200}.check(t, u.NewCaller().Call(t.Context(), chat, []byte(`{}`)))
	s.Close()
	wantGone(t, u)
}

// Whether a request was sent is a matter of the connection it was to go on, not of those before.
func TestSentOrNot(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name  string
		conns string // G: asks for a connection, C: gets it
		want  want
	}{
		{"no connection", "G", want{class: Refused, err: "broken"}},
		{"no connection in place of a dead one", "GCG", want{class: Refused, err: "broken"}},
		{"a connection", "GC", want{class: Transient, flags: "cut", err: "broken"}},
		{"a connection in place of a dead one", "GCGC", want{class: Transient, flags: "cut", err: "broken"}},
	} {
		used := &conn{}
		used.wrote.Store(true) // of an earlier request
		u := newUpstream(t, "http://host", func(cfg *Config) {
			cfg.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				trace := httptrace.ContextClientTrace(r.Context())
				for _, step := range c.conns {
					if step == 'G' {
						trace.GetConn("host:80")
					} else {
						trace.GotConn(httptrace.GotConnInfo{Conn: used, Reused: true})
					}
				}
				return nil, broken
			})
		})
		t.Run(c.name, func(t *testing.T) {
			a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
			c.want.check(t, a)
			if !errors.Is(a.Err, broken) {
				t.Errorf("the error %v hides its reason", a.Err)
			}
			if taken := strings.Contains(c.conns, "C"); used.wrote.Load() == taken {
				t.Errorf("the connection was taken: %v, and counts as written to: %v", taken, used.wrote.Load())
			}
		})
	}
}

// A stubborn connection writes what its script says, and then fails.
type stubborn struct {
	net.Conn
	script []error
}

func (s *stubborn) Write(p []byte) (int, error) {
	err := s.script[0]
	s.script = s.script[1:]
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// A failure to write is hidden if something of the request was written, and if it means that the
// other side has closed.
func TestHiddenFailures(t *testing.T) {
	other := errors.New("no route to host")
	epipe, rst := &net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EPIPE)}, error(syscall.ECONNRESET)
	for _, c := range []struct {
		name   string
		writes []error // of requests that are told apart by errNext
		want   []error
	}{
		{"nothing written", []error{epipe}, []error{epipe}},
		{"something written", []error{nil, epipe, rst}, []error{nil, nil, nil}},
		{"another failure", []error{nil, other}, []error{nil, other}},
		{"nothing written of the next", []error{nil, errNext, epipe}, []error{nil, errNext, epipe}},
		{"something written of the next", []error{nil, errNext, nil, rst}, []error{nil, errNext, nil, nil}},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := &stubborn{script: c.writes}
			ours := &conn{Conn: raw}
			var got []error
			for len(raw.script) > 0 {
				if raw.script[0] == errNext {
					raw.script = raw.script[1:]
					taken(tls.Client(ours, &tls.Config{}))
					got = append(got, errNext)
					continue
				}
				n, err := ours.Write([]byte("abc"))
				if (n == 3) != (err == nil) {
					t.Errorf("wrote %d bytes with %v", n, err)
				}
				got = append(got, err)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("writes that end %v\nare reported as %v\nwant %v", c.writes, got, c.want)
			}
		})
	}
}

// errNext stands for the beginning of another request on the connection.
var errNext = errors.New("next request")

// An answer without end is given up, and its connection with it.
func TestEndlessAnswer(t *testing.T) {
	ended := make(chan error, 1)
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		chunk := []byte(strings.Repeat("x", 64<<10))
		for {
			if _, err := w.Write(chunk); err != nil {
				ended <- err
				return
			}
		}
	}, func(c *Config) { c.MaxAnswer = 2 << 20 })
	want{class: Permanent, status: 200, flags: "toolarge", err: "more than 2097152 bytes"}.check(t, u.NewCaller().Call(t.Context(), chat, []byte(`{}`)))
	<-ended
}

// An upstream may answer before it has read the request, and close: the answer counts.
func TestEarlyAnswer(t *testing.T) {
	body := []byte(answerOf(16 << 20)) // more than the buffers of two sockets hold
	const refusal = `{"error":{"message":"too large"}}`
	check := func(t *testing.T, u *Upstream) {
		caller := u.NewCaller()
		for i := range 20 {
			a := caller.Call(t.Context(), chat, body)
			if a.Class != Permanent || a.Status != 413 || string(a.Body) != refusal {
				t.Fatalf("call %d: %s, status %d, %q, %v; want the refusal", i+1, a.Class, a.Status, a.Body, a.Err)
			}
		}
	}
	for name, read := range map[string]int64{"at once": 0, "after some of the body": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			check(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
				io.CopyN(io.Discard, r.Body, read)
				w.WriteHeader(413)
				io.WriteString(w, refusal)
			}))
		})
	}
	// Closing with something unread makes the system reset the connection. That net/http's server
	// avoids, others do not.
	rude := func(conn net.Conn) {
		http.ReadRequest(bufio.NewReaderSize(conn, 16))
		fmt.Fprintf(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(refusal), refusal)
	}
	t.Run("and resets", func(t *testing.T) {
		check(t, newUpstream(t, "http://"+listen(t, rude)))
	})
	t.Run("and resets under TLS", func(t *testing.T) {
		s := httptest.NewTLSServer(nil)
		defer s.Close()
		u := newUpstream(t, "https://"+listen(t, func(conn net.Conn) {
			rude(tls.Server(conn, &tls.Config{Certificates: s.TLS.Certificates}))
		}))
		trust(u, s)
		check(t, u)
	})
}

// trust has u accept the certificate of s.
func trust(u *Upstream, s *httptest.Server) {
	u.rt.(*http.Transport).TLSClientConfig.RootCAs = s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
}

// Hosted APIs speak HTTP/2. Everything is as before.
func TestHTTP2(t *testing.T) {
	var conns atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch string(body) {
		case "abort":
			panic(http.ErrAbortHandler)
		case "break off":
			io.WriteString(w, `{"a":`)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "hang":
			<-r.Context().Done()
		}
		w.Header().Set("Proto", r.Proto)
		w.Write(body)
	}))
	s.EnableHTTP2 = true
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.StartTLS()
	defer s.Close()
	u := newUpstream(t, s.URL)
	trust(u, s)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			c := u.NewCaller()
			for _, body := range oddBodies[:4] {
				a := c.Call(t.Context(), chat, []byte(body))
				want{class: OK, status: 200}.check(t, a)
				if string(a.Body) != body {
					t.Errorf("sent %q, got %q", body, a.Body)
				}
			}
			want{class: Transient, flags: "cut", err: "stream error"}.check(t, c.Call(t.Context(), chat, []byte("abort")))
			want{class: Transient, flags: "cut", err: "broke off within the answer"}.check(t, c.Call(t.Context(), chat, []byte("break off")))
		})
	}
	workers.Wait()
	if n := conns.Load(); n > 8 {
		t.Errorf("%d connections, want few", n)
	}
	hasty := newUpstream(t, s.URL, func(c *Config) { c.Timeout = 100 * time.Millisecond })
	trust(hasty, s)
	want{class: Transient, flags: "timeout", err: "no answer within 100ms"}.check(t, hasty.NewCaller().Call(t.Context(), chat, []byte("hang")))
	s.Close()
	wantGone(t, u)
}

// wantGone checks that calls to u, at which nobody listens any more, are refused. The first ones may
// still meet dead connections.
func wantGone(t *testing.T, u *Upstream) {
	t.Helper()
	c := u.NewCaller()
	a := c.Call(t.Context(), chat, []byte(`{}`))
	for i := 0; i < 100 && a.Class == Transient && a.Cut; i++ {
		a = c.Call(t.Context(), chat, []byte(`{}`))
	}
	want{class: Refused, err: "connection refused"}.check(t, a)
}

func TestProxy(t *testing.T) {
	through := func(proxy string) func(*Config) {
		return func(c *Config) {
			tr := transport(Config{MaxInFlight: 1, Connect: DefaultConnect}, nil)
			tr.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(proxy) }
			c.Transport = tr
		}
	}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodConnect:
			http.Error(w, "not through here", http.StatusForbidden)
		case r.URL.Host == "upstream.test":
			fmt.Fprintf(w, `{"asked for":%q}`, r.URL)
		default:
			http.Error(w, "cannot reach it", http.StatusBadGateway)
		}
	}))
	defer proxy.Close()
	for _, c := range []struct {
		name, url, proxy string
		want             want
	}{
		{"through", "http://upstream.test/v1", proxy.URL, want{class: OK, status: 200}},
		{"cannot reach it", "http://elsewhere.test/v1", proxy.URL, want{class: Transient, status: 502, err: "cannot reach it"}},
		{"does not connect", "https://upstream.test/v1", proxy.URL, want{class: Refused, err: "Forbidden"}},
		{"is not there", "http://upstream.test/v1", "http://" + nobody(t), want{class: Refused, err: "proxyconnect"}},
		{"is not there either", "https://upstream.test/v1", "http://" + nobody(t), want{class: Refused, err: "proxyconnect"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.check(t, newUpstream(t, c.url, through(c.proxy)).NewCaller().Call(t.Context(), chat, []byte(`{}`)))
		})
	}
}

// The proxy that the environment names is used. The environment is read once per process, so it
// takes another process to see it.
func TestProxyFromEnvironment(t *testing.T) {
	if os.Getenv("OFFPEAK_TEST_PROXIED") != "" {
		a := newUpstream(t, "http://upstream.test/v1").NewCaller().Call(t.Context(), chat, []byte(`{}`))
		want{class: OK, status: 200}.check(t, a)
		return
	}
	asked := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		io.WriteString(w, `{}`)
	}))
	defer proxy.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestProxyFromEnvironment$")
	cmd.Env = append(os.Environ(), "OFFPEAK_TEST_PROXIED=1", "GORACE=atexit_sleep_ms=0", "HTTP_PROXY="+proxy.URL, "http_proxy=", "NO_PROXY=", "no_proxy=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, want := <-asked, "http://upstream.test/v1/chat/completions"; got != want {
		t.Errorf("the proxy was asked for %s, want %s", got, want)
	}
}

// TLS below 1.2 is not spoken.
func TestOldTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(t.Output(), "", 0)
	s.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	s.StartTLS()
	defer s.Close()
	want{class: Refused, err: "protocol version"}.check(t, newUpstream(t, s.URL).NewCaller().Call(t.Context(), chat, []byte(`{}`)))
}
