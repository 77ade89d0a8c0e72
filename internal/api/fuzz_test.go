package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

// fuzzServer is a server without a network, and what stands behind it.
func fuzzServer() (http.Handler, *fakeStore, *fakeBlobs) {
	store, blobs := newFakeStore(time.Now), newFakeBlobs()
	return New(Config{
		Store: store, Blobs: blobs, Policy: batch.Policy{MaxInput: 1 << 16, MaxFile: 1 << 17},
		Log: slog.New(slog.DiscardHandler),
	}), store, blobs
}

// serveFuzzed checks what holds for every answer: it is no fault of ours, and JSON of the shape
// that clients expect.
func serveFuzzed(t *testing.T, h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	r.Header.Set("Authorization", "Bearer key")
	w := httptest.NewRecorder()
	described(t, h).ServeHTTP(w, r)
	body := w.Body.Bytes()
	if !utf8.Valid(body) || !json.Valid(body) || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("status %d, body %q", w.Code, body)
	}
	if w.Code == http.StatusOK {
		return w
	}
	var e openai.ErrorResponse
	if err := json.Unmarshal(body, &e); err != nil || e.Error.Message == "" || e.Error.Type != "invalid_request_error" || w.Code < 400 || w.Code > 499 {
		t.Fatalf("status %d, body %s", w.Code, body)
	}
	return w
}

// FuzzUpload: a form makes a file of exactly the bytes in it, or nothing at all.
func FuzzUpload(f *testing.F) {
	files, _ := filepath.Glob("testdata/http/*.txt")
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		head, body, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
		_, boundary, _ := strings.Cut(string(head), "boundary=")
		boundary, _, _ = strings.Cut(boundary, "\r\n")
		f.Add(boundary, body)
	}
	for _, fields := range [][]field{
		{forBatch, fileField("{}\n")},
		{fileField("\n\n{}"), {name: "purpose", value: "user_data"}},
		{{name: "expires_after[anchor]", value: "created_at"}, {name: "expires_after[seconds]", value: "99999999999999999999"}, fileField("")},
	} {
		ct, body := encodeForm(fields...)
		_, boundary, _ := strings.Cut(ct, "boundary=")
		f.Add(boundary, body)
	}
	f.Fuzz(func(t *testing.T, boundary string, form []byte) {
		h, store, blobs := fuzzServer()
		r := httptest.NewRequest("POST", "/v1/files", bytes.NewReader(form))
		r.Header.Set("Content-Type", "multipart/form-data; boundary="+boundary)
		w := serveFuzzed(t, h, r)
		if blobs.open != 0 {
			t.Errorf("%d writers are open", blobs.open)
		}
		if w.Code != http.StatusOK {
			if len(store.files) != 0 || len(blobs.blobs) != 0 {
				t.Errorf("refused, yet %d files and %d blobs", len(store.files), len(blobs.blobs))
			}
			return
		}
		file := store.files[0]
		content := blobs.blobs[file.Parts[0].Key]
		if int64(len(content)) != file.Bytes || !bytes.Contains(form, content) {
			t.Errorf("file of %d bytes has %q", file.Bytes, content)
		}
		if !utf8.ValidString(file.Filename) || strings.Contains(file.Filename, "\x00") {
			t.Errorf("filename %q", file.Filename)
		}
		if file.Purpose == "batch" && !strings.EqualFold(filepath.Ext(file.Filename), ".jsonl") {
			t.Errorf("input called %q", file.Filename)
		}
		got := httptest.NewRequest("GET", "/v1/files/"+file.ID+"/content", nil)
		got.Header.Set("Authorization", "Bearer key")
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, got)
		if !bytes.Equal(rec.Body.Bytes(), content) {
			t.Errorf("read back %q, want %q", rec.Body.Bytes(), content)
		}
		if d := rec.Header().Get("Content-Disposition"); !strings.HasPrefix(d, "attachment;") || strings.ContainsAny(d, "\r\n\x00") {
			t.Errorf("disposition %q", d)
		}
	})
}

// FuzzCreateBatch: what is created keeps every limit and is text that a database can hold.
func FuzzCreateBatch(f *testing.F) {
	for _, s := range []string{
		createBody, "{}", "", "null", `{"input_file_id":"\u0000\ud800"}`,
		withField(`"metadata":{"a":"b"},"output_expires_after":{"anchor":"created_at","seconds":3600}`),
		withField(`"metadata":{"a":["b"]},"metadata":null,"output_expires_after":{"anchor":null,"seconds":1e4}`),
		strings.Replace(createBody, "24h", "43200m", 1),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		h, store, _ := fuzzServer()
		w := serveFuzzed(t, h, httptest.NewRequest("POST", "/v1/batches", bytes.NewReader(body)))
		if (w.Code == http.StatusOK) != (len(store.batches) == 1) {
			t.Fatalf("status %d and %d batches", w.Code, len(store.batches))
		}
		if w.Code != http.StatusOK {
			return
		}
		b := store.batches[0]
		window := b.ExpiresAt.Sub(b.CreatedAt)
		if window < batch.MinWindow || window > batch.MaxWindow || b.OutputExpiresAfter < time.Hour || b.OutputExpiresAfter > batch.DefaultRetention {
			t.Errorf("window %v, results kept %v", window, b.OutputExpiresAfter)
		}
		texts := []string{b.InputFileID, b.Endpoint, b.CompletionWindow}
		for k, v := range b.Metadata {
			texts = append(texts, k, v)
		}
		for _, s := range texts {
			if !utf8.ValidString(s) || strings.Contains(s, "\x00") || utf8.RuneCountInString(s) > 512 {
				t.Errorf("text %q", s)
			}
		}
		if len(b.Metadata) > 16 {
			t.Errorf("%d pairs of metadata", len(b.Metadata))
		}
	})
}

// FuzzQuery: whatever the path and the parameters, the answer is one of the API's.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{
		"batches?limit=3&after=x", "files?order=asc&limit=10000&purpose=batch", "files?limit=-1", "batches?limit=1e9&limit=2",
		"batches/%00", "files/..%2f/content", "models/a%2Fb:c", "batches//", "files?after=%ff;x", "models/%zz", "../healthz?",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		u, err := url.ParseRequestURI("/v1/" + path)
		if err != nil || u.Host != "" || strings.HasSuffix(u.Path, "/content") { // whose answer is not JSON
			return
		}
		h, store, _ := fuzzServer()
		for i := range 3 {
			store.batches = append(store.batches, batch.Batch{
				ID: fmt.Sprint("batch_", i), Project: batch.DefaultProject, Status: batch.Validating, CreatedAt: birth, ExpiresAt: after(time.Hour),
			})
			store.files = append(store.files, batch.File{
				ID: fmt.Sprint("file-", i), Project: batch.DefaultProject, Purpose: batch.PurposeBatch, CreatedAt: birth,
			})
		}
		for _, method := range []string{"GET", "POST", "DELETE"} {
			r := httptest.NewRequest(method, "/", io.NopCloser(strings.NewReader("")))
			r.URL, r.RequestURI = u, u.RequestURI()
			serveFuzzed(t, h, r)
		}
	})
}
