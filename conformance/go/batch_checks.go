package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/openai/openai-go/v3"
)

// chatLines are the lines of completed.
var chatLines = func() (lines []any) {
	for n := range 20 {
		lines = append(lines, request(fmt.Sprint("ticket-", n), "/v1/chat/completions", message(chat, fmt.Sprint("question ", n))))
	}
	return append(lines, request(`été/"1"`, "/v1/chat/completions", message(chat, "naïve 🙂")))
}()

// completed is a batch that went well.
var completed = sync.OnceValue(func() *openai.Batch { return finish(create(chatLines...)) })

// cancelled is a batch when it was running, just cancelled, cancelled again, and in the end.
var cancelled = sync.OnceValue(func() (b struct{ running, once, twice, end *openai.Batch }) {
	id := create(line("a"), line("b"), line("in-flight", slow), line("waiting", busy)).ID
	b.running = wait(ai, id, func(b *openai.Batch) bool { return b.RequestCounts.Completed == 2 })
	b.once = must(ai.Batches.Cancel(ctx, id))
	b.twice = must(ai.Batches.Cancel(ctx, id))
	b.end = finishAt(ai, id)
	return b
})

func cannotCancel(b *openai.Batch) {
	before := requests.Load()
	refused[*openai.Batch](refusal{status: 409, message: fmt.Sprintf("Cannot cancel a batch with status '%s'.", b.Status)})(
		ai.Batches.Cancel(ctx, b.ID))
	equal(requests.Load()-before, 1)
	equal(must(ai.Batches.Get(ctx, b.ID)).RawJSON(), b.RawJSON())
}

// numbers returns the number that each batch was given.
func numbers(batches []openai.Batch) (n []string) {
	for _, b := range batches {
		n = append(n, b.Metadata["n"])
	}
	return n
}

var batchChecks = []test{
	{"batch-create", func() {
		p := batchOf(uploadTo(ai, line("a")))
		p.Metadata = map[string]string{"k": "v", "clé": "été", strings.Repeat("k", 64): strings.Repeat("v", 512)}
		p.OutputExpiresAfter = openai.BatchNewParamsOutputExpiresAfter{Seconds: 3600}
		b := must(ai.Batches.New(ctx, p))
		matches(b.ID, "^batch_[0-9a-f]{32}$")
		equal(fmt.Sprint(b.Object, " ", b.Endpoint, " ", b.CompletionWindow), "batch /v1/chat/completions 24h")
		equal(state(b), "validating 0+0 of 0")
		equal(b.Metadata, p.Metadata)
		is(time.Since(time.Unix(b.CreatedAt, 0)).Abs() < time.Minute, "created at %d", b.CreatedAt)
		equal(b.ExpiresAt-b.CreatedAt, 86400)
		const unset = "cancelled_at cancelling_at completed_at error_file_id errors expired_at failed_at finalizing_at in_progress_at"
		equal(nulls(b), unset+" model output_file_id usage")
		equal(nulls(create(line("a"))), unset+" metadata model output_file_id usage")
	}},

	{"batch-read-your-writes", func() {
		for range 5 {
			b := create(line("a"))
			equal(must(ai.Batches.Get(ctx, b.ID)).ID, b.ID)
			equal(must(ai.Batches.List(ctx, openai.BatchListParams{Limit: openai.Int(1)})).Data[0].ID, b.ID)
		}
	}},

	{"batch-complete", func() {
		b := completed()
		equal(state(b), "completed 21+0 of 21")
		equal(b.Model, chat)
		is(slices.IsSorted([]int64{b.CreatedAt, b.InProgressAt, b.FinalizingAt, b.CompletedAt}), "not in order: %s", b.RawJSON())
		equal(nulls(b), "cancelled_at cancelling_at error_file_id errors expired_at failed_at metadata")
		equal(must(ai.Batches.Get(ctx, b.ID)).RawJSON(), b.RawJSON())
	}},

	{"batch-results", func() {
		got := results(completed().OutputFileID)
		equal(len(got), len(chatLines))
		for _, l := range chatLines {
			r, ok := got[l.(object)["custom_id"].(string)]
			is(ok && r.Response != nil && r.Error == nil, "no answer to %v", l)
			equal(r.Response.StatusCode, 200)
			equal(r.Response.Body, answer(l.(object)))
			is(r.Response.RequestID != "", "no request_id")
		}
	}},

	{"batch-usage", func() {
		var input, output, total float64
		for _, r := range results(completed().OutputFileID) {
			u := r.Response.Body["usage"].(object)
			input += u["prompt_tokens"].(float64)
			output += u["completion_tokens"].(float64)
			total += u["total_tokens"].(float64)
		}
		u := completed().Usage
		is(output > 0, "no tokens")
		equal([]float64{float64(u.InputTokens), float64(u.OutputTokens), float64(u.TotalTokens)}, []float64{input, output, total})
		equal(nulls(&u)+nulls(&u.InputTokensDetails)+nulls(&u.OutputTokensDetails), "")
		equal(u.InputTokensDetails.CachedTokens+u.OutputTokensDetails.ReasoningTokens, 0)
	}},

	{"batch-failures", func() {
		b := finish(create(line("good"), refusedLine("bad")))
		equal(state(b), "completed 1+1 of 2")
		equal(keys(results(b.OutputFileID)), "good")
		equal(keys(results(b.ErrorFileID)), "bad")
		bad := results(b.ErrorFileID)["bad"]
		is(bad.Error == nil, "got error %v", bad.Error)
		equal(bad.Response.StatusCode, 400)
		equal(keys(bad.Response.Body["error"].(object)), "code message param type")
	}},

	{"batch-all-failed", func() {
		b := finish(create(refusedLine("a"), refusedLine("b")))
		equal(state(b), "completed 0+2 of 2")
		equal(b.JSON.OutputFileID.Raw(), "null")
		is(b.JSON.Usage.Valid() && b.Usage.TotalTokens == 0, "got usage %s", b.JSON.Usage.Raw())
		equal(keys(results(b.ErrorFileID)), "a b")
	}},

	{"batch-output-expiry", func() {
		for seconds, after := range map[int64]openai.BatchNewParamsOutputExpiresAfter{7200: {Seconds: 7200}, 30 * 86400: {}} {
			p := batchOf(uploadTo(ai, line("good"), refusedLine("bad")))
			p.OutputExpiresAfter = after
			b := finish(must(ai.Batches.New(ctx, p)))
			for kind, id := range map[string]string{"output": b.OutputFileID, "error": b.ErrorFileID} {
				f := must(ai.Files.Get(ctx, id))
				equal(fmt.Sprint(f.Purpose, " ", f.Filename), fmt.Sprintf("batch_output %s_%s.jsonl", b.ID, kind))
				equal(f.ExpiresAt-f.CreatedAt, seconds)
				equal(f.Bytes, int64(len(content(id))))
			}
		}
	}},

	{"batch-endpoints", func() {
		for url, body := range map[string]object{
			"/v1/completions": {"model": chat, "prompt": "once"},
			"/v1/embeddings":  {"model": chat, "input": []string{"one", "two"}},
			"/v1/moderations": {"model": chat, "input": "fine"},
			"/v1/responses":   {"model": chat, "input": "hello"},
		} {
			l := request("a", url, body)
			p := batchOf(uploadTo(ai, l))
			p.Endpoint = openai.BatchNewParamsEndpoint(url)
			b := finish(must(ai.Batches.New(ctx, p)))
			equal(state(b)+" "+b.Endpoint, "completed 1+0 of 1 "+url)
			equal(results(b.OutputFileID)["a"].Response.Body, answer(l))
		}
	}},

	{"batch-mixed", func() {
		b := finish(create(line("a"), line("b", other)))
		equal(state(b), "completed 2+0 of 2")
		equal(b.JSON.Model.Raw(), "null")
		r := results(b.OutputFileID)
		equal(r["a"].Response.Body["model"], any(chat))
		equal(r["b"].Response.Body["model"], any(other))
	}},

	{"batch-invalid", func() {
		noID := line("d")
		delete(noID, "custom_id")
		b := finish(create(
			line("a"),
			"{broken",
			line("a"),
			with(line("b"), "method", "GET"),
			with(line("c"), "url", "/v1/embeddings"),
			noID,
			with(line("e"), "body", object{"model": chat, "messages": []any{}, "stream": true}),
			line("f", "nope"),
			with(line("g"), "body", object{"model": chat}),
			"",
			with(line("h"), "body", object{"messages": []any{}}),
		))
		equal(state(b), "failed 0+0 of 0")
		var got []string
		for _, e := range b.Errors.Data {
			nulls(&e)
			got = append(got, strings.TrimSpace(fmt.Sprintln(e.Line, e.Code, e.Param)))
		}
		equal(got, []string{
			"2 invalid_json_line",
			"3 duplicate_custom_id custom_id",
			"4 invalid_method method",
			"5 invalid_url url",
			"6 missing_required_parameter custom_id",
			"7 streaming_unsupported body.stream",
			"8 model_not_found body.model",
			"9 invalid_request body.messages",
			"11 invalid_request body.model",
		})
		equal(b.Errors.Data[0].Message, "This line is not parseable as valid JSON.")
		equal(b.Errors.Data[6].Message, "The provided model 'nope' is not supported by the Batch API.")
		is(b.FailedAt >= b.CreatedAt, "failed before it was created")
		equal(nulls(b), "cancelled_at cancelling_at completed_at error_file_id expired_at finalizing_at in_progress_at metadata model output_file_id usage")
	}},

	{"batch-input-missing", func() {
		data := must(uploadWith(openai.FileNewParams{Purpose: openai.FilePurposeUserData})).ID
		for id, message := range map[string]string{
			"file-nope":               "Cannot find file file-nope, or organization ",
			os.Getenv("FOREIGN_FILE"): "Cannot find file ",
			data:                      "The file " + data + " has purpose 'user_data'",
		} {
			b := finish(must(ai.Batches.New(ctx, batchOf(id))))
			equal(state(b), "failed 0+0 of 0")
			equal(len(b.Errors.Data), 1)
			e := b.Errors.Data[0]
			equal(e.Code+" "+e.Param+" "+e.JSON.Line.Raw(), "invalid_request file_id null")
			is(strings.HasPrefix(e.Message, message), "got %q", e.Message)
		}
	}},

	{"batch-expired", func() {
		b := finishAt(ai, os.Getenv("EXPIRED_BATCH"))
		equal(state(b), "expired 1+0 of 2")
		equal(nulls(b), "cancelled_at cancelling_at completed_at errors failed_at metadata model")
		is(slices.IsSorted([]int64{b.InProgressAt, b.FinalizingAt, b.ExpiredAt}), "not in order: %s", b.RawJSON())
		equal(keys(results(b.OutputFileID)), "in-time")
		late := results(b.ErrorFileID)["too-late"]
		is(late.Response == nil && late.Error != nil, "got %v", late)
		equal(late.Error.Code, "batch_expired")
		equal(late.Error.Message, "This request could not be executed before the completion window expired.")
	}},

	{"batch-pages", func() {
		var newestFirst []string
		for n := range 120 {
			newestFirst = append(newestFirst, strconv.Itoa(119-n))
		}
		equal(numbers(listAll(pages.Batches.ListAutoPaging(ctx, openai.BatchListParams{Limit: openai.Int(50)}))), newestFirst)
		var byHand []openai.Batch
		for page := must(pages.Batches.List(ctx, openai.BatchListParams{Limit: openai.Int(40)})); page != nil; page = must(page.GetNextPage()) {
			byHand = append(byHand, page.Data...)
		}
		equal(numbers(byHand), newestFirst)
		first := must(pages.Batches.List(ctx, openai.BatchListParams{}))
		equal(fmt.Sprint(len(first.Data), first.HasMore), "20 true")
		equal(first.JSON.ExtraFields["first_id"].Raw(), strconv.Quote(first.Data[0].ID))
		equal(first.JSON.ExtraFields["last_id"].Raw(), strconv.Quote(first.Data[19].ID))
	}},

	{"cancel-validating", func() {
		id := createAt(strict, line("a", "not-known-yet")).ID
		equal(must(strict.Batches.Get(ctx, id)).Status, "validating")
		matches(string(must(strict.Batches.Cancel(ctx, id)).Status), "^cancell(ing|ed)$")
		b := finishAt(strict, id)
		equal(state(b), "cancelled 0+0 of 0")
		equal(nulls(b), "completed_at error_file_id errors expired_at failed_at finalizing_at in_progress_at metadata model output_file_id usage")
		is(b.CancelledAt >= b.CancellingAt, "cancelled before it was cancelling")
		equal(must(strict.Batches.Cancel(ctx, id)).RawJSON(), b.RawJSON())
	}},

	{"cancel-in-progress", func() {
		b := cancelled()
		equal(state(b.running), "in_progress 2+0 of 4")
		equal(b.running.JSON.Usage.Raw()+b.running.JSON.OutputFileID.Raw(), "nullnull")
		equal(b.once.Status, "cancelling")
		equal(b.once.JSON.OutputFileID.Raw()+b.once.JSON.ErrorFileID.Raw(), "nullnull")
		equal(state(b.end), "cancelled 3+0 of 4")
		equal(b.end.CancellingAt, b.once.CancellingAt)
		is(b.end.CancelledAt >= b.end.CancellingAt, "cancelled before it was cancelling")
		equal(keys(results(b.end.OutputFileID)), "a b in-flight")
		errs := results(b.end.ErrorFileID)
		equal(keys(errs), "waiting")
		is(errs["waiting"].Response == nil, "it was answered")
		equal(errs["waiting"].Error.Code, "batch_cancelled")
	}},

	{"cancel-again", func() {
		b := cancelled()
		equal(b.twice.Status, "cancelling")
		equal(b.twice.CancellingAt, b.once.CancellingAt)
		equal(must(ai.Batches.Cancel(ctx, b.end.ID)).RawJSON(), b.end.RawJSON())
	}},

	{"cancel-completed", func() { cannotCancel(completed()) }},
	{"cancel-failed", func() { cannotCancel(finish(create(line("a", "nope")))) }},
	{"cancel-expired", func() { cannotCancel(finishAt(ai, os.Getenv("EXPIRED_BATCH"))) }},
}
