package api

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/openai"
	"offpeak/internal/store"
)

// An uploadTester is a server with the real store and a real folder of blobs.
type uploadTester struct {
	*tester
	store *store.Store
	blobs *countingBlobs
}

// projectKeys are Keys by the project that they open.
type projectKeys map[string]batch.Project

func (k projectKeys) Authenticate(_ context.Context, key string, _ bool) (batch.Project, error) {
	if p, ok := k[key]; ok {
		return p, nil
	}
	return batch.Project{}, &batch.Error{Kind: batch.NotFound, Msg: "no such key"}
}

// countingBlobs counts what is read, and fails where a test wants it to.
type countingBlobs struct {
	*blob.Dir
	read   atomic.Int64
	broken atomic.Bool
}

func (b *countingBlobs) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	if b.broken.Load() {
		return nil, errors.New("disk on fire")
	}
	r, err := b.Dir.Open(ctx, key, off, n)
	return struct {
		io.Reader
		io.Closer
	}{io.TeeReader(r, counter{&b.read}), r}, err
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

func newUploadTester(t testing.TB, edit func(*Config)) *uploadTester {
	t.Helper()
	x := &uploadTester{tester: &tester{TB: t, key: keyA}}
	x.now.Store(1762344000)
	now := func() time.Time { return time.Unix(x.now.Load(), 0) }
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir, store.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	folder, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	keys := projectKeys{}
	for key, name := range map[string]string{keyA: "a", keyB: "b"} {
		if keys[key], err = s.CreateProject(t.Context(), name, 1); err != nil {
			t.Fatal(err)
		}
	}
	x.store, x.blobs = s, &countingBlobs{Dir: folder}
	c := Config{
		Store: s, Blobs: x.blobs, Keys: keys, Now: now,
		Log: slog.New(slog.NewTextHandler(&x.log, nil)),
	}
	if edit != nil {
		edit(&c)
	}
	srv := httptest.NewServer(described(t, New(c)))
	t.Cleanup(srv.Close)
	x.url = srv.URL
	return x
}

// ask is the body of POST /v1/uploads for a file of n bytes.
func ask(n int, purpose string) string {
	return fmt.Sprintf(`{"filename":"in.jsonl","purpose":%q,"bytes":%d,"mime_type":"application/jsonl"}`, purpose, n)
}

func (x *uploadTester) create(n int, purpose string) openai.Upload {
	x.Helper()
	return decode[openai.Upload](x.tester, x.post("/v1/uploads", ask(n, purpose)))
}

func (x *uploadTester) sendPart(upload string, fields ...field) answer {
	x.Helper()
	ct, body := encodeForm(fields...)
	return x.send("POST", "/v1/uploads/"+upload+"/parts", bytes.NewReader(body), "Content-Type", ct)
}

// part brings a part and returns its id.
func (x *uploadTester) part(u openai.Upload, data string) string {
	x.Helper()
	p := decode[openai.UploadPart](x.tester, x.sendPart(u.ID, field{"data", "anonymous_file", data}))
	if p.UploadID != u.ID || p.CreatedAt != x.now.Load() || !strings.HasPrefix(p.ID, "part_") {
		x.Errorf("part %+v", p)
	}
	return p.ID
}

func (x *uploadTester) complete(upload, md5 string, parts ...string) answer {
	x.Helper()
	raw, err := openai.Marshal(openai.CompleteUpload{PartIDs: parts, MD5: md5})
	if err != nil {
		x.Fatal(err)
	}
	return x.post("/v1/uploads/"+upload+"/complete", string(raw))
}

func md5Of(s string) string {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}

// TestUploadInParts goes the whole way, with parts that come in the wrong order.
func TestUploadInParts(t *testing.T) {
	const content = "{}\n{\"a\":1}\n"
	x := newUploadTester(t, nil)
	u := decode[openai.Upload](x.tester, x.post("/v1/uploads",
		`{"purpose":"batch","bytes":11,"mime_type":"text/jsonl","filename":"räume.jsonl","expires_after":{"anchor":"created_at","seconds":7200},"unknown":1}`))
	want := openai.Upload{
		ID: u.ID, Object: "upload", Bytes: 11, CreatedAt: x.now.Load(), Filename: "räume.jsonl", Purpose: "batch",
		Status: "pending", ExpiresAt: x.now.Load() + 3600,
	}
	if !sameJSON(t, u, want) {
		t.Errorf("created %+v, want %+v", u, want)
	}
	second := x.part(u, content[2:])
	x.now.Add(1800)
	x.part(u, "never named")
	first := x.part(u, content[:2])
	a := x.complete(u.ID, strings.ToUpper(md5Of(content)), first, second)
	done := decode[openai.Upload](x.tester, a)
	want.Status = "completed"
	want.File = &openai.File{
		ID: done.File.ID, Object: "file", Bytes: 11, CreatedAt: x.now.Load(), ExpiresAt: new(x.now.Load() + 7200),
		Filename: "räume.jsonl", Purpose: "batch", Status: "processed",
	}
	if !sameJSON(t, done, want) {
		t.Errorf("completed %s, want %+v", a.body, want)
	}
	if f := decode[openai.File](x.tester, x.get("/v1/files/"+done.File.ID)); !sameJSON(t, f, *done.File) {
		t.Errorf("file %+v, want %+v", f, *done.File)
	}
	if got := x.get("/v1/files/"+done.File.ID+"/content", "Range", "bytes=1-4"); string(got.body) != content[1:5] {
		t.Errorf("range %q", got.body)
	}
	// Again, as an SDK does that had no answer; by then the file may be gone.
	x.now.Add(1 << 20)
	for range 2 {
		if again := x.complete(u.ID, md5Of(content), first, second); !bytes.Equal(again.body, a.body) {
			t.Errorf("completed again: %s, want %s", again.body, a.body)
		}
		x.send("DELETE", "/v1/files/"+done.File.ID, nil)
	}
	b := x.create(1, "vision")
	for range 2 {
		if c := decode[openai.Upload](x.tester, x.post("/v1/uploads/"+b.ID+"/cancel", "")); c.Status != "cancelled" || c.File != nil {
			t.Errorf("cancelled: %+v", c)
		}
	}
}

// TestUploadSplits: however a file is split, and in whatever order its parts come, the file has the
// bytes in the order in which the parts are named.
func TestUploadSplits(t *testing.T) {
	x := newUploadTester(t, nil)
	rapid.Check(t, func(t *rapid.T) {
		content := []byte("{}\n")
		content = append(content, rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "content")...)
		cuts := rapid.SliceOfN(rapid.IntRange(0, len(content)), 0, 12).Draw(t, "cuts")
		parts := split(content, cuts)
		u := x.create(len(content), "batch")
		ids := make([]string, len(parts))
		var wg sync.WaitGroup
		for _, i := range rapid.Permutation(indexes(len(parts))).Draw(t, "order") {
			send := func() { ids[i] = x.part(u, string(parts[i])) }
			if rapid.Bool().Draw(t, "wait") {
				send()
			} else {
				wg.Go(send)
			}
		}
		wg.Wait()
		sum := ""
		if rapid.Bool().Draw(t, "md5") {
			sum = md5Of(string(content))
		}
		done := decode[openai.Upload](x.tester, x.complete(u.ID, sum, ids...))
		if got := x.get("/v1/files/" + done.File.ID + "/content"); !bytes.Equal(got.body, content) {
			t.Fatalf("%d bytes cut at %v come back as %d other bytes", len(content), cuts, len(got.body))
		}
	})
}

// split cuts content at places in any order.
func split(content []byte, cuts []int) [][]byte {
	sorted := append([]int{0, len(content)}, cuts...)
	for i := range sorted {
		for j := i; j > 0 && sorted[j] < sorted[j-1]; j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	var parts [][]byte
	for i := 1; i < len(sorted); i++ {
		parts = append(parts, content[sorted[i-1]:sorted[i]])
	}
	return parts
}

func indexes(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// TestUploadErrors provokes every refusal of contract UP-07.
func TestUploadErrors(t *testing.T) {
	const missing, invalid, badType = "missing_required_parameter", "invalid_value", "invalid_type"
	x := newUploadTester(t, nil)
	u, other := x.create(5, "batch"), x.create(5, "batch")
	a, b, foreign := x.part(u, "{}"), x.part(u, "   "), x.part(other, "\n\n\n")
	path := "/v1/uploads/" + u.ID
	for name, tt := range map[string]struct {
		send                 func() answer
		code, param, message string
	}{
		"create: nothing":       {func() answer { return x.post("/v1/uploads", "{}") }, missing, "filename", "Missing required parameter: 'filename'."},
		"create: no JSON":       {func() answer { return x.post("/v1/uploads", "filename=x") }, "", "", errNotJSON.Error()},
		"create: bytes as text": {func() answer { return x.post("/v1/uploads", strings.Replace(ask(5, "batch"), ":5", `:"5"`, 1)) }, badType, "bytes", "Invalid type for 'bytes': expected an integer, but got a string instead."},
		"create: expires_after": {func() answer {
			return x.post("/v1/uploads", strings.TrimSuffix(ask(5, "batch"), "}")+`,"expires_after":{"seconds":3600}}`)
		}, missing, "expires_after.anchor", "Missing required parameter: 'expires_after.anchor'."},
		"part: no form":          {func() answer { return x.post(path+"/parts", "data") }, "", "", errNotForm.Error()},
		"part: no data":          {func() answer { return x.sendPart(u.ID, field{name: "file", value: "x"}) }, missing, "data", "Missing required parameter: 'data'."},
		"part: two":              {func() answer { return x.sendPart(u.ID, field{"data", "p", "x"}, field{"data", "p", "y"}) }, "", "data", "Invalid 'data': only one file can be uploaded at a time."},
		"part: too large":        {func() answer { return x.sendPart(u.ID, field{"data", "p", strings.Repeat("x", 64<<20+1)}) }, "", "data", "The part is too large. A part can have at most 67108864 bytes."},
		"complete: no JSON":      {func() answer { return x.post(path+"/complete", "") }, "", "", errNotJSON.Error()},
		"complete: no ids":       {func() answer { return x.post(path+"/complete", "{}") }, missing, "part_ids", "Missing required parameter: 'part_ids'."},
		"complete: ids as text":  {func() answer { return x.post(path+"/complete", `{"part_ids":"`+a+`"}`) }, badType, "part_ids", "Invalid type for 'part_ids': expected an array, but got a string instead."},
		"complete: id as number": {func() answer { return x.post(path+"/complete", `{"part_ids":["`+a+`",1]}`) }, badType, "part_ids[1]", "Invalid type for 'part_ids[1]': expected a string, but got a number instead."},
		"complete: unknown":      {func() answer { return x.complete(u.ID, "", a, "part_x") }, invalid, "part_ids", "Invalid value: 'part_x'. Upload " + u.ID + " has no such part."},
		"complete: strange id":   {func() answer { return x.complete(u.ID, "", "\x00'--") }, invalid, "part_ids", "Invalid value: '\ufffd'--'. Upload " + u.ID + " has no such part."},
		"complete: another's":    {func() answer { return x.complete(u.ID, "", a, foreign) }, invalid, "part_ids", "Invalid value: '" + foreign + "'. Upload " + u.ID + " has no such part."},
		"complete: twice":        {func() answer { return x.complete(u.ID, "", a, b, b) }, invalid, "part_ids", "Invalid value: '" + b + "'. A part can be used only once."},
		"complete: size":         {func() answer { return x.complete(u.ID, "", a) }, "", "", "The total size of the parts (2 bytes) does not match the upload size (5 bytes)."},
		"complete: no parts":     {func() answer { return x.complete(u.ID, "") }, "", "", "The total size of the parts (0 bytes) does not match the upload size (5 bytes)."},
		"complete: bad MD5":      {func() answer { return x.complete(u.ID, "beef", a, b) }, invalid, "md5", "Invalid value: 'beef'. Value must be the MD5 of the file, 32 hexadecimal digits."},
		"complete: other MD5":    {func() answer { return x.complete(u.ID, md5Of("   {}"), a, b) }, "", "md5", "The MD5 of the parts (" + md5Of("{}   ") + ") does not match the given one (" + md5Of("   {}") + ")."},
	} {
		t.Run(name, func(t *testing.T) {
			x.wantError(tt.send(), 400, tt.code, tt.param, tt.message)
		})
	}
	// None of these ended it.
	decode[openai.Upload](x.tester, x.complete(u.ID, "", b, a))
}

// TestUploadNotPending: an upload that has ended says so, whatever ended it.
func TestUploadNotPending(t *testing.T) {
	x := newUploadTester(t, nil)
	completed, cancelled, expired := x.create(2, "batch"), x.create(2, "batch"), x.create(2, "batch")
	part := x.part(completed, "{}")
	decode[openai.Upload](x.tester, x.complete(completed.ID, "", part))
	x.post("/v1/uploads/"+cancelled.ID+"/cancel", "")
	late := x.part(expired, "{}")
	x.now.Add(3600)
	for status, u := range map[string]openai.Upload{"completed": completed, "cancelled": cancelled, "expired": expired} {
		want := fmt.Sprintf("Upload %s is not pending; its status is '%s'.", u.ID, status)
		x.wantError(x.sendPart(u.ID, field{"data", "p", "{}"}), 400, "", "", want)
		x.wantError(x.complete(u.ID, "", late), 400, "", "", want)
		x.wantError(x.complete(u.ID, "", "part_x"), 400, "", "", want)
		if status != "cancelled" {
			x.wantError(x.post("/v1/uploads/"+u.ID+"/cancel", ""), 400, "", "", want)
		}
	}
}

// TestUploadForeign: another project's upload is an unknown one, and so are ids that we cannot
// have drawn.
func TestUploadForeign(t *testing.T) {
	x := newUploadTester(t, nil)
	u := x.create(2, "batch")
	part := x.part(u, "{}")
	x.key = keyB
	theirs := x.create(2, "batch")
	for escaped, shown := range map[string]string{u.ID: u.ID, "upload_x": "upload_x", "%00": "\ufffd", "a%2Fb": "a/b", "'%20OR%201=1": "' OR 1=1"} {
		message := "No such Upload object: " + shown
		x.wantError(x.sendPart(escaped, field{"data", "p", "{}"}), 404, "", "upload_id", message)
		x.wantError(x.complete(escaped, "", part), 404, "", "upload_id", message)
		x.wantError(x.complete(escaped, "", "part_x"), 404, "", "upload_id", message)
		x.wantError(x.post("/v1/uploads/"+escaped+"/cancel", ""), 404, "", "upload_id", message)
	}
	x.wantError(x.complete(theirs.ID, "", part), 400, "invalid_value", "part_ids",
		"Invalid value: '"+part+"'. Upload "+theirs.ID+" has no such part.")
	x.key = keyA
	decode[openai.Upload](x.tester, x.complete(u.ID, "", part))
}

// TestUploadContent: a batch's input obeys the limits of one that comes in one piece, and the
// bytes are read no further than necessary.
func TestUploadContent(t *testing.T) {
	const format, large = "Invalid file format for Batch API. Must be .jsonl", "File is too large."
	x := newUploadTester(t, func(c *Config) { c.Policy = batch.Policy{MaxInput: 3 << 20, MaxFile: 4 << 20} })
	padding := strings.Repeat(" ", 1<<20)
	for name, tt := range map[string]struct {
		purpose string
		parts   []string
		md5     bool
		refused string
		read    int64 // at most
	}{
		"empty":                  {"batch", nil, false, format, 0},
		"blank":                  {"batch", []string{" ", "\n", ""}, false, format, 2},
		"no JSON":                {"batch", []string{"no", "pe\n"}, false, format, 5},
		"line over parts":        {"batch", []string{"", " {\"a\"", ":1", "}", "\nnope"}, false, "", 20},
		"only the first line":    {"batch", []string{"{}\n" + padding, padding}, false, "", 256 << 10},
		"all of it for the MD5":  {"batch", []string{"{}\n" + padding, padding}, true, "", 2<<20 + 3},
		"nothing of another":     {"evals", []string{"nope", padding}, false, "", 0},
		"another, with MD5":      {"evals", []string{"nope", padding}, true, "", 1<<20 + 4},
		"other empty":            {"evals", nil, true, "", 0},
		"input too large":        {"batch", []string{"{}\n", padding, padding, padding}, true, large, 0},
		"large for other things": {"evals", []string{padding, padding, padding, padding}, false, "", 0},
		"too large for those":    {"evals", []string{padding, padding, padding, padding, "x"}, false, large, 0},
	} {
		t.Run(name, func(t *testing.T) {
			content := strings.Join(tt.parts, "")
			u := x.create(len(content), tt.purpose)
			ids := []string{}
			for _, p := range tt.parts {
				ids = append(ids, x.part(u, p))
			}
			sum := ""
			if tt.md5 {
				sum = md5Of(content)
			}
			before := x.blobs.read.Load()
			a := x.complete(u.ID, sum, ids...)
			if n := x.blobs.read.Load() - before; n > tt.read || tt.md5 && tt.refused == "" && n != tt.read {
				t.Errorf("%d bytes are read, want %d", n, tt.read)
			}
			if tt.refused != "" {
				x.wantError(a, 400, "", "", tt.refused)
				return
			}
			f := decode[openai.Upload](x.tester, a).File
			if got := x.get("/v1/files/" + f.ID + "/content"); string(got.body) != content {
				t.Errorf("%d of %d bytes", len(got.body), len(content))
			}
		})
	}
}

// TestUploadOurFault: bytes that cannot be read, and a part whose client breaks off, end nothing.
func TestUploadOurFault(t *testing.T) {
	x := newUploadTester(t, nil)
	u := x.create(4, "batch")
	part := x.part(u, "{}\n ")
	x.blobs.broken.Store(true)
	x.wantError(x.complete(u.ID, "", part), 500, "", "", serverErrorText)
	if !strings.Contains(x.log.String(), "read upload "+u.ID+": disk on fire") {
		t.Error("the reason is not logged")
	}
	x.blobs.broken.Store(false)

	ct, form := encodeForm(field{"data", "p", strings.Repeat("x", 1<<20)})
	conn := x.dial()
	fmt.Fprintf(conn, "POST /v1/uploads/%s/parts HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		u.ID, keyA, ct, len(form), form[:len(form)/2])
	conn.Close()
	decode[openai.Upload](x.tester, x.complete(u.ID, "", part))
}

// TestUploadCompletedAtOnce: the same completion, asked for many times at once, makes one file;
// another one of the same parts does not get it.
func TestUploadCompletedAtOnce(t *testing.T) {
	x := newUploadTester(t, nil)
	for range 10 {
		u := x.create(4, "batch")
		first, second := x.part(u, "{}"), x.part(u, "\n\n")
		bodies := make([]string, 8)
		var wg sync.WaitGroup
		for i := range bodies {
			wg.Go(func() {
				time.Sleep(rand.N(2 * time.Millisecond))
				bodies[i] = string(x.complete(u.ID, md5Of("{}\n\n"), first, second).body)
			})
		}
		wg.Wait()
		for _, body := range bodies {
			if body != bodies[0] || !strings.Contains(body, `"status":"completed"`) {
				t.Errorf("got %s and %s", bodies[0], body)
			}
		}
		x.wantStatus(x.complete(u.ID, "", second, first), 400)
	}
	if files := decode[openai.List[openai.File]](x.tester, x.get("/v1/files")); len(files.Data) != 10 {
		t.Errorf("%d files of 10 uploads", len(files.Data))
	}
}

// TestGoldenUploads compares uploads in every situation with the files of their own.
func TestGoldenUploads(t *testing.T) {
	u, err := batch.NewUpload(batch.CreateUploadParams{
		Project: "proj_a", Filename: "docs.jsonl", Purpose: "batch", Bytes: new(int64(8_589_934_592)), MIMEType: "application/jsonl",
	}, birth)
	if err != nil {
		t.Fatal(err)
	}
	u.ID = "upload_0123456789abcdef0123456789abcdef"
	completed, cancelled := u, u
	if _, err := completed.Complete(batch.Completion{PartIDs: []string{"x"}}, []batch.Part{{Bytes: u.Bytes}}, after(20*time.Minute)); err != nil {
		t.Fatal(err)
	}
	completed.FileID = "file-3QwErTyUiOpAsDfGhJkLzX"
	if _, err := cancelled.Cancel(after(time.Minute)); err != nil {
		t.Fatal(err)
	}
	part := batch.NewUploadPart(u.ID, batch.Part{}, after(time.Second))
	part.ID = "part_fedcba9876543210fedcba9876543210"
	for name, v := range map[string]any{
		"pending":   wireUpload(u, birth),
		"completed": wireUpload(completed, after(24*time.Hour)),
		"cancelled": wireUpload(cancelled, after(24*time.Hour)),
		"expired":   wireUpload(u, after(time.Hour)),
		"part":      wireUploadPart(part),
	} {
		wire, err := openai.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "uploads/"+name, wire)
	}
}

// TestSharedUploadShapes: the contract's own examples survive our wire types, and its request is
// one that we answer with an object like its own.
func TestSharedUploadShapes(t *testing.T) {
	needShared(t)
	read := func(name string) []byte {
		raw, err := os.ReadFile(filepath.Join(sharedGolden, name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, v := range map[string]any{
		"uploads/pending": new(openai.Upload), "uploads/completed": new(openai.Upload), "uploads/cancelled": new(openai.Upload),
		"uploads/expired": new(openai.Upload), "uploads/part": new(openai.UploadPart),
		"requests/create_upload": new(openai.CreateUpload), "requests/complete_upload": new(openai.CompleteUpload),
	} {
		raw := read(name)
		if err := jsonv2.Unmarshal(raw, v, jsonv2.RejectUnknownMembers(true)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if again, _ := openai.Marshal(v); !sameJSON(t, again, raw) {
			t.Errorf("%s:\ngot  %s\nwant %s", name, again, raw)
		}
	}
	x := newUploadTester(t, nil)
	got := decode[openai.Upload](x.tester, x.post("/v1/uploads", string(read("requests/create_upload"))))
	var want openai.Upload
	if err := json.Unmarshal(read("uploads/pending"), &want); err != nil {
		t.Fatal(err)
	}
	want.ID, want.CreatedAt, want.ExpiresAt = got.ID, got.CreatedAt, got.CreatedAt+want.ExpiresAt-want.CreatedAt
	if !sameJSON(t, got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
