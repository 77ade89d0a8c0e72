package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

const createBody = `{"input_file_id":"file-x","endpoint":"/v1/chat/completions","completion_window":"24h"}`

func (x *tester) createBatch() openai.Batch {
	x.Helper()
	return decode[openai.Batch](x, x.post("/v1/batches", createBody))
}

func TestCreateBatch(t *testing.T) {
	x := newTester(t, nil)
	b := decode[openai.Batch](x, x.post("/v1/batches", `{
		"input_file_id": "file-unknown", "endpoint": "/v1/embeddings", "completion_window": "24h",
		"metadata": {"b": "2", "a": "<1>&\u00e9"}, "output_expires_after": {"anchor": "created_at", "seconds": 3600},
		"a_new_parameter": {"of": ["a", "newer", "SDK"]}
	}`))
	if b.Status != "validating" || b.CreatedAt != x.now.Load() || *b.ExpiresAt != x.now.Load()+86400 ||
		b.InputFileID != "file-unknown" || b.Endpoint != "/v1/embeddings" || b.CompletionWindow != "24h" {
		t.Errorf("got %+v", b)
	}
	if want := map[string]string{"a": "<1>&é", "b": "2"}; !maps.Equal(b.Metadata, want) {
		t.Errorf("metadata %v, want %v", b.Metadata, want)
	}
	if x.wakes.Load() != 1 {
		t.Errorf("woken %d times", x.wakes.Load())
	}
	stored := x.store.batches[0]
	if stored.Project != "proj_a" || stored.OutputExpiresAfter.Seconds() != 3600 {
		t.Errorf("stored %+v", stored)
	}
	if got := decode[openai.Batch](x, x.get("/v1/batches/"+b.ID)); !sameJSON(t, got, b) {
		t.Errorf("read back %+v, want %+v", got, b)
	}
}

// TestCreateBatchAnyContentType: curl users forget the header (contract CR-12).
func TestCreateBatchAnyContentType(t *testing.T) {
	x := newTester(t, nil)
	for _, ct := range []string{"application/json; charset=utf-8", "application/x-www-form-urlencoded", "text/plain", "nonsense"} {
		x.wantStatus(x.post("/v1/batches", createBody, "Content-Type", ct), 200)
	}
}

func TestCreateBatchNullMetadata(t *testing.T) {
	x := newTester(t, nil)
	b := decode[openai.Batch](x, x.post("/v1/batches", withField(`"metadata": null, "output_expires_after": null`)))
	if b.Metadata != nil {
		t.Errorf("metadata %v, want null", b.Metadata)
	}
	b = decode[openai.Batch](x, x.post("/v1/batches", withField(`"metadata": {}`)))
	if b.Metadata == nil {
		t.Error("metadata null, want {}")
	}
}

// withField is createBody with one more field.
func withField(field string) string {
	return strings.TrimSuffix(createBody, "}") + "," + field + "}"
}

func TestCreateBatchRefuses(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Policy.Profile = batch.ProfileOpenAI })
	notJSON := errNotJSON.Error()
	for _, tt := range []struct{ body, code, param, message string }{
		{"", "", "", notJSON},
		{"   ", "", "", notJSON},
		{"null", "", "", notJSON},
		{"[]", "", "", notJSON},
		{`"text"`, "", "", notJSON},
		{"{", "", "", notJSON},
		{createBody + "x", "", "", notJSON},
		{createBody + createBody, "", "", notJSON},
		{"input_file_id=file-x", "", "", notJSON},
		{"{\"input_file_id\":\"\xff\"}", "", "", notJSON},
		{strings.Repeat("[", 20000), "", "", notJSON},
		{withField(`"deep":` + strings.Repeat("[", 20000) + strings.Repeat("]", 20000)), "", "", notJSON},
		{withField(`"long":"` + strings.Repeat("x", maxJSON) + `"`), "", "", "The body of your request is too large."},

		{"{}", "missing_required_parameter", "input_file_id", "Missing required parameter: 'input_file_id'."},
		{`{"input_file_id":"file-x"}`, "missing_required_parameter", "endpoint", "Missing required parameter: 'endpoint'."},
		{`{"input_file_id":"file-x","endpoint":"/v1/embeddings"}`, "missing_required_parameter", "completion_window", "Missing required parameter: 'completion_window'."},
		{`{"input_file_id":"file-x","endpoint":"/v1/embeddings","completion_window":""}`, "missing_required_parameter", "completion_window", "Missing required parameter: 'completion_window'."},

		{`{"input_file_id":5}`, "invalid_type", "input_file_id", "Invalid type for 'input_file_id': expected a string, but got a number instead."},
		{`{"input_file_id":null}`, "invalid_type", "input_file_id", "Invalid type for 'input_file_id': expected a string, but got null instead."},
		{`{"endpoint": {} }`, "invalid_type", "endpoint", "Invalid type for 'endpoint': expected a string, but got an object instead."},
		{`{"completion_window":true}`, "invalid_type", "completion_window", "Invalid type for 'completion_window': expected a string, but got a boolean instead."},
		{withField(`"metadata":"x"`), "invalid_type", "metadata", "Invalid type for 'metadata': expected an object, but got a string instead."},
		{withField(`"metadata":[]`), "invalid_type", "metadata", "Invalid type for 'metadata': expected an object, but got an array instead."},
		{withField(`"metadata":{"z":1,"labels": ["a"] }`), "invalid_type", "metadata.labels", "Invalid type for 'metadata.labels': expected a string, but got an array instead."},
		{withField(`"metadata":{"n":null}`), "invalid_type", "metadata.n", "Invalid type for 'metadata.n': expected a string, but got null instead."},
		{withField(`"output_expires_after":3600`), "invalid_type", "output_expires_after", "Invalid type for 'output_expires_after': expected an object, but got a number instead."},
		{withField(`"output_expires_after":{"anchor":"created_at","seconds":"3600"}`), "invalid_type", "output_expires_after.seconds", "Invalid type for 'output_expires_after.seconds': expected an integer, but got a string instead."},
		{withField(`"output_expires_after":{"anchor":"created_at","seconds":3600.5}`), "invalid_type", "output_expires_after.seconds", "Invalid type for 'output_expires_after.seconds': expected an integer, but got a number instead."},
		{withField(`"output_expires_after":{"anchor":7,"seconds":3600}`), "invalid_type", "output_expires_after.anchor", "Invalid type for 'output_expires_after.anchor': expected a string, but got a number instead."},

		{withField(`"output_expires_after":{}`), "missing_required_parameter", "output_expires_after.anchor", "Missing required parameter: 'output_expires_after.anchor'."},
		{withField(`"output_expires_after":{"anchor":"created_at"}`), "missing_required_parameter", "output_expires_after.seconds", "Missing required parameter: 'output_expires_after.seconds'."},
		{withField(`"output_expires_after":{"anchor":"created_at","seconds":60}`), "integer_below_min_value", "output_expires_after.seconds", "Invalid 'output_expires_after.seconds': integer below minimum value. Expected a value >= 3600, but got 60 instead."},
		{withField(`"output_expires_after":{"anchor":"created_at","seconds":1` + strings.Repeat("0", 30) + `}`), "integer_above_max_value", "output_expires_after.seconds", "Invalid 'output_expires_after.seconds': integer above maximum value. Expected a value <= 2592000, but got 9223372036854775807 instead."},
		{strings.Replace(createBody, "24h", "1h", 1), "invalid_value", "completion_window", "Invalid value: '1h'. Value must be '24h'."},
	} {
		x.wantError(x.post("/v1/batches", tt.body), 400, tt.code, tt.param, tt.message)
	}
	if len(x.store.batches) != 0 || x.wakes.Load() != 0 {
		t.Errorf("refused, yet %d batches and %d wakes", len(x.store.batches), x.wakes.Load())
	}
}

// TestCreateBatchText: what goes to the store is text that every database can hold.
func TestCreateBatchText(t *testing.T) {
	x := newTester(t, nil)
	b := decode[openai.Batch](x, x.post("/v1/batches",
		`{"input_file_id":"file\u0000x","endpoint":"/v1/embeddings","completion_window":"90m","metadata":{"a\u0000":"\u0000b"}}`))
	if b.InputFileID != "file\ufffdx" || b.Metadata["a\ufffd"] != "\ufffdb" {
		t.Errorf("got %q and %q", b.InputFileID, b.Metadata)
	}
	if got := *b.ExpiresAt - b.CreatedAt; got != 90*60 {
		t.Errorf("expires after %d s", got)
	}
}

// TestDuplicateKeys: the last one counts, as in OpenAI's parser.
func TestDuplicateKeys(t *testing.T) {
	x := newTester(t, nil)
	b := decode[openai.Batch](x, x.post("/v1/batches", withField(`"metadata":{"a":"1"},"metadata":{"b":"1","b":"2"},"input_file_id":"file-y"`)))
	if b.InputFileID != "file-y" || !maps.Equal(b.Metadata, map[string]string{"b": "2"}) {
		t.Errorf("got %q, %v", b.InputFileID, b.Metadata)
	}
}

func TestCancelBatch(t *testing.T) {
	x := newTester(t, nil)
	ctx := context.Background()
	advance := func(id string, f func(*batch.Batch) error) {
		t.Helper()
		if _, err := x.store.change(ctx, "proj_a", id, f); err != nil {
			t.Fatal(err)
		}
	}
	now := x.store.now

	b := x.createBatch()
	if got := decode[openai.Batch](x, x.post("/v1/batches/"+b.ID+"/cancel", "")); got.Status != "cancelled" || got.CancellingAt == nil || got.OutputFileID != nil {
		t.Errorf("cancelled while validating: %+v", got)
	}

	b = x.createBatch()
	advance(b.ID, func(b *batch.Batch) error { return b.Admit(8, "m", now()) })
	first := decode[openai.Batch](x, x.post("/v1/batches/"+b.ID+"/cancel", ""))
	if first.Status != "cancelling" || *first.CancellingAt != x.now.Load() || first.OutputFileID != nil || first.ErrorFileID != nil {
		t.Errorf("cancelled while running: %+v", first)
	}
	x.now.Add(5)
	wakes := x.wakes.Load()
	if again := decode[openai.Batch](x, x.post("/v1/batches/"+b.ID+"/cancel", "{}")); !sameJSON(t, again, first) {
		t.Errorf("cancelled again: %+v, want %+v", again, first)
	}
	if x.wakes.Load() == wakes {
		t.Error("nobody woken")
	}

	for status, end := range map[string]func(*batch.Batch) error{
		"completed": func(b *batch.Batch) error {
			b.Admit(1, "m", now())
			b.Seal(now())
			return b.Finish(true, false, now())
		},
		"failed":  func(b *batch.Batch) error { return b.Reject(nil, now()) },
		"expired": func(b *batch.Batch) error { _, err := b.Expire(now()); return err },
	} {
		b := x.createBatch()
		advance(b.ID, end)
		a := x.post("/v1/batches/"+b.ID+"/cancel", "")
		x.wantError(a, 409, "", "", "Cannot cancel a batch with status '"+status+"'.")
		if got := a.Header.Get("x-should-retry"); got != "false" {
			t.Errorf("%s: x-should-retry %q", status, got)
		}
	}
}

func TestListBatches(t *testing.T) {
	x := newTester(t, nil)
	l := decode[openai.List[openai.Batch]](x, x.get("/v1/batches"))
	if l.Object != "list" || l.FirstID != nil || l.LastID != nil || l.HasMore || l.Data == nil {
		t.Errorf("empty page: %+v", l)
	}
	var want []string
	for range 5 {
		want = append(want, x.createBatch().ID) // all in the same second
	}
	slices.Reverse(want)

	for _, limit := range []int{1, 2, 3, 5, 6, 100} {
		var got []string
		for after := ""; ; {
			l := decode[openai.List[openai.Batch]](x, x.get(fmt.Sprintf("/v1/batches?limit=%d&after=%s", limit, after)))
			for _, b := range l.Data {
				got = append(got, b.ID)
			}
			if len(l.Data) > 0 && (*l.FirstID != l.Data[0].ID || *l.LastID != l.Data[len(l.Data)-1].ID) {
				t.Errorf("first %s, last %s of %+v", *l.FirstID, *l.LastID, l.Data)
			}
			if exact := len(got) < len(want); l.HasMore != exact {
				t.Errorf("limit %d: has_more %v after %d of %d", limit, l.HasMore, len(got), len(want))
			}
			if !l.HasMore {
				break
			}
			after = *l.LastID
		}
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: got %v, want %v", limit, got, want)
		}
	}

	if l := decode[openai.List[openai.Batch]](x, x.get("/v1/batches?limit=0")); len(l.Data) != 0 || l.HasMore {
		t.Errorf("limit=0: %+v", l)
	}
	if l := decode[openai.List[openai.Batch]](x, x.get("/v1/batches?after="+want[4])); len(l.Data) != 0 || l.HasMore {
		t.Errorf("behind the last: %+v", l)
	}
	if l := decode[openai.List[openai.Batch]](x, x.get("/v1/batches?limit=&after=&order=asc")); len(l.Data) != 5 || l.Data[0].ID != want[0] {
		t.Errorf("empty parameters: %+v", l)
	}
}

func TestListRefuses(t *testing.T) {
	x := newTester(t, nil)
	above := func(most int, got string) string {
		return fmt.Sprintf("Invalid 'limit': integer above maximum value. Expected a value <= %d, but got %s instead.", most, got)
	}
	below := func(least int, got string) string {
		return fmt.Sprintf("Invalid 'limit': integer below minimum value. Expected a value >= %d, but got %s instead.", least, got)
	}
	const kind = "Invalid type for 'limit': expected an integer, but got a string instead."
	for _, tt := range []struct{ path, code, param, message string }{
		{"/v1/batches?limit=101", "integer_above_max_value", "limit", above(100, "101")},
		{"/v1/batches?limit=99999999999999999999", "integer_above_max_value", "limit", above(100, "9223372036854775807")},
		{"/v1/batches?limit=-1", "integer_below_min_value", "limit", below(0, "-1")},
		{"/v1/batches?limit=ten", "invalid_type", "limit", kind},
		{"/v1/batches?limit=1.5", "invalid_type", "limit", kind},
		{"/v1/batches?limit=0x10", "invalid_type", "limit", kind},
		{"/v1/files?limit=10001", "integer_above_max_value", "limit", above(10000, "10001")},
		{"/v1/files?limit=0", "integer_below_min_value", "limit", below(1, "0")},
		{"/v1/files?limit=x&order=up", "invalid_type", "limit", kind},
		{"/v1/files?order=up", "invalid_value", "order", "Invalid value: 'up'. Supported values are: 'asc' and 'desc'."},
	} {
		x.wantError(x.get(tt.path), 400, tt.code, tt.param, tt.message)
	}
	x.wantError(x.get("/v1/batches?after=batch_nope"), 404, "", "", "No batch found with id 'batch_nope'.")
	x.wantError(x.get("/v1/files?after=file-nope"), 404, "", "id", "No such File object: file-nope")
}

func TestModels(t *testing.T) {
	x := newTester(t, nil)
	l := decode[openai.ModelList](x, x.get("/v1/models"))
	if l.Object != "list" || len(l.Data) != 3 || l.Data[1].ID != "meta-llama/Llama-3.1-8B" || l.Data[0].Object != "model" || l.Data[0].OwnedBy != "upstream-1" {
		t.Errorf("got %+v", l)
	}
	for path, want := range map[string]string{ // contract MO-02: unescaped once
		"qwen3-8b":                    "qwen3-8b",
		"meta-llama%2FLlama-3.1-8B":   "meta-llama/Llama-3.1-8B",
		"meta-llama/Llama-3.1-8B":     "meta-llama/Llama-3.1-8B",
		"org%2Fname:free":             "org/name:free",
		"org/name%3Afree":             "org/name:free",
		"meta%2dllama/Llama%2D3.1-8B": "meta-llama/Llama-3.1-8B",
	} {
		if m := decode[openai.Model](x, x.get("/v1/models/"+path)); m.ID != want || m.Created != 1762000000 {
			t.Errorf("%s: %+v", path, m)
		}
	}
	x.wantError(x.get("/v1/models/meta-llama%252FLlama-3.1-8B"), 404, "model_not_found", "model", "The model 'meta-llama%2FLlama-3.1-8B' does not exist")

	none := newTester(t, func(c *Config) { c.Models = nil })
	if l := decode[openai.ModelList](none, none.get("/v1/models")); l.Data == nil || len(l.Data) != 0 {
		t.Errorf("without models: %+v", l)
	}
}
