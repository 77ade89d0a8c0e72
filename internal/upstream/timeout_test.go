package upstream

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A dialerFunc is a Dialer.
type dialerFunc func() (net.Conn, error)

func (f dialerFunc) DialContext(context.Context, string, string) (net.Conn, error) { return f() }

// inMemory has an upstream's connections be pipes that serve serves, so that time can be made up.
func inMemory(c *Config, serve func(net.Conn)) {
	c.Dialer = dialerFunc(func() (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			serve(theirs)
		}()
		return ours, nil
	})
}

// Each of the timeouts ends a call when it should, to the moment, and no earlier.
func TestTimeouts(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	ok := want{class: OK, status: 200}
	late := func(says string) want { return want{class: Transient, flags: "timeout", err: says} }
	type step struct {
		after time.Duration
		says  string
	}
	trickle := func(n int, every time.Duration) (steps []step) {
		body := answerOf(n)
		steps = []step{{0, fmt.Sprintf("%sContent-Length: %d\r\n\r\n", head, n)}}
		for i := range n {
			steps = append(steps, step{every, body[i : i+1]})
		}
		return steps
	}
	large := answerOf(smallAnswer + 100)
	for _, c := range []struct {
		name   string
		config Config
		unread bool // the upstream does not even read the request
		steps  []step
		want   want
		took   time.Duration
	}{
		{"nothing is bounded", Config{}, false, []step{{50 * time.Minute, head + "Content-Length: 2\r\n\r\n{"}, {5 * time.Minute, "}"}}, ok, 55 * time.Minute},
		{"an hour at most", Config{}, false, nil, late("no answer within 1h0m0s"), time.Hour},
		{"total", Config{Timeout: 3 * time.Second}, false, trickle(20, time.Second), late("no answer within 3s"), 3 * time.Second},
		{"first byte", Config{FirstByte: 5 * time.Second}, false, nil, late("no answer began within 5s"), 5 * time.Second},
		{"first byte, request unread", Config{FirstByte: 5 * time.Second}, true, nil, late("no answer began within 5s"), 5 * time.Second},
		{"first byte, within the headers", Config{FirstByte: 5 * time.Second}, false, []step{{0, head}}, late("no answer began within 5s"), 5 * time.Second},
		{"first byte in time", Config{FirstByte: 5 * time.Second}, false, []step{{4 * time.Second, head + "Content-Length: 2\r\n\r\n"}, {time.Minute, "{}"}}, ok, 64 * time.Second},
		{"between bytes", Config{BetweenBytes: 5 * time.Second}, false, []step{{time.Minute, head + "Content-Length: 9\r\n\r\n{"}}, late("nothing came for 5s within the answer"), 65 * time.Second},
		{"between bytes of a large answer", Config{BetweenBytes: 5 * time.Second}, false,
			[]step{{0, fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(large), large[:len(large)-1])}}, late("nothing came for 5s within the answer"), 5 * time.Second},
		{"slow but steady", Config{BetweenBytes: 5 * time.Second, FirstByte: 5 * time.Second}, false, trickle(30, 4*time.Second), ok, 2 * time.Minute},
		{"of an error", Config{BetweenBytes: 5 * time.Second}, false, []step{{0, "HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\n{"}}, late("nothing came for 5s"), 5 * time.Second},
		{"of a throttle", Config{BetweenBytes: 5 * time.Second}, false, []step{{0, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\nbusy"}}, want{class: Throttled, status: 503, err: "HTTP 503: busy"}, 5 * time.Second},
		{"all of them, and none reached", Config{FirstByte: time.Second, BetweenBytes: time.Second, Timeout: time.Second}, false, []step{{0, head + "Content-Length: 2\r\n\r\n{}"}}, ok, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inMemory(&c.config, func(conn net.Conn) {
					if c.unread {
						time.Sleep(2 * time.Hour)
						return
					}
					r := bufio.NewReader(conn)
					for {
						if _, err := readRequest(r); err != nil {
							return
						}
						for _, s := range c.steps {
							time.Sleep(s.after)
							if _, err := io.WriteString(conn, s.says); err != nil {
								return
							}
						}
					}
				})
				c.config.URL, c.config.MetricsURL, c.config.standard = "http://host", NoMetrics, inStandard(t)
				u, err := New(c.config)
				if err != nil {
					t.Fatal(err)
				}
				defer time.Sleep(3 * time.Hour) // until the server has noticed
				defer u.Close()
				caller := u.NewCaller()
				start := time.Now()
				c.want.check(t, caller.Call(t.Context(), chat, []byte(`{"x":1}`)))
				if took := time.Since(start); took != c.took {
					t.Errorf("it took %s, want %s", took, c.took)
				}
				// What bounds one call is of no consequence to the next.
				time.Sleep(time.Hour)
				if a := caller.Call(t.Context(), chat, []byte(`{"x":1}`)); a.Class != c.want.class {
					t.Errorf("the second call: %s, %v; want %s", a.Class, a.Err, c.want.class)
				}
			})
		})
	}
}

// Whoever gives a call up need not wait for any of the timeouts.
func TestAbortBeforeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Config{URL: "http://host", FirstByte: time.Minute, BetweenBytes: time.Minute, standard: inStandard(t)}
		inMemory(&c, hang)
		u, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		want{class: Aborted, err: "deadline exceeded"}.check(t, u.NewCaller().Call(ctx, chat, []byte(`{}`)))
	})
}

// A host that takes no connection, or does not get on with TLS, is refused after the timeout for it.
func TestConnectTimeout(t *testing.T) {
	const timeout = 200 * time.Millisecond
	// Of a listener that accepts nothing, Linux lets as many connections in as its backlog has room
	// for. All others hang.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	full := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for range 8 {
		conn, err := net.DialTimeout("tcp", full, 100*time.Millisecond)
		if err != nil {
			break
		}
		defer conn.Close()
	}
	for name, url := range map[string]string{"connection": "http://" + full, "TLS": "https://" + listen(t, hang)} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, url, func(c *Config) { c.Connect = timeout })
			start := time.Now()
			a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
			if a.Class != Refused || !strings.Contains(a.Err.Error(), "timeout") {
				t.Errorf("%s, %v; want refused for a timeout", a.Class, a.Err)
			}
			if took := time.Since(start); took < timeout || took > 5*time.Second {
				t.Errorf("it took %s, want %s", took, timeout)
			}
		})
	}
}
