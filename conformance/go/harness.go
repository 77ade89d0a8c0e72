package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/respjson"
)

// Models of the server, and a text that makes the model server answer 400.
const (
	chat    = "sim-chat"
	other   = "org/sim-chat:free"
	slow    = "sim-slow"
	busy    = "sim-busy"
	refuses = "refuse-me"
)

var (
	ctx    = context.Background()
	ai     = client(os.Getenv("API_KEY"))
	pages  = client(os.Getenv("PAGES_KEY")) // of a project with 120 files and 120 batches
	strict = client(os.Getenv("STRICT_KEY"), option.WithBaseURL(os.Getenv("STRICT_URL")))

	requests atomic.Int64 // of all clients
)

func client(key string, opts ...option.RequestOption) openai.Client {
	count := func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
		requests.Add(1)
		return next(r)
	}
	return openai.NewClient(append([]option.RequestOption{
		option.WithBaseURL(os.Getenv("BASE_URL")), option.WithAPIKey(key), option.WithMiddleware(count),
	}, opts...)...)
}

// Inputs.

type object = map[string]any

// message is the body of a chat request.
func message(model, text string) object {
	return object{"model": model, "messages": []object{{"role": "user", "content": text}}}
}

// request is a line of an input file.
func request(customID, url string, body object) object {
	return object{"custom_id": customID, "method": "POST", "url": url, "body": body}
}

// line is a chat request that says hello to chat, or to the model given.
func line(customID string, model ...string) object {
	return request(customID, "/v1/chat/completions", message(append(model, chat)[0], "hello"))
}

// refusedLine is a request that the model server answers with 400.
func refusedLine(customID string) object {
	return request(customID, "/v1/chat/completions", message(chat, refuses))
}

// with returns a copy of l with one field set.
func with(l object, name string, value any) object {
	c := object{name: value}
	for k, v := range l {
		if k != name {
			c[k] = v
		}
	}
	return c
}

// jsonl is a file of lines, objects or plain text.
func jsonl(lines ...any) string {
	var b strings.Builder
	for _, l := range lines {
		text, plain := l.(string)
		if !plain {
			text = string(must(json.Marshal(l)))
		}
		b.WriteString(text + "\n")
	}
	return b.String()
}

var sample = jsonl(line("a"), line("b"))

func file(content, name string) io.Reader {
	return openai.File(strings.NewReader(content), name, "application/octet-stream")
}

func uploadTo(c openai.Client, lines ...any) string {
	return must(c.Files.New(ctx, openai.FileNewParams{File: file(jsonl(lines...), "in.jsonl"), Purpose: openai.FilePurposeBatch})).ID
}

// batchOf says how a batch of chat requests is created.
func batchOf(fileID string) openai.BatchNewParams {
	return openai.BatchNewParams{
		InputFileID: fileID, Endpoint: openai.BatchNewParamsEndpointV1ChatCompletions,
		CompletionWindow: openai.BatchNewParamsCompletionWindow24h,
	}
}

func create(lines ...any) *openai.Batch { return createAt(ai, lines...) }

func createAt(c openai.Client, lines ...any) *openai.Batch {
	return must(c.Batches.New(ctx, batchOf(uploadTo(c, lines...))))
}

// Waiting.

// wait returns the batch as it is once the condition holds.
func wait(c openai.Client, id string, until func(*openai.Batch) bool) *openai.Batch {
	for giveUp := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		b := must(c.Batches.Get(ctx, id))
		if until(b) {
			return b
		}
		if time.Now().After(giveUp) {
			fail("still %s after 30 s", b.Status)
		}
	}
}

func finish(b *openai.Batch) *openai.Batch { return finishAt(ai, b.ID) }

func finishAt(c openai.Client, id string) *openai.Batch {
	return wait(c, id, func(b *openai.Batch) bool {
		return slices.Contains([]openai.BatchStatus{"completed", "failed", "expired", "cancelled"}, b.Status)
	})
}

// state sums a batch up: its status, and how many of its requests completed, failed, and are.
func state(b *openai.Batch) string {
	c := b.RequestCounts
	return fmt.Sprintf("%s %d+%d of %d", b.Status, c.Completed, c.Failed, c.Total)
}

// Results.

type result struct {
	ID       string `json:"id"`
	CustomID string `json:"custom_id"`
	Response *struct {
		StatusCode int    `json:"status_code"`
		RequestID  string `json:"request_id"`
		Body       object `json:"body"`
	} `json:"response"`
	Error *struct{ Code, Message string } `json:"error"`
}

func content(fileID string) string {
	resp := must(ai.Files.Content(ctx, fileID))
	defer resp.Body.Close()
	return string(must(io.ReadAll(resp.Body)))
}

// results returns the lines of a result file by custom_id.
func results(fileID string) map[string]result {
	byID := make(map[string]result)
	for l := range strings.Lines(content(fileID)) {
		var r result
		d := json.NewDecoder(strings.NewReader(l))
		d.DisallowUnknownFields()
		check(d.Decode(&r))
		matches(r.ID, `^batch_req_[0-9a-f]{32}$`)
		if _, repeated := byID[r.CustomID]; repeated {
			fail("%s stands twice in %s", r.CustomID, fileID)
		}
		byID[r.CustomID] = r
	}
	return byID
}

// answer returns what the model server says to a line's body; it says the same each time.
func answer(l object) (a object) {
	url := os.Getenv("SIM_URL") + strings.TrimPrefix(l["url"].(string), "/v1")
	resp := must(http.Post(url, "application/json", bytes.NewReader(must(json.Marshal(l["body"])))))
	defer resp.Body.Close()
	check(json.NewDecoder(resp.Body).Decode(&a))
	return a
}

func keys[V any](m map[string]V) string {
	var names []string
	for k := range m {
		names = append(names, k)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func hash(s string) string {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}

// Judging. A check fails by a panic, which the runner catches.

// A failure is why a check failed.
type failure string

// A lack is why a check cannot be made: the SDK has no such thing.
type lack string

func fail(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

func check(err error) {
	if err != nil {
		fail("%s", describe(err))
	}
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func describe(err error) string {
	if e, ok := errors.AsType[*openai.Error](err); ok {
		return fmt.Sprintf("%d %s", e.StatusCode, e.RawJSON())
	}
	return err.Error()
}

func is(ok bool, format string, args ...any) {
	if !ok {
		fail(format, args...)
	}
}

func equal[T any](got, want T) {
	is(reflect.DeepEqual(got, want), "got %v, want %v", got, want)
}

func matches(got, pattern string) {
	is(regexp.MustCompile(pattern).MatchString(got), "got %q, want %s", got, pattern)
}

// nulls names the fields of an SDK object that are explicitly null. A field that is absent, or not
// of the SDK's type, is a failure.
func nulls(thing any) string {
	v := reflect.ValueOf(thing).Elem()
	sent := v.FieldByName("JSON")
	var names []string
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if _, wire := sent.Type().FieldByName(f.Name); !wire {
			continue
		}
		if field := sent.FieldByName(f.Name).Interface().(respjson.Field); field.Raw() == respjson.Null {
			names = append(names, name)
		} else {
			is(field.Valid(), "%s is %q", name, field.Raw())
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// open stands for a code or param that the contract leaves open.
const open = "*"

// A refusal is what an error must say.
type refusal struct {
	status      int
	message     string // contained in the error's
	code, param string // empty: null
}

// refused wants err to be an error of the API that says what r says.
func refused[T any](r refusal) func(T, error) {
	return func(_ T, err error) { refusedErr(err, r) }
}

func refusedErr(err error, r refusal) {
	e, ok := errors.AsType[*openai.Error](err)
	is(ok, "got %v, want an error of the API", err)
	equal(fmt.Sprint(e.StatusCode, " ", e.Type), fmt.Sprint(r.status, " invalid_request_error"))
	is(r.code == open || e.Code == r.code, "got code %q, want %q", e.Code, r.code)
	is(r.param == open || e.Param == r.param, "got param %q, want %q", e.Param, r.param)
	is(strings.Contains(e.Message, r.message), "got message %q, want %q in it", e.Message, r.message)
	nulls(e)
	matches(e.Response.Header.Get("x-request-id"), "^req_.")
}

// Running.

type test struct {
	id  string
	run func()
}

// outcome runs a check and says how it went.
func outcome(run func()) (s string) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case lack:
			s = "-  " + string(v)
		default:
			s = "FAILED  " + where() + ": " + strings.Join(strings.Fields(fmt.Sprint(v)), " ")
		}
	}()
	run()
	return "ok"
}

// where returns the line of the check that is failing.
func where() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs)])
	for f, more := frames.Next(); more; f, more = frames.Next() {
		if name := filepath.Base(f.File); strings.HasSuffix(name, "_checks.go") {
			return fmt.Sprintf("%s:%d", name, f.Line)
		}
	}
	return "?"
}
