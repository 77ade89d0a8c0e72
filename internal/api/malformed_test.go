package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

// everyRoute lists the routes of a server that has all of them, as method and path.
func everyRoute(t *testing.T) (routes [][2]string) {
	t.Helper()
	s := &server{Config: Config{Metrics: fakeMetrics("")}}
	for _, pattern := range slices.Sorted(maps.Keys(s.routes())) {
		method, path, _ := strings.Cut(pattern, " ")
		routes = append(routes, [2]string{method, path})
	}
	return routes
}

// TestEveryRoutePanics: whatever breaks, wherever, the answer has its headers and its envelope,
// and the server lives on.
func TestEveryRoutePanics(t *testing.T) {
	h := New(Config{Store: newFakeStore(nil), Blobs: newFakeBlobs(), Metrics: fakeMetrics("")}).(*server)
	broken := map[string]handler{}
	for _, r := range everyRoute(t) {
		broken[r[0]+" "+r[1]] = func(*response, *http.Request) error { panic("broken") }
	}
	h.mux = h.newMux(broken)
	srv := httptest.NewServer(described(t, h)) // which looks at the headers
	defer srv.Close()
	x := &tester{TB: t, url: srv.URL, key: keyA}
	for _, r := range everyRoute(t) {
		x.wantError(x.send(r[0], wildcard.ReplaceAllString(r[1], "x"), nil), 500, "", "", serverErrorText)
	}
}

// TestEveryRouteWithOtherMethods: where a path is served, every other method is told so, and which
// would do.
func TestEveryRouteWithOtherMethods(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Metrics = fakeMetrics("") })
	allowed := map[string][]string{}
	for _, r := range everyRoute(t) {
		allowed[r[1]] = append(allowed[r[1]], r[0])
	}
	for path, methods := range allowed {
		path = wildcard.ReplaceAllString(path, "x")
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} {
			if slices.Contains(methods, method) {
				continue
			}
			a := x.send(method, path, nil)
			x.wantError(a, 405, "", "", "Not allowed to "+method+" on "+path+". (HINT: Perhaps you meant to use a different HTTP method?)")
			if got, want := a.Header.Get("Allow"), strings.Join(slices.Sorted(slices.Values(methods)), ", "); got != want {
				t.Errorf("%s %s: Allow %q, want %q", method, path, got, want)
			}
		}
		x.wantError(x.get(path+"/no/such/thing/"), 404, "", "", "Invalid URL (GET "+path+"/no/such/thing/)")
	}
}

// TestEveryRouteWithStrangeIDs: whatever stands where an id belongs, it is an unknown one, and is
// named as it was meant (contract R-03).
func TestEveryRouteWithStrangeIDs(t *testing.T) {
	x := newWorld(t, batch.ProfileExtended, batch.Rules{}).tester
	ct, form := encodeForm(field{"data", "part", "data"})
	for _, r := range everyRoute(t) {
		if !strings.Contains(r[1], "{") {
			continue
		}
		for escaped, shown := range map[string]string{
			"a%2Fb": "a/b", "..%2F..%2Fetc%2Fpasswd": "../../etc/passwd", "%2e%2e": "..", "%2E": ".", "%00": "\ufffd",
			"a%00b": "a\ufffdb", "%ff%fe": "\ufffd", "%0d%0aX-Injected:1": "\r\nX-Injected:1", "%F0%9F%A6%80": "🦀",
			"%22%7D": `"}`, "null": "null", "-1": "-1", strings.Repeat("z", 10<<10): strings.Repeat("z", 10<<10),
		} {
			path := wildcard.ReplaceAllString(r[1], escaped)
			var body io.Reader
			contentType := "application/json"
			switch {
			case strings.HasSuffix(path, "/parts"):
				body, contentType = bytes.NewReader(form), ct
			case r[0] == "POST":
				body = strings.NewReader(`{"part_ids":["part_x"]}`)
			}
			a := x.send(r[0], path, body, "Content-Type", contentType)
			if x.wantStatus(a, 404); !strings.Contains(errorOf(x, a).Message, shown) {
				t.Errorf("%s %.100s: %.200s", r[0], path, a.body)
			}
			if a.Header.Get("X-Injected") != "" {
				t.Errorf("%s %s: a header of the client's making", r[0], path)
			}
		}
	}
}

func errorOf(x *tester, a answer) errorBody {
	x.Helper()
	var top struct{ Error errorBody }
	if err := json.Unmarshal(a.body, &top); err != nil {
		x.Fatalf("body %q: %v", a.body, err)
	}
	return top.Error
}

// TestCreateInAnyOrder: the order of members means nothing, and neither do members said twice,
// but for the last of them.
func TestCreateInAnyOrder(t *testing.T) {
	x := newTester(t, nil)
	members := []string{
		`"input_file_id":"file-x"`, `"endpoint":"/v1/embeddings"`, `"completion_window":"24h"`, `"metadata":{"a":"b"}`,
		`"output_expires_after":{"seconds":3600,"anchor":"created_at"}`,
	}
	for i := range members {
		turned := slices.Concat(members[i:], members[:i])
		reversed := slices.Clone(turned)
		slices.Reverse(reversed)
		for _, order := range [][]string{turned, reversed, slices.Concat([]string{`"endpoint":7`, `"metadata":[]`}, turned)} {
			x.wantStatus(x.post("/v1/batches", "{"+strings.Join(order, ",")+"}"), 200)
		}
		wrong := slices.Concat(turned, []string{`"endpoint":null`})
		x.wantError(x.post("/v1/batches", "{"+strings.Join(wrong, ",")+"}"), 400, "invalid_type", "endpoint",
			"Invalid type for 'endpoint': expected a string, but got null instead.")
	}
}

// TestHugeBodies: ten megabytes of metadata, in whatever form, are refused in the envelope, and
// seen to be even by a client that writes all of them before it reads.
func TestHugeBodies(t *testing.T) {
	x := newTester(t, nil)
	const size = 10 << 20
	for name, metadata := range map[string]string{
		"one value":  `{"a":"` + strings.Repeat("x", size) + `"}`,
		"one key":    `{"` + strings.Repeat("x", size) + `":"a"}`,
		"many pairs": `{"a":"b"` + strings.Repeat(`,"a":"b"`, size/8) + `}`,
		"deep":       strings.Repeat(`{"a":`, size/5),
		"no end":     `{"a":"` + strings.Repeat("x", size),
	} {
		body := withField(`"metadata":` + metadata)
		for _, path := range []string{"/v1/batches", "/v1/uploads"} {
			raw := x.raw(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
				path, keyA, len(body), body))
			if !strings.HasPrefix(raw, "HTTP/1.1 400 ") || !strings.Contains(raw, errBodyTooLarge.Error()) {
				t.Errorf("%s: %.300q", name, raw)
			}
		}
	}
	if n := len(x.store.batches); n > 0 {
		t.Errorf("%d batches were made", n)
	}
}

// TestEndlessForms: boundaries, headers and preambles that do not end are bad forms, and leave
// nothing behind.
func TestEndlessForms(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Policy.MaxInput, c.Policy.MaxFile = 1<<20, 1<<20 })
	part := "Content-Disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n"
	for name, tt := range map[string]struct{ boundary, body string }{
		"no closing boundary":  {"B", "--B\r\n" + part + "\r\n{}\n"},
		"half a boundary":      {"B", "--B\r\n" + part + "\r\n{}\n\r\n--"},
		"boundary runs on":     {"B", "--B" + strings.Repeat("B", 1<<20)},
		"header runs on":       {"B", "--B\r\nX: " + strings.Repeat("x", 1<<20)},
		"headers run on":       {"B", "--B\r\n" + strings.Repeat("X: y\r\n", 1<<17)},
		"preamble runs on":     {"B", strings.Repeat("nothing\r\n", 1<<16)},
		"no line in preamble":  {"B", strings.Repeat("x", 1<<20)},
		"boundary of 10 kB":    {strings.Repeat("b", 10<<10), "--" + strings.Repeat("b", 10<<10) + "\r\n" + part + "\r\n{}\n"},
		"boundary of a quote":  {`"`, "--\"\r\n" + part + "\r\n{}\n"},
		"an empty boundary":    {`""`, "--\r\n" + part + "\r\n{}\n\r\n----\r\n"},
		"part without a name":  {"B", "--B\r\n\r\n{}\n\r\n"},
		"part of another kind": {"B", "--B\r\nContent-Disposition: attachment\r\n\r\n{}\n"},
		"encoded part":         {"B", "--B\r\n" + part + "Content-Transfer-Encoding: quoted-printable\r\n\r\n=ZZ\n"},
		"nested form":          {"B", "--B\r\n" + part + "Content-Type: multipart/mixed; boundary=B\r\n\r\n--B\r\n\r\n{}\n"},
	} {
		t.Run(name, func(t *testing.T) {
			a := x.post("/v1/files", tt.body, "Content-Type", "multipart/form-data; boundary="+tt.boundary)
			if x.wantStatus(a, 400); errorOf(x, a).Message == "" {
				t.Errorf("%s", a.body)
			}
			x.wantNothingLeft()
		})
	}
}

// TestDisconnects: a client that leaves in the middle of any request leaves nothing behind, and is
// no error of ours.
func TestDisconnects(t *testing.T) {
	ct, form := encodeForm(field{"data", "part", strings.Repeat("x", 1000)})
	for path, body := range map[string]string{"/v1/batches": createBody, "/v1/uploads": createBody, "/v1/files": string(form)} {
		x := newTester(t, nil)
		for _, length := range []string{fmt.Sprintf("Content-Length: %d", len(body)), "Transfer-Encoding: chunked"} {
			for _, sent := range []int{0, 1, len(body) / 2, len(body) - 1} {
				conn, err := net.Dial("tcp", strings.TrimPrefix(x.url, "http://"))
				if err != nil {
					t.Fatal(err)
				}
				head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\n%s\r\n\r\n", path, keyA, ct, length)
				if strings.Contains(length, "chunked") {
					head += fmt.Sprintf("%x\r\n", len(body))
				}
				io.WriteString(conn, head+body[:sent])
				conn.Close()
			}
		}
		x.eventually(path+": all are observed", func() bool { return x.log.count("msg=request ") == 8 })
		x.wantNothingLeft()
		if len(x.store.batches) > 0 || x.log.count("level=ERROR") > 0 {
			t.Errorf("%s: %d batches", path, len(x.store.batches))
		}
	}
}

// TestProfileHasItsRoutes: profile openai shows nothing that OpenAI does not have.
func TestProfileHasItsRoutes(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Policy.Profile = batch.ProfileOpenAI })
	b := x.createBatch()
	for _, which := range []string{"output", "errors"} {
		path := "/v1/batches/" + b.ID + "/" + which
		x.wantError(x.get(path), 404, "", "", "Invalid URL (GET "+path+")")
	}
	if a := x.get("/v1/batches/" + b.ID); bytes.Contains(a.body, []byte("offpeak")) {
		t.Errorf("a member that OpenAI does not have: %s", a.body)
	}
	long := strings.Repeat("k", maxIdempotencyKey+1)
	if again := decode[openai.Batch](x, x.post("/v1/batches", createBody, idempotencyKey, long)); again.ID == b.ID {
		t.Error("an Idempotency-Key means something")
	}
	x = newTester(t, nil)
	x.wantError(x.post("/v1/batches", createBody, idempotencyKey, long), 400, "string_above_max_length", idempotencyKey,
		"Invalid 'Idempotency-Key': string too long. Expected a string with maximum length 512, but got a string with length 513 instead.")
}
