package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/pagination"
	"github.com/openai/openai-go/v3/shared/constant"
)

type batchPage = *pagination.CursorPage[openai.Batch]

// create400 wants a batch to be refused that is created with what set changes.
func create400(r refusal, set func(*openai.BatchNewParams), opts ...option.RequestOption) {
	p := batchOf("file-x")
	set(&p)
	r.status = 400
	refused[*openai.Batch](r)(ai.Batches.New(ctx, p, opts...))
}

var errorChecks = []test{
	{"models-list", func() {
		models := make(map[string]openai.Model)
		for pages := ai.Models.ListAutoPaging(ctx); pages.Next(); {
			m := pages.Current()
			models[m.ID] = m
			equal(string(m.Object), "model")
			is(m.Created > 0 && m.OwnedBy != "", "got %s", m.RawJSON())
		}
		for _, id := range []string{chat, other, slow, busy} {
			equal(models[id].ID, id)
		}
	}},

	{"models-retrieve", func() {
		for _, id := range []string{chat, other} {
			equal(must(ai.Models.Get(ctx, id)).ID, id)
		}
		refused[*openai.Model](refusal{404, "The model 'no/such:model' does not exist", "model_not_found", "model"})(
			ai.Models.Get(ctx, "no/such:model"))
	}},

	{"error-key-missing", func() {
		anonymous := client("") // the SDK then sends no Authorization
		no := refusal{status: 401, message: "You didn't provide an API key."}
		_, err := anonymous.Models.List(ctx)
		refusedErr(err, no)
		_, err = anonymous.Files.List(ctx, openai.FileListParams{})
		refusedErr(err, no)
		_, err = anonymous.Batches.List(ctx, openai.BatchListParams{})
		refusedErr(err, no)
		_, err = anonymous.Files.New(ctx, openai.FileNewParams{File: file(sample, "in.jsonl"), Purpose: openai.FilePurposeBatch})
		refusedErr(err, no)
	}},

	{"error-key-wrong", func() {
		for _, key := range []string{"sk-wrong-0123456789abcdefghij", os.Getenv("API_KEY") + "x"} {
			wrong := client(key)
			_, err := wrong.Models.List(ctx)
			refusedErr(err, refusal{status: 401, message: "Incorrect API key provided: ", code: "invalid_api_key"})
			_, err = wrong.Batches.List(ctx, openai.BatchListParams{})
			is(!strings.Contains(describe(err), key[9:len(key)-4]), "the key is told")
		}
	}},

	{"error-not-found", func() {
		for _, id := range []string{"batch_nope", "a/../b", "%2e%2e", strings.Repeat("x", 2000), "été 🙂", "nul\x00"} {
			no := refused[*openai.Batch](refusal{status: 404, message: "No batch found with id '"})
			no(ai.Batches.Get(ctx, id))
			no(ai.Batches.Cancel(ctx, id))
			unknownFile(id)
		}
	}},

	{"error-parameter-missing", func() {
		for _, name := range []string{"input_file_id", "endpoint", "completion_window"} {
			create400(refusal{message: fmt.Sprintf("Missing required parameter: '%s'.", name), code: "missing_required_parameter", param: name},
				func(*openai.BatchNewParams) {}, option.WithJSONDel(name))
		}
		refused[*openai.FileObject](refusal{400, "Missing required parameter: 'purpose'.", "missing_required_parameter", "purpose"})(
			ai.Files.New(ctx, openai.FileNewParams{File: file(sample, "in.jsonl")}))
	}},

	{"error-parameter-value", func() {
		create400(refusal{message: "Supported values are: '/v1/responses', '/v1/chat/completions'", code: "invalid_value", param: "endpoint"},
			func(p *openai.BatchNewParams) { p.Endpoint = "/v1/nope" })
		for _, window := range []string{"25", "1.5h", "tomorrow"} {
			create400(refusal{message: fmt.Sprintf("Invalid value: '%s'.", window), code: "invalid_value", param: "completion_window"},
				func(p *openai.BatchNewParams) { p.CompletionWindow = openai.BatchNewParamsCompletionWindow(window) })
		}
		create400(refusal{
			message: "integer below minimum value. Expected a value >= 3600, but got 1 instead.",
			code:    "integer_below_min_value", param: "output_expires_after.seconds",
		}, func(p *openai.BatchNewParams) { p.OutputExpiresAfter.Seconds = 1 })
		create400(refusal{message: "Invalid value: 'now'.", code: "invalid_value", param: "output_expires_after.anchor"},
			func(p *openai.BatchNewParams) {
				p.OutputExpiresAfter = openai.BatchNewParamsOutputExpiresAfter{Seconds: 3600, Anchor: constant.CreatedAt("now")}
			})
	}},

	{"error-metadata", func() {
		metadata := func(m map[string]string) func(*openai.BatchNewParams) {
			return func(p *openai.BatchNewParams) { p.Metadata = m }
		}
		seventeen := make(map[string]string)
		for n := range 17 {
			seventeen[fmt.Sprint(n)] = ""
		}
		create400(refusal{
			message: "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an object with 17",
			code:    "object_above_max_properties", param: "metadata",
		}, metadata(seventeen))
		create400(refusal{
			message: "Invalid 'metadata.note': string too long. Expected a string with maximum length 512, but got a string with length 513",
			code:    "string_above_max_length", param: "metadata.note",
		}, metadata(map[string]string{"note": strings.Repeat("é", 513)}))
		create400(refusal{message: "string too long", code: "string_above_max_length", param: "metadata"},
			metadata(map[string]string{strings.Repeat("k", 65): ""}))
		create400(refusal{
			message: "Invalid type for 'metadata.tags': expected a string, but got an array instead.",
			code:    "invalid_type", param: "metadata.tags",
		}, metadata(nil), option.WithJSONSet("metadata.tags", []string{"a"}))
	}},

	{"error-limit", func() {
		refused[batchPage](refusal{
			400, "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
			"integer_above_max_value", "limit",
		})(ai.Batches.List(ctx, openai.BatchListParams{Limit: openai.Int(101)}))
		refused[batchPage](refusal{
			400, "Invalid 'limit': integer below minimum value. Expected a value >= 0, but got -1 instead.",
			"integer_below_min_value", "limit",
		})(ai.Batches.List(ctx, openai.BatchListParams{Limit: openai.Int(-1)}))
		empty := must(ai.Batches.List(ctx, openai.BatchListParams{Limit: openai.Int(0)}))
		equal(empty.JSON.Data.Raw()+" "+empty.JSON.HasMore.Raw(), "[] false")
		equal(empty.JSON.ExtraFields["first_id"].Raw()+" "+empty.JSON.ExtraFields["last_id"].Raw(), "null null")
		refused[batchPage](refusal{status: 404, message: "No batch found with id 'batch_nope'."})(
			ai.Batches.List(ctx, openai.BatchListParams{After: openai.String("batch_nope")}))
	}},

	{"error-route", func() {
		elsewhere := client(os.Getenv("API_KEY"), option.WithBaseURL(os.Getenv("BASE_URL")+"/nope"))
		_, err := elsewhere.Models.List(ctx)
		refusedErr(err, refusal{status: 404, message: "Invalid URL (GET /v1/nope/models)"})
		refusedErr(ai.Post(ctx, "/nope", nil, nil), refusal{status: 404, message: "Invalid URL (POST /v1/nope)"})
	}},

	{"error-method", func() {
		_, err := ai.Models.Delete(ctx, chat)
		refusedErr(err, refusal{status: 405, message: "Not allowed to DELETE on /v1/models/sim-chat."})
		refusedErr(ai.Put(ctx, "/batches", nil, nil), refusal{status: 405, message: "Not allowed to PUT on /v1/batches."})
	}},

	{"error-foreign", func() {
		file, batch, upload := os.Getenv("FOREIGN_FILE"), os.Getenv("FOREIGN_BATCH"), os.Getenv("FOREIGN_UPLOAD")
		noBatch := refusal{status: 404, message: "No batch found with id '" + batch + "'."}
		unknownFile(file)
		refused[*openai.Batch](noBatch)(ai.Batches.Get(ctx, batch))
		refused[*openai.Batch](noBatch)(ai.Batches.Cancel(ctx, batch))
		refused[batchPage](noBatch)(ai.Batches.List(ctx, openai.BatchListParams{After: openai.String(batch)}))
		_, err := ai.Files.List(ctx, openai.FileListParams{After: openai.String(file)})
		refusedErr(err, refusal{404, "No such File object: " + file, "", "id"})
		unknownUpload(upload)
		upload400(os.Getenv("FOREIGN_PART"))(complete(begin("x").ID, os.Getenv("FOREIGN_PART")))
		is(!slices.ContainsFunc(listAll(ai.Files.ListAutoPaging(ctx, openai.FileListParams{})),
			func(f openai.FileObject) bool { return f.ID == file }), "the file is listed")
		is(!slices.ContainsFunc(listAll(ai.Batches.ListAutoPaging(ctx, openai.BatchListParams{})),
			func(b openai.Batch) bool { return b.ID == batch }), "the batch is listed")
	}},

	{"profile-openai", func() {
		b := finishAt(strict, createAt(strict, line("a"), line("b", other)).ID)
		equal(state(b), "failed 0+0 of 0")
		e := b.Errors.Data[0]
		equal(fmt.Sprint(len(b.Errors.Data), " ", e.Code, " ", e.Param, " ", e.Line), "1 mismatched_model body.model 2")
		hour := batchOf(uploadTo(ai, line("a")))
		hour.CompletionWindow = "1h"
		refused[*openai.Batch](refusal{400, "Invalid value: '1h'. Value must be '24h'.", "invalid_value", "completion_window"})(
			strict.Batches.New(ctx, hour))
		equal(must(ai.Batches.New(ctx, hour)).CompletionWindow, "1h")
	}},

	{"request-ids", func() {
		var of *http.Response
		into := option.WithResponseInto(&of)
		ids := make(map[string]bool)
		f := must(ai.Files.New(ctx, openai.FileNewParams{File: file(sample, "in.jsonl"), Purpose: openai.FilePurposeBatch}, into))
		ids[of.Header.Get("x-request-id")] = true
		must(ai.Files.Get(ctx, f.ID, into))
		ids[of.Header.Get("x-request-id")] = true
		must(ai.Batches.List(ctx, openai.BatchListParams{}, into))
		ids[of.Header.Get("x-request-id")] = true
		_, err := ai.Batches.Get(ctx, "batch_nope")
		e, _ := errors.AsType[*openai.Error](err)
		ids[e.Response.Header.Get("x-request-id")] = true
		delete(ids, "")
		equal(len(ids), 4)
	}},

	{"client-settings", func() {
		c := client(os.Getenv("API_KEY"), option.WithBaseURL(os.Getenv("BASE_URL")+"/"),
			option.WithOrganization("org-x"), option.WithProject("proj_x"), option.WithHeader("OpenAI-Beta", "x"))
		one := openai.BatchListParams{Limit: openai.Int(1)}
		equal(must(c.Batches.List(ctx, one)).Data[0].ID, must(ai.Batches.List(ctx, one)).Data[0].ID)
	}},

	{"client-async", func() { panic(lack("the SDK has no other form: goroutines are")) }},
}
