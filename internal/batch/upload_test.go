package batch

import (
	"crypto/md5"
	"fmt"
	"strings"
	"testing"
	"time"
)

var uploadBirth = time.Unix(1_789_000_000, 0)

func createUploadParams(edit func(*CreateUploadParams)) CreateUploadParams {
	p := CreateUploadParams{
		Project: "proj_a", Filename: "in.jsonl", Purpose: PurposeBatch, Bytes: new(int64(10)), MIMEType: "application/jsonl",
	}
	if edit != nil {
		edit(&p)
	}
	return p
}

func newUpload(t *testing.T, edit func(*CreateUploadParams)) Upload {
	t.Helper()
	u, err := NewUpload(createUploadParams(edit), uploadBirth)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestNewUpload(t *testing.T) {
	u := newUpload(t, nil)
	id := u.ID
	u.ID = ""
	want := Upload{
		Project: "proj_a", Purpose: "batch", Filename: "in.jsonl", Bytes: 10,
		Status: UploadPending, CreatedAt: uploadBirth, ExpiresAt: uploadBirth.Add(time.Hour),
	}
	if u != want || !strings.HasPrefix(id, "upload_") || len(id) != len("upload_")+32 {
		t.Errorf("got %s %+v, want %+v", id, u, want)
	}
	if f := u.File(); f != nil {
		t.Errorf("a pending upload has the file %+v", f)
	}
	for purpose, name := range map[string]string{"user_data": "x", "evals": "x.csv", "fine-tune": "x", "vision": "x", "assistants": "x"} {
		if _, err := NewUpload(createUploadParams(func(p *CreateUploadParams) { p.Purpose, p.Filename = purpose, name }), uploadBirth); err != nil {
			t.Errorf("purpose %s: %v", purpose, err)
		}
	}
}

func TestNewUploadRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		edit              func(*CreateUploadParams)
		code, param, text string
	}{
		"filename":  {func(p *CreateUploadParams) { *p = CreateUploadParams{} }, "missing_required_parameter", "filename", "Missing required parameter: 'filename'."},
		"purpose":   {func(p *CreateUploadParams) { p.Purpose, p.Bytes = "", nil }, "missing_required_parameter", "purpose", "Missing required parameter: 'purpose'."},
		"bytes":     {func(p *CreateUploadParams) { p.Bytes, p.MIMEType = nil, "" }, "missing_required_parameter", "bytes", "Missing required parameter: 'bytes'."},
		"mime_type": {func(p *CreateUploadParams) { p.MIMEType = "" }, "missing_required_parameter", "mime_type", "Missing required parameter: 'mime_type'."},
		"format":    {func(p *CreateUploadParams) { p.Filename = "in.txt" }, "", "", "Invalid file format for Batch API. Must be .jsonl"},
		"output":    {func(p *CreateUploadParams) { p.Purpose = PurposeBatchOutput }, "invalid_value", "purpose", "Invalid value: 'batch_output'. Supported values are: 'assistants', 'batch', 'fine-tune', 'vision', 'user_data', and 'evals'."},
		"long name": {func(p *CreateUploadParams) { p.Filename = strings.Repeat("é", 513) }, "string_above_max_length", "filename", "Invalid 'filename': string too long. Expected a string with maximum length 512, but got a string with length 513 instead."},
		"negative":  {func(p *CreateUploadParams) { p.Bytes = new(int64(-1)) }, "integer_below_min_value", "bytes", "Invalid 'bytes': integer below minimum value. Expected a value >= 0, but got -1 instead."},
		"large":     {func(p *CreateUploadParams) { p.Bytes = new(int64(8<<30 + 1)) }, "integer_above_max_value", "bytes", "Invalid 'bytes': integer above maximum value. Expected a value <= 8589934592, but got 8589934593 instead."},
		"expires soon": {func(p *CreateUploadParams) {
			p.ExpiresAfter = &ExpiresAfter{Anchor: "created_at", Seconds: new(int64(1))}
		}, "integer_below_min_value", "expires_after.seconds", "Invalid 'expires_after.seconds': integer below minimum value. Expected a value >= 3600, but got 1 instead."},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewUpload(createUploadParams(tt.edit), uploadBirth)
			wantInvalid(t, err, tt.code, tt.param, tt.text)
		})
	}
}

// TestUploadMoves tries every move from every status, a moment before and at the end of the hour.
func TestUploadMoves(t *testing.T) {
	soon, late := uploadBirth.Add(time.Hour-1), uploadBirth.Add(time.Hour)
	c := Completion{PartIDs: []string{"a"}}
	parts := []Part{{Key: "k", Bytes: 10}}
	for _, tt := range []struct {
		status      UploadStatus
		now         time.Time
		shown       UploadStatus
		cancel      string // why not, if not
		complete    string
		cancelMoves bool
	}{
		{UploadPending, soon, "pending", "", "", true},
		{UploadPending, late, "expired", "expired", "expired", false},
		{UploadExpired, soon, "expired", "expired", "expired", false},
		{UploadCancelled, soon, "cancelled", "", "cancelled", false},
		{UploadCancelled, late, "cancelled", "", "cancelled", false},
		{UploadCompleted, soon, "completed", "completed", "completed", false},
		{UploadCompleted, late, "completed", "completed", "completed", false},
	} {
		u := newUpload(t, nil)
		u.Status = tt.status
		if got := u.StatusAt(tt.now); got != tt.shown {
			t.Errorf("%s at %v: shown as %s, want %s", tt.status, tt.now, got, tt.shown)
		}
		check := func(what string, u, was Upload, err error, refused string) {
			t.Helper()
			if refused == "" {
				if err != nil {
					t.Errorf("%s at %v: %s: %v", tt.status, tt.now, what, err)
				}
				return
			}
			wantInvalid(t, err, "", "", fmt.Sprintf("Upload %s is not pending; its status is '%s'.", u.ID, refused))
			if u != was {
				t.Errorf("%s at %v: a refused %s changes it to %+v", tt.status, tt.now, what, u)
			}
		}
		v := u
		changed, err := v.Cancel(tt.now)
		check("cancel", v, u, err, tt.cancel)
		if changed != tt.cancelMoves || tt.cancel == "" && v.Status != UploadCancelled {
			t.Errorf("%s at %v: cancel changed %v, and it is %s", tt.status, tt.now, changed, v.Status)
		}
		v = u
		_, err = v.Complete(c, parts, tt.now)
		check("complete", v, u, err, tt.complete)
		check("take parts", u, u, u.CheckPending(tt.now), tt.complete)
	}
}

func TestUploadComplete(t *testing.T) {
	for _, keep := range []time.Duration{0, 2 * time.Hour} {
		for purpose, kept := range map[string]time.Duration{PurposeBatch: DefaultRetention, "user_data": 0} {
			u := newUpload(t, func(p *CreateUploadParams) {
				p.Purpose = purpose
				if keep > 0 {
					p.ExpiresAfter = &ExpiresAfter{Anchor: "created_at", Seconds: new(int64(keep / time.Second))}
					kept = keep
				}
			})
			now := uploadBirth.Add(time.Minute)
			parts := []Part{{"b", 7}, {"empty", 0}, {"a", 3}}
			c := Completion{PartIDs: []string{"2", "3", "1"}, MD5: "98459BEDD6347d4a48865c78c5261c1b"}
			f, err := u.Complete(c, parts, now)
			if err != nil {
				t.Fatal(err)
			}
			want := File{ID: u.FileID, Project: "proj_a", Purpose: purpose, Filename: "in.jsonl", Bytes: 10, CreatedAt: now, Parts: parts}
			if kept > 0 {
				want.ExpiresAt = now.Add(kept)
			}
			if fmt.Sprint(f) != fmt.Sprint(want) || f.ID == "" {
				t.Errorf("file %+v, want %+v", f, want)
			}
			want.Parts = nil
			if got := u.File(); fmt.Sprint(*got) != fmt.Sprint(want) {
				t.Errorf("the upload says its file is %+v, want %+v", got, want)
			}
			for _, tt := range []struct {
				c    Completion
				want bool
			}{
				{c, true},
				{Completion{c.PartIDs, strings.ToLower(c.MD5)}, true},
				{Completion{c.PartIDs, ""}, false},
				{Completion{[]string{"1", "2", "3"}, c.MD5}, false},
				{Completion{[]string{"2 3", "1"}, c.MD5}, false},
				{Completion{nil, c.MD5}, false},
			} {
				if got := u.CompletedBy(tt.c); got != tt.want {
					t.Errorf("CompletedBy(%+v) = %v", tt.c, got)
				}
			}
		}
	}
}

func TestUploadCompleteRefuses(t *testing.T) {
	parts := []Part{{"a", 4}, {"b", 6}}
	for name, tt := range map[string]struct {
		c                 Completion
		parts             []Part
		code, param, text string
	}{
		"twice":     {Completion{PartIDs: []string{"p", "q", "p"}}, parts, "invalid_value", "part_ids", "Invalid value: 'p'. A part can be used only once."},
		"too few":   {Completion{PartIDs: []string{"p"}}, parts[:1], "", "", "The total size of the parts (4 bytes) does not match the upload size (10 bytes)."},
		"no parts":  {Completion{}, nil, "", "", "The total size of the parts (0 bytes) does not match the upload size (10 bytes)."},
		"short MD5": {Completion{PartIDs: []string{"p", "q"}, MD5: "ab"}, parts, "invalid_value", "md5", "Invalid value: 'ab'. Value must be the MD5 of the file, 32 hexadecimal digits."},
		"odd MD5":   {Completion{PartIDs: []string{"p", "q"}, MD5: "xyz"}, parts, "invalid_value", "md5", "Invalid value: 'xyz'. Value must be the MD5 of the file, 32 hexadecimal digits."},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpload(t, nil)
			was := u
			_, err := u.Complete(tt.c, tt.parts, uploadBirth)
			wantInvalid(t, err, tt.code, tt.param, tt.text)
			if u != was {
				t.Errorf("refused, it becomes %+v", u)
			}
		})
	}
}

func TestCompletionMD5(t *testing.T) {
	sum := md5.Sum([]byte("hello"))
	for given, ok := range map[string]bool{
		"": true, "5d41402abc4b2a76b9719d911017c592": true, "5D41402ABC4B2A76B9719D911017C592": true,
		"5d41402abc4b2a76b9719d911017c593": false,
	} {
		err := Completion{MD5: given}.CheckMD5(sum)
		if ok != (err == nil) {
			t.Errorf("%q: %v", given, err)
		}
		if !ok {
			wantInvalid(t, err, "", "md5", "The MD5 of the parts (5d41402abc4b2a76b9719d911017c592) does not match the given one ("+given+").")
		}
	}
}

func TestUploadPolicy(t *testing.T) {
	openai := Policy{Profile: ProfileOpenAI}
	for _, tt := range []struct {
		policy  Policy
		purpose string
		most    int64
	}{
		{Policy{}, PurposeBatch, 8 << 30},
		{Policy{}, "user_data", 8 << 30},
		{openai, PurposeBatch, 200 << 20},
		{openai, "user_data", 8 << 30}, // FI-04's 512 MB are for one piece
		{Policy{MaxInput: 5}, PurposeBatch, 5},
		{Policy{MaxFile: 7}, "vision", 7},
	} {
		for size, ok := range map[int64]bool{tt.most: true, tt.most + 1: false} {
			u := Upload{Purpose: tt.purpose, Bytes: size}
			if err := u.CheckPolicy(tt.policy); ok != (err == nil) || !ok && err != ErrFileTooLarge {
				t.Errorf("%+v: %d bytes for %s: %v", tt.policy, size, tt.purpose, err)
			}
		}
	}
}
