package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
)

// A tester is a server over a real connection, and what stands behind it.
type tester struct {
	testing.TB
	url   string
	key   string // of the requests that it sends
	store *fakeStore
	blobs *fakeBlobs
	wakes atomic.Int32
	now   atomic.Int64 // unix seconds
	log   syncBuffer
}

const keyA, keyB = "sk-key-of-project-a", "sk-key-of-project-b"

func newTester(t testing.TB, edit func(*Config)) *tester {
	x := &tester{TB: t, key: keyA, blobs: newFakeBlobs()}
	x.now.Store(1762344000) // 2025-11-05 12:00:00 UTC
	now := func() time.Time { return time.Unix(x.now.Load(), 0) }
	x.store = newFakeStore(now)
	c := Config{
		Store: x.store, Blobs: x.blobs, Keys: fakeKeys{}, Now: now,
		Models: fakeModels{"qwen3-8b", "meta-llama/Llama-3.1-8B", "org/name:free"},
		Wake:   func() { x.wakes.Add(1) },
		Away:   fakeAway,
		Log:    slog.New(slog.NewTextHandler(&x.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if edit != nil {
		edit(&c)
	}
	srv := httptest.NewUnstartedServer(described(t, New(c)))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	t.Cleanup(func() {
		srv.Close()
		if t.Failed() {
			t.Logf("log of the server:\n%s", x.log.String())
		}
	})
	x.url = srv.URL
	return x
}

// An answer is a response that was read to its end.
type answer struct {
	*http.Response
	body []byte
	err  error // of reading the body
}

var client = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Timeout:       30 * time.Second,
}

// send sends a request; headers are pairs of name and value.
func (x *tester) send(method, path string, body io.Reader, headers ...string) answer {
	x.Helper()
	req, err := http.NewRequest(method, x.url+path, body)
	if err != nil {
		x.Fatal(err)
	}
	if x.key != "" {
		req.Header.Set("Authorization", "Bearer "+x.key)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		x.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	a := answer{Response: resp}
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

func (x *tester) get(path string, headers ...string) answer {
	x.Helper()
	return x.send("GET", path, nil, headers...)
}

func (x *tester) post(path, body string, headers ...string) answer {
	x.Helper()
	return x.send("POST", path, strings.NewReader(body), headers...)
}

// wantStatus fails the test unless a has the status.
func (x *tester) wantStatus(a answer, status int) {
	x.Helper()
	if a.StatusCode != status {
		x.Fatalf("%s %s: status %d, want %d; body %s", a.Request.Method, a.Request.URL, a.StatusCode, status, a.body)
	}
}

// An errorBody is what clients branch on.
type errorBody struct {
	Message, Type string
	Param, Code   *string
}

// wantError fails the test unless a is an error with the status and texts. Param and code are ""
// where they must be null.
func (x *tester) wantError(a answer, status int, code, param, message string) {
	x.Helper()
	x.wantStatus(a, status)
	if ct := a.Header.Get("Content-Type"); ct != "application/json" {
		x.Errorf("Content-Type %q", ct)
	}
	var top map[string]errorBody
	if err := json.Unmarshal(a.body, &top); err != nil {
		x.Fatalf("body %q: %v", a.body, err)
	}
	e := top["error"]
	kind := "invalid_request_error"
	if status >= 500 {
		kind = "server_error"
	}
	if len(top) != 1 || e.Type != kind || e.Message != message || text(e.Code) != code || text(e.Param) != param {
		x.Errorf("%s %s:\ngot  %s\nwant code %q, param %q, message %q", a.Request.Method, a.Request.URL, a.body, code, param, message)
	}
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// decode decodes the body of an answer with status 200.
func decode[T any](x *tester, a answer) (v T) {
	x.Helper()
	x.wantStatus(a, http.StatusOK)
	if err := json.Unmarshal(a.body, &v); err != nil {
		x.Fatalf("body %q: %v", a.body, err)
	}
	return v
}

// A syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *syncBuffer) count(s string) int { return strings.Count(b.String(), s) }

// eventually waits for another goroutine of the server to get there.
func (x *tester) eventually(what string, ok func() bool) {
	x.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	x.Fatalf("it did not come to pass: %s", what)
}

// TestHeaders checks contract §14 on answers of every kind.
func TestHeaders(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Metrics = fakeMetrics("up 1\n") })
	ids := map[string]bool{}
	for _, tt := range []struct {
		method, path string
		tenant       bool
	}{
		{"GET", "/v1/batches", true},
		{"GET", "/v1/files", true},
		{"GET", "/v1/models", true},
		{"GET", "/v1/batches/batch_x", true},
		{"GET", "/v1/files/file-x/content", true},
		{"POST", "/v1/batches", true},
		{"POST", "/v1/files", true},
		{"GET", "/v1/nope", false},
		{"PUT", "/v1/batches", false},
		{"GET", "//v1/batches", false},
		{"GET", "/healthz", false},
		{"GET", "/metrics", false},
	} {
		a := x.send(tt.method, tt.path, nil)
		if id := a.Header.Get("x-request-id"); !strings.HasPrefix(id, "req_") || ids[id] {
			t.Errorf("%s %s: x-request-id %q", tt.method, tt.path, id)
		} else {
			ids[id] = true
		}
		if v := a.Header.Get("openai-version"); v != "2020-10-01" {
			t.Errorf("%s %s: openai-version %q", tt.method, tt.path, v)
		}
		if ms := a.Header.Get("openai-processing-ms"); ms == "" || strings.Trim(ms, "0123456789") != "" {
			t.Errorf("%s %s: openai-processing-ms %q", tt.method, tt.path, ms)
		}
		want := ""
		if tt.tenant {
			want = "Project a"
		}
		if org := a.Header.Get("openai-organization"); org != want {
			t.Errorf("%s %s: openai-organization %q, want %q", tt.method, tt.path, org, want)
		}
		if a.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s: allows other origins", tt.method, tt.path)
		}
	}
}

// TestRoutes: there are no redirects, and whatever is not a route is told so in the envelope.
func TestRoutes(t *testing.T) {
	x := newTester(t, nil)
	for _, tt := range []struct{ method, path, shown string }{
		{"GET", "/v1/nope", "/v1/nope"},
		{"POST", "/v1/nope", "/v1/nope"},
		{"GET", "/", "/"},
		{"GET", "/v1", "/v1"},
		{"GET", "//v1/batches", "//v1/batches"},
		{"POST", "//v1/batches", "//v1/batches"},
		{"GET", "/v1//batches", "/v1//batches"},
		{"GET", "/v1/batches/", "/v1/batches/"},
		{"POST", "/v1/batches/", "/v1/batches/"},
		{"GET", "/v1/files/", "/v1/files/"},
		{"GET", "/v1/models/", "/v1/models/"},
		{"GET", "/v1/../v1/batches", "/v1/../v1/batches"},
		{"GET", "/v1/./batches", "/v1/./batches"},
		{"GET", "/v1/batches/batch_x/", "/v1/batches/batch_x/"},
		{"GET", "/v1/batches/a/b", "/v1/batches/a/b"},
		{"GET", "/v1/files/a/b/c", "/v1/files/a/b/c"},
		{"GET", "/metrics", "/metrics"},
		{"GET", "/v1/%ff", "/v1/\ufffd"},
	} {
		x.wantError(x.send(tt.method, tt.path, nil), 404, "", "", "Invalid URL ("+tt.method+" "+tt.shown+")")
	}
	for _, tt := range []struct{ method, path, allow string }{
		{"PUT", "/v1/batches", "GET, POST"},
		{"PATCH", "/v1/batches/batch_x", "GET"},
		{"GET", "/v1/batches/batch_x/cancel", "POST"},
		{"POST", "/v1/files/file-x", "DELETE, GET"},
		{"DELETE", "/v1/models/a/b", "GET"},
		{"OPTIONS", "/v1/files", "GET, POST"},
		{"POST", "/healthz", "GET"},
	} {
		a := x.send(tt.method, tt.path, nil)
		x.wantError(a, 405, "", "", "Not allowed to "+tt.method+" on "+tt.path+". (HINT: Perhaps you meant to use a different HTTP method?)")
		if got := a.Header.Get("Allow"); got != tt.allow {
			t.Errorf("%s %s: Allow %q, want %q", tt.method, tt.path, got, tt.allow)
		}
	}
}

// TestRawPaths sends request lines that no client library writes.
func TestRawPaths(t *testing.T) {
	x := newTester(t, nil)
	for line, want := range map[string]string{
		"GET * HTTP/1.1":                                  "404",
		"OPTIONS * HTTP/1.1":                              "200",
		"CONNECT host:80 HTTP/1.1":                        "404",
		"GET http://example.com/v1/batches/ HTTP/1.1":     "404",
		"GET http://example.com/v1/batches HTTP/1.1":      "200",
		"GET http://example.com HTTP/1.1":                 "404",
		"GET /v1/batches?limit=%zz;x HTTP/1.1":            "200",
		"GET /v1/batches/%00 HTTP/1.1":                    "404",
		"GET /v1/batches?after=%00%ff HTTP/1.1":           "404",
		"GET /v1/files?purpose=%00%ff HTTP/1.1":           "200",
		"GET /v1/batches/%2e%2e HTTP/1.1":                 "404",
		"GET /v1/batches/..%2f..%2fhealthz HTTP/1.1":      "404",
		"BREW /v1/batches HTTP/1.1":                       "405",
		"GET /v1/models/meta-llama/Llama-3.1-8B HTTP/1.0": "200",
	} {
		raw := x.raw(line + "\r\nHost: x\r\nConnection: close\r\nAuthorization: bearer  " + keyA + "\r\n\r\n")
		if status := strings.Split(raw+"  ", " ")[1]; status != want {
			t.Errorf("%s: status %s, want %s", line, status, want)
		}
	}
}

// TestStrangeIDs: an id that we cannot have drawn is an unknown one (contract R-03).
func TestStrangeIDs(t *testing.T) {
	x := newTester(t, nil)
	for escaped, shown := range map[string]string{
		"nope":                      "nope",
		"%2e%2e":                    "..",
		"a%2Fb":                     "a/b",
		"..%2F..%2Fetc%2Fpasswd":    "../../etc/passwd",
		"%00":                       "\ufffd",
		"%ff%fe":                    "\ufffd",
		"%E2%82%AC":                 "€",
		"a%20b":                     "a b",
		"%25":                       "%",
		"'%20OR%201=1":              "' OR 1=1",
		strings.Repeat("x", 10<<10): strings.Repeat("x", 10<<10),
		"batch_%3Cscript%3E&x=1":    "batch_<script>&x=1",
		"{id}":                      "{id}",
	} {
		for _, req := range [][2]string{{"GET", ""}, {"POST", "/cancel"}} {
			x.wantError(x.send(req[0], "/v1/batches/"+escaped+req[1], nil), 404, "", "", "No batch found with id '"+shown+"'.")
		}
		for _, req := range [][2]string{{"GET", ""}, {"DELETE", ""}, {"GET", "/content"}} {
			x.wantError(x.send(req[0], "/v1/files/"+escaped+req[1], nil), 404, "", "id", "No such File object: "+shown)
		}
		x.wantError(x.get("/v1/models/"+escaped), 404, "model_not_found", "model", "The model '"+shown+"' does not exist")
	}
}

// TestAway takes the database and the blobs away. Clients are told to come again, and the operator is
// told once.
func TestAway(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{} // requests by class of their status
	x := newTester(t, func(c *Config) {
		c.Observe = func(_, class string, _ time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			seen[class]++
		}
	})
	input := x.uploadFile("{}\n").ID
	b := x.createBatch()
	want := func(what string, a answer) {
		t.Helper()
		x.wantError(a, 503, "", "", "The server cannot reach its storage at the moment, please try again later")
		if got := a.Header.Get("Retry-After"); got != "5" {
			t.Errorf("%s: Retry-After: %q", what, got)
		}
	}
	routes := [][3]string{
		{"GET", "/v1/files"}, {"GET", "/v1/files/" + input}, {"DELETE", "/v1/files/" + input}, {"GET", "/v1/files/" + input + "/content"},
		{"GET", "/v1/batches"}, {"GET", "/v1/batches/" + b.ID}, {"POST", "/v1/batches/" + b.ID + "/cancel"},
		{"POST", "/v1/batches", `{"input_file_id":"` + input + `","endpoint":"/v1/chat/completions","completion_window":"24h"}`},
	}
	x.store.failing(func(string) error { return fmt.Errorf("list: %w", errFakeAway) })
	for _, r := range routes {
		want(r[0]+" "+r[1], x.send(r[0], r[1], strings.NewReader(r[2])))
	}
	want("an upload", uploadForm(fileField("{}\n"), forBatch)(x))
	for _, op := range []string{"CreateFile", "CreateBatch"} {
		x.store.failing(func(o string) error {
			if o == op {
				return errFakeAway
			}
			return nil
		})
		if op == "CreateFile" {
			want(op, uploadForm(fileField("{}\n"), forBatch)(x))
		} else {
			want(op, x.post(routes[7][1], routes[7][2]))
		}
	}
	x.store.failing(nil)
	for _, op := range []string{"Create", "Write", "Commit"} {
		x.blobs.failing(func(o string) error {
			if o == op {
				return errFakeAway
			}
			return nil
		})
		want("an upload, at "+op, uploadForm(fileField("{}\n"), forBatch)(x))
	}
	x.blobs.failing(func(string) error { return errFakeAway })
	want("a download", x.get("/v1/files/"+input+"/content"))
	x.blobs.failing(nil)
	x.wantStatus(x.get("/v1/files/"+input+"/content"), 200)
	x.eventually("it is logged that storage is back", func() bool { return x.log.count("works again") == 1 })
	if n, errs := x.log.count("level=WARN"), x.log.count("level=ERROR"); n != 1 || errs != 0 {
		t.Errorf("an outage makes %d warnings and %d errors in the log, want one warning", n, errs)
	}
	x.store.failing(func(string) error { return errors.New("a mistake of ours") })
	x.wantStatus(x.get("/v1/batches"), 500)
	x.eventually("the requests are observed", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return seen["503"] == len(routes)+7 && seen["5xx"] == 1
	})
}

func TestHealth(t *testing.T) {
	ready := errors.New("no database")
	x := newTester(t, func(c *Config) {
		c.Ready = func(context.Context) error { return ready }
		c.Metrics = fakeMetrics("up 1\n")
	})
	x.key = ""
	if a := x.get("/healthz"); a.StatusCode != 200 || string(a.body) != "ok\n" {
		t.Errorf("healthz: %d %s", a.StatusCode, a.body)
	}
	x.wantError(x.get("/readyz"), 503, "", "", "The engine is currently overloaded, please try again later")
	if n := x.log.count("no database"); n != 1 {
		t.Errorf("the reason is logged %d times", n)
	}
	ready = ErrStopping
	x.wantError(x.get("/readyz"), 503, "", "", "The engine is currently overloaded, please try again later")
	if n := x.log.count(`level=WARN msg="not ready"`); n != 1 {
		t.Errorf("%d warnings, want none of a server that was told to stop", n)
	}
	ready = nil
	if a := x.get("/readyz"); a.StatusCode != 200 || string(a.body) != "ok\n" {
		t.Errorf("readyz: %d %s", a.StatusCode, a.body)
	}
	if a := x.get("/metrics"); a.StatusCode != 200 || string(a.body) != "up 1\n" {
		t.Errorf("metrics: %d %s", a.StatusCode, a.body)
	}
}

func TestHEAD(t *testing.T) {
	x := newTester(t, nil)
	f := x.uploadFile("{}\n")
	for path, length := range map[string]string{
		"/v1/batches": "", "/v1/files/" + f.ID: "", "/v1/files/" + f.ID + "/content": "3", "/healthz": "",
	} {
		a := x.send("HEAD", path, nil)
		if a.StatusCode != 200 || len(a.body) != 0 {
			t.Errorf("HEAD %s: status %d, body %q", path, a.StatusCode, a.body)
		}
		if got := a.Header.Get("Content-Length"); length != "" && got != length {
			t.Errorf("HEAD %s: Content-Length %q, want %q", path, got, length)
		}
	}
	a := x.send("HEAD", "/v1/batches/nope", nil)
	if a.StatusCode != 404 {
		t.Errorf("HEAD of what does not exist: status %d", a.StatusCode)
	}
}

// TestInternalError: what is our fault is told in general, and logged once, with its chain.
func TestInternalError(t *testing.T) {
	x := newTester(t, nil)
	x.store.failing(func(op string) error { return errors.New("disk on fire") })
	for _, req := range [][3]string{
		{"GET", "/v1/batches", "ListBatches"},
		{"GET", "/v1/batches/b", "Batch"},
		{"POST", "/v1/batches/b/cancel", "CancelBatch"},
		{"GET", "/v1/files", "ListFiles"},
		{"GET", "/v1/files/f", "File"},
		{"GET", "/v1/files/f/content", "File"},
		{"DELETE", "/v1/files/f", "File"},
	} {
		before := x.log.count("level=ERROR")
		x.wantError(x.send(req[0], req[1], nil), 500, "", "", serverErrorText)
		if n := x.log.count("level=ERROR") - before; n != 1 {
			t.Errorf("%s %s: %d error lines", req[0], req[1], n)
		}
		if !strings.Contains(x.log.String(), req[2]+": disk on fire") {
			t.Errorf("%s %s: the chain is not logged", req[0], req[1])
		}
	}
	x.key = "sk-key-that-breaks-the-store"
	x.wantError(x.get("/v1/batches"), 500, "", "", serverErrorText)
}

func TestPanic(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Models = panicModels{} })
	x.wantError(x.get("/v1/models"), 500, "", "", serverErrorText)
	log := x.log.String()
	if !strings.Contains(log, "panic: out of models") || !strings.Contains(log, "panicModels") {
		t.Error("panic and stack are not logged")
	}
	if a := x.get("/v1/batches"); a.StatusCode != 200 {
		t.Errorf("after a panic: status %d", a.StatusCode)
	}
}

type panicModels struct{}

func (panicModels) Models(context.Context) []batch.ModelInfo { panic("out of models") }

// TestObserve: labels come from a fixed set, and neither keys nor bodies are logged.
func TestObserve(t *testing.T) {
	type label struct{ route, class string }
	var mu sync.Mutex
	seen := map[label]int{}
	x := newTester(t, func(c *Config) {
		c.Observe = func(route, class string, took time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			seen[label{route, class}]++
			if took <= 0 {
				t.Errorf("%s took %v", route, took)
			}
		}
	})
	x.get("/v1/batches/one")
	x.get("/v1/batches/two")
	x.get("/v1/nope/" + strings.Repeat("x", 1000))
	x.get("//v1")
	x.send("PUT", "/v1/files", nil)
	x.send("HEAD", "/v1/files", nil)
	x.post("/v1/batches", `{"input_file_id":"a secret of the body"`,
		"X-Stainless-Retry-Count", "2", "X-Client-Request-Id", "from-the-client")
	want := map[label]int{
		{"GET /v1/batches/{id}", "4xx"}: 2, {"other", "4xx"}: 3, {"GET /v1/files", "2xx"}: 1, {"POST /v1/batches", "4xx"}: 1,
	}
	x.eventually("all requests are observed", func() bool {
		mu.Lock()
		defer mu.Unlock()
		for l, n := range want {
			if seen[l] != n {
				return false
			}
		}
		return len(seen) == len(want)
	})
	log := x.log.String()
	for _, secret := range []string{keyA, "a secret"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is logged", secret)
		}
	}
	for _, want := range []string{
		`method=POST route="POST /v1/batches" status=400 dur=`, "project=proj_a client_request=from-the-client retry=2",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	if strings.Contains(log, "level=ERROR") {
		t.Error("mistakes of clients are logged as errors")
	}
}
