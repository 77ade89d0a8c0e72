package batch

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"
)

var created = time.Date(2026, 11, 5, 12, 0, 0, 0, time.UTC)

func createParams(edit func(*CreateParams)) CreateParams {
	p := CreateParams{
		Project: "proj_a", InputFileID: "file-x",
		Endpoint: "/v1/chat/completions", CompletionWindow: "24h",
	}
	if edit != nil {
		edit(&p)
	}
	return p
}

func TestNew(t *testing.T) {
	b, err := New(createParams(func(p *CreateParams) { p.Metadata = map[string]string{"k": "v"} }), Policy{}, created)
	if err != nil {
		t.Fatal(err)
	}
	if b.Status != Validating || b.Project != "proj_a" || b.InputFileID != "file-x" || b.Metadata["k"] != "v" {
		t.Errorf("got %+v", b)
	}
	if got := b.ExpiresAt.Sub(b.CreatedAt); b.CreatedAt != created || got != 24*time.Hour {
		t.Errorf("created at %v, expires after %v", b.CreatedAt, got)
	}
	if b.OutputExpiresAfter != DefaultRetention {
		t.Errorf("results are kept %v, want %v", b.OutputExpiresAfter, DefaultRetention)
	}
	if want := fmt.Sprintf("batch_%08x", created.Unix()); !strings.HasPrefix(b.ID, want) || len(b.ID) != len("batch_")+32 {
		t.Errorf("id %s, want %s…", b.ID, want)
	}
	if b.OutputFileID == b.ErrorFileID || b.OutputFileID == "" || b.ErrorFileID == "" {
		t.Errorf("result files %q and %q", b.OutputFileID, b.ErrorFileID)
	}

	seconds := int64(7200)
	b, err = New(createParams(func(p *CreateParams) {
		p.OutputExpiresAfter = &ExpiresAfter{Anchor: "created_at", Seconds: &seconds}
	}), Policy{}, created)
	if err != nil || b.OutputExpiresAfter != 2*time.Hour {
		t.Errorf("results are kept %v (%v), want 2h", b.OutputExpiresAfter, err)
	}
}

// TestNewRefuses pins texts of contract §13.2 to the field that is at fault.
func TestNewRefuses(t *testing.T) {
	expires := func(anchor string, seconds int64) func(*CreateParams) {
		return func(p *CreateParams) { p.OutputExpiresAfter = &ExpiresAfter{Anchor: anchor, Seconds: &seconds} }
	}
	metadata := func(k, v string) func(*CreateParams) {
		return func(p *CreateParams) { p.Metadata = map[string]string{k: v} }
	}
	openai := Policy{Profile: ProfileOpenAI, Endpoints: []string{"/v1/rerank"}}
	for _, tt := range []struct {
		name        string
		policy      Policy
		edit        func(*CreateParams)
		code, param string
		msg         string // prefix
	}{
		{"nothing given", Policy{}, func(p *CreateParams) { *p = CreateParams{} },
			"missing_required_parameter", "input_file_id", "Missing required parameter: 'input_file_id'."},
		{"only the file", Policy{}, func(p *CreateParams) { *p = CreateParams{InputFileID: "x"} },
			"missing_required_parameter", "endpoint", "Missing required parameter: 'endpoint'."},
		{"no window", Policy{}, func(p *CreateParams) { p.CompletionWindow = "" },
			"missing_required_parameter", "completion_window", "Missing required parameter: 'completion_window'."},
		{"long file id", Policy{}, func(p *CreateParams) { p.InputFileID = strings.Repeat("é", 513) },
			"string_above_max_length", "input_file_id", "Invalid 'input_file_id': string too long. Expected a string with maximum length 512, but got a string with length 513 instead."},
		{"unknown endpoint", openai, func(p *CreateParams) { p.Endpoint = "/v1/nope" },
			"invalid_value", "endpoint", "Invalid value: '/v1/nope'. Supported values are: '/v1/responses', '/v1/chat/completions', '/v1/embeddings', '/v1/completions', '/v1/moderations', '/v1/images/generations', '/v1/images/edits', and '/v1/videos'."},
		{"added endpoint in profile openai", openai, func(p *CreateParams) { p.Endpoint = "/v1/rerank" },
			"invalid_value", "endpoint", "Invalid value: '/v1/rerank'."},
		{"endpoint listed with those added", Policy{Endpoints: []string{"/v1/rerank"}}, func(p *CreateParams) { p.Endpoint = "x" },
			"invalid_value", "endpoint", "Invalid value: 'x'. Supported values are: '/v1/responses', '/v1/chat/completions', '/v1/embeddings', '/v1/completions', '/v1/moderations', '/v1/images/generations', '/v1/images/edits', '/v1/videos', and '/v1/rerank'."},
		{"window in profile openai", openai, func(p *CreateParams) { p.CompletionWindow = "48h" },
			"invalid_value", "completion_window", "Invalid value: '48h'. Value must be '24h'."},
		{"window", Policy{}, func(p *CreateParams) { p.CompletionWindow = "soon" },
			"invalid_value", "completion_window", "Invalid value: 'soon'. Value must be '24h', or "},
		{"17 pairs", Policy{}, func(p *CreateParams) {
			p.Metadata = map[string]string{}
			for i := range 17 {
				p.Metadata[fmt.Sprint(i)] = ""
			}
		}, "object_above_max_properties", "metadata", "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an object with 17 properties instead."},
		{"long key", Policy{}, metadata(strings.Repeat("ü", 65), ""),
			"string_above_max_length", "metadata", "Invalid 'metadata': string too long. Expected a string with maximum length 64, but got a string with length 65 instead."},
		{"long value", Policy{}, metadata("note", strings.Repeat("x", 695)),
			"string_above_max_length", "metadata.note", "Invalid 'metadata.note': string too long. Expected a string with maximum length 512, but got a string with length 695 instead."},
		{"anchor", Policy{}, expires("last_active_at", 3600),
			"invalid_value", "output_expires_after.anchor", "Invalid value: 'last_active_at'. Value must be 'created_at'."},
		{"no anchor", Policy{}, expires("", 3600),
			"missing_required_parameter", "output_expires_after.anchor", "Missing required parameter: 'output_expires_after.anchor'."},
		{"no seconds", Policy{}, func(p *CreateParams) { p.OutputExpiresAfter = &ExpiresAfter{Anchor: "created_at"} },
			"missing_required_parameter", "output_expires_after.seconds", "Missing required parameter: 'output_expires_after.seconds'."},
		{"too soon", Policy{}, expires("created_at", 3599),
			"integer_below_min_value", "output_expires_after.seconds", "Invalid 'output_expires_after.seconds': integer below minimum value. Expected a value >= 3600, but got 3599 instead."},
		{"too late", Policy{}, expires("created_at", 2592001),
			"integer_above_max_value", "output_expires_after.seconds", "Invalid 'output_expires_after.seconds': integer above maximum value. Expected a value <= 2592000, but got 2592001 instead."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(createParams(tt.edit), tt.policy, created)
			wantInvalid(t, err, tt.code, tt.param, tt.msg)
		})
	}
}

func wantInvalid(t *testing.T, err error, code, param, prefix string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %v, want an Error", err)
	}
	if e.Kind != Invalid || e.Code != code || e.Param != param || !strings.HasPrefix(e.Msg, prefix) {
		t.Errorf("got  %+v\nwant code %q param %q msg %q…", *e, code, param, prefix)
	}
}

func TestMetadataLimits(t *testing.T) {
	m := map[string]string{}
	for i := range 16 {
		m[fmt.Sprintf("%064d", i)] = strings.Repeat("ß", 512)
	}
	if _, err := New(createParams(func(p *CreateParams) { p.Metadata = m }), Policy{}, created); err != nil {
		t.Errorf("metadata of the largest size is refused: %v", err)
	}
}

func TestWindow(t *testing.T) {
	const hour, day = time.Hour, 24 * time.Hour
	good := map[string]time.Duration{
		"24h": day, "15m": 15 * time.Minute, "90m": 90 * time.Minute, "1h": hour, "720h": 30 * day,
		"1d": day, "30d": 30 * day, "43200m": 30 * day, "1440m": day,
	}
	for s, want := range good {
		if got, err := (Policy{}).window(s); got != want || err != nil {
			t.Errorf("window(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	bad := []string{
		"", "h", "24", "14m", "0h", "0d", "31d", "721h", "43201m", "99999999999999999999h", "65536m",
		"1.5h", "1h30m", "+1h", "-1h", "01h", " 1h", "1h ", "1H", "1w", "3600s", "٣h", "1_0h", "0x10h",
	}
	for _, s := range bad {
		if got, err := (Policy{}).window(s); err == nil {
			t.Errorf("window(%q) = %v, want an error", s, got)
		}
	}
	for s := range maps.Keys(good) {
		if _, err := (Policy{Profile: ProfileOpenAI}).window(s); (err == nil) != (s == "24h") {
			t.Errorf("profile openai: window(%q): %v", s, err)
		}
	}
}

func TestParseProfile(t *testing.T) {
	for s, want := range map[string]Profile{"": ProfileExtended, "extended": ProfileExtended, "openai": ProfileOpenAI} {
		if got, err := ParseProfile(s); got != want || err != nil {
			t.Errorf("ParseProfile(%q) = %q, %v; want %q", s, got, err, want)
		}
	}
	if _, err := ParseProfile("OpenAI"); err == nil {
		t.Error(`ParseProfile("OpenAI") is accepted`)
	}
}

func TestInvalidValueLists(t *testing.T) {
	for _, tt := range []struct {
		supported []string
		want      string
	}{
		{[]string{"a"}, "Invalid value: 'x'. Value must be 'a'."},
		{[]string{"a", "b"}, "Invalid value: 'x'. Supported values are: 'a' and 'b'."},
		{[]string{"a", "b", "c"}, "Invalid value: 'x'. Supported values are: 'a', 'b', and 'c'."},
	} {
		if got := InvalidValue("p", "x", tt.supported...).Error(); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

func uploadParams(edit func(*UploadParams)) UploadParams {
	p := UploadParams{
		Project: "proj_a", Purpose: "batch", Filename: "in.jsonl",
		Parts:     []Part{{Key: "k1", Bytes: 40}, {Key: "k2", Bytes: 2}},
		FirstLine: []byte(`{"custom_id":"1"}`),
	}
	if edit != nil {
		edit(&p)
	}
	return p
}

func TestNewFile(t *testing.T) {
	f, err := NewFile(uploadParams(nil), Policy{}, created)
	if err != nil {
		t.Fatal(err)
	}
	if f.Bytes != 42 || len(f.Parts) != 2 || f.Filename != "in.jsonl" || f.Project != "proj_a" ||
		!f.CreatedAt.Equal(created) || len(f.ID) != len("file-")+22 {
		t.Errorf("got %+v", f)
	}
	if want := created.Add(DefaultRetention); !f.ExpiresAt.Equal(want) {
		t.Errorf("expires at %v, want %v", f.ExpiresAt, want)
	}

	f, err = NewFile(uploadParams(func(p *UploadParams) { p.Purpose, p.Filename, p.FirstLine = "user_data", "", nil }), Policy{}, created)
	if err != nil || !f.ExpiresAt.IsZero() {
		t.Errorf("user data expires at %v (%v), want never", f.ExpiresAt, err)
	}

	seconds := int64(3600)
	f, err = NewFile(uploadParams(func(p *UploadParams) {
		p.ExpiresAfter = &ExpiresAfter{Anchor: "created_at", Seconds: &seconds}
	}), Policy{}, created)
	if want := created.Add(time.Hour); err != nil || !f.ExpiresAt.Equal(want) {
		t.Errorf("expires at %v (%v), want %v", f.ExpiresAt, err, want)
	}
}

func TestNewFileRefuses(t *testing.T) {
	const format = "Invalid file format for Batch API. Must be .jsonl"
	line := func(s string) func(*UploadParams) { return func(p *UploadParams) { p.FirstLine = []byte(s) } }
	for _, tt := range []struct {
		name        string
		edit        func(*UploadParams)
		code, param string
		msg         string
	}{
		{"no purpose", func(p *UploadParams) { p.Purpose = "" },
			"missing_required_parameter", "purpose", "Missing required parameter: 'purpose'."},
		{"purpose", func(p *UploadParams) { p.Purpose = "nonsense" },
			"invalid_value", "purpose", "Invalid value: 'nonsense'. Supported values are: 'assistants', 'batch', 'fine-tune', 'vision', 'user_data', and 'evals'."},
		{"purpose of results", func(p *UploadParams) { p.Purpose = "batch_output" }, "invalid_value", "purpose", "Invalid value: 'batch_output'."},
		{"extension", func(p *UploadParams) { p.Filename = "in.json" }, "", "", format},
		{"no extension", func(p *UploadParams) { p.Filename = "jsonl" }, "", "", format},
		{"empty", line(""), "", "", format},
		{"byte order mark alone", line("\ufeff"), "", "", format},
		{"not JSON", line("custom_id,method"), "", "", format},
		{"pretty-printed", line("{"), "", "", format},
		{"long name", func(p *UploadParams) { p.Filename = strings.Repeat("x", 600) + ".jsonl" },
			"string_above_max_length", "file.filename", "Invalid 'file.filename': string too long. "},
		{"too large", func(p *UploadParams) { p.Parts = []Part{{Bytes: 1 << 10}, {Bytes: 1}} }, "", "", "File is too large."},
		{"expiry", func(p *UploadParams) { p.ExpiresAfter = &ExpiresAfter{Anchor: "created_at", Seconds: new(int64)} },
			"integer_below_min_value", "expires_after.seconds", "Invalid 'expires_after.seconds': integer below minimum value. Expected a value >= 3600, but got 0 instead."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewFile(uploadParams(tt.edit), Policy{MaxInput: 1 << 10}, created)
			wantInvalid(t, err, tt.code, tt.param, tt.msg)
		})
	}
}

func TestNewFileAccepts(t *testing.T) {
	for name, edit := range map[string]func(*UploadParams){
		"upper case extension":   func(p *UploadParams) { p.Filename = "IN.JSONL" },
		"byte order mark":        func(p *UploadParams) { p.FirstLine = []byte("\ufeff{}") },
		"carriage return":        func(p *UploadParams) { p.FirstLine = []byte("{}\r") },
		"missing fields":         func(p *UploadParams) { p.FirstLine = []byte("{}") },
		"first line of much":     func(p *UploadParams) { p.FirstLine, p.FirstLineCut = []byte(`{"body":`), true },
		"largest size":           func(p *UploadParams) { p.Parts = []Part{{Bytes: 1 << 10}} },
		"large and for no batch": func(p *UploadParams) { p.Purpose, p.Parts = "evals", []Part{{Bytes: 1 << 20}} },
	} {
		if _, err := NewFile(uploadParams(edit), Policy{MaxInput: 1 << 10}, created); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMaxBytes(t *testing.T) {
	openai := Policy{Profile: ProfileOpenAI}
	for _, tt := range []struct {
		policy  Policy
		purpose string
		want    int64
	}{
		{openai, "batch", 200 << 20}, {openai, "vision", 512 << 20}, {openai, "", 512 << 20},
		{Policy{}, "batch", 8 << 30}, {Policy{}, "vision", 8 << 30}, {Policy{}, "", 8 << 30},
		{Policy{MaxInput: 5, MaxFile: 7}, "batch", 5}, {Policy{MaxInput: 5, MaxFile: 7}, "evals", 7},
		{Policy{MaxInput: 9, MaxFile: 7}, "", 9},
	} {
		if got := tt.policy.MaxBytes(tt.purpose); got != tt.want {
			t.Errorf("%+v: MaxBytes(%q) = %d, want %d", tt.policy, tt.purpose, got, tt.want)
		}
	}
}
