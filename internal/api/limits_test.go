package api

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/journal"
	"offpeak/internal/openai"
	"offpeak/internal/store"
)

// listening is a tester whose server has at most so many connections.
func listening(t *testing.T, most int, edit func(*Config)) (*tester, *listener) {
	t.Helper()
	x := &tester{TB: t, key: keyA, blobs: newFakeBlobs(), store: newFakeStore(time.Now)}
	c := Config{
		Store: x.store, Blobs: x.blobs, Keys: fakeKeys{}, Metrics: fakeMetrics("up 1\n"),
		Log: slog.New(slog.NewTextHandler(&x.log, nil)),
	}
	if edit != nil {
		edit(&c)
	}
	srv := httptest.NewUnstartedServer(described(t, New(c)))
	srv.Config.ReadHeaderTimeout = 2 * time.Second
	l := Listen(srv.Config, srv.Listener, most).(*listener)
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	x.url = srv.URL
	return x, l
}

// A wire is one connection to a server.
type wire struct {
	net.Conn
	answers *bufio.Reader
}

func (x *tester) wire() *wire {
	c := x.dial()
	return &wire{c, bufio.NewReader(c)}
}

// ask sends a GET and returns its answer.
func (l *wire) ask(path string) (status int, closes bool, body string, err error) {
	if _, err := fmt.Fprintf(l, "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", path, keyA); err != nil {
		return 0, false, "", err
	}
	resp, err := http.ReadResponse(l.answers, nil)
	if err != nil {
		return 0, false, "", err
	}
	raw, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Close, string(raw), err
}

// TestIdleConnectionsMakeRoom: where there are too many, the one that has been idle for longest goes.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	x, listener := listening(t, 3, nil)
	var lines []*wire
	for i := range 10 {
		l := x.wire()
		lines = append(lines, l)
		if status, closes, _, err := l.ask("/v1/batches"); status != 200 || closes || err != nil {
			t.Fatalf("connection %d: status %d, %v", i, status, err)
		}
		// It counts as idle a moment after its answer is here.
		x.eventually("the connection is idle", func() bool {
			listener.mu.Lock()
			defer listener.mu.Unlock()
			return listener.idle.Len() == min(i+1, 3)
		})
	}
	open := 0
	for i, l := range lines {
		if status, _, _, err := l.ask("/v1/batches"); err == nil && status == 200 {
			if open++; i < 7 {
				t.Errorf("connection %d is still open", i)
			}
		}
	}
	if open != 3 {
		t.Errorf("%d connections are open, want 3", open)
	}
}

// TestBusyConnectionsDoNot: where none is idle, clients are told to come again, operators are
// served, and nothing that goes on is cut.
func TestBusyConnectionsDoNot(t *testing.T) {
	begun, end := make(chan struct{}, 2), make(chan struct{})
	x, _ := listening(t, 2, func(c *Config) {
		c.Models = waitingModels(func() {
			begun <- struct{}{}
			<-end
		})
	})
	results := make(chan string, 2)
	for range 2 {
		l := x.wire()
		go func() {
			status, _, _, err := l.ask("/v1/models")
			results <- fmt.Sprint(status, err)
		}()
		<-begun
	}
	for range 5 {
		status, closes, body, err := x.wire().ask("/v1/batches")
		if status != 503 || !closes || err != nil || !strings.Contains(body, `"message":"The engine is currently overloaded, please try again later","type":"server_error"`) {
			t.Errorf("status %d, %v: %s", status, err, body)
		}
		for _, path := range []string{"/healthz", "/metrics"} {
			if status, closes, _, err := x.wire().ask(path); status != 200 || !closes || err != nil {
				t.Errorf("%s: status %d, %v", path, status, err)
			}
		}
	}
	// Many that say nothing: they wait, the first of them until their time is up, and go.
	for range spareConns + 50 {
		x.wire()
	}
	close(end)
	for range 2 {
		if r := <-results; r != "200<nil>" && r != "200 <nil>" {
			t.Errorf("a call that went on: %s", r)
		}
	}
	x.eventually("the server is there again for who comes", func() bool {
		status, _, _, err := x.wire().ask("/v1/batches")
		return status == 200 && err == nil
	})
	if n := x.log.count("too many connections"); n != 1 {
		t.Errorf("%d warnings, want 1", n)
	}
}

type waitingModels func()

func (f waitingModels) Models(context.Context) []batch.ModelInfo {
	f()
	return nil
}

// TestEvictedRequestsAreNotServed: what arrives on a connection while it is closed for another does
// nothing, so that its client may send it again.
func TestEvictedRequestsAreNotServed(t *testing.T) {
	l := &listener{all: make(chan struct{}, 1), most: 1}
	client, server := net.Pipe()
	defer client.Close()
	l.all <- struct{}{}
	c := &conn{Conn: server, listener: l}
	l.idles(c)
	got := make(chan string)
	go func() {
		n, err := c.Read(make([]byte, 10))
		got <- fmt.Sprint(n, " ", errors.Is(err, net.ErrClosed))
	}()
	// Between the arrival of the bytes and Read's return the connection is chosen to go.
	l.mu.Lock()
	client.Write([]byte("POST"))
	l.idle.Remove(c.place)
	c.place, c.evicted = nil, true
	l.mu.Unlock()
	if s := <-got; s != "0 true" {
		t.Errorf("Read returned %s", s)
	}
	c.Close()
	c.Close()
	if len(l.all) != 0 {
		t.Errorf("%d connections are counted", len(l.all))
	}
}

// TestDrip: a small request must be there in time as a whole; a byte now and then is not enough.
func TestDrip(t *testing.T) {
	x, _ := listening(t, 10, func(c *Config) { c.Stall = 300 * time.Millisecond })
	l := x.wire()
	fmt.Fprintf(l, "POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n", keyA)
	go func() {
		for {
			time.Sleep(20 * time.Millisecond)
			if _, err := l.Write([]byte(" ")); err != nil {
				return
			}
		}
	}()
	resp, err := http.ReadResponse(l.answers, nil)
	if err != nil || resp.StatusCode != 408 {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestForeignNames: a server that takes any key does so only under a name that a web page's own code
// cannot reach it by.
func TestForeignNames(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Keys = nil })
	for host, local := range map[string]bool{
		"localhost": true, "LOCALHOST:8080": true, "localhost.": true, "app.localhost:1": true, "127.0.0.1": true, "127.8.9.1:80": true,
		"[::1]": true, "[::1]:8080": true, "[::ffff:127.0.0.1]:80": true,
		"evil.example": false, "evil.example:8080": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false, "notlocalhost": false,
		"10.0.0.1": false, "0.0.0.0": false, "[::]": false, "2130706433": false, "x": false, "127.1": false, "localhost:8080:9": false, "a,localhost": false,
	} {
		for _, request := range [][2]string{{"GET", "/v1/batches"}, {"POST", "/v1/batches"}, {"DELETE", "/v1/files/x"}, {"GET", "/v1/files/x/content"}} {
			raw := x.raw(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer any\r\nConnection: close\r\n\r\n", request[0], request[1], host))
			if refused := strings.Contains(raw, "This server has no API key yet"); refused == local || refused && !strings.HasPrefix(raw, "HTTP/1.1 400 ") {
				t.Errorf("%s as %s: %.300q", request, host, raw)
			}
		}
		if raw := x.raw("GET /healthz HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(raw, "HTTP/1.1 200 ") {
			t.Errorf("healthz as %s: %.100q", host, raw)
		}
	}
	// With keys a name means nothing: who has no key does not come in under any.
	x = newTester(t, nil)
	raw := x.raw("GET /v1/batches HTTP/1.1\r\nHost: evil.example\r\nAuthorization: Bearer " + keyA + "\r\nConnection: close\r\n\r\n")
	if !strings.HasPrefix(raw, "HTTP/1.1 200 ") {
		t.Errorf("with a key: %.100q", raw)
	}
}

// TestWebPages: what a browser sends on behalf of a page from elsewhere is refused, even with a key,
// and no page from elsewhere may read an answer.
func TestWebPages(t *testing.T) {
	x := newTester(t, nil)
	ct, form := encodeForm(forBatch, fileField("{}\n"))
	here := x.url
	for _, tt := range []struct {
		header, value string
		refused       bool
	}{
		{"Origin", "https://evil.example", true}, {"Origin", "null", true}, {"Origin", "http://localhost:3000", true},
		{"Sec-Fetch-Site", "cross-site", true}, {"Sec-Fetch-Site", "same-site", true},
		{"Origin", here, false}, {"Sec-Fetch-Site", "same-origin", false}, {"Sec-Fetch-Site", "none", false}, {"X-Nothing", "", false},
	} {
		for _, send := range []func() answer{
			func() answer { return x.post("/v1/batches", createBody, tt.header, tt.value) },
			func() answer {
				return x.send("POST", "/v1/files", bytes.NewReader(form), "Content-Type", ct, tt.header, tt.value)
			},
		} {
			a := send()
			if refused := a.StatusCode == 403; refused != tt.refused || !refused && a.StatusCode != 200 {
				t.Errorf("%s: %s: status %d, %s", tt.header, tt.value, a.StatusCode, a.body)
			}
		}
		a := x.get("/v1/batches", tt.header, tt.value)
		x.wantStatus(a, 200)
		for name := range a.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s: %s: the answer has %s", tt.header, tt.value, name)
			}
		}
	}
	a := x.send("OPTIONS", "/v1/batches", nil, "Origin", "https://evil.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization")
	if a.StatusCode != 405 || a.Header.Get("Access-Control-Allow-Origin") != "" || a.Header.Get("Access-Control-Allow-Headers") != "" {
		t.Errorf("preflight: status %d, %v", a.StatusCode, a.Header)
	}
	if n := len(x.store.batches); n != 4 {
		t.Errorf("%d batches were made, want 4", n)
	}
}

// TestPrivateAnswers: nobody keeps an answer, nor takes it for something else than it says.
func TestPrivateAnswers(t *testing.T) {
	x := newTester(t, nil)
	f := x.uploadFile(`{"a":"<script>alert(1)</script>"}` + "\n")
	for _, path := range []string{"/v1/files/" + f.ID + "/content", "/v1/files", "/v1/batches/nope", "/nope", "/healthz"} {
		a := x.get(path)
		if a.Header.Get("X-Content-Type-Options") != "nosniff" || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, a.Header)
		}
	}
}

// TestKeysElsewhere: a key counts in the Authorization header and nowhere else, where it would come
// into the logs of whatever stands between.
func TestKeysElsewhere(t *testing.T) {
	x := newTester(t, nil)
	x.key = ""
	for _, path := range []string{"?api_key=", "?api-key=", "?key=", "?access_token=", "?token=", "?authorization=Bearer%20"} {
		x.wantError(x.get("/v1/batches"+path+keyA), 401, "", "", errNoKey.Error())
	}
	for _, header := range []string{"X-Api-Key", "Api-Key", "Cookie", "Proxy-Authorization"} {
		x.wantError(x.get("/v1/batches", header, keyA), 401, "", "", errNoKey.Error())
	}
	x.eventually("all are observed", func() bool { return x.log.count("msg=request ") == 10 })
	if strings.Contains(x.log.String(), keyA) {
		t.Error("a key is logged")
	}
}

// TestCompressedBodies are refused, whatever they would unpack to.
func TestCompressedBodies(t *testing.T) {
	x := newTester(t, nil)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	io.Copy(z, io.LimitReader(spaces{}, 64<<20))
	z.Close()
	for path, ct := range map[string]string{"/v1/batches": "application/json", "/v1/files": "multipart/form-data; boundary=B", "/v1/uploads": ""} {
		for _, coding := range []string{"gzip", "GZIP", "br", "zstd", "deflate", "gzip, gzip", strings.Repeat("x", 10<<10)} {
			a := x.send("POST", path, bytes.NewReader(packed.Bytes()), "Content-Type", ct, "Content-Encoding", coding)
			if a.StatusCode != 415 || a.Header.Get("Accept-Encoding") != "identity" || len(a.body) > 1000 {
				t.Errorf("%s, %.20s: status %d, %.300s", path, coding, a.StatusCode, a.body)
			}
		}
	}
	x.wantStatus(x.post("/v1/batches", createBody, "Content-Encoding", "identity"), 200)
}

// TestFraming: two servers behind one another, such as a proxy and we, never disagree about where a
// request ends. What could be read in two ways is refused, or is read as RFC 9112 says.
func TestFraming(t *testing.T) {
	x, _ := listening(t, 100, nil)
	const smuggled = "GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	head := "POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + keyA + "\r\n"
	for name, tt := range map[string]struct{ request, status string }{
		"two lengths":           {head + "Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + smuggled, "400"},
		"a list of lengths":     {head + "Content-Length: 0, 40\r\n\r\n" + smuggled, "400"},
		"a signed length":       {head + "Content-Length: +40\r\n\r\n" + smuggled, "400"},
		"a length in hex":       {head + "Content-Length: 0x28\r\n\r\n" + smuggled, "400"},
		"a space in the name":   {head + "Content-Length : 40\r\n\r\n" + smuggled, "400"},
		"two transfer codings":  {head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501"},
		"an unknown coding":     {head + "Transfer-Encoding: xchunked\r\n\r\n" + smuggled, "501"},
		"chunked not last":      {head + "Transfer-Encoding: chunked, identity\r\n\r\n" + smuggled, "501"},
		"a bare CR":             {head + "X: a\rContent-Length: 40\r\n\r\n" + smuggled, "400"},
		"a bad chunk size":      {head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + smuggled, "400"},
		"a huge chunk size":     {head + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + smuggled, "400"},
		"a chunk without a CR":  {head + "Transfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n", "400"},
		"two hosts":             {"GET /v1/batches HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "400"},
		"a trailer without end": {head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + strings.Repeat("X: y\r\n", 1<<16) + "\r\n", "400"},
	} {
		conn := x.dial()
		go io.WriteString(conn, tt.request)
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		raw, _ := io.ReadAll(conn)
		conn.Close()
		if !strings.HasPrefix(string(raw), "HTTP/1.1 "+tt.status+" ") || strings.Contains(string(raw), "smuggled") {
			t.Errorf("%s: want %s, got %.500q", name, tt.status, raw)
		}
	}
	// Both: the coding counts, and the length is nothing.
	for _, both := range []string{"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"} {
		body := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(smuggled), smuggled)
		raw := x.raw(head + both + "Connection: close\r\n\r\n" + body)
		if strings.Count(raw, "HTTP/1.1 ") != 1 || strings.Contains(raw, "/v1/smuggled") || !strings.Contains(raw, "could not parse the JSON") {
			t.Errorf("%q: %.500q", both, raw)
		}
	}
}

// TestHostileJSON: depth and digits cost nothing.
func TestHostileJSON(t *testing.T) {
	x := newTester(t, nil)
	digits := strings.Repeat("9", 100_000)
	for name, body := range map[string]string{
		"brackets":        strings.Repeat("[", 1_000_000),
		"objects":         strings.Repeat(`{"a":`, 200_000),
		"objects, closed": strings.Repeat(`{"a":`, 150_000) + "1" + strings.Repeat("}", 150_000),
		"deep metadata":   withField(`"metadata":{"a":` + strings.Repeat("[", 400_000) + strings.Repeat("]", 400_000) + "}"),
		"digits":          withField(`"output_expires_after":{"anchor":"created_at","seconds":` + digits + "}"),
		"exponent":        withField(`"output_expires_after":{"anchor":"created_at","seconds":1e` + digits + "}"),
		"digits in names": withField(`"metadata":{"` + digits + `":"a"}`),
	} {
		start := time.Now()
		a := x.post("/v1/batches", body)
		if x.wantStatus(a, 400); len(a.body) > 2000 {
			t.Errorf("%s: an answer of %d bytes", name, len(a.body))
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
	}
	for _, query := range []string{"limit=" + strings.Repeat("9", 50_000), "after=" + strings.Repeat("x", 50_000), "limit=1" + strings.Repeat("&limit=1", 5_000)} {
		if a := x.get("/v1/batches?" + query); a.StatusCode != 400 && a.StatusCode != 404 && a.StatusCode != 200 {
			t.Errorf("%.20s: status %d", query, a.StatusCode)
		}
	}
}

// TestHostileForms: fields and headers of a form are bounded, whatever their number, and the file
// beside them is not.
func TestHostileForms(t *testing.T) {
	x := newTester(t, nil)
	var many strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&many, "--B\r\nContent-Disposition: form-data; name=\"f%d\"\r\n\r\nx\r\n", i)
	}
	file := "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n"
	purpose := "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n"
	end := "\r\n--B--\r\n"
	header := func(n int) string { return strings.Repeat("X-H: "+strings.Repeat("y", 100)+"\r\n", n/107) }
	for name, tt := range map[string]struct {
		body string
		want int
	}{
		"100,000 fields":         {many.String() + purpose + file + "\r\n{}\n" + end, 400},
		"100,000 headers":        {purpose + file + strings.Repeat("X: y\r\n", 100_000) + "\r\n{}\n" + end, 400},
		"5 MB of headers":        {purpose + file + header(5<<20) + "\r\n{}\n" + end, 400},
		"5 MB behind the file":   {purpose + file + "\r\n{}\n\r\n--B\r\n" + header(5<<20) + "\r\n" + end, 400},
		"fields of 2 MB":         {strings.Repeat(strings.Replace(purpose, "batch", strings.Repeat("x", maxFormField), 1), 31) + file + "\r\n{}\n" + end, 400},
		"a large file":           {purpose + file + "\r\n{}\n" + strings.Repeat("{}\n", 8<<20/3) + end, 200},
		"a name of 100 kB":       {purpose + strings.Replace(file, "in.jsonl", strings.Repeat("n", 100<<10)+".jsonl", 1) + "\r\n{}\n" + end, 400},
		"16 MB that are no form": {strings.Repeat("x", 16<<20), 400},
	} {
		a := x.post("/v1/files", tt.body, "Content-Type", "multipart/form-data; boundary=B")
		if a.StatusCode != tt.want {
			t.Errorf("%s: status %d, want %d: %.300s", name, a.StatusCode, tt.want, a.body)
		}
		if a.StatusCode == 400 && strings.Contains(string(a.body), "File is too large") {
			t.Errorf("%s: %s", name, a.body)
		}
	}
}

// TestSealedWhileSent: a segment that is sealed after some of its lines were sent is sent to its end,
// each line once.
func TestSealedWhileSent(t *testing.T) {
	x, s, blobs := onStore(t, Config{})
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := x.uploadFile(`{"custom_id":"x"}` + "\n")
	b := decode[openai.Batch](x, x.post("/v1/batches",
		fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions","completion_window":"24h"}`, file.ID)))
	node, err := s.Join(ctx, "test")
	must(err)
	a, err := s.ClaimValidating(ctx, node)
	must(err)
	must(s.Admit(ctx, *a, "m", []batch.Segment{{Lane: batch.Lane{Model: "m", Endpoint: "/v1/chat/completions"}, Length: 9, FirstLine: 1, Total: 4}}))
	work, err := s.Unclaimed(ctx)
	must(err)
	lease, err := s.Claim(ctx, node, work[0])
	must(err)
	packer := journal.NewPacker(1 << 10)
	defer packer.Close()
	for _, index := range []int{2, 0, 3} {
		lease.Tally.Completed++
		lost, err := s.Record(ctx, []batch.Group{{Lease: *lease, Tally: lease.Tally, Data: packer.Pack(journal.AppendEntry(nil, index, true, fmt.Appendf(nil, "line %d\n", index)))}})
		if err != nil || len(lost) > 0 {
			t.Fatal(lost, err)
		}
		lease.Seq++
	}
	seal := func() {
		key := blob.NewKey()
		must(s.ReserveBlob(ctx, key))
		w, err := blobs.Create(ctx, key)
		must(err)
		defer w.Abort()
		io.WriteString(w, "line 0\nline 1\nline 2\nline 3\n")
		n, err := w.Commit()
		must(err)
		lease.Tally.Completed++
		_, err = s.Seal(ctx, *lease, batch.Part{Key: key, Bytes: n}, batch.Part{})
		must(err)
	}
	groups := 0
	srv := httptest.NewServer(New(Config{Blobs: blobs, Store: sealingStore{s, func() {
		if groups++; groups == 3 {
			seal()
		}
	}}}))
	defer srv.Close()
	x.url = srv.URL
	got := x.get("/v1/batches/" + b.ID + "/output")
	if want := "line 2\nline 0\nline 1\nline 3\n"; string(got.body) != want || got.err != nil {
		t.Errorf("got %q, %v; want %q", got.body, got.err, want)
	}
}

// A sealingStore does something before it returns a group of the journal.
type sealingStore struct {
	*store.Store
	before func()
}

func (s sealingStore) JournalGroup(ctx context.Context, segment, seq int64) ([]byte, error) {
	s.before()
	return s.Store.JournalGroup(ctx, segment, seq)
}
