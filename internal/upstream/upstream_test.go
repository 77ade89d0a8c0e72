package upstream

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
)

const chat = "/v1/chat/completions"

// testKey is a key that must show up nowhere but in the Authorization header.
const testKey = "sk-secret-0123456789"

// newUpstream returns an upstream at the URL, with what change makes of its configuration.
func newUpstream(t testing.TB, url string, change ...func(*Config)) *Upstream {
	t.Helper()
	c := Config{URL: url, Key: testKey, Timeout: 10 * time.Second, standard: inStandard(t)}
	for _, f := range change {
		f(&c)
	}
	u, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

// serve starts a server of the handler and returns an upstream of it.
func serve(t testing.TB, h http.HandlerFunc, change ...func(*Config)) *Upstream {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return newUpstream(t, s.URL+"/v1", change...)
}

// want is what a test expects of an answer. What it does not name must be unset.
type want struct {
	class      Class
	status     int
	retryAfter time.Duration
	flags      string // those of cut, timeout, denied, toolarge that are set
	err        string // is in the error; empty: there is none
}

func (w want) check(t testing.TB, a Answer) {
	t.Helper()
	var flags []string
	for _, f := range []struct {
		set  bool
		name string
	}{{a.Cut, "cut"}, {a.Timeout, "timeout"}, {a.Denied, "denied"}, {a.TooLarge, "toolarge"}} {
		if f.set {
			flags = append(flags, f.name)
		}
	}
	got := want{a.Class, a.Status, a.RetryAfter, strings.Join(flags, " "), w.err}
	if got != w {
		t.Errorf("got %+v\nwant %+v\nthe error is %v", got, w, a.Err)
	}
	if (a.Err == nil) != (w.err == "") || a.Err != nil && !strings.Contains(a.Err.Error(), w.err) {
		t.Errorf("error %v, want %q", a.Err, w.err)
	}
	if (a.Class == OK) != (a.Err == nil) {
		t.Errorf("class %s with error %v", a.Class, a.Err)
	}
	if a.RequestID == "" {
		t.Error("no request id")
	}
	if a.Err != nil && strings.Contains(a.Err.Error(), testKey) {
		t.Errorf("the key is in the error: %v", a.Err)
	}
}

func TestClasses(t *testing.T) {
	const answer, refusal = `{"id":"x","usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}`, `{"error":{"message":"no"}}`
	for _, c := range []struct {
		name    string
		status  int
		headers string // "Name: value", one
		body    string
		want    want
	}{
		{"ok", 200, "", answer, want{class: OK}},
		{"created", 201, "", answer, want{class: OK}},
		{"pretty-printed", 200, "", "\r\n{\n  \"id\": \"x\"\n}\n", want{class: OK}},
		{"no content type", 200, "Content-Type: ", `{}`, want{class: OK}},
		{"wrong content type", 200, "Content-Type: text/html", `{}`, want{class: OK}},

		{"HTML", 200, "", "<html>\nsign in</html>", want{class: Transient, err: "HTTP 200 with an answer that is no JSON object: <html> sign in</html>"}},
		{"array", 200, "", `[{}]`, want{class: Transient, err: "no JSON object"}},
		{"string", 200, "", `"{}"`, want{class: Transient, err: "no JSON object"}},
		{"cut off", 200, "", `{"id":"x","choices":[`, want{class: Transient, err: "no JSON object"}},
		{"not UTF-8", 200, "", "{\"id\":\"\xff\"}", want{class: Transient, err: "no JSON object"}},
		{"event stream", 200, "", "data: {}\n\ndata: [DONE]\n\n", want{class: Transient, err: "no JSON object"}},
		{"two objects", 200, "", `{}{}`, want{class: Transient, err: "no JSON object"}},
		{"empty", 200, "", "", want{class: Transient, err: "no JSON object: (empty)"}},
		{"no content", 204, "", "", want{class: Transient, err: "HTTP 204"}},

		{"moved", 301, "Location: https://elsewhere/v1", "", want{class: Refused, err: "it redirects to https://elsewhere/v1"}},
		{"redirect", 307, "Location: /x", "", want{class: Refused, err: "it redirects to /x"}},
		{"not modified", 304, "", "", want{class: Refused, err: "HTTP 304"}},
		{"unauthorized", 401, "", `{"error":{"message":"Incorrect API key provided: ` + testKey + `."}}`, want{class: Refused, err: "HTTP 401: Incorrect API key provided: (key). (is its key right? It comes from OFFPEAK_UPSTREAM_KEY"}},
		{"payment required", 402, "", refusal, want{class: Refused, err: "HTTP 402"}},
		{"proxy wants a password", 407, "", "", want{class: Refused, err: "HTTP 407: (empty)"}},

		{"bad request", 400, "", refusal, want{class: Permanent, err: "HTTP 400: no"}},
		{"forbidden", 403, "", refusal, want{class: Permanent, flags: "denied", err: "HTTP 403"}},
		{"not found", 404, "", refusal, want{class: Permanent, flags: "denied", err: "HTTP 404"}},
		{"method not allowed", 405, "", refusal, want{class: Permanent, err: "HTTP 405"}},
		{"too large", 413, "", refusal, want{class: Permanent, err: "HTTP 413"}},
		{"teapot", 418, "", refusal, want{class: Permanent, err: "HTTP 418"}},
		{"unprocessable", 422, "", refusal, want{class: Permanent, err: "HTTP 422"}},

		{"request timeout", 408, "", "", want{class: Transient, flags: "timeout", err: "HTTP 408"}},
		{"conflict", 409, "", refusal, want{class: Transient, err: "HTTP 409"}},
		{"too early", 425, "", refusal, want{class: Transient, err: "HTTP 425"}},
		{"internal", 500, "", refusal, want{class: Transient, err: "HTTP 500"}},
		{"not implemented", 501, "", refusal, want{class: Transient, err: "HTTP 501"}},
		{"bad gateway", 502, "", "<h1>Bad Gateway</h1>", want{class: Transient, err: "HTTP 502: <h1>Bad Gateway</h1>"}},
		{"gateway timeout", 504, "", "", want{class: Transient, flags: "timeout", err: "HTTP 504"}},
		{"unknown", 599, "", "", want{class: Transient, err: "HTTP 599"}},

		{"throttled", 429, "Retry-After: 7", refusal, want{class: Throttled, retryAfter: 7 * time.Second, err: "HTTP 429"}},
		{"throttled, no hint", 429, "", refusal, want{class: Throttled, err: "HTTP 429"}},
		{"unavailable", 503, "Retry-After: 2", "<html>", want{class: Throttled, retryAfter: 2 * time.Second, err: "HTTP 503: <html>"}},
		{"overloaded", 529, "Retry-After-Ms: 20", "", want{class: Throttled, retryAfter: 20 * time.Millisecond, err: "HTTP 529"}},
		{"a hint elsewhere", 500, "Retry-After: 7", "", want{class: Transient, err: "HTTP 500"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if name, value, ok := strings.Cut(c.headers, ": "); ok {
					w.Header().Set(name, value)
				}
				w.Header().Set("X-Request-Id", "req-1")
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
			c.want.status = c.status
			c.want.check(t, a)
			if string(a.Body) != c.body {
				t.Errorf("body %q, want %q", a.Body, c.body)
			}
			if a.RequestID != "req-1" {
				t.Errorf("request id %q, want the upstream's", a.RequestID)
			}
			if c.body == answer && a.Usage != (batch.Usage{Input: 3, Output: 2, Total: 5}) {
				t.Errorf("usage %+v of %s", a.Usage, c.body)
			}
		})
	}
}

func TestClassNames(t *testing.T) {
	for class, want := range map[Class]string{
		OK: "ok", Throttled: "throttled", Transient: "transient", Permanent: "permanent", Refused: "refused", Aborted: "aborted",
	} {
		if got := class.String(); got != want {
			t.Errorf("class %d is called %s, want %s", class, got, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		seconds, millis string // headers; empty: not there
		want            time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{"1", "", time.Second},
		{"20", "", 20 * time.Second},
		{"1.5", "", 1500 * time.Millisecond},
		{"", "250", 250 * time.Millisecond},
		{"", "0.5", 500 * time.Microsecond},
		{"7", "250", 250 * time.Millisecond},
		{"7", "soon", 7 * time.Second},
		{"7", "NaN", 7 * time.Second},
		{"Tue, 01 Sep 2026 12:00:30 GMT", "", 30 * time.Second},
		{"Tuesday, 01-Sep-26 12:00:30 GMT", "", 30 * time.Second},
		{"Tue, 01 Sep 2026 11:00:00 GMT", "", 0},
		{"Tue, 01 Sep 2099 12:00:00 GMT", "", 0},
		{"-5", "", 0},
		{"-1e300", "", 0},
		{"3600", "", time.Hour},
		{"86400", "", 0},
		{"9223372036", "", 0},
		{"10000000000", "", 0}, // more than a Duration holds
		{"1e300", "", 0},
		{"Inf", "", 0},
		{"", "1e300", 0},
		{"-Inf", "", 0},
		{"NaN", "", 0},
		{"soon", "", 0},
		{"1s", "", 0},
		{"1,5", "", 0},
	} {
		h := http.Header{}
		if c.seconds != "" {
			h.Set("Retry-After", c.seconds)
		}
		if c.millis != "" {
			h.Set("Retry-After-Ms", c.millis)
		}
		if got := retryAfter(h, now); got != c.want {
			t.Errorf("Retry-After %q, Retry-After-Ms %q: got %v, want %v", c.seconds, c.millis, got, c.want)
		}
	}
}

// oddBodies are what a decoder and encoder would change.
var oddBodies = []string{
	`{}`,
	`{"model":"m","n":9007199254740993,"f":1.0,"g":1E+2,"z":-0}`,
	`{"s":"<>&\u003c\u2028\ud800 é 東京 🚀","a":1,"a":2}`,
	" { \"b\" :\t1 , \"a\" : [ ] } \r",
	"not JSON \x00\xff",
	`{"long":"` + strings.Repeat("x", 5<<18) + `"}`,
}

// Promise 8: requests reach the upstream byte for byte, with nothing strange around them.
func TestRequestOnTheWire(t *testing.T) {
	type seen struct {
		body string
		r    *http.Request
	}
	got := make(chan seen, 1)
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- seen{string(body), r}
		io.WriteString(w, `{}`)
	})
	c := u.NewCaller()
	for _, body := range oddBodies {
		want{class: OK, status: 200}.check(t, c.Call(t.Context(), chat, []byte(body)))
		s := <-got
		if s.body != body {
			t.Errorf("sent %.100q (%d bytes)\n got %.100q (%d bytes)", body, len(body), s.body, len(s.body))
		}
		if s.r.Method != "POST" || s.r.URL.RequestURI() != chat {
			t.Errorf("got %s %s, want POST %s", s.r.Method, s.r.URL.RequestURI(), chat)
		}
		if s.r.ContentLength != int64(len(body)) || len(s.r.TransferEncoding) > 0 {
			t.Errorf("Content-Length %d, Transfer-Encoding %q, want %d and none", s.r.ContentLength, s.r.TransferEncoding, len(body))
		}
		s.r.Header.Del("Content-Length")
		wantHeader := http.Header{
			"Authorization": {"Bearer " + testKey}, "Content-Type": {"application/json"},
			"Accept": {"application/json"}, "User-Agent": {"offpeak"},
		}
		if fmt.Sprint(s.r.Header) != fmt.Sprint(wantHeader) {
			t.Errorf("headers %v\n   want %v", s.r.Header, wantHeader)
		}
	}
}

func TestNoKeyNoAuthorization(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if got, ok := r.Header["Authorization"]; ok {
			t.Errorf("Authorization %q without a key", got)
		}
		io.WriteString(w, `{"data":[]}`)
	}, func(c *Config) { c.Key = "" })
	want{class: OK, status: 200}.check(t, u.NewCaller().Call(t.Context(), chat, nil))
	if _, _, err := u.list(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAnswersAreBytes(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	c := u.NewCaller()
	for _, body := range oddBodies {
		if a := c.Call(t.Context(), chat, []byte(body)); string(a.Body) != body {
			t.Errorf("sent %.100q (%d bytes)\n got %.100q (%d bytes), %v", body, len(body), a.Body, len(a.Body), a.Err)
		}
	}
}

// A path prefix stays, whatever is in it, and the endpoint's /v1 is the URL's own.
func TestEndpoints(t *testing.T) {
	paths := make(chan string, 2)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paths <- r.URL.EscapedPath()
		io.WriteString(w, `{"object":"list","data":[]}`)
	}))
	defer s.Close()
	for _, c := range []struct{ base, endpoint, want, models string }{
		{"", chat, "/v1/chat/completions", "/v1/models"},
		{"/", chat, "/v1/chat/completions", "/v1/models"},
		{"/v1", chat, "/v1/chat/completions", "/v1/models"},
		{"/v1/", "/v1/embeddings", "/v1/embeddings", "/v1/models"},
		{"/v1//", "/v1/rerank", "/v1/rerank", "/v1/models"},
		{"/openai/v1", chat, "/openai/v1/chat/completions", "/openai/v1/models"},
		{"/api/v3", "/v1/images/generations", "/api/v3/images/generations", "/api/v3/models"},
		{"/a%2Fb/c%20d/v1", chat, "/a%2Fb/c%20d/v1/chat/completions", "/a%2Fb/c%20d/v1/models"},
		{"/v1", "/score", "/v1/score", "/v1/models"},
	} {
		u := newUpstream(t, s.URL+c.base)
		want{class: OK, status: 200}.check(t, u.NewCaller().Call(t.Context(), c.endpoint, []byte(`{}`)))
		if got := <-paths; got != c.want {
			t.Errorf("base %q, endpoint %s: got %s, want %s", c.base, c.endpoint, got, c.want)
		}
		if _, _, err := u.list(t.Context()); err != nil {
			t.Error(err)
		}
		if got := <-paths; got != c.models {
			t.Errorf("base %q: models are asked for at %s, want %s", c.base, got, c.models)
		}
	}
}

// One caller serves the lanes of several endpoints.
func TestCallerChangesEndpoint(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"path":%q}`, r.URL.Path) })
	c := u.NewCaller()
	for _, endpoint := range []string{chat, "/v1/embeddings", chat, chat, "/v1/completions"} {
		if a, want := c.Call(t.Context(), endpoint, []byte(`{}`)), `{"path":"`+endpoint+`"}`; string(a.Body) != want {
			t.Errorf("got %s, want %s", a.Body, want)
		}
	}
}

func TestRequestID(t *testing.T) {
	id := ""
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if id != "" {
			w.Header().Set("X-Request-Id", id)
		}
		io.WriteString(w, `{}`)
	})
	c := u.NewCaller()
	for _, id = range []string{"req_1", strings.Repeat("x", maxRequestID)} {
		if a := c.Call(t.Context(), chat, nil); a.RequestID != id {
			t.Errorf("got %q, want the upstream's %q", a.RequestID, id)
		}
	}
	drawn := map[string]bool{}
	for _, id = range []string{"", "", strings.Repeat("x", maxRequestID+1)} {
		a := c.Call(t.Context(), chat, nil)
		if len(a.RequestID) != 32 || drawn[a.RequestID] {
			t.Errorf("upstream's id of %d characters: got %q, want a new one of ours", len(id), a.RequestID)
		}
		drawn[a.RequestID] = true
	}
}

// answerOf returns a JSON object of exactly n bytes.
func answerOf(n int) string {
	const frame = `{"x":""}`
	return `{"x":"` + strings.Repeat("y", n-len(frame)) + `"}`
}

func TestAnswerSizes(t *testing.T) {
	const limit = smallAnswer + 64<<10
	ok, tooLarge := want{class: OK, status: 200}, want{class: Permanent, status: 200, flags: "toolarge", err: "the answer has more than"}
	for _, c := range []struct {
		max  int64
		size int
		want want
	}{
		{limit, 8, ok},
		{limit, smallAnswer - 1, ok},
		{limit, smallAnswer, ok},
		{limit, smallAnswer + 1, ok},
		{limit, limit - 1, ok},
		{limit, limit, ok},
		{limit, limit + 1, tooLarge},
		{limit, 2 * limit, tooLarge},
		{smallAnswer, smallAnswer, ok},
		{smallAnswer, smallAnswer + 1, tooLarge},
		{smallAnswer - 1, smallAnswer - 1, ok},
		{smallAnswer - 1, smallAnswer, tooLarge},
		{1000, 1000, ok},
		{1000, 1001, tooLarge},
		{1000, 500_000, tooLarge},
		{1000, limit, tooLarge},
	} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d of at most %d, chunked %v", c.size, c.max, chunked), func(t *testing.T) {
				body := answerOf(c.size)
				u := serve(t, func(w http.ResponseWriter, r *http.Request) {
					if chunked {
						w.(http.Flusher).Flush()
					} else {
						w.Header().Set("Content-Length", strconv.Itoa(len(body)))
					}
					io.WriteString(w, body)
				}, func(cfg *Config) { cfg.MaxAnswer = c.max })
				caller := u.NewCaller()
				for range 2 { // the connection is of use afterwards, or replaced
					a := caller.Call(t.Context(), chat, []byte(`{}`))
					c.want.check(t, a)
					if a.Class == OK && string(a.Body) != body {
						t.Errorf("%d bytes that are not those sent", len(a.Body))
					}
				}
			})
		}
	}
}

// An error page beyond all bounds is an error all the same.
func TestLargeErrorPage(t *testing.T) {
	for _, c := range []struct {
		size int
		max  int64
	}{{30_000, 1000}, {3 << 20, 1000}, {3 << 20, 2 << 20}} {
		for _, length := range []string{"", strconv.Itoa(c.size)} {
			u := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if length != "" {
					w.Header().Set("Content-Length", length)
				}
				w.WriteHeader(500)
				io.WriteString(w, strings.Repeat("no ", c.size/3))
			}, func(cfg *Config) { cfg.MaxAnswer = c.max })
			a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
			want{class: Transient, status: 500, err: "HTTP 500: no no no"}.check(t, a)
			if int64(len(a.Body)) > c.max+1 {
				t.Errorf("%d bytes read of an error, at most %d allowed", len(a.Body), c.max)
			}
		}
	}
}

func TestLargestAnswer(t *testing.T) {
	body := answerOf(50 << 20)
	u := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) })
	c := u.NewCaller()
	a := c.Call(t.Context(), chat, []byte(`{}`))
	want{class: OK, status: 200}.check(t, a)
	if string(a.Body) != body {
		t.Errorf("%d bytes that are not the %d sent", len(a.Body), len(body))
	}
	if c.buf.Cap() != 0 {
		t.Errorf("the caller keeps %d bytes of a large answer", c.buf.Cap())
	}
}

// However many large answers arrive at once, each is read to its end.
func TestLargeAnswersAtOnce(t *testing.T) {
	const n = 8
	body := answerOf(5 << 19)
	var arrived sync.WaitGroup
	arrived.Add(n)
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, body[:2000])
		w.(http.Flusher).Flush()
		arrived.Done()
		arrived.Wait() // all are under way
		io.WriteString(w, body[2000:])
	})
	var calls sync.WaitGroup
	for range n {
		calls.Go(func() {
			c := u.NewCaller()
			defer c.Release()
			a := c.Call(t.Context(), chat, []byte(`{}`))
			want{class: OK, status: 200}.check(t, a)
			if string(a.Body) != body {
				t.Errorf("%d bytes that are not the %d sent", len(a.Body), len(body))
			}
		})
	}
	calls.Wait()
}

// However many calls are in flight, only so many have an answer in hand that is not quite small, and
// one has a large one. The others read on once theirs is released.
func TestAnswersInHand(t *testing.T) {
	for _, test := range []struct{ size, most int }{{ownAnswer, 40}, {ownAnswer + 1, smallAtOnce}, {smallAnswer, smallAtOnce}, {smallAnswer + 1, 1}} {
		synctest.Test(t, func(t *testing.T) {
			body := answerOf(test.size)
			u := newUpstream(t, "http://host", func(c *Config) {
				c.Transport = roundTripper(func(*http.Request) (*http.Response, error) {
					return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), ContentLength: -1}, nil
				})
			})
			callers := make(chan *Caller, 40)
			for range cap(callers) {
				go func() {
					c := u.NewCaller()
					want{class: OK, status: 200}.check(t, c.Call(context.Background(), chat, []byte(`{}`)))
					callers <- c
				}()
			}
			for done := 0; done < cap(callers); {
				synctest.Wait()
				n := len(callers)
				if n == 0 || n > test.most {
					t.Fatalf("%d calls have an answer of %d bytes in hand, want from 1 to %d", n, test.size, test.most)
				}
				done += n
				for range n {
					(<-callers).Release()
				}
			}
		})
	}
}

// A call that waits for its turn to read a large answer ends when it is given up, or out of time.
func TestWaitingForTurnEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := answerOf(smallAnswer + 1)
		u := newUpstream(t, "http://host", func(c *Config) {
			c.Transport = roundTripper(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), ContentLength: -1}, nil
			})
		})
		call := func(ctx context.Context) chan Answer {
			done := make(chan Answer, 1)
			go func() { done <- u.NewCaller().Call(ctx, chat, []byte(`{}`)) }()
			synctest.Wait()
			return done
		}
		u.large <- struct{}{} // somebody reads
		ctx, stop := context.WithCancel(t.Context())
		first, second := call(ctx), call(t.Context())
		if len(first)+len(second) > 0 {
			t.Fatal("a call did not wait for its turn")
		}
		stop()
		want{class: Aborted, err: "context canceled"}.check(t, <-first)
		want{class: Transient, flags: "timeout", err: "no answer within 10s"}.check(t, <-second)
		third := call(t.Context())
		<-u.large // it is read
		want{class: OK, status: 200}.check(t, <-third)
	})
}

// The connection serves call after call, whatever the answers were.
func TestConnectionIsReused(t *testing.T) {
	var mu sync.Mutex
	conns := map[string]bool{}
	n := 0
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		conns[r.RemoteAddr] = true
		n++
		io.Copy(io.Discard, r.Body)
		w.WriteHeader([]int{200, 400, 429, 500, 204, 200, 302, 404}[n%8])
		if n%8 != 4 {
			io.WriteString(w, answerOf(10<<(n%8)*2))
		}
	})
	c := u.NewCaller()
	for range 64 {
		c.Call(t.Context(), chat, []byte(`{}`))
	}
	if len(conns) != 1 {
		t.Errorf("64 calls took %d connections, want 1", len(conns))
	}
}

func TestNewDefaults(t *testing.T) {
	u, err := New(Config{URL: "http://host:8000"})
	if err != nil {
		t.Fatal(err)
	}
	if u.MaxInFlight() != 0 || u.Weight() != 1 || u.cfg.Connect != DefaultConnect || u.cfg.FirstByte != 0 || u.cfg.BetweenBytes != 0 || u.cfg.Timeout != DefaultTimeout || u.cfg.MaxAnswer != DefaultMaxAnswer {
		t.Errorf("got %+v", u.cfg)
	}
	if got, want := u.Name(), "http://host:8000/v1"; got != want {
		t.Errorf("name %s, want %s", got, want)
	}
	tr := u.rt.(*http.Transport)
	if tr.MaxIdleConnsPerHost != manyConnections || tr.MaxIdleConns != manyConnections {
		t.Errorf("keeps %d idle connections where the limit is to be found out", tr.MaxIdleConnsPerHost)
	}
	some := newUpstream(t, "http://host", func(c *Config) { c.MaxInFlight = 30 }).rt.(*http.Transport)
	if some.MaxIdleConnsPerHost != 30 || some.MaxIdleConns != 30 {
		t.Errorf("keeps %d idle connections, of 30 calls at a time", some.MaxIdleConnsPerHost)
	}
	if tr.IdleConnTimeout >= 5*time.Second {
		t.Errorf("keeps idle connections for %v; servers close them after 5s", tr.IdleConnTimeout)
	}
	if !tr.DisableCompression || tr.Proxy == nil || tr.ResponseHeaderTimeout != 0 {
		t.Errorf("compression disabled %v, proxies from the environment %v, time to the first byte %v", tr.DisableCompression, tr.Proxy != nil, tr.ResponseHeaderTimeout)
	}
}

func TestNewErrors(t *testing.T) {
	for _, c := range []struct {
		config Config
		want   string
	}{
		{Config{}, `the URL is ""; want a URL like http://localhost:8000/v1`},
		{Config{URL: "localhost:8000"}, `the URL is "localhost:8000"; want`},
		{Config{URL: "127.0.0.1:8000/v1"}, "first path segment in URL cannot contain colon; want"},
		{Config{URL: "/v1"}, `the URL is "/v1"; want`},
		{Config{URL: "ftp://host/v1"}, `the URL is "ftp://host/v1"; want`},
		{Config{URL: "http://"}, `the URL is "http://"; want`},
		{Config{URL: "http:///v1"}, `the URL is "http:///v1"; want`},
		{Config{URL: "http://:8000/v1"}, `the URL is "http://:8000/v1"; want`},
		{Config{URL: "http://host:port/v1"}, "invalid port"},
		{Config{URL: "http://ho st/v1"}, "invalid character"},
		{Config{URL: "http://host/v1?api-version=1"}, "the URL of host has a query or fragment in it"},
		{Config{URL: "http://host/v1?"}, "the URL of host has a query or fragment in it"},
		{Config{URL: "http://host/v1#x"}, "the URL of host has a query or fragment in it"},
		{Config{URL: "http://ho st/v1?key=" + testKey}, "invalid character"},
		{Config{URL: "http://host/v1?key=" + testKey}, "the URL of host has a query or fragment in it"},
		{Config{URL: "http://" + testKey + "@host/v1"}, "put the key into the environment"},
		{Config{URL: "http://user:" + testKey + "@host/v1"}, "put the key into the environment"},
		{Config{URL: "http://user:" + testKey + " x@host/v1"}, "put the key into the environment"},
		{Config{URL: "http://user:" + testKey + "/x@host/v1"}, "put the key into the environment"},
		{Config{URL: "user:" + testKey + "@host:8000/v1"}, "put the key into the environment"},
		{Config{URL: "http://host/v1", MaxInFlight: -1}, "max_in_flight is -1, want at least 1"},
		{Config{URL: "http://host/v1", Key: testKey + "\r\nX-Evil: 1"}, "its key has a control character in it"},
	} {
		_, err := New(c.config)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %s", c.config, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), testKey) {
			t.Errorf("the key is in the error: %v", err)
		}
	}
}

func TestNewIsLenient(t *testing.T) {
	for _, c := range []struct{ url, want string }{
		{" http://host:8000/v1\n", "http://host:8000/v1"},
		{"HTTP://host", "http://host/v1"},
		{"https://api.example.com/openai/v1/", "https://api.example.com/openai/v1"},
		{"http://[::1]:8000", "http://[::1]:8000/v1"},
		{"http://host:8000/v1///", "http://host:8000/v1"},
	} {
		if u := newUpstream(t, c.url); u.Name() != c.want {
			t.Errorf("%q: name %s, want %s", c.url, u.Name(), c.want)
		}
	}
	u := newUpstream(t, "http://host", func(c *Config) { c.Key = testKey + "\n" })
	if got, want := u.header.Get("Authorization"), "Bearer "+testKey; got != want {
		t.Errorf("Authorization %q, want %q", got, want)
	}
	if strings.Contains(u.Name(), testKey) {
		t.Error("the key is in the name")
	}
}

func TestExcerpt(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{"", "(empty)"},
		{" \r\n\t ", "(empty)"},
		{"<html>\r\n  <b>no</b>\n", "<html> <b>no</b>"},
		{"caf\xe9!", "caf!"},
		{strings.Repeat("é", 200), strings.Repeat("é", 200)},
		{strings.Repeat("é", 201), strings.Repeat("é", 200) + "…"},
		{strings.Repeat("a b ", 10_000), strings.Repeat("a b ", 50) + "…"},
		{strings.Repeat("🚀", 1000), strings.Repeat("🚀", 200) + "…"},
		{"a" + strings.Repeat(" ", 10_000) + "b", "a…"},
	} {
		if got := excerpt([]byte(c.body)); got != c.want {
			t.Errorf("%.20q… of %d bytes\n got %q\nwant %q", c.body, len(c.body), got, c.want)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	answer := `{"id":"chatcmpl-1","choices":[{"message":{"role":"assistant","content":"` + strings.Repeat("word ", 50) + `"}}],"usage":{"prompt_tokens":10,"completion_tokens":50,"total_tokens":60}}`
	u := serve(b, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, answer)
	})
	c := u.NewCaller()
	body := []byte(answerOf(300))
	b.ReportAllocs()
	for b.Loop() {
		if a := c.Call(b.Context(), chat, body); a.Class != OK {
			b.Fatal(a.Err)
		}
	}
}

// TestKeyStaysOurs: an upstream that repeats the key it was sent does not tell it to those who sent
// the requests.
func TestKeyStaysOurs(t *testing.T) {
	for _, status := range []int{400, 403, 404, 422, 500, 502} {
		u := serve(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Request-Id", "id-of-"+r.Header.Get("Authorization"))
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"you sent":%q, "twice":%q}`, r.Header.Get("Authorization"), r.Header.Get("Authorization"))
		})
		a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
		if want := `{"you sent":"Bearer (key)", "twice":"Bearer (key)"}`; string(a.Body) != want {
			t.Errorf("status %d: body %s, want %s", status, a.Body, want)
		}
		if strings.Contains(a.RequestID, testKey) || strings.Contains(a.Err.Error(), testKey) {
			t.Errorf("status %d: request id %q, error %v", status, a.RequestID, a.Err)
		}
	}
}

// A secret in which the key stands is one as a whole.
func TestSecretWithinASecret(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(400)
		fmt.Fprintf(w, `{"you sent":%q}`, r.Header.Get("X-Team"))
	}, func(c *Config) { c.Headers = map[string]string{"X-Team": "ours-" + testKey + "-alone"} })
	a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
	if want := `{"you sent":"(key)"}`; string(a.Body) != want {
		t.Errorf("body %s, want %s", a.Body, want)
	}
}

// TestHostileAnswers: whatever an upstream sends, it is a class of answer, and is given up at a bound.
func TestHostileAnswers(t *testing.T) {
	endless := func(text string) func(io.Writer) {
		return func(w io.Writer) {
			chunk := []byte(strings.Repeat(text, 1<<16/len(text)))
			for {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}
	}
	text := func(s string) func(io.Writer) { return func(w io.Writer) { io.WriteString(w, s) } }
	whole := func(body string) func(io.Writer) {
		return text(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	}
	then := func(all ...func(io.Writer)) func(io.Writer) {
		return func(w io.Writer) {
			for _, f := range all {
				f(w)
			}
		}
	}
	const ok = "HTTP/1.1 200 OK\r\n"
	deep := strings.Repeat(`{"a":`, 1<<20)
	digits := strings.Repeat("9", 100_000)
	for name, c := range map[string]struct {
		send  func(io.Writer)
		class Class
	}{
		"a million brackets":          {whole(strings.Repeat("[", 1<<20)), Transient},
		"a million brackets, closed":  {whole(`{"a":` + strings.Repeat("[", 1<<20) + strings.Repeat("]", 1<<20) + "}"), Transient},
		"a million objects":           {whole(deep), Transient},
		"a number of 100,000 digits":  {whole(`{"usage":{"prompt_tokens":` + digits + `,"completion_tokens":1e` + digits + `}}`), OK},
		"a string of nothing":         {whole(`{"a":"` + strings.Repeat(`\u0000`, 1<<17) + `"}`), OK},
		"a body without end":          {then(text(ok+"\r\n{"), endless(" ")), Permanent},
		"chunks without end":          {then(text(ok+"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"), endless("1\r\n \r\n")), Permanent},
		"headers without end":         {then(text(ok), endless("X-More: of them\r\n")), Transient},
		"a header without end":        {then(text(ok+"X-Long: "), endless("x")), Transient},
		"a status without end":        {then(text("HTTP/1.1 200 "), endless("x")), Transient},
		"1xx without end":             {endless("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), Transient},
		"100 without end":             {endless("HTTP/1.1 100 Continue\r\n\r\n"), Transient},
		"trailers without end":        {then(text(ok+"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"), endless("X-More: of them\r\n")), Transient},
		"a chunk extension, no end":   {then(text(ok+"Transfer-Encoding: chunked\r\n\r\n2;"), endless("x")), Transient},
		"two lengths":                 {text(ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), Transient},
		"a length that is negative":   {text(ok + "Content-Length: -1\r\n\r\n{}"), Transient},
		"a length that is too large":  {text(ok + "Content-Length: 9223372036854775807\r\n\r\n{}"), Permanent},
		"another protocol":            {text("SSH-2.0-OpenSSH_9.7\r\n"), Transient},
		"switching protocols":         {then(text("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"), endless("x")), Transient},
		"a compressed body":           {whole("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"), Transient},
		"a redirect far away":         {text("HTTP/1.1 302 Found\r\nLocation: http://x/" + strings.Repeat("x", 100<<10) + "\r\nContent-Length: 0\r\n\r\n"), Refused},
		"a redirect that shows a key": {text("HTTP/1.1 302 Found\r\nLocation: http://x/" + testKey + "\r\nContent-Length: 0\r\n\r\n"), Refused},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						defer conn.Close()
						if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
							c.send(conn)
						}
					}()
				}
			}()
			u := newUpstream(t, "http://"+l.Addr().String()+"/v1", func(c *Config) {
				c.MaxAnswer, c.Timeout = 8<<20, 3*time.Minute
				if name == "chunks without end" {
					c.MaxAnswer = 1 << 20 // of a byte each; eight times as many take a minute, and show no more
				}
			})
			a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
			if a.Class != c.class || a.Timeout {
				t.Errorf("class %s, error %v; want %s", a.Class, a.Err, c.class)
			}
			if a.Err != nil && (len(a.Err.Error()) > 2000 || strings.Contains(a.Err.Error(), testKey)) {
				t.Errorf("an error of %d bytes: %.300s", len(a.Err.Error()), a.Err)
			}
		})
	}
}
