package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"offpeak/internal/openai"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve starts a server and returns a client of it, which notes its waits instead of waiting.
func serve(t *testing.T, h http.HandlerFunc) (*Client, *[]time.Duration) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	tr := newTransport()
	t.Cleanup(tr.CloseIdleConnections)
	c, err := New(srv.URL+"/v1/", "sk-test", &http.Client{Transport: tr})
	if err != nil {
		t.Fatal(err)
	}
	waits := new([]time.Duration)
	c.pause = func(ctx context.Context, d time.Duration) error {
		*waits = append(*waits, d)
		return ctx.Err()
	}
	return c, waits
}

func TestNew(t *testing.T) {
	for base, ok := range map[string]bool{
		"http://127.0.0.1:8080/v1":  true,
		"https://api.openai.com/v1": true,
		"http://[::1]:8080/v1///":   true,
		"http://me:secret@host/v1":  true,
		"localhost:8080/v1":         false,
		"/v1":                       false,
		"":                          false,
		"ftp://host/v1":             false,
		"http://host/v1?x=1":        false,
		"http://host:port/v1":       false,
	} {
		c, err := New(base, "", nil)
		if (err == nil) != ok {
			t.Errorf("New(%q): %v", base, err)
		}
		if err == nil && (strings.HasSuffix(c.base, "/") || strings.Contains(c.URL(), "secret")) {
			t.Errorf("New(%q).URL() = %q", base, c.URL())
		}
	}
}

func TestCalls(t *testing.T) {
	ctx := t.Context()
	var got string
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = fmt.Sprintf("%s %s %s %s", r.Method, r.RequestURI, r.Header.Get("Content-Type"), body)
		if auth := r.Header.Get("Authorization"); auth != "Bearer sk-test" {
			t.Errorf("Authorization = %q", auth)
		}
		io.WriteString(w, `{"id":"x","object":"y","deleted":true,"data":[{"id":"m"}]}`)
	})
	_, err := c.CreateBatch(ctx, openai.CreateBatch{
		InputFileID: "file-1", Endpoint: "/v1/embeddings", CompletionWindow: "24h", Metadata: map[string]string{"a": "b"},
	})
	want := `POST /v1/batches application/json {"input_file_id":"file-1","endpoint":"/v1/embeddings","completion_window":"24h","metadata":{"a":"b"}}`
	if err != nil || got != want {
		t.Errorf("CreateBatch: %v, sent\n%s\nwant\n%s", err, got, want)
	}
	for _, tt := range []struct {
		want string
		call func() error
	}{
		{"GET /v1/batches/a%2Fb%3F  ", func() error { _, err := c.Batch(ctx, "a/b?"); return err }},
		{"POST /v1/batches/batch_1/cancel  ", func() error { _, err := c.CancelBatch(ctx, "batch_1"); return err }},
		{"GET /v1/files/file-1  ", func() error { _, err := c.File(ctx, "file-1"); return err }},
		{"DELETE /v1/files/file-1  ", func() error { _, err := c.DeleteFile(ctx, "file-1"); return err }},
		{"GET /v1/models  ", func() error {
			m, err := c.Models(ctx)
			if len(m) != 1 || m[0].ID != "m" {
				t.Errorf("Models = %+v", m)
			}
			return err
		}},
	} {
		if err := tt.call(); err != nil || got != tt.want {
			t.Errorf("%v, sent %q, want %q", err, got, tt.want)
		}
	}
}

// TestGolden decodes what the contract shows as OpenAI's objects.
func TestGolden(t *testing.T) {
	paths, _ := filepath.Glob("../../../shared/contract/golden/batches/*.json")
	if len(paths) == 0 {
		t.Skip("no contract beside the repository")
	}
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { w.Write(raw) })
		b, err := c.Batch(t.Context(), "x")
		if err != nil || !strings.HasPrefix(b.ID, "batch_") || b.Status == "" {
			t.Errorf("%s: %+v, %v", path, b, err)
		}
	}
}

func TestOffpeakObject(t *testing.T) {
	for extra, want := range map[string]string{
		`{"eta":1764000000,"deadline_at_risk":true,"waiting_for":"a slot","requests_per_second":1.5,"in_flight":7}`: "a slot 7",
		`{"eta":null,"waiting_for":null,"in_flight":8}`:                                                             "- 8",
		`null`: "none",
	} {
		c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"id":"b","offpeak":%s}`, extra) })
		b, err := c.Batch(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		got := "none"
		if x := b.Offpeak; x != nil {
			got = "-"
			if x.WaitingFor != nil {
				got = *x.WaitingFor
			}
			got += fmt.Sprint(" ", *x.InFlight)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", extra, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		name, body, kind string
		status           int
		want             Error // Message "" : see contains
		contains         string
	}{
		{name: "envelope", status: 400, kind: "application/json",
			body: `{"error":{"message":"No.","type":"invalid_request_error","param":"endpoint","code":"invalid_value"}}`,
			want: Error{Status: 400, Code: "invalid_value", Param: "endpoint", Type: "invalid_request_error", Message: "No.", RequestID: "req_1"}},
		{name: "nulls", status: 404, kind: "application/json",
			body: `{"error":{"message":"No batch found.","type":"invalid_request_error","param":null,"code":null}}`,
			want: Error{Status: 404, Type: "invalid_request_error", Message: "No batch found.", RequestID: "req_1"}},
		{name: "code as a number", status: 400, kind: "application/json", body: `{"error":{"message":"m","code":400}}`,
			want: Error{Status: 400, Message: "m", RequestID: "req_1"}},
		{name: "text", status: 403, kind: "application/json", body: `{"error":"forbidden"}`,
			want: Error{Status: 403, Message: "forbidden", RequestID: "req_1"}},
		{name: "detail", status: 404, kind: "application/json", body: `{"detail":"Not Found"}`,
			want: Error{Status: 404, Message: "Not Found", RequestID: "req_1"}},
		{name: "html", status: 404, kind: "text/html; charset=utf-8", body: "<html><h1>nginx</h1></html>", contains: "GET URL/v1/batches/b answered 404 Not Found with an HTML page, not this API's JSON; is the base URL right? (HTTP 404)"},
		{name: "empty", status: 405, contains: "GET URL/v1/batches/b answered 405 Method Not Allowed with an empty body (HTTP 405)"},
		{name: "other text", status: 418, body: "short\nand stout", contains: `with "short and stout"`},
		{name: "2xx html", status: 200, kind: "text/html", body: "<!doctype html>", contains: "GET URL/v1/batches/b answered 200 OK with an HTML page"},
		{name: "2xx empty", status: 200, contains: "with an empty body"},
		{name: "2xx text", status: 200, body: "hello", contains: `with "hello"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, waits := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", tt.kind)
				w.Header().Set("X-Request-Id", "req_1")
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.body)
			})
			_, err := c.Batch(t.Context(), "b")
			if len(*waits) > 0 {
				t.Errorf("retried %d times", len(*waits))
			}
			if tt.contains != "" {
				want := strings.ReplaceAll(tt.contains, "URL/v1", c.URL())
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got  %v\nwant %s", err, want)
				}
				return
			}
			e, ok := errors.AsType[*Error](err)
			if !ok || *e != tt.want {
				t.Errorf("got  %+v\nwant %+v", err, tt.want)
			}
		})
	}
}

func TestErrorText(t *testing.T) {
	for _, tt := range []struct {
		e    Error
		want string
	}{
		{Error{Status: 404, Message: "No such File object: file-x", Param: "id"}, "No such File object: file-x (HTTP 404, param id)"},
		{Error{Status: 400, Code: "missing_required_parameter", Param: "endpoint", Message: "Missing required parameter: 'endpoint'.", RequestID: "req_1"},
			"Missing required parameter: 'endpoint'. (HTTP 400, missing_required_parameter)"},
		{Error{Status: 500, Message: "Sorry.", RequestID: "req_1"}, "Sorry. (HTTP 500, request req_1)"},
	} {
		if got := tt.e.Error(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestRetries(t *testing.T) {
	cut := func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			io.WriteString(w, `{"error":{"message":"m","code":null}}`)
		}
	}
	half := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, `{"id":"batch_`)
	}
	good := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"id":"batch_1"}`) }
	get := func(c *Client) error { _, err := c.Batch(t.Context(), "b"); return err }
	post := func(c *Client) error { _, err := c.CancelBatch(t.Context(), "b"); return err }
	remove := func(c *Client) error { _, err := c.DeleteFile(t.Context(), "b"); return err }

	for _, tt := range []struct {
		name    string
		answers []http.HandlerFunc // the last one again and again
		call    func(*Client) error
		waits   int
		ok      bool
	}{
		{"at once", []http.HandlerFunc{good}, get, 0, true},
		{"after each kind", []http.HandlerFunc{status(503), status(429), status(408), cut, good}, get, 4, true},
		{"half an answer", []http.HandlerFunc{half, good}, get, 1, true},
		{"never", []http.HandlerFunc{status(500)}, get, attempts - 1, false},
		{"cut forever", []http.HandlerFunc{cut}, get, attempts - 1, false},
		{"not 4xx", []http.HandlerFunc{status(400), good}, get, 0, false},
		{"not 409", []http.HandlerFunc{status(409), good}, get, 0, false},
		{"not a POST", []http.HandlerFunc{status(503), good}, post, 0, false},
		{"not a cut POST", []http.HandlerFunc{cut, good}, post, 0, false},
		{"not a DELETE", []http.HandlerFunc{status(503), good}, remove, 0, false},
		{"as the server asks", []http.HandlerFunc{status(429, "Retry-After", "30"), good}, get, 1, true},
		{"not beyond a minute", []http.HandlerFunc{status(429, "Retry-After", "61"), good}, get, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var n atomic.Int32
			c, waits := serve(t, func(w http.ResponseWriter, r *http.Request) {
				tt.answers[min(int(n.Add(1)), len(tt.answers))-1](w, r)
			})
			// Cut connections must be seen: a reused one is replaced silently by net/http.
			c.hc.Transport.(*http.Transport).DisableKeepAlives = true
			err := tt.call(c)
			if (err == nil) != tt.ok || len(*waits) != tt.waits || int(n.Load()) != tt.waits+1 {
				t.Errorf("err %v, %d waits, %d calls; want ok %v, %d waits", err, len(*waits), n.Load(), tt.ok, tt.waits)
			}
			for i, d := range *waits {
				if strings.HasPrefix(tt.name, "as the server asks") {
					if d < 30*time.Second {
						t.Errorf("waited %v, want at least 30 s", d)
					}
				} else if limit := min(backoffMax, backoffBase<<i); d < 0 || d >= limit {
					t.Errorf("wait %d is %v, want less than %v", i+1, d, limit)
				}
			}
		})
	}
}

func TestConnError(t *testing.T) {
	srv := httptest.NewServer(nil)
	base := srv.URL + "/v1"
	srv.Close()
	c, err := New(base, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	c.pause = func(context.Context, time.Duration) error { return nil }
	_, err = c.Batch(t.Context(), "b")
	if err == nil || !strings.HasPrefix(err.Error(), "cannot reach "+base+": dial tcp") || !Temporary(err) {
		t.Errorf("got %v", err)
	}

	stop := errors.New("had enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if _, err = c.Batch(ctx, "b"); err != stop || Temporary(err) {
		t.Errorf("cancelled: got %v, want its cause", err)
	}
}

func TestStandingStill(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	hang := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/files/body/content" {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "12345")
			w.(http.Flusher).Flush()
		}
		<-release
	}
	c, _ := serve(t, hang)
	c.idle = 100 * time.Millisecond

	if _, err := c.CancelBatch(t.Context(), "b"); !errors.Is(err, errIdle) || !Temporary(err) {
		t.Errorf("no answer: %v", err)
	}
	body, err := c.Content(t.Context(), "body")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); string(b) != "12345" || !errors.Is(err, errIdle) {
		t.Errorf("half a file: %q, %v", b, err)
	}
}

// TestSlowCaller pins that only the network's time counts: a file that comes from a slow pipe,
// or goes to a slow reader, is no reason to end the call.
func TestSlowCaller(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, `{"id":"file-1"}`)
			return
		}
		w.Write(make([]byte, 100))
	})
	c.idle = 500 * time.Millisecond
	slow := readerFunc(func(p []byte) (int, error) {
		time.Sleep(700 * time.Millisecond)
		return 0, io.EOF
	})
	if _, err := c.Upload(t.Context(), Upload{Name: "x", Body: slow, Size: -1}); err != nil {
		t.Error(err)
	}
	body, err := c.Content(t.Context(), "f")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	time.Sleep(700 * time.Millisecond)
	if b, err := io.ReadAll(body); len(b) != 100 || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestUpload(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcde\n"), 1<<17) // 2 MiB
	for _, tt := range []struct {
		name   string
		size   int
		known  bool
		expect bool
	}{
		{"small", 100, true, false},
		{"empty", 0, true, false},
		{"large", len(content), true, true},
		{"unknown", 100, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if (r.ContentLength >= 0) != tt.known {
					t.Errorf("Content-Length %d", r.ContentLength)
				}
				if (r.Header.Get("Expect") != "") != tt.expect {
					t.Errorf("Expect: %q", r.Header.Get("Expect"))
				}
				form, err := r.MultipartReader()
				if err != nil {
					t.Error(err)
					return
				}
				var parts []string
				for {
					p, err := form.NextPart()
					if err != nil {
						break
					}
					b, _ := io.ReadAll(p)
					parts = append(parts, fmt.Sprintf("%s %s %d", p.FormName(), p.FileName(), len(b)))
					if p.FormName() == "file" && !bytes.Equal(b, content[:tt.size]) {
						t.Error("other bytes arrived")
					}
				}
				want := []string{"purpose  5", fmt.Sprintf("file in \"1\".jsonl %d", tt.size)}
				if !slices.Equal(parts, want) {
					t.Errorf("parts %q, want %q", parts, want)
				}
				io.WriteString(w, `{"id":"file-1","bytes":7}`)
			})
			u := Upload{Name: `in "1".jsonl`, Body: bytes.NewReader(content[:tt.size]), Size: -1}
			if tt.known {
				u.Size = int64(tt.size)
			}
			var sent int64
			u.Sent = func(n int64) { sent = n }
			f, err := c.Upload(t.Context(), u)
			if err != nil || f.ID != "file-1" || sent != int64(tt.size) {
				t.Errorf("file %+v, err %v, sent %d", f, err, sent)
			}
		})
	}
}

func TestUploadRefused(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		io.WriteString(w, `{"error":{"message":"Incorrect API key","code":"invalid_api_key"}}`)
	})
	var sent int64
	_, err := c.Upload(t.Context(), Upload{
		Name: "x.jsonl", Body: bytes.NewReader(make([]byte, 64<<20)), Size: 64 << 20,
		Sent: func(n int64) { sent = n },
	})
	if e, ok := errors.AsType[*Error](err); !ok || e.Status != 401 || e.Code != "invalid_api_key" {
		t.Errorf("got %v", err)
	}
	if sent > 0 {
		t.Errorf("sent %d bytes to a server that wants none", sent)
	}
}

func TestUploadOfUnreadableFile(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	broken := errors.New("disk on fire")
	_, err := c.Upload(t.Context(), Upload{Name: "x", Size: 10, Body: iotest.ErrReader(broken)})
	if !errors.Is(err, broken) || Temporary(err) {
		t.Errorf("got %v", err)
	}
}

func TestRedirects(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v1/new") {
			http.Redirect(w, r, "/v1/new"+strings.TrimPrefix(r.URL.Path, "/v1"), http.StatusMovedPermanently)
			return
		}
		io.WriteString(w, `{"id":"batch_1"}`)
	})
	if b, err := c.Batch(t.Context(), "b"); err != nil || b.ID != "batch_1" {
		t.Errorf("GET: %+v, %v", b, err)
	}
	if _, err := c.CancelBatch(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "is redirected to /v1/new/batches/b/cancel; use that") {
		t.Errorf("POST: %v", err)
	}
}

func TestPages(t *testing.T) {
	ids := make([]string, 250)
	for i := range ids {
		ids[i] = fmt.Sprintf("batch_%03d", i)
	}
	var asked int
	mode := "good"
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked++
		from := 0
		if after := r.FormValue("after"); after != "" && mode != "stuck" {
			from = slices.Index(ids, after) + 1
		}
		to := min(from+100, len(ids))
		if mode == "lies" && from >= 100 {
			to = from // an empty page, has_more
		}
		page := openai.NewList([]Batch{}, func(b Batch) string { return b.ID }, to < len(ids))
		for _, id := range ids[from:to] {
			page.Data = append(page.Data, Batch{ID: id})
		}
		json.NewEncoder(w).Encode(page)
	})

	for _, tt := range []struct {
		mode        string
		take        int
		asked, want int
		ok          bool
	}{
		{"good", 1000, 3, 250, true},
		{"good", 50, 1, 50, true},
		{"good", 101, 2, 101, true},
		{"lies", 1000, 2, 100, true},
		{"stuck", 1000, 2, 200, false},
	} {
		mode, asked = tt.mode, 0
		var got []string
		var err error
		all := c.Batches(t.Context())
		for range 2 { // an iterator may be walked again
			got, asked = nil, 0
			for b, e := range all {
				if e != nil {
					err = e
					break
				}
				if got = append(got, b.ID); len(got) == tt.take {
					break
				}
			}
		}
		if len(got) != tt.want || asked != tt.asked || (err == nil) != tt.ok {
			t.Errorf("%s, %d: %d batches in %d calls, %v; want %d in %d", tt.mode, tt.take, len(got), asked, err, tt.want, tt.asked)
		}
		if tt.ok && !slices.Equal(got, ids[:tt.want]) {
			t.Errorf("%s: wrong batches", tt.mode)
		}
	}
}

func TestFilesFilter(t *testing.T) {
	var query string
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		query = r.URL.RawQuery
		io.WriteString(w, `{"data":null}`)
	})
	for range c.Files(t.Context(), "batch_output") {
	}
	if query != "limit=1000&purpose=batch_output" {
		t.Errorf("query %q", query)
	}
}

func TestContent(t *testing.T) {
	file := bytes.Repeat([]byte("0123456789"), 5000)
	for _, tt := range []struct {
		name   string
		ranges bool
		cut    int // bytes sent before the connection breaks; 0: never
		breaks int // how many times it does; then all comes
		ok     bool
	}{
		{"whole", true, 0, 0, true},
		{"resumed", true, 12345, 3, true},
		{"resumed without ranges", false, 12345, 1, true},
		{"breaks at once, every time", true, -1, 100, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
				calls++
				if !tt.ranges {
					r.Header.Del("Range")
				}
				if calls <= tt.breaks {
					w = &cutWriter{ResponseWriter: w, left: max(0, tt.cut)}
				}
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file))
			})
			body, err := c.Content(t.Context(), "file-1")
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			if (err == nil) != tt.ok {
				t.Errorf("after %d calls: %v", calls, err)
			}
			if tt.ok && !bytes.Equal(got, file) {
				t.Errorf("%d bytes, want %d; equal %v", len(got), len(file), bytes.Equal(got, file))
			}
			if !tt.ok && calls != maxStalls+1 {
				t.Errorf("%d calls", calls)
			}
		})
	}

	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(404)
		io.WriteString(w, `{"error":{"message":"No such File object: file-x","param":"id"}}`)
	})
	if _, err := c.Content(t.Context(), "file-x"); err == nil || !strings.Contains(err.Error(), "No such File") {
		t.Errorf("unknown file: %v", err)
	}
}

// A cutWriter breaks the connection after some bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.left)
	w.ResponseWriter.Write(p[:n])
	if w.left -= n; n < len(p) {
		w.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, nil
}

func TestRecorded(t *testing.T) {
	c, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) })
	for failed, want := range map[bool]string{false: "/v1/batches/batch_1/output", true: "/v1/batches/batch_1/errors"} {
		body, err := c.Recorded(t.Context(), "batch_1", failed)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(body); string(got) != want {
			t.Errorf("got %s, want %s", got, want)
		}
		body.Close()
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, "0.5": time.Second / 2, "-1": 0, "soon": 0, "NaN": 0,
		"Sat, 21 Nov 2026 12:00:30 GMT": 30 * time.Second,
		"Sat, 21 Nov 2026 11:00:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("retryAfter(%q) = %v, want %v", value, got, want)
		}
	}
}
