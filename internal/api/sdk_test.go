package api

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	sdk "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"offpeak/internal/batch"
)

// TestOfficialSDK goes through a batch's life with OpenAI's own Go client, unmodified.
func TestOfficialSDK(t *testing.T) {
	x := newTester(t, nil)
	requests := 0
	c := sdk.NewClient(option.WithBaseURL(x.url+"/v1"), option.WithAPIKey(keyA),
		option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
			requests++
			return next(r)
		}))
	ctx := t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const content = `{"custom_id":"1","method":"POST","url":"/v1/embeddings","body":{"model":"qwen3-8b","input":"hi"}}` + "\n"

	f, err := c.Files.New(ctx, sdk.FileNewParams{
		File:         sdk.File(strings.NewReader(content), "in.jsonl", "application/jsonl"),
		Purpose:      sdk.FilePurposeBatch,
		ExpiresAfter: sdk.FileNewParamsExpiresAfter{Seconds: 7200},
	})
	check(err)
	if f.Filename != "in.jsonl" || f.Bytes != int64(len(content)) || f.ExpiresAt-f.CreatedAt != 7200 {
		t.Errorf("file %s", f.RawJSON())
	}
	resp, err := c.Files.Content(ctx, f.ID)
	check(err)
	got, err := io.ReadAll(resp.Body)
	check(err)
	resp.Body.Close()
	if string(got) != content {
		t.Errorf("content %q", got)
	}

	var ids []string
	for range 5 {
		b, err := c.Batches.New(ctx, sdk.BatchNewParams{
			InputFileID: f.ID, Endpoint: sdk.BatchNewParamsEndpointV1Embeddings,
			CompletionWindow: sdk.BatchNewParamsCompletionWindow24h,
			Metadata:         map[string]string{"k": "v"},
		})
		check(err)
		if b.Status != sdk.BatchStatusValidating || b.Metadata["k"] != "v" || b.ExpiresAt-b.CreatedAt != 86400 {
			t.Errorf("batch %s", b.RawJSON())
		}
		ids = append(ids, b.ID)
	}
	b, err := c.Batches.Get(ctx, ids[0])
	check(err)
	if b.ID != ids[0] {
		t.Errorf("batch %s", b.RawJSON())
	}
	n := 0
	for pages := c.Batches.ListAutoPaging(ctx, sdk.BatchListParams{Limit: sdk.Int(2)}); ; n++ {
		if !pages.Next() {
			check(pages.Err())
			break
		}
		if want := ids[len(ids)-1-n]; pages.Current().ID != want {
			t.Errorf("page %d: %s, want %s", n, pages.Current().ID, want)
		}
	}
	if n != len(ids) {
		t.Errorf("listed %d batches of %d", n, len(ids))
	}

	b, err = c.Batches.Cancel(ctx, ids[0])
	check(err)
	if b.Status != sdk.BatchStatusCancelled {
		t.Errorf("cancelled %s", b.RawJSON())
	}
	x.store.change(ctx, "proj_a", ids[1], func(b *batch.Batch) error { return b.Reject(nil, x.store.now()) })
	before := requests
	_, err = c.Batches.Cancel(ctx, ids[1])
	e := wantSDKError(t, err, 409)
	if e.Message != "Cannot cancel a batch with status 'failed'." || requests != before+1 {
		t.Errorf("%d requests for %s", requests-before, e.RawJSON())
	}

	models := 0
	for pages := c.Models.ListAutoPaging(ctx); pages.Next(); models++ {
		m, err := c.Models.Get(ctx, pages.Current().ID)
		check(err)
		if m.ID != pages.Current().ID {
			t.Errorf("model %s", m.RawJSON())
		}
	}
	if models != 3 {
		t.Errorf("%d models", models)
	}

	deleted, err := c.Files.Delete(ctx, f.ID)
	check(err)
	if !deleted.Deleted || deleted.ID != f.ID {
		t.Errorf("deleted %s", deleted.RawJSON())
	}
	_, err = c.Files.Get(ctx, f.ID)
	if e := wantSDKError(t, err, 404); e.Param != "id" || e.Type != "invalid_request_error" {
		t.Errorf("got %s", e.RawJSON())
	}
	_, err = c.Files.Delete(ctx, f.ID)
	wantSDKError(t, err, 404)
	_, err = c.Batches.Get(ctx, "a/../b")
	wantSDKError(t, err, 404)

	// Refused in the middle of its body.
	_, err = c.Files.New(context.WithoutCancel(ctx), sdk.FileNewParams{
		File:    sdk.File(io.LimitReader(spaces{}, 30<<20), "in.jsonl", "application/octet-stream"),
		Purpose: "nonsense", ExpiresAfter: sdk.FileNewParamsExpiresAfter{Seconds: 60},
	})
	if e := wantSDKError(t, err, 400); e.Param != "purpose" {
		t.Errorf("got %s", e.RawJSON())
	}

	anonymous := sdk.NewClient(option.WithBaseURL(x.url+"/v1"), option.WithAPIKey(""))
	_, err = anonymous.Models.List(ctx)
	wantSDKError(t, err, 401)
}

func wantSDKError(t *testing.T, err error, status int) *sdk.Error {
	t.Helper()
	e, ok := errors.AsType[*sdk.Error](err)
	if !ok {
		t.Fatalf("got %v, want an error of the API", err)
	}
	if e.StatusCode != status {
		t.Errorf("status %d, want %d: %s", e.StatusCode, status, e.RawJSON())
	}
	return e
}
