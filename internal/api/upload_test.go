package api

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

// A field is one field of a form. The file has a name.
type field struct{ name, filename, value string }

func fileField(value string) field { return field{"file", "in.jsonl", value} }

var forBatch = field{name: "purpose", value: "batch"}

// form encodes a form and returns its content type.
func encodeForm(fields ...field) (contentType string, body []byte) {
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for _, f := range fields {
		if f.filename == "" {
			w.WriteField(f.name, f.value)
			continue
		}
		part, _ := w.CreateFormFile(f.name, f.filename)
		io.WriteString(part, f.value)
	}
	w.Close()
	return w.FormDataContentType(), buf.Bytes()
}

func (x *tester) upload(fields ...field) answer {
	x.Helper()
	ct, body := encodeForm(fields...)
	return x.send("POST", "/v1/files", bytes.NewReader(body), "Content-Type", ct)
}

func (x *tester) uploadFile(content string) openai.File {
	x.Helper()
	return decode[openai.File](x, x.upload(forBatch, fileField(content)))
}

// dial opens a connection for what no HTTP client would do.
func (x *tester) dial() net.Conn {
	x.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(x.url, "http://"))
	if err != nil {
		x.Fatal(err)
	}
	x.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn
}

// raw sends bytes over a connection of their own, all of them before it reads, and returns what
// comes back until the server closes.
func (x *tester) raw(request string) string {
	x.Helper()
	conn := x.dial()
	if _, err := io.WriteString(conn, request); err != nil {
		x.Errorf("write: %v", err)
	}
	raw, err := io.ReadAll(conn)
	if err != nil {
		x.Errorf("read: %v", err)
	}
	return string(raw)
}

// wantNothingLeft checks that a refused upload left no file and no blob, and that what it may have
// reserved is still there for the sweeper.
func (x *tester) wantNothingLeft() {
	x.Helper()
	x.blobs.mu.Lock()
	defer x.blobs.mu.Unlock()
	if n := len(x.blobs.blobs); n > 0 {
		x.Errorf("%d blobs are left", n)
	}
	if x.blobs.open != 0 {
		x.Errorf("%d writers are open", x.blobs.open)
	}
	x.store.mu.Lock()
	defer x.store.mu.Unlock()
	if n := len(x.store.files); n > 0 {
		x.Errorf("%d files are left", n)
	}
	for key, pending := range x.store.reserved {
		if !pending {
			x.Errorf("blob %s is not pending any more", key)
		}
	}
}

// TestUploadOrders sends what SDKs send, each with the fields in its own order (contract FI-01).
func TestUploadOrders(t *testing.T) {
	files, _ := filepath.Glob("testdata/http/*.txt")
	if len(files) != 5 {
		t.Fatalf("fixtures: %v", files)
	}
	want, err := os.ReadFile("testdata/http/asks.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) { uploadRaw(t, name, "asks.jsonl", want) })
	}
}

// uploadRaw sends a recorded request whose file expires after 2 h, or 1 h, and checks what became of it.
func uploadRaw(t *testing.T, name, filename string, content []byte) {
	request, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	x := newTester(t, nil)
	head, body, _ := strings.Cut(string(request), "\r\n\r\n")
	head = strings.Replace(head, "Bearer sk-test\r\n", "Bearer "+keyA+"\r\n", 1) + "\r\nConnection: close"
	raw := x.raw(head + "\r\n\r\n" + body)
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(raw)), nil)
	if err != nil {
		t.Fatalf("%v in %q", err, raw)
	}
	answered, _ := io.ReadAll(resp.Body)
	f := decode[openai.File](x, answer{Response: &http.Response{StatusCode: resp.StatusCode, Request: &http.Request{}}, body: answered})
	if f.Filename != filename || f.Purpose != "batch" || f.Bytes != int64(len(content)) || f.CreatedAt != x.now.Load() || f.Object != "file" || f.Status != "processed" {
		t.Errorf("got %+v", f)
	}
	if kept := *f.ExpiresAt - f.CreatedAt; kept != 7200 && kept != 3600 {
		t.Errorf("kept for %d s", kept)
	}
	if got := x.get("/v1/files/" + f.ID + "/content"); !bytes.Equal(got.body, content) {
		t.Errorf("content %q", got.body)
	}
	for key, pending := range x.store.reserved {
		if pending {
			t.Errorf("blob %s is still pending", key)
		}
	}
}

func TestUploadDefaults(t *testing.T) {
	x := newTester(t, nil)
	if f := x.uploadFile("{}\n"); *f.ExpiresAt-f.CreatedAt != 30*86400 {
		t.Errorf("an input is kept for %d s", *f.ExpiresAt-f.CreatedAt)
	}
	f := decode[openai.File](x, x.upload(field{"file", "handbook.pdf", ""}, field{name: "purpose", value: "user_data"}, field{name: "unknown", value: "x"}))
	if f.ExpiresAt != nil || f.Bytes != 0 || f.Filename != "handbook.pdf" {
		t.Errorf("got %+v", f)
	}
}

func TestUploadAccepts(t *testing.T) {
	x := newTester(t, nil)
	for name, content := range map[string]string{
		"no final newline":       `{"a":1}`,
		"bad second line":        "{}\nnot json\n",
		"leading blank lines":    "\n \r\n\t\n{}\n",
		"carriage returns":       "{}\r\n{}\r\n",
		"byte order mark":        "\ufeff{}\n",
		"long first line":        `{"x":"` + strings.Repeat("y", maxFirstLine) + "\n",
		"first line just fits":   `{"x":"` + strings.Repeat("y", maxFirstLine-8) + "\"}\n",
		"boundary-like lines":    "{}\n--\n--x\r\n--xyz--\r\n",
		"newlines at odd places": "{" + strings.Repeat(" ", 4095) + "}\n",
	} {
		f := x.uploadFile(content)
		if got := x.get("/v1/files/" + f.ID + "/content"); string(got.body) != content {
			t.Errorf("%s: content differs", name)
		}
	}
}

func TestUploadRefuses(t *testing.T) {
	const format = "Invalid file format for Batch API. Must be .jsonl"
	file, anchor := fileField("{}\n"), field{name: "expires_after[anchor]", value: "created_at"}
	seconds := func(s string) field { return field{name: "expires_after[seconds]", value: s} }
	long := strings.Repeat("x", maxFormField+1)
	for name, tt := range map[string]struct {
		fields               []field
		code, param, message string
	}{
		"nothing":                   {nil, "missing_required_parameter", "file", "Missing required parameter: 'file'."},
		"no file":                   {[]field{forBatch}, "missing_required_parameter", "file", "Missing required parameter: 'file'."},
		"no purpose":                {[]field{file}, "missing_required_parameter", "purpose", "Missing required parameter: 'purpose'."},
		"purpose first":             {[]field{{name: "purpose", value: "x"}, file}, "invalid_value", "purpose", "Invalid value: 'x'. Supported values are: 'assistants', 'batch', 'fine-tune', 'vision', 'user_data', and 'evals'."},
		"purpose last":              {[]field{file, {name: "purpose", value: "batch_output"}}, "invalid_value", "purpose", "Invalid value: 'batch_output'. Supported values are: 'assistants', 'batch', 'fine-tune', 'vision', 'user_data', and 'evals'."},
		"extension, purpose last":   {[]field{{"file", "in.csv", "{}"}, forBatch}, "", "", format},
		"extension":                 {[]field{forBatch, {"file", "in.csv", "{}"}}, "", "", format},
		"empty":                     {[]field{forBatch, fileField("")}, "", "", format},
		"blank":                     {[]field{forBatch, fileField("\n \n\t")}, "", "", format},
		"first line":                {[]field{forBatch, fileField("\n{]\n{}\n")}, "", "", format},
		"first line just fits":      {[]field{forBatch, fileField(strings.Repeat("y", maxFirstLine) + "\n")}, "", "", format},
		"anchor alone":              {[]field{forBatch, file, anchor}, "missing_required_parameter", "expires_after.seconds", "Missing required parameter: 'expires_after.seconds'."},
		"seconds alone":             {[]field{seconds("3600"), forBatch, file}, "missing_required_parameter", "expires_after.anchor", "Missing required parameter: 'expires_after.anchor'."},
		"anchor":                    {[]field{{name: "expires_after[anchor]", value: "now"}, seconds("3600"), forBatch, file}, "invalid_value", "expires_after.anchor", "Invalid value: 'now'. Value must be 'created_at'."},
		"seconds low":               {[]field{anchor, seconds("60"), file, forBatch}, "integer_below_min_value", "expires_after.seconds", "Invalid 'expires_after.seconds': integer below minimum value. Expected a value >= 3600, but got 60 instead."},
		"seconds high":              {[]field{anchor, seconds("2592001"), file, forBatch}, "integer_above_max_value", "expires_after.seconds", "Invalid 'expires_after.seconds': integer above maximum value. Expected a value <= 2592000, but got 2592001 instead."},
		"seconds no number":         {[]field{anchor, seconds("1h"), file, forBatch}, "invalid_type", "expires_after.seconds", "Invalid type for 'expires_after.seconds': expected an integer, but got a string instead."},
		"expires_after as JSON":     {[]field{{name: "expires_after", value: `{"anchor":"created_at","seconds":3600}`}, file, forBatch}, "invalid_type", "expires_after", "Invalid type for 'expires_after': expected an object, but got a string instead."},
		"long field":                {[]field{{name: "purpose", value: long}, file}, "string_above_max_length", "purpose", fmt.Sprintf("Invalid 'purpose': string too long. Expected a string with maximum length %d, but got a string with length %d instead.", maxFormField, maxFormField+1)},
		"long field of a long name": {[]field{{name: strings.Repeat("n", 1<<20), value: long}, file}, "string_above_max_length", strings.Repeat("n", 64), fmt.Sprintf("Invalid '%s': string too long. Expected a string with maximum length %d, but got a string with length %d instead.", strings.Repeat("n", 64), maxFormField, maxFormField+1)},
		"two files":                 {[]field{file, file, forBatch}, "", "file", "Invalid 'file': only one file can be uploaded at a time."},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTester(t, nil)
			x.wantError(x.upload(tt.fields...), 400, tt.code, tt.param, tt.message)
			x.wantNothingLeft()
		})
	}
}

func TestUploadBadForms(t *testing.T) {
	x := newTester(t, nil)
	ct, good := encodeForm(forBatch, fileField("{}\n"))
	many := []field{forBatch}
	for range maxFormParts {
		many = append(many, field{name: "x"})
	}
	manyType, manyBody := encodeForm(many...)
	for name, tt := range map[string]struct {
		contentType string
		body        []byte
	}{
		"JSON":              {"application/json", []byte(`{"purpose":"batch"}`)},
		"no type":           {"", good},
		"no boundary":       {"multipart/form-data", good},
		"other boundary":    {"multipart/form-data; boundary=other", good},
		"no body":           {ct, nil},
		"cut in the middle": {ct, good[:len(good)/2]},
		"cut in the file":   {ct, good[:bytes.LastIndexByte(good, '}')]},
		"too many parts":    {manyType, manyBody},
	} {
		t.Run(name, func(t *testing.T) {
			x.wantError(x.send("POST", "/v1/files", bytes.NewReader(tt.body), "Content-Type", tt.contentType), 400, "", "", errNotForm.Error())
			x.wantNothingLeft()
		})
	}
}

// endless is a request that uploads n bytes after the given fields; it is not held in memory.
func endless(n int64, chunked bool, fields ...field) (head string, body io.Reader) {
	ct, form := encodeForm(append(fields, fileField("{}\n"))...)
	i := bytes.LastIndex(form, []byte("{}\n")) + 3
	total := int64(len(form)) + n
	head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + keyA + "\r\nContent-Type: " + ct + "\r\n"
	body = io.MultiReader(bytes.NewReader(form[:i]), io.LimitReader(spaces{}, n), bytes.NewReader(form[i:]))
	if chunked {
		return head + "Transfer-Encoding: chunked\r\n\r\n", chunks{body}
	}
	return head + fmt.Sprintf("Content-Length: %d\r\n\r\n", total), body
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// copyN sends the first n bytes of a body that endless made.
func copyN(w io.Writer, body io.Reader, n int64) {
	if c, ok := body.(chunks); ok {
		c.copy(w, n)
		return
	}
	io.CopyN(w, body, n)
}

// chunks encodes what it reads.
type chunks struct{ io.Reader }

func (c chunks) WriteTo(w io.Writer) (int64, error) {
	n, err := c.copy(w, 1<<62)
	if err == nil {
		_, err = io.WriteString(w, "0\r\n\r\n")
	}
	return n, err
}

// copy sends n bytes, or what there is of them.
func (c chunks) copy(w io.Writer, n int64) (sent int64, err error) {
	buf := make([]byte, 32<<10)
	for sent < n {
		m, err := c.Reader.Read(buf[:min(int64(len(buf)), n-sent)])
		if m > 0 {
			if _, err := fmt.Fprintf(w, "%x\r\n%s\r\n", m, buf[:m]); err != nil {
				return sent, err
			}
		}
		sent += int64(m)
		if err == io.EOF {
			break
		}
	}
	return sent, nil
}

// TestEarlyAnswerIsSeen: a client that writes its whole request before it reads, as Python's does,
// sees why it was refused, and not a connection reset (contract I-12).
func TestEarlyAnswerIsSeen(t *testing.T) {
	const size = 40 << 20
	for name, tt := range map[string]struct {
		key     string
		chunked bool
		field   field
		edit    func(*Config)
		status  int
		message string
	}{
		"purpose":         {keyA, false, field{name: "purpose", value: "x"}, nil, 400, "Invalid value: 'x'."},
		"purpose chunked": {keyA, true, field{name: "purpose", value: "x"}, nil, 400, "Invalid value: 'x'."},
		"key":             {"sk-wrong-key-of-nobody", false, forBatch, nil, 401, "Incorrect API key provided"},
		"length":          {keyA, false, forBatch, func(c *Config) { c.Policy.MaxInput, c.Policy.MaxFile = 1<<20, 1<<20 }, 400, "File is too large."},
		"size":            {keyA, true, forBatch, func(c *Config) { c.Policy.MaxInput, c.Policy.MaxFile = 1<<20, 1<<20 }, 400, "File is too large."},
		"size of purpose": {keyA, false, forBatch, func(c *Config) { c.Policy.MaxInput, c.Policy.MaxFile = 1<<20, 1<<30 }, 400, "File is too large."},
		"full disk":       {keyA, false, forBatch, nil, 500, serverErrorText},
		"stray":           {keyA, false, field{name: "x", value: strings.Repeat("x", maxFormField+1)}, nil, 400, "Invalid 'x': string too long."},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTester(t, tt.edit)
			if name == "full disk" {
				x.blobs.fault = func(op string) error {
					if op == "Write" {
						return errors.New("no space left on device")
					}
					return nil
				}
			}
			conn := x.dial()
			head, body := endless(size, tt.chunked, tt.field)
			io.WriteString(conn, strings.Replace(head, keyA, tt.key, 1))
			if _, err := io.Copy(conn, body); err != nil {
				t.Fatalf("write: %v", err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			answered, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatalf("read body: %v", err)
			}
			if resp.StatusCode != tt.status || !bytes.Contains(answered, []byte(tt.message)) || !resp.Close {
				t.Errorf("status %d, close %v, body %s", resp.StatusCode, resp.Close, answered)
			}
			x.wantNothingLeft()
		})
	}
}

// TestEarlyAnswerIsEarly: who reads while it writes need not send everything.
func TestEarlyAnswerIsEarly(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		x := newTester(t, nil)
		conn := x.dial()
		head, body := endless(1<<40, chunked, field{name: "purpose", value: "x"})
		io.WriteString(conn, head)
		copyN(conn, body, 8<<10)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != 400 {
			t.Fatalf("%v, %v", resp, err)
		}
		conn.Close()
	}
}

// TestExpectContinue: a client that asks first is told before it sends.
func TestExpectContinue(t *testing.T) {
	x := newTester(t, nil)
	head, _ := endless(1<<30, false, forBatch)
	head = strings.Replace(head, keyA, "sk-wrong-key-of-nobody", 1)
	start := time.Now()
	raw := x.raw(strings.Replace(head, "\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n", 1))
	if !strings.HasPrefix(raw, "HTTP/1.1 401 ") {
		t.Errorf("got %q", raw)
	}
	if took := time.Since(start); took > lingerStall/2 {
		t.Errorf("it took %v", took)
	}
}

// TestUploadDisconnect: a client that leaves half-way leaves nothing behind.
func TestUploadDisconnect(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		x := newTester(t, nil)
		conn := x.dial()
		head, body := endless(1<<20, chunked, forBatch)
		io.WriteString(conn, head)
		copyN(conn, body, 100<<10)
		conn.Close()
		select {
		case <-x.blobs.ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the blob is neither committed nor aborted")
		}
		x.wantNothingLeft()
		if strings.Contains(x.log.String(), "level=ERROR") {
			t.Error("that is no error of ours")
		}
	}
}

// TestStalledClients are given up, wherever they stall.
func TestStalledClients(t *testing.T) {
	upload, body := endless(1<<20, false, forBatch)
	form, _ := io.ReadAll(io.LimitReader(body, 600))
	create := "POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + keyA + "\r\nContent-Length: 100\r\n\r\n"
	wrongKey := strings.Replace(create, keyA, "sk-wrong-key-of-nobody", 1)
	noRoute := strings.Replace(create, "/v1/batches", "/v1/nope", 1)
	cancel := strings.Replace(create, "/v1/batches", "/v1/batches/b/cancel", 1)
	list := strings.Replace("GET"+strings.TrimPrefix(create, "POST"), "Content-Length: 100", "Transfer-Encoding: chunked", 1)
	for request, status := range map[string]string{
		list:                       "200",
		upload:                     "408",
		upload + string(form[:90]): "408",
		upload + string(form):      "408",
		create:                     "408",
		create + "{":               "408",
		wrongKey:                   "401",
		noRoute:                    "404",
		cancel:                     "404",
	} {
		x := newTester(t, func(c *Config) { c.Stall = 50 * time.Millisecond })
		start := time.Now()
		raw := x.raw(request)
		if !strings.HasPrefix(raw, "HTTP/1.1 "+status+" ") {
			t.Errorf("%.40q…: got %q", request, raw)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("%.40q…: it took %v", request, took)
		}
		x.wantNothingLeft()
	}
}

// TestHTTP2: there a request can be ended alone, and its connection serves on.
func TestHTTP2(t *testing.T) {
	x := newTester(t, nil)
	srv := httptest.NewUnstartedServer(described(t, New(Config{Store: x.store, Blobs: x.blobs, Keys: fakeKeys{}, Stall: 200 * time.Millisecond})))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	send := func(method, path, contentType string, body io.Reader) (*http.Response, []byte) {
		t.Helper()
		r, _ := http.NewRequest(method, srv.URL+path, body)
		r.Header.Set("Authorization", "Bearer "+keyA)
		r.Header.Set("Content-Type", contentType)
		resp, err := srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil || resp.ProtoMajor != 2 {
			t.Fatalf("%s: %v", resp.Proto, err)
		}
		return resp, raw
	}

	ct, form := encodeForm(field{name: "purpose", value: "x"}, fileField("{}\n"))
	cut := len(form) - 50
	resp, raw := send("POST", "/v1/files", ct, io.MultiReader(bytes.NewReader(form[:cut]), io.LimitReader(spaces{}, 20<<20)))
	if resp.StatusCode != 400 || !bytes.Contains(raw, []byte("Invalid value: 'x'.")) {
		t.Errorf("refused early: status %d, body %s", resp.StatusCode, raw)
	}
	pr, pw := io.Pipe()
	defer pw.Close()
	if resp, raw := send("POST", "/v1/batches", "", pr); resp.StatusCode != 408 {
		t.Errorf("stalled: status %d, body %s", resp.StatusCode, raw)
	}
	ct, form = encodeForm(fileField("{}\n"), forBatch)
	if resp, raw := send("POST", "/v1/files", ct, bytes.NewReader(form)); resp.StatusCode != 200 {
		t.Errorf("upload: status %d, body %s", resp.StatusCode, raw)
	}
	f := x.partedFile(strings.Repeat("x", 1<<20), "end")
	if resp, raw := send("GET", "/v1/files/"+f.ID+"/content", "", nil); resp.StatusCode != 200 || !bytes.HasSuffix(raw, []byte("xend")) || int64(len(raw)) != f.Bytes {
		t.Errorf("content: status %d, %d bytes", resp.StatusCode, len(raw))
	}
}

// TestSlowUpload: slow is not stalled.
func TestSlowUpload(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Stall = time.Second })
	ct, form := encodeForm(forBatch, fileField("{}\n"))
	conn := x.dial()
	fmt.Fprintf(conn, "POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", keyA, ct, len(form))
	for piece := range slices.Chunk(form, len(form)/15+1) {
		time.Sleep(100 * time.Millisecond)
		conn.Write(piece)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
}

// TestSlowCommit: it is the client's silence that is limited, not ours.
func TestSlowCommit(t *testing.T) {
	for _, chunked := range []bool{false, true} {
		x := newTester(t, func(c *Config) { c.Stall = 50 * time.Millisecond })
		x.blobs.fault = func(op string) error {
			if op == "Commit" {
				time.Sleep(250 * time.Millisecond)
			}
			return nil
		}
		ct, form := encodeForm(forBatch, fileField("{}\n"))
		var body io.Reader = bytes.NewReader(form)
		if chunked {
			body = io.MultiReader(body) // of unknown length
		}
		x.wantStatus(x.send("POST", "/v1/files", body, "Content-Type", ct), 200)
	}
}

// TestUploadFaults: whatever fails on our side, the client is told, and no file appears.
func TestUploadFaults(t *testing.T) {
	for _, op := range []string{"ReserveBlob", "CreateFile", "Create", "Write", "Commit"} {
		x := newTester(t, nil)
		fault := func(o string) error {
			if o == op {
				return errors.New("it broke")
			}
			return nil
		}
		x.store.fault, x.blobs.fault = fault, fault
		x.wantError(x.upload(forBatch, fileField("{}\n")), 500, "", "", serverErrorText)
		if n := x.log.count("level=ERROR"); n != 1 {
			t.Errorf("%s: %d error lines", op, n)
		}
		if op == "CreateFile" { // the blob is there, for the sweeper
			clear(x.blobs.blobs)
		}
		x.wantNothingLeft()
	}
}

// TestUploadReservesFirst: a pending row is there before the first byte is written.
func TestUploadReservesFirst(t *testing.T) {
	x := newTester(t, nil)
	x.blobs.fault = func(op string) error {
		x.store.mu.Lock()
		defer x.store.mu.Unlock()
		for _, pending := range x.store.reserved {
			if pending {
				return nil
			}
		}
		return errors.New(op + " without a reservation")
	}
	x.uploadFile("{}\n")
}

// TestUploadKeepsConnection: a small request that was refused costs no connection.
func TestUploadKeepsConnection(t *testing.T) {
	x := newTester(t, nil)
	for _, a := range []answer{
		x.upload(field{name: "purpose", value: "x"}, fileField(strings.Repeat(" ", 100<<10))),
		x.post("/v1/nope", strings.Repeat(" ", 100<<10)),
		x.post("/v1/batches", "x"),
	} {
		if a.Close || a.Header.Get("Connection") == "close" {
			t.Errorf("%s: the connection is closed", a.Request.URL)
		}
	}
}

func TestFilenames(t *testing.T) {
	x := newTester(t, nil)
	for _, tt := range []struct{ parameter, name, disposition string }{
		{`filename="plain.jsonl"`, "plain.jsonl", `attachment; filename="plain.jsonl"`},
		{`filename="with space.JSONL"`, "with space.JSONL", `attachment; filename="with space.JSONL"`},
		{`filename="naïve 東京.jsonl"`, "naïve 東京.jsonl", `attachment; filename*=utf-8''na%C3%AFve%20%E6%9D%B1%E4%BA%AC.jsonl`},
		{`filename="../../etc/x.jsonl"`, "x.jsonl", `attachment; filename="x.jsonl"`},
		{`filename="a\"b.jsonl"`, `a"b.jsonl`, `attachment; filename="a\"b.jsonl"`},
		{`filename*=utf-8''a%0d%0ab%00c%ff.jsonl`, "a\r\nb\ufffdc\ufffd.jsonl", `attachment; filename*=utf-8''a%0D%0Ab%EF%BF%BDc%EF%BF%BD.jsonl`},
	} {
		body := "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n" +
			"--B\r\nContent-Disposition: form-data; name=\"file\"; " + tt.parameter + "\r\n\r\n{}\r\n--B--\r\n"
		f := decode[openai.File](x, x.post("/v1/files", body, "Content-Type", "multipart/form-data; boundary=B"))
		if f.Filename != tt.name {
			t.Errorf("%s: filename %q, want %q", tt.parameter, f.Filename, tt.name)
		}
		if got := x.get("/v1/files/" + f.ID + "/content").Header.Get("Content-Disposition"); got != tt.disposition {
			t.Errorf("%s: disposition %q, want %q", tt.parameter, got, tt.disposition)
		}
	}
}

func TestMaxBytesOfPurpose(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Policy = batch.Policy{MaxInput: 10, MaxFile: 20} })
	data := field{name: "purpose", value: "user_data"}
	for _, tt := range []struct {
		fields []field
		status int
	}{
		{[]field{forBatch, fileField("{}        ")}, 200},
		{[]field{forBatch, fileField("{}         ")}, 400},
		{[]field{fileField("{}         "), forBatch}, 400},
		{[]field{fileField("{}         "), data}, 200},
		{[]field{data, fileField(strings.Repeat("x", 20))}, 200},
		{[]field{data, fileField(strings.Repeat("x", 21))}, 400},
		{[]field{fileField(strings.Repeat("x", 21)), data}, 400},
	} {
		x.wantStatus(x.upload(tt.fields...), tt.status)
	}
}
