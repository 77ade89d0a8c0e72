package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

var update = flag.Bool("update", false, "write testdata/golden anew; read the diff before you commit it")

// sharedGolden is where the contract's own examples are, if this checkout has them beside it.
const sharedGolden = "../../../shared/contract/golden"

// sameJSON reports whether a and b encode to the same JSON.
func sameJSON(t testing.TB, a, b any) bool {
	t.Helper()
	var ra, rb any
	for v, r := range map[any]*any{&a: &ra, &b: &rb} {
		raw, ok := (*v.(*any)).([]byte)
		if !ok {
			var err error
			if raw, err = openai.Marshal(*v.(*any)); err != nil {
				t.Fatal(err)
			}
		}
		if err := json.Unmarshal(raw, r); err != nil {
			t.Fatalf("%v in %s", err, raw)
		}
	}
	return reflect.DeepEqual(ra, rb)
}

// golden compares what goes over the wire with testdata/golden/name.json, indented.
func golden(t *testing.T, name string, wire []byte) {
	t.Helper()
	var got bytes.Buffer
	if err := json.Indent(&got, wire, "", "  "); err != nil {
		t.Fatalf("%s: %v in %s", name, err, wire)
	}
	got.WriteByte('\n')
	path := filepath.Join("testdata", "golden", name+".json")
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, got.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s:\ngot  %s\nwant %s", name, got.Bytes(), want)
	}
}

// birth is when the objects of the golden files were created.
var birth = time.Unix(1793880000, 250e6)

func after(d time.Duration) time.Time { return birth.Add(d) }

// goldenBatch is a batch that moved through steps.
func goldenBatch(t *testing.T, steps ...func(*batch.Batch) error) batch.Batch {
	t.Helper()
	b, err := batch.New(batch.CreateParams{
		Project: "proj_a", InputFileID: "file-3QwErTyUiOpAsDfGhJkLzX", Endpoint: "/v1/embeddings",
		CompletionWindow: "24h", Metadata: map[string]string{"team": "search", "run": "2026-11-05 <nightly> & more"},
	}, batch.Policy{}, birth)
	if err != nil {
		t.Fatal(err)
	}
	b.ID = "batch_6aec3a400123456789abcdef01234567"
	b.OutputFileID, b.ErrorFileID = "file-0utPuT0utPuT0utPuT0utP", "file-3rR0r3rR0r3rR0r3rR0r3r"
	for i, step := range steps {
		if err := step(&b); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	return b
}

func admit(b *batch.Batch) error { return b.Admit(10, "bge-m3", after(2*time.Second)) }

func record(completed, failed int64) func(*batch.Batch) error {
	return func(b *batch.Batch) error {
		b.Counts.Completed, b.Counts.Failed = completed, failed
		b.Usage = batch.Usage{Input: 31 * completed, Cached: 4 * completed, Total: 31 * completed}
		return nil
	}
}

func seal(b *batch.Batch) error   { return b.Seal(after(time.Hour)) }
func expire(b *batch.Batch) error { _, err := b.Expire(after(24 * time.Hour)); return err }
func cancel(b *batch.Batch) error { _, err := b.Cancel(after(time.Minute)); return err }

func finish(output, errs bool) func(*batch.Batch) error {
	return func(b *batch.Batch) error { return b.Finish(output, errs, after(25*time.Hour)) }
}

func reject(b *batch.Batch) error {
	return b.Reject([]batch.LineError{
		batch.CannotFindFile("file-3QwErTyUiOpAsDfGhJkLzX", "proj_a"),
		{Code: "invalid_json_line", Message: "This line is not parseable as valid JSON.", Line: 3, Detail: "not shown"},
	}, after(time.Second))
}

// goldenObjects are objects of every kind and in every situation, by the name of their file.
func goldenObjects(t *testing.T) map[string]any {
	batches := map[string]batch.Batch{
		"validating":             goldenBatch(t),
		"failed":                 goldenBatch(t, reject),
		"in_progress":            goldenBatch(t, admit, record(3, 1)),
		"finalizing":             goldenBatch(t, admit, record(9, 1), seal),
		"completed":              goldenBatch(t, admit, record(9, 1), seal, finish(true, true)),
		"completed_no_errors":    goldenBatch(t, admit, record(10, 0), seal, finish(true, false)),
		"completed_all_failed":   goldenBatch(t, admit, record(0, 10), seal, finish(false, true)),
		"expiring":               goldenBatch(t, admit, record(4, 0), expire),
		"expired":                goldenBatch(t, admit, record(4, 0), expire, finish(true, true)),
		"expired_validating":     goldenBatch(t, expire),
		"expired_before_any_ran": goldenBatch(t, admit, expire, finish(false, true)),
		"cancelling":             goldenBatch(t, admit, record(4, 0), cancel),
		"cancelled":              goldenBatch(t, admit, record(4, 0), cancel, finish(true, true)),
		"cancelled_validating":   goldenBatch(t, cancel),
	}
	plain := goldenBatch(t)
	plain.Metadata = nil
	batches["no_metadata"] = plain

	input := batch.File{
		ID: "file-3QwErTyUiOpAsDfGhJkLzX", Project: "proj_a", Purpose: "batch", Filename: "docs.jsonl", Bytes: 8_589_934_592,
		CreatedAt: birth, ExpiresAt: batch.DefaultExpiry("batch", birth),
	}
	forever := input
	forever.Purpose, forever.Filename, forever.ExpiresAt = "user_data", "naïve 東京.pdf", time.Time{}
	completed := batches["completed"]
	output := completed.ResultFile(completed.OutputFileID, "output", after(25*time.Hour))
	output.Bytes = 12345

	models := wireAll(fakeModels{"bge-m3", "meta-llama/Llama-3.1-8B"}.Models(t.Context()), wireModel)
	objects := map[string]any{
		"files/input":       wireFile(input),
		"files/no_expiry":   wireFile(forever),
		"files/output":      wireFile(output),
		"files/deleted":     openai.FileDeleted{ID: input.ID, Object: "file", Deleted: true},
		"lists/batches":     openai.NewList([]openai.Batch{wireBatch(batches["completed"]), wireBatch(batches["failed"])}, batchID, true),
		"lists/no_batches":  openai.NewList[openai.Batch](nil, batchID, false),
		"lists/files":       openai.NewList([]openai.File{wireFile(output), wireFile(input)}, fileID, false),
		"lists/no_files":    openai.NewList([]openai.File{}, fileID, false),
		"lists/models":      openai.ModelList{Object: "list", Data: models},
		"lists/no_models":   openai.ModelList{Object: "list"},
		"models/model":      models[0],
		"models/no_created": wireModel(batch.ModelInfo{ID: "m", OwnedBy: "x"}),
	}
	for name, b := range batches {
		objects["batches/"+name] = wireBatch(b)
	}
	return objects
}

func TestGoldenObjects(t *testing.T) {
	objects := goldenObjects(t)
	for name, v := range objects {
		wire, err := openai.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, wire)
	}
	files, _ := filepath.Glob("testdata/golden/[bflm]*/*.json")
	if len(files) != len(objects) {
		t.Errorf("%d files for %d objects", len(files), len(objects))
	}
}

// A provocation is a request that is refused.
type provocation struct {
	name   string // of the golden file
	status int
	send   func(x *tester) answer
}

var (
	get = func(path string) func(*tester) answer {
		return func(x *tester) answer { return x.get(path) }
	}
	create = func(edit string) func(*tester) answer { // a body with a field more
		return func(x *tester) answer { return x.post("/v1/batches", withField(edit)) }
	}
	uploadForm = func(fields ...field) func(*tester) answer {
		return func(x *tester) answer { return x.upload(fields...) }
	}
	withKey = func(header string) func(*tester) answer {
		return func(x *tester) answer { return x.get("/v1/batches", "Authorization", header) }
	}
)

// provocations covers every class of errors there is. Values are our own; those of the contract's
// examples are in TestSharedErrors.
var provocations = []provocation{
	{"400_completion_window", 400, create(`"completion_window":"1w"`)},
	{"400_endpoint", 400, create(`"endpoint":"/v1/audio/speech"`)},
	{"400_missing", 400, func(x *tester) answer { return x.post("/v1/batches", `{"metadata":{}}`) }},
	{"400_type", 400, create(`"metadata":{"owner":{"name":"x"}}`)},
	{"400_metadata_value", 400, create(`"metadata":{"why":"` + strings.Repeat("w", 600) + `"}`)},
	{"400_metadata_key", 400, create(`"metadata":{"` + strings.Repeat("k", 70) + `":""}`)},
	{"400_metadata_pairs", 400, create(`"metadata":` + pairs(20))},
	{"400_output_expires_after", 400, create(`"output_expires_after":{"anchor":"created_at","seconds":3000000}`)},
	{"400_json", 400, func(x *tester) answer { return x.post("/v1/batches", "{'a':1}") }},
	{"400_body_too_large", 400, func(x *tester) answer { return x.post("/v1/batches", strings.Repeat(" ", maxJSON+1)) }},
	{"400_limit_above", 400, get("/v1/batches?limit=500")},
	{"400_limit_below", 400, get("/v1/files?limit=0")},
	{"400_limit_type", 400, get("/v1/files?limit=all")},
	{"400_order", 400, get("/v1/files?order=newest")},
	{"400_form", 400, func(x *tester) answer { return x.post("/v1/files", "purpose=batch") }},
	{"400_purpose", 400, uploadForm(field{name: "purpose", value: "fine-tune-results"}, fileField("{}"))},
	{"400_file_format", 400, uploadForm(forBatch, field{"file", "in.txt", "{}"})},
	{"400_file_too_large", 400, uploadForm(forBatch, fileField(strings.Repeat(" ", 1001)))},
	{"400_expires_after", 400, uploadForm(forBatch, fileField("{}"),
		field{name: "expires_after[anchor]", value: "created_at"}, field{name: "expires_after[seconds]", value: "1"})},
	{"401_no_key", 401, withKey("")},
	{"401_wrong_key", 401, withKey("Bearer sk-proj-of-somebody-else")},
	{"403_cross_origin", 403, func(x *tester) answer {
		return x.post("/v1/batches", createBody, "Origin", "https://a-page.example")
	}},
	{"404_route", 404, get("/v1/chat/completions")},
	{"404_batch", 404, get("/v1/batches/batch_0")},
	{"404_file", 404, get("/v1/files/file-0/content")},
	{"404_model", 404, get("/v1/models/meta-llama/nope")},
	{"405_method", 405, func(x *tester) answer { return x.send("PATCH", "/v1/files", nil) }},
	{"408_stalled", 408, func(x *tester) answer {
		raw := x.raw("POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + keyA + "\r\nContent-Length: 1\r\n\r\n")
		_, body, _ := strings.Cut(raw, "\r\n\r\n")
		return answer{Response: &http.Response{StatusCode: 408}, body: []byte(body)}
	}},
	{"409_cancel", 409, func(x *tester) answer {
		b := x.createBatch()
		x.store.change(x.Context(), "proj_a", b.ID, func(b *batch.Batch) error { return b.Reject(nil, birth) })
		return x.post("/v1/batches/"+b.ID+"/cancel", "")
	}},
	{"415_compressed", 415, func(x *tester) answer { return x.post("/v1/batches", "\x1f\x8b", "Content-Encoding", "gzip") }},
	{"416_range", 416, func(x *tester) answer {
		return x.get("/v1/files/"+x.partedFile("abc").ID+"/content", "Range", "bytes=3-")
	}},
	{"500_server", 500, func(x *tester) answer {
		x.store.failing(func(string) error { return errors.New("secret of the database") })
		return x.get("/v1/batches")
	}},
	{"503_not_ready", 503, get("/readyz")},
	{"503_away", 503, func(x *tester) answer {
		x.store.failing(func(string) error { return errFakeAway })
		return x.get("/v1/batches")
	}},
}

// pairs is metadata with n pairs.
func pairs(n int) string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprint("key", i)] = "v"
	}
	raw, _ := json.Marshal(m)
	return string(raw)
}

func TestGoldenErrors(t *testing.T) {
	for _, p := range provocations {
		t.Run(p.name, func(t *testing.T) {
			x := newTester(t, strict)
			a := p.send(x)
			x.wantStatus(a, p.status)
			golden(t, "errors/"+p.name, a.body)
		})
	}
	covered := map[int]bool{}
	for _, p := range provocations {
		covered[p.status] = true
	}
	for kind, status := range statuses {
		if !covered[status] {
			t.Errorf("no golden file for kind %d, status %d", kind, status)
		}
	}
	files, _ := filepath.Glob("testdata/golden/errors/*.json")
	if len(files) != len(provocations) {
		t.Errorf("%d files for %d errors", len(files), len(provocations))
	}
}

// strict is a server in profile openai, with low limits, that is not ready.
func strict(c *Config) {
	c.Policy = batch.Policy{Profile: batch.ProfileOpenAI, MaxInput: 1000, MaxFile: 1000}
	c.Stall = time.Second
	c.Ready = func(context.Context) error { return errors.New("starting") }
}

// TestSharedErrors provokes the errors of the contract's own examples and expects the same bodies.
func TestSharedErrors(t *testing.T) {
	needShared(t)
	for name, send := range map[string]func(*tester) answer{
		"400_completion_window":     create(`"completion_window":"48h"`),
		"400_endpoint":              create(`"endpoint":"/v1/nope"`),
		"400_metadata_count":        create(`"metadata":` + pairs(17)),
		"400_metadata_type":         create(`"metadata":{"tags":["a"]}`),
		"400_metadata_value_length": create(`"metadata":{"note":"` + strings.Repeat("n", 695) + `"}`),
		"400_missing_input_file_id": func(x *tester) answer { return x.post("/v1/batches", "{}") },
		"400_json":                  func(x *tester) answer { return x.post("/v1/batches", "{") },
		"400_limit_high":            get("/v1/batches?limit=101"),
		"400_purpose":               uploadForm(field{name: "purpose", value: "nonsense"}, fileField("{}")),
		"400_file_format":           uploadForm(fileField("not json"), forBatch),
		"400_file_too_large":        uploadForm(fileField(strings.Repeat(" ", 2000)), forBatch),
		"400_expires_after_low": uploadForm(forBatch, fileField("{}"),
			field{name: "expires_after[anchor]", value: "created_at"}, field{name: "expires_after[seconds]", value: "60"}),
		"401_missing_key": withKey(""),
		"401_wrong_key":   withKey("Bearer sk-te-nobodys-cdef"),
		"404_batch":       get("/v1/batches/batch_doesnotexist"),
		"404_file":        get("/v1/files/file-doesnotexist"),
		"404_model":       get("/v1/models/no-such-model"),
		"404_route":       get("/v1/nope"),
		"405_method":      func(x *tester) answer { return x.send("PUT", "/v1/batches", nil) },
		"409_cancel_completed": func(x *tester) answer {
			b := x.createBatch()
			x.store.change(x.Context(), "proj_a", b.ID, func(b *batch.Batch) error {
				return errors.Join(admit(b), seal(b), finish(true, false)(b))
			})
			return x.post("/v1/batches/"+b.ID+"/cancel", "")
		},
		"500_server": func(x *tester) answer {
			x.store.failing(func(string) error { return errors.New("broken") })
			return x.get("/v1/files")
		},
		"503_overloaded": get("/readyz"),
	} {
		t.Run(name, func(t *testing.T) {
			want, err := os.ReadFile(filepath.Join(sharedGolden, "errors", name+".json"))
			if err != nil {
				t.Skip(err)
			}
			a := send(newTester(t, strict))
			if fmt.Sprint(a.StatusCode) != name[:3] || !sameJSON(t, a.body, want) {
				t.Errorf("status %d\ngot  %s\nwant %s", a.StatusCode, a.body, want)
			}
		})
	}
}

// TestSharedShapes: the contract's examples survive our wire types unchanged, so that no field is
// missing and none has another type.
func TestSharedShapes(t *testing.T) {
	needShared(t)
	index, err := os.ReadFile(filepath.Join(sharedGolden, "INDEX.json"))
	if err != nil {
		t.Skip(err)
	}
	var kinds map[string]string
	if err := json.Unmarshal(index, &kinds); err != nil {
		t.Fatal(err)
	}
	shapes := map[string]func() any{
		"Batch":               func() any { return new(openai.Batch) },
		"ErrorResponse":       func() any { return new(openai.ErrorResponse) },
		"OpenAIFile":          func() any { return new(openai.File) },
		"DeleteFileResponse":  func() any { return new(openai.FileDeleted) },
		"ListBatchesResponse": func() any { return new(openai.List[openai.Batch]) },
		"ListFilesResponse":   func() any { return new(openai.List[openai.File]) },
		"ListModelsResponse":  func() any { return new(openai.ModelList) },
		"Model":               func() any { return new(openai.Model) },
		"CreateBatchRequest":  func() any { return new(openai.CreateBatch) },
	}
	checked := 0
	for name, kind := range kinds {
		shape, ok := shapes[kind]
		if !ok {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(sharedGolden, name))
		if err != nil {
			t.Error(err)
			continue
		}
		v := shape()
		if err := jsonv2.Unmarshal(raw, v, jsonv2.RejectUnknownMembers(true)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if again, _ := openai.Marshal(v); !sameJSON(t, again, raw) {
			t.Errorf("%s:\ngot  %s\nwant %s", name, again, raw)
		}
		checked++
	}
	if checked < 50 {
		t.Errorf("only %d examples were checked", checked)
	}
}

// TestSharedUploads sends the requests that were recorded from SDKs.
func TestSharedUploads(t *testing.T) {
	needShared(t)
	want, err := os.ReadFile(filepath.Join(sharedGolden, "jsonl", "input_chat.jsonl"))
	if err != nil {
		t.Skip(err)
	}
	want = bytes.TrimSuffix(want, []byte("\n")) // the recordings lack the last line break
	files, _ := filepath.Glob(filepath.Join(sharedGolden, "http", "files_create_*.txt"))
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) { uploadRaw(t, name, "tickets.jsonl", want) })
	}
}

func needShared(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(sharedGolden); err != nil {
		t.Skipf("the contract's examples are not beside this checkout: %v", err)
	}
}
