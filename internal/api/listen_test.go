package api

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestNoHTTP: what is not HTTP is told so as everything else is.
func TestNoHTTP(t *testing.T) {
	x := newTester(t, nil)
	srv := httptest.NewUnstartedServer(New(Config{Store: x.store, Blobs: x.blobs, Keys: fakeKeys{}}))
	srv.Config.MaxHeaderBytes = 64 << 10
	srv.Listener = Listen(srv.Config, srv.Listener, 1000)
	srv.Start()
	defer srv.Close()
	x.url = srv.URL

	head := "\r\nHost: x\r\nAuthorization: Bearer " + keyA + "\r\n"
	good := "GET /v1/batches HTTP/1.1" + head + "\r\n"
	for request, want := range map[string]struct {
		status int
		reason string
	}{
		"GET /v1/batches/%zz HTTP/1.1" + head + "\r\n":                                          {400, "400 Bad Request"},
		"GET /v1/batches/a b HTTP/1.1" + head + "\r\n":                                          {400, "400 Bad Request"},
		"GET /v1/batches/\x00 HTTP/1.1" + head + "\r\n":                                         {400, "400 Bad Request"},
		"GET /v1/batches HTTP/1.1\r\n\r\n":                                                      {400, "400 Bad Request: missing required Host header"},
		"GET /v1/batches HTTP/1.1" + head + "A\x00: b\r\n\r\n":                                  {400, "400 Bad Request"},
		"nonsense\r\n\r\n":                                                                      {400, "400 Bad Request"},
		"GET /v1/batches HTTP/3.0" + head + "\r\n":                                              {505, "505 HTTP Version Not Supported: unsupported protocol version"},
		"GET /v1/batches/" + strings.Repeat("x", 80<<10) + " HTTP/1.1" + head + "\r\n":          {431, "431 Request Header Fields Too Large"},
		"GET /v1/batches HTTP/1.1" + head + "Long: " + strings.Repeat("x", 80<<10) + "\r\n\r\n": {431, "431 Request Header Fields Too Large"},
		"POST /v1/files HTTP/1.1" + head + "Transfer-Encoding: odd\r\n\r\n":                     {501, "Unsupported transfer encoding"},
		"POST /v1/files HTTP/1.1" + head + "Content-Length: -1\r\n\r\n":                         {400, "400 Bad Request"},
	} {
		for _, before := range []string{"", good} {
			conn := x.dial()
			answers := bufio.NewReader(conn)
			read := func() *http.Response {
				resp, err := http.ReadResponse(answers, nil)
				if err != nil {
					t.Fatalf("%.60q: %v", request, err)
				}
				return resp
			}
			io.WriteString(conn, before)
			if before != "" {
				resp := read()
				io.Copy(io.Discard, resp.Body)
			}
			io.WriteString(conn, request)
			resp := read()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Errorf("%.60q: %v", request, err)
			}
			a := &seenAnswer{ResponseWriter: httptest.NewRecorder(), status: resp.StatusCode}
			for name, values := range resp.Header {
				a.Header()[name] = values
			}
			a.body.Write(body)
			if err := ours().check(httptest.NewRequest("GET", "/v1/batches", nil), a); err != nil {
				t.Errorf("%.60q: %v", request, err)
			}
			if e := errorOf(x, answer{Response: resp, body: body}); resp.StatusCode != want.status || e.Message != "Your request is not valid HTTP: "+want.reason+"." || !resp.Close {
				t.Errorf("%.60q: status %d, %s", request, resp.StatusCode, body)
			}
		}
	}
}

// TestContentIsNoAnswer: bytes that look like an error of net/http are bytes.
func TestContentIsNoAnswer(t *testing.T) {
	x := newTester(t, nil)
	srv := httptest.NewUnstartedServer(New(Config{Store: x.store, Blobs: x.blobs, Keys: fakeKeys{}}))
	srv.Listener = Listen(srv.Config, srv.Listener, 1000)
	srv.Start()
	defer srv.Close()
	x.url = srv.URL
	forged := "HTTP/1.1 400 Bad Request" + string(bareHeaders) + "400 Bad Request"
	f := x.partedFile(strings.Repeat(forged, 4096), forged)
	for range 2 {
		if a := x.get("/v1/files/" + f.ID + "/content"); string(a.body) != strings.Repeat(forged, 4097) {
			t.Errorf("%d of %d bytes", len(a.body), f.Bytes)
		}
	}
}
