package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/packages/pagination"
	"github.com/openai/openai-go/v3/shared/constant"
)

// samplePath names a file with the sample in it.
func samplePath() string {
	path := filepath.Join(os.Getenv("SCRATCH"), "sample.jsonl")
	check(os.WriteFile(path, []byte(sample), 0o600))
	return path
}

// uploaded uploads a batch input and wants it to be what it is.
func uploaded(r io.Reader, name string) { uploadedAs(openai.FilePurposeBatch, r, name, sample) }

func uploadedAs(purpose openai.FilePurpose, r io.Reader, name, want string) {
	f := must(ai.Files.New(ctx, openai.FileNewParams{File: r, Purpose: purpose}))
	equal(fmt.Sprint(f.Filename, f.Bytes, f.Purpose), fmt.Sprint(name, len(want), purpose))
	is(content(f.ID) == want, "other bytes came back")
}

func uploadWith(p openai.FileNewParams) (*openai.FileObject, error) {
	p.File = file(sample, "in.jsonl")
	if p.Purpose == "" {
		p.Purpose = openai.FilePurposeBatch
	}
	return ai.Files.New(ctx, p)
}

func expiresAfter(seconds int64) openai.FileNewParamsExpiresAfter {
	return openai.FileNewParamsExpiresAfter{Seconds: seconds}
}

func listAll[T any](pages *pagination.CursorPageAutoPager[T]) (all []T) {
	for pages.Next() {
		all = append(all, pages.Current())
	}
	check(pages.Err())
	return all
}

// unknownFile wants every call that names the file to find nothing.
func unknownFile(id string) {
	no := refusal{status: 404, message: "No such File object: ", param: "id"}
	refused[*openai.FileObject](no)(ai.Files.Get(ctx, id))
	_, err := ai.Files.Content(ctx, id)
	refusedErr(err, no)
	refused[*openai.FileDeleted](no)(ai.Files.Delete(ctx, id))
}

var fileChecks = []test{
	{"upload-path", func() {
		f := must(os.Open(samplePath()))
		defer f.Close()
		uploaded(f, "sample.jsonl") // the SDK asks the file for its name
	}},

	{"upload-stream", func() {
		f := must(os.Open(samplePath()))
		defer f.Close()
		uploaded(openai.File(f, "in.jsonl", "application/octet-stream"), "in.jsonl")
	}},

	{"upload-bytes", func() { uploaded(file(sample, "été 1.jsonl"), "été 1.jsonl") }},

	{"upload-typed", func() {
		uploaded(openai.File(strings.NewReader(sample), "in.jsonl", "application/jsonl"), "in.jsonl")
		uploaded(openai.File(strings.NewReader(sample), "in.jsonl", "text/plain"), "in.jsonl")
	}},

	{"upload-pipe", func() {
		r, w := io.Pipe()
		go func() {
			io.WriteString(w, sample)
			w.Close()
		}()
		uploaded(openai.File(r, "in.jsonl", "application/octet-stream"), "in.jsonl")
	}},

	{"upload-unnamed", func() {
		uploadedAs(openai.FilePurposeUserData, strings.NewReader(sample), "anonymous_file", sample)
		refused[*openai.FileObject](refusal{status: 400, message: "Must be .jsonl"})(
			ai.Files.New(ctx, openai.FileNewParams{File: strings.NewReader(sample), Purpose: openai.FilePurposeBatch}))
	}},

	{"upload-large", func() {
		large := make([]byte, 8<<20)
		rand.Read(large)
		uploadedAs(openai.FilePurposeUserData, file(string(large), "large.bin"), "large.bin", string(large))
	}},

	{"upload-expiry", func() {
		f := must(uploadWith(openai.FileNewParams{ExpiresAfter: expiresAfter(3600)}))
		equal(f.ExpiresAt-f.CreatedAt, 3600)
		f = must(uploadWith(openai.FileNewParams{Purpose: openai.FilePurposeUserData, ExpiresAfter: expiresAfter(2592000)}))
		equal(f.ExpiresAt-f.CreatedAt, 2592000)
		f = must(uploadWith(openai.FileNewParams{}))
		equal(f.ExpiresAt-f.CreatedAt, 30*86400)
		f = must(uploadWith(openai.FileNewParams{Purpose: openai.FilePurposeUserData}))
		equal(f.JSON.ExpiresAt.Raw(), "null")
	}},

	{"upload-format", func() {
		no := refused[*openai.FileObject](refusal{status: 400, message: "Invalid file format for Batch API. Must be .jsonl"})
		for _, f := range []io.Reader{file(sample, "in.json"), file("", "in.jsonl"), file("not JSON\n"+sample, "in.jsonl")} {
			no(ai.Files.New(ctx, openai.FileNewParams{File: f, Purpose: openai.FilePurposeBatch}))
		}
	}},

	{"upload-parameters", func() {
		no := func(r refusal) func(*openai.FileObject, error) { r.status = 400; return refused[*openai.FileObject](r) }
		no(refusal{message: "Invalid value: 'nonsense'", code: "invalid_value", param: "purpose"})(
			uploadWith(openai.FileNewParams{Purpose: "nonsense"}))
		no(refusal{message: "integer below minimum value", code: "integer_below_min_value", param: "expires_after.seconds"})(
			uploadWith(openai.FileNewParams{ExpiresAfter: expiresAfter(3599)}))
		no(refusal{message: "integer above maximum value", code: "integer_above_max_value", param: "expires_after.seconds"})(
			uploadWith(openai.FileNewParams{ExpiresAfter: expiresAfter(2592001)}))
		now := openai.FileNewParamsExpiresAfter{Seconds: 3600, Anchor: constant.CreatedAt("now")}
		no(refusal{message: "Invalid value: 'now'", code: "invalid_value", param: "expires_after.anchor"})(
			uploadWith(openai.FileNewParams{ExpiresAfter: now}))
	}},

	{"file-object", func() {
		f := must(uploadWith(openai.FileNewParams{Purpose: openai.FilePurposeUserData}))
		matches(f.ID, "^file-[0-9A-Za-z]{22}$")
		equal(fmt.Sprint(f.Object, " ", f.Purpose, " ", f.JSON.Status.Raw()), `file user_data "processed"`)
		equal(nulls(f), "expires_at status_details")
		equal(len(f.JSON.ExtraFields), 0)
		is(time.Since(time.Unix(f.CreatedAt, 0)).Abs() < time.Minute, "created at %d", f.CreatedAt)
		equal(must(ai.Files.Get(ctx, f.ID)).RawJSON(), f.RawJSON())
		equal(must(ai.Files.List(ctx, openai.FileListParams{Limit: openai.Int(1)})).Data[0].RawJSON(), f.RawJSON())
	}},

	{"file-content", func() {
		resp := must(ai.Files.Content(ctx, uploadTo(ai, line("a"))))
		defer resp.Body.Close()
		equal(resp.Header.Get("Content-Type"), "application/octet-stream")
		is(strings.Contains(resp.Header.Get("Content-Disposition"), "in.jsonl"), "no name")
		equal(resp.Header.Get("Content-Length"), strconv.Itoa(len(must(io.ReadAll(resp.Body)))))
	}},

	{"file-delete", func() {
		id := uploadTo(ai, line("a"))
		d := must(ai.Files.Delete(ctx, id))
		equal(nulls(d), "")
		equal(fmt.Sprint(d.ID, d.Object, d.Deleted), fmt.Sprint(id, "file", true))
		unknownFile(id)
	}},

	{"file-wait", func() { panic(lack("the SDK has no helper for it")) }},

	{"file-expired", func() {
		id := os.Getenv("EXPIRED_FILE")
		unknownFile(id)
		for _, f := range listAll(ai.Files.ListAutoPaging(ctx, openai.FileListParams{})) {
			is(f.ID != id, "it is listed")
		}
	}},

	{"file-pages", func() {
		names := func(order openai.FileListParamsOrder) (names []string) {
			for _, f := range listAll(pages.Files.ListAutoPaging(ctx, openai.FileListParams{
				Purpose: openai.String("batch"), Order: order, Limit: openai.Int(50),
			})) {
				names = append(names, f.Filename)
			}
			return names
		}
		var want []string
		for n := range 120 {
			want = append(want, fmt.Sprintf("%03d.jsonl", n))
		}
		equal(names(openai.FileListParamsOrderAsc), want)
		slices.Reverse(want)
		equal(names(openai.FileListParamsOrderDesc), want)
		equal(names(""), want)
	}},

	{"file-filter", func() {
		for purpose, some := range map[string]bool{"batch": true, "batch_output": true, "evals": false} {
			found := listAll(pages.Files.ListAutoPaging(ctx, openai.FileListParams{Purpose: openai.String(purpose)}))
			equal(len(found) > 0, some)
			for _, f := range found {
				equal(string(f.Purpose), purpose)
			}
		}
		type page = *pagination.CursorPage[openai.FileObject]
		refused[page](refusal{400, "Invalid value: 'up'", "invalid_value", "order"})(
			ai.Files.List(ctx, openai.FileListParams{Order: "up"}))
		refused[page](refusal{404, "No such File object: file-nope", "", "id"})(
			ai.Files.List(ctx, openai.FileListParams{After: openai.String("file-nope")}))
	}},
}
