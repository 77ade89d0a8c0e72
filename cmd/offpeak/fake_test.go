package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"offpeak/internal/client"
	"offpeak/internal/openai"
)

// A fakeServer has the API's behaviour as far as the client commands see it. A batch goes one
// step along its script each time it is asked for.
type fakeServer struct {
	*httptest.Server

	mu      sync.Mutex
	files   map[string]fakeFile
	batches []*fakeBatch
	down    int // so many requests to come are answered 503
	partial string
}

type fakeFile struct {
	openai.File
	body string
}

type fakeBatch struct {
	client.Batch
	script []func(*client.Batch) // what happens at each look; the last state stays
}

func newFakeServer(t *testing.T) *fakeServer {
	f := &fakeServer{files: map[string]fakeFile{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/files", f.upload)
	mux.HandleFunc("GET /v1/files", f.listFiles)
	mux.HandleFunc("GET /v1/files/{id}", f.file)
	mux.HandleFunc("GET /v1/files/{id}/content", f.content)
	mux.HandleFunc("DELETE /v1/files/{id}", f.deleteFile)
	mux.HandleFunc("POST /v1/batches", f.create)
	mux.HandleFunc("GET /v1/batches", f.listBatches)
	mux.HandleFunc("GET /v1/batches/{id}", f.batch)
	mux.HandleFunc("POST /v1/batches/{id}/cancel", f.cancel)
	mux.HandleFunc("GET /v1/batches/{id}/output", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, f.partial) })
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.down > 0 {
			f.down--
			w.Header().Set("Retry-After", "100") // beyond what the client itself waits for
			sendError(w, 503, "overloaded")
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fakeServer) api() apiFlags { return apiFlags{BaseURL: f.URL + "/v1", APIKey: "sk-test"} }

// add makes a file and returns its id.
func (f *fakeServer) add(name, purpose, body string) string {
	id := fmt.Sprintf("file-%d", len(f.files)+1)
	f.files[id] = fakeFile{openai.File{ID: id, Object: "file", Bytes: int64(len(body)), CreatedAt: 1764000000, Filename: name, Purpose: purpose}, body}
	return id
}

// addBatch makes a batch with this script and returns its id.
func (f *fakeServer) addBatch(script ...func(*client.Batch)) string {
	id := fmt.Sprintf("batch_%d", len(f.batches)+1)
	b := &fakeBatch{script: script}
	b.ID, b.Object, b.Status, b.Endpoint, b.CreatedAt = id, "batch", "validating", "/v1/chat/completions", 1764000000
	f.batches = slices.Insert(f.batches, 0, b)
	return id
}

// runningBatch and the like are what scripts are made of.
func runningBatch(done, failed, total int64) func(*client.Batch) {
	return func(b *client.Batch) {
		b.Status, b.InProgressAt = "in_progress", new(int64(1764000010))
		b.RequestCounts = openai.RequestCounts{Total: total, Completed: done, Failed: failed}
	}
}

func refusedBatch(b *client.Batch) {
	b.Status, b.FailedAt = "failed", new(int64(1764000011))
	b.Errors = &openai.BatchErrors{Object: "list", Data: []openai.BatchError{
		{Code: "invalid_json_line", Message: "This line is not parseable as valid JSON.", Line: new(int64(3))},
		{Code: "invalid_url", Message: "The URL provided for this request does not match the batch endpoint.", Param: new("url"), Line: new(int64(7))},
	}}
}

// endedAs ends a batch with these files; "" for none.
func (f *fakeServer) endedAs(status string, done, failed, total int64, output, errors string) func(*client.Batch) {
	return func(b *client.Batch) {
		runningBatch(done, failed, total)(b)
		b.Status = status
		at := new(int64(1764000030))
		switch status {
		case "completed":
			b.CompletedAt = at
		case "expired":
			b.ExpiredAt = at
		case "cancelled":
			b.CancelledAt = at
		}
		b.Usage = &openai.Usage{InputTokens: 1000, OutputTokens: 200, TotalTokens: 1200}
		if output != "" {
			b.OutputFileID = new(f.add("o.jsonl", "batch_output", output))
		}
		if errors != "" {
			b.ErrorFileID = new(f.add("e.jsonl", "batch_output", errors))
		}
	}
}

func sendJSON(w http.ResponseWriter, v any) {
	b, err := openai.Marshal(v)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b)
}

func sendError(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"message":%q,"type":"invalid_request_error","param":null,"code":null}}`, message)
}

func (f *fakeServer) upload(w http.ResponseWriter, r *http.Request) {
	part, head, err := r.FormFile("file")
	if err != nil {
		sendError(w, 400, err.Error())
		return
	}
	body, _ := io.ReadAll(part)
	purpose := r.FormValue("purpose")
	if purpose == "batch" && !strings.HasSuffix(head.Filename, ".jsonl") {
		sendError(w, 400, "Invalid file format for Batch API. Must be .jsonl")
		return
	}
	sendJSON(w, f.files[f.add(head.Filename, purpose, string(body))].File)
}

func (f *fakeServer) listFiles(w http.ResponseWriter, r *http.Request) {
	var page []openai.File
	for _, file := range f.files {
		if p := r.FormValue("purpose"); p == "" || p == file.Purpose {
			page = append(page, file.File)
		}
	}
	slices.SortFunc(page, func(a, b openai.File) int { return strings.Compare(b.ID, a.ID) })
	sendJSON(w, openai.NewList(page, func(f openai.File) string { return f.ID }, false))
}

func (f *fakeServer) withFile(w http.ResponseWriter, r *http.Request, then func(fakeFile)) {
	file, ok := f.files[r.PathValue("id")]
	if !ok {
		sendError(w, 404, "No such File object: "+r.PathValue("id"))
		return
	}
	then(file)
}

func (f *fakeServer) file(w http.ResponseWriter, r *http.Request) {
	f.withFile(w, r, func(file fakeFile) { sendJSON(w, file.File) })
}

func (f *fakeServer) content(w http.ResponseWriter, r *http.Request) {
	f.withFile(w, r, func(file fakeFile) { io.WriteString(w, file.body) })
}

func (f *fakeServer) deleteFile(w http.ResponseWriter, r *http.Request) {
	f.withFile(w, r, func(file fakeFile) {
		delete(f.files, file.ID)
		sendJSON(w, openai.FileDeleted{ID: file.ID, Object: "file", Deleted: true})
	})
}

func (f *fakeServer) create(w http.ResponseWriter, r *http.Request) {
	var in openai.CreateBatch
	if err := unmarshal(r.Body, &in); err != nil {
		sendError(w, 400, err.Error())
		return
	}
	if in.CompletionWindow != "24h" {
		sendError(w, 400, "Invalid value: '"+in.CompletionWindow+"'.")
		return
	}
	lines := int64(strings.Count(f.files[in.InputFileID].body, "\n"))
	f.addBatch(runningBatch(0, 0, lines), f.endedAs("completed", lines, 0, lines, "answers\n", ""))
	b := f.batches[0]
	b.Endpoint, b.InputFileID, b.Metadata = in.Endpoint, in.InputFileID, in.Metadata
	sendJSON(w, b.Batch)
}

func (f *fakeServer) listBatches(w http.ResponseWriter, r *http.Request) {
	var page []client.Batch
	for _, b := range f.batches {
		page = append(page, b.Batch)
	}
	sendJSON(w, openai.NewList(page, func(b client.Batch) string { return b.ID }, false))
}

func (f *fakeServer) withBatch(w http.ResponseWriter, r *http.Request, then func(*fakeBatch)) {
	i := slices.IndexFunc(f.batches, func(b *fakeBatch) bool { return b.ID == r.PathValue("id") })
	if i < 0 {
		sendError(w, 404, "No batch found with id '"+r.PathValue("id")+"'.")
		return
	}
	then(f.batches[i])
}

func (f *fakeServer) batch(w http.ResponseWriter, r *http.Request) {
	f.withBatch(w, r, func(b *fakeBatch) {
		if len(b.script) > 0 {
			b.script[0](&b.Batch)
			b.script = b.script[1:]
		}
		sendJSON(w, b.Batch)
	})
}

func (f *fakeServer) cancel(w http.ResponseWriter, r *http.Request) {
	f.withBatch(w, r, func(b *fakeBatch) {
		if b.Status == "completed" {
			sendError(w, 409, "Cannot cancel a batch with status 'completed'.")
			return
		}
		b.Status = "cancelling"
		sendJSON(w, b.Batch)
	})
}

// unmarshal decodes what r holds.
func unmarshal(r io.Reader, v any) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// A command is what kong runs.
type command interface {
	Run(ctx context.Context, s *streams) error
}

// runCommand runs cmd and returns what it wrote.
func runCommand(t *testing.T, cmd command, stdin string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	err = cmd.Run(t.Context(), &streams{
		In: strings.NewReader(stdin), Out: &out, Err: &errs,
		Getenv: func(string) string { return "" },
	})
	return out.String(), errs.String(), err
}
