package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"offpeak/internal/client"
	"offpeak/internal/openai"
)

const (
	outputLines = `{"custom_id":"1"}` + "\n" + `{"custom_id":"2"}` + "\n"
	errorLines  = `{"id":"1","custom_id":"3","response":{"status_code":400,"request_id":"r","body":{"error":{"message":"m","type":"invalid_request_error","param":null,"code":"invalid_value"}}},"error":null}` + "\n" +
		`{"id":"2","custom_id":"4","response":null,"error":{"code":"batch_expired","message":"m"}}` + "\n"
)

// exitCodeOf returns the exit code that err means.
func exitCodeOf(err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[exitError](err); ok {
		return e.code
	}
	return 1
}

func TestWatch(t *testing.T) {
	f := newFakeServer(t)
	for _, tt := range []struct {
		name   string
		script []func(*client.Batch)
		code   int
		want   []string // each somewhere on standard error
	}{
		{"all succeeded", []func(*client.Batch){runningBatch(0, 0, 2), runningBatch(1, 0, 2), f.endedAs("completed", 2, 0, 2, outputLines, "")}, 0,
			[]string{"in_progress: 0 of 2", "completed: 2 of 2 (100%)", "2 of 2 succeeded\n", "tokens    1,000 in, 200 out\n", "time      20.0 s, 0.10 requests/s\n", "offpeak batches output batch_"}},
		{"some failed", []func(*client.Batch){f.endedAs("completed", 2, 2, 4, outputLines, errorLines)}, 2,
			[]string{"2 of 4 succeeded, 2 failed\n", "errors    batch_expired: 1, invalid_value: 1\n", "output    file-", "failed    file-"}},
		{"all failed", []func(*client.Batch){f.endedAs("completed", 0, 2, 2, "", errorLines)}, 2, []string{"0 of 2 succeeded, 2 failed\n"}},
		{"expired", []func(*client.Batch){runningBatch(2, 0, 4), f.endedAs("expired", 2, 1, 4, outputLines, errorLines)}, 3, []string{"2 of 4 succeeded, 1 failed, 1 not answered\n"}},
		{"cancelled", []func(*client.Batch){f.endedAs("cancelled", 0, 0, 4, "", "")}, 3, []string{"cancelled: 0 of 4 succeeded, 4 not answered\n"}},
		{"refused", []func(*client.Batch){refusedBatch}, 4, []string{
			"line 3: invalid_json_line: This line is not parseable as valid JSON.\n",
			"line 7: invalid_url: The URL provided for this request does not match the batch endpoint. (url)\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := f.addBatch(tt.script...)
			stdout, stderr, err := runCommand(t, &batchesWatch{apiFlags: f.api(), ID: id}, "")
			if exitCodeOf(err) != tt.code || stdout != "" {
				t.Errorf("exit code %d (%v), want %d; stdout %q", exitCodeOf(err), err, tt.code, stdout)
			}
			for _, want := range tt.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr has no %q:\n%s", want, stderr)
				}
			}
		})
	}

	if _, _, err := runCommand(t, &batchesWatch{apiFlags: f.api(), ID: "batch_x"}, ""); exitCodeOf(err) != 1 || !strings.Contains(err.Error(), "No batch found with id 'batch_x'.") {
		t.Errorf("unknown batch: %v", err)
	}
}

func TestWatchJSON(t *testing.T) {
	f := newFakeServer(t)
	id := f.addBatch(runningBatch(0, 0, 4), func(b *client.Batch) {
		b.Offpeak = &openai.Offpeak{InFlight: new(3), WaitingFor: new("an upstream")}
	}, f.endedAs("completed", 2, 2, 4, outputLines, errorLines))
	stdout, stderr, err := runCommand(t, &batchesWatch{apiFlags: f.api(), ID: id, JSON: true}, "")
	if exitCodeOf(err) != 2 || stderr != "" {
		t.Errorf("exit code %d, stderr %q", exitCodeOf(err), stderr)
	}
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	if want := `"error_codes":{"batch_expired":1,"invalid_value":1}`; !strings.Contains(lines[len(lines)-1], want) {
		t.Errorf("last line has no %s: %s", want, lines[len(lines)-1])
	}
}

func TestWatchWhileTheServerIsAway(t *testing.T) {
	f := newFakeServer(t)
	id := f.addBatch(runningBatch(0, 0, 2), func(b *client.Batch) { f.down = 6 }, f.endedAs("completed", 2, 0, 2, outputLines, ""))
	_, stderr, err := runCommand(t, &batchesWatch{apiFlags: f.api(), ID: id}, "")
	if err != nil || !strings.Contains(stderr, "waiting: server "+f.URL+"/v1 answers HTTP 503 since ") {
		t.Errorf("%v\n%s", err, stderr)
	}

	f.down = 100 // from the start: then something is wrong
	if _, _, err := runCommand(t, &batchesWatch{apiFlags: f.api(), ID: id}, ""); exitCodeOf(err) != 1 {
		t.Errorf("server down from the start: %v", err)
	}
}

func TestWatchInterrupted(t *testing.T) {
	f := newFakeServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	id := f.addBatch(runningBatch(1, 0, 4), func(*client.Batch) { cancel() })
	var stderr strings.Builder
	cmd := &batchesWatch{apiFlags: f.api(), ID: id}
	err := cmd.Run(ctx, &streams{Out: io.Discard, Err: &stderr, Getenv: os.Getenv})
	if exitCodeOf(err) != 3 || !strings.Contains(stderr.String(), "1 of 4 succeeded, 3 not answered\n") ||
		!strings.Contains(stderr.String(), "offpeak batches watch "+id) {
		t.Errorf("exit code %d (%v)\n%s", exitCodeOf(err), err, stderr.String())
	}
}

func TestWatchSaves(t *testing.T) {
	f := newFakeServer(t)
	dir := t.TempDir()
	out := filepath.Join(dir, "out.jsonl")
	id := f.addBatch(f.endedAs("expired", 2, 1, 4, outputLines, errorLines))
	_, stderr, err := runCommand(t, &batchesWatch{apiFlags: f.api(), ID: id, Output: out}, "")
	if exitCodeOf(err) != 3 || !strings.Contains(stderr, "output    "+out+"\n") || !strings.Contains(stderr, "batch_expired: 1, invalid_value: 1") {
		t.Errorf("exit code %d\n%s", exitCodeOf(err), stderr)
	}
	wantFiles(t, dir, map[string]string{"out.jsonl": outputLines, "out.errors.jsonl": errorLines})

	stdout, stderr, err := runCommand(t, &batchesWatch{apiFlags: f.api(), ID: id, Output: "-"}, "")
	if exitCodeOf(err) != 3 || stdout != outputLines || !strings.Contains(stderr, "batch_expired: 1") {
		t.Errorf("to standard output: exit code %d, %q\n%s", exitCodeOf(err), stdout, stderr)
	}
	if _, _, err := runCommand(t, &batchesWatch{apiFlags: f.api(), ID: id, Output: "-", JSON: true}, ""); exitCodeOf(err) != 1 {
		t.Errorf("--json and -o -: %v", err)
	}
}

// wantFiles checks that dir holds these files and nothing else.
func wantFiles(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := want[e.Name()]; !ok {
			t.Errorf("left behind: %s", e.Name())
		}
	}
	for name, text := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != text {
			t.Errorf("%s: %q, %v; want %q", name, got, err, text)
		}
	}
}

const inputLines = "\n" + `{"custom_id":"1","method":"POST","url":"/v1/embeddings","body":{}}` + "\n" + `{"custom_id":"2","method":"POST","url":"/v1/embeddings","body":{}}` + "\n"

func TestCreate(t *testing.T) {
	f := newFakeServer(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	in := write("in.jsonl", inputLines)

	for _, tt := range []struct {
		name     string
		cmd      batchesCreate
		stdin    string
		endpoint string
	}{
		{"a file", batchesCreate{Input: in}, "", "/v1/embeddings"},
		{"standard input", batchesCreate{Input: "-"}, inputLines, "/v1/embeddings"},
		{"an uploaded file", batchesCreate{Input: f.add("in.jsonl", "batch", inputLines)}, "", "/v1/embeddings"},
		{"an endpoint", batchesCreate{Input: in, Endpoint: "/v1/responses"}, "", "/v1/responses"},
		{"an uploaded file and an endpoint", batchesCreate{Input: "file-1", Endpoint: "/v1/responses"}, "", "/v1/responses"},
	} {
		tt.cmd.apiFlags, tt.cmd.Window, tt.cmd.Metadata = f.api(), "24h", map[string]string{"k": "v"}
		stdout, stderr, err := runCommand(t, &tt.cmd, tt.stdin)
		b := f.batches[0]
		if err != nil || stdout != b.ID+"\n" || stderr != "" {
			t.Errorf("%s: %v, stdout %q, stderr %q", tt.name, err, stdout, stderr)
		}
		if b.Endpoint != tt.endpoint || b.Metadata["k"] != "v" || f.files[b.InputFileID].body != inputLines {
			t.Errorf("%s: %+v of %+v", tt.name, b.Batch, f.files[b.InputFileID])
		}
	}

	for _, tt := range []struct {
		cmd  batchesCreate
		want string
	}{
		{batchesCreate{Input: filepath.Join(dir, "none.jsonl")}, "no such file"},
		{batchesCreate{Input: "file-unknown"}, "No such File object: file-unknown"},
		{batchesCreate{Input: write("empty.jsonl", "\n \n")}, "empty.jsonl: no request in it"},
		{batchesCreate{Input: write("bad.jsonl", "\n{oops\n")}, "bad.jsonl: line 2: not valid JSON"},
		{batchesCreate{Input: write("nourl.jsonl", `{"a":1}`)}, "nourl.jsonl: line 1: no url"},
		{batchesCreate{Input: write("in.csv", inputLines)}, "Must be .jsonl"},
		{batchesCreate{Input: in, Window: "1y"}, "is uploaded as file-"},
		{batchesCreate{Input: in, Output: "-", JSON: true}, "both want standard output"},
	} {
		tt.cmd.apiFlags = f.api()
		if tt.cmd.Window == "" {
			tt.cmd.Window = "24h"
		}
		stdout, _, err := runCommand(t, &tt.cmd, "")
		if err == nil || !strings.Contains(err.Error(), tt.want) || stdout != "" {
			t.Errorf("%+v: %v, want %q", tt.cmd, err, tt.want)
		}
	}
}

func TestCreateAndWatch(t *testing.T) {
	f := newFakeServer(t)
	dir := t.TempDir()
	stdout, stderr, err := runCommand(t, &batchesCreate{
		apiFlags: f.api(), Input: "-", Window: "24h", Output: filepath.Join(dir, "out.jsonl"),
	}, inputLines)
	if err != nil || stdout != "" || !strings.HasPrefix(stderr, "created batch_1\n") || !strings.Contains(stderr, "3 of 3 succeeded") {
		t.Errorf("%v, %q\n%s", err, stdout, stderr)
	}
	wantFiles(t, dir, map[string]string{"out.jsonl": "answers\n"})
}

func TestFirstURL(t *testing.T) {
	long := `{"body":"` + strings.Repeat("x", 1<<20) + `","url":"/v1/x"}`
	for _, text := range []string{long, long + "\n" + long, "\r\n" + long + "\r\n"} {
		r := strings.NewReader(text)
		url, head, err := firstURL(r)
		rest, _ := io.ReadAll(r)
		if url != "/v1/x" || err != nil || string(head)+string(rest) != text {
			t.Errorf("url %q, %v; %d+%d bytes of %d", url, err, len(head), len(rest), len(text))
		}
	}
}

func TestListAndGet(t *testing.T) {
	f := newFakeServer(t)
	for range 3 {
		f.addBatch()
	}
	b := f.batches[1]
	refusedBatch(&b.Batch)
	b.Metadata = map[string]string{"b": "2", "a": "1"}
	stdout, _, err := runCommand(t, &batchesList{apiFlags: f.api(), Limit: 2}, "")
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	if err != nil || len(lines) != 3 || !strings.HasPrefix(lines[0], "ID ") || !strings.HasPrefix(lines[2], "batch_2  failed      0/0 ") {
		t.Errorf("%v\n%s", err, stdout)
	}
	stdout, _, err = runCommand(t, &batchesList{apiFlags: f.api(), JSON: true}, "")
	if err != nil || strings.Count(stdout, "\n") != 3 || !strings.HasPrefix(stdout, `{"id":"batch_3","object":"batch",`) {
		t.Errorf("%v\n%s", err, stdout)
	}

	stdout, _, err = runCommand(t, &batchesGet{apiFlags: f.api(), ID: "batch_2"}, "")
	for _, want := range []string{"status    failed\n", "metadata  a=1\nmetadata  b=2\n", "error     line 3: invalid_json_line: "} {
		if err != nil || !strings.Contains(stdout, want) {
			t.Errorf("%v, no %q in\n%s", err, want, stdout)
		}
	}
	stdout, _, err = runCommand(t, &batchesGet{apiFlags: f.api(), ID: "batch_2", JSON: true}, "")
	if err != nil || !json.Valid([]byte(stdout)) || strings.Contains(stdout, "offpeak") {
		t.Errorf("%v\n%s", err, stdout)
	}
}

func TestCancel(t *testing.T) {
	f := newFakeServer(t)
	id := f.addBatch()
	if stdout, _, err := runCommand(t, &batchesCancel{apiFlags: f.api(), ID: id}, ""); err != nil || stdout != id+" cancelling\n" {
		t.Errorf("%q, %v", stdout, err)
	}
	id = f.addBatch()
	f.batches[0].Status = "completed"
	if _, _, err := runCommand(t, &batchesCancel{apiFlags: f.api(), ID: id}, ""); err == nil || !strings.Contains(err.Error(), "Cannot cancel") {
		t.Errorf("completed: %v", err)
	}
}

func TestOutputAndErrors(t *testing.T) {
	f := newFakeServer(t)
	f.partial = "so far\n"
	completed := f.addBatch(f.endedAs("completed", 2, 2, 4, outputLines, errorLines))
	perfect := f.addBatch(f.endedAs("completed", 2, 0, 2, outputLines, ""), f.endedAs("completed", 2, 0, 2, outputLines, ""))
	hopeless := f.addBatch(f.endedAs("completed", 0, 2, 2, "", errorLines))
	cancelled := f.addBatch(f.endedAs("cancelled", 0, 0, 2, "", ""))
	invalid := f.addBatch(refusedBatch)
	going := f.addBatch(runningBatch(1, 0, 4))

	for _, tt := range []struct {
		name    string
		flags   resultFlags
		errors  bool
		code    int
		stdout  string
		message string // error or standard error
	}{
		{"output", resultFlags{ID: completed}, false, 0, outputLines, ""},
		{"errors", resultFlags{ID: completed}, true, 0, errorLines, ""},
		{"no errors", resultFlags{ID: perfect}, true, 0, "", "every request succeeded"},
		{"no output", resultFlags{ID: hopeless}, false, 1, "", "no request succeeded; see: offpeak batches errors"},
		{"nothing at all", resultFlags{ID: cancelled}, true, 1, "", "is cancelled and has no error file"},
		{"refused", resultFlags{ID: invalid}, true, 4, "", "line 7: invalid_url"},
		{"not yet", resultFlags{ID: going}, false, 1, "", "is in_progress: its files come when it has ended"},
		{"so far", resultFlags{ID: going, Partial: true}, false, 0, "so far\n", ""},
		{"so far, but all is there", resultFlags{ID: completed, Partial: true}, false, 0, outputLines, ""},
		{"unknown", resultFlags{ID: "batch_x"}, false, 1, "", "No batch found"},
	} {
		tt.flags.apiFlags, tt.flags.Output = f.api(), "-"
		var cmd command = &batchesOutput{tt.flags}
		if tt.errors {
			cmd = &batchesErrors{tt.flags}
		}
		stdout, stderr, err := runCommand(t, cmd, "")
		if err != nil {
			stderr += err.Error()
		}
		if exitCodeOf(err) != tt.code || stdout != tt.stdout || !strings.Contains(stderr, tt.message) {
			t.Errorf("%s: exit code %d, stdout %q, message %q", tt.name, exitCodeOf(err), stdout, stderr)
		}
	}
}

func TestFiles(t *testing.T) {
	f := newFakeServer(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "in.jsonl")
	if err := os.WriteFile(path, []byte(inputLines), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		cmd  filesUpload
		name string
	}{
		{filesUpload{Path: path}, "in.jsonl"},
		{filesUpload{Path: "-"}, "stdin.jsonl"},
		{filesUpload{Path: "-", Filename: "x.jsonl"}, "x.jsonl"},
		{filesUpload{Path: "-", Filename: "x.pdf", Purpose: "user_data"}, "x.pdf"},
	} {
		tt.cmd.apiFlags = f.api()
		stdout, _, err := runCommand(t, &tt.cmd, inputLines)
		got := f.files[strings.TrimSpace(stdout)]
		if err != nil || got.Filename != tt.name || got.body != inputLines {
			t.Errorf("%+v: %v, %+v", tt.cmd, err, got)
		}
	}
	if _, _, err := runCommand(t, &filesUpload{apiFlags: f.api(), Path: filepath.Join(dir, "none")}, ""); exitCodeOf(err) != 1 {
		t.Errorf("no such file: %v", err)
	}

	stdout, _, err := runCommand(t, &filesList{apiFlags: f.api(), Purpose: "batch"}, "")
	if err != nil || strings.Count(stdout, "\n") != 4 || !strings.Contains(stdout, "file-1  in.jsonl ") {
		t.Errorf("list: %v\n%s", err, stdout)
	}
	stdout, _, err = runCommand(t, &filesGet{apiFlags: f.api(), ID: "file-1"}, "")
	if err != nil || !strings.Contains(stdout, "name     in.jsonl\n") {
		t.Errorf("get: %v\n%s", err, stdout)
	}
	stdout, _, err = runCommand(t, &filesGet{apiFlags: f.api(), ID: "file-1", JSON: true}, "")
	if err != nil || !strings.HasPrefix(stdout, `{"id":"file-1",`) {
		t.Errorf("get --json: %v\n%s", err, stdout)
	}
	stdout, _, err = runCommand(t, &filesContent{apiFlags: f.api(), ID: "file-1", Output: "-"}, "")
	if err != nil || stdout != inputLines {
		t.Errorf("content: %v, %q", err, stdout)
	}
	stdout, _, err = runCommand(t, &filesDelete{apiFlags: f.api(), ID: "file-1"}, "")
	if err != nil || stdout != "deleted file-1\n" {
		t.Errorf("delete: %v, %q", err, stdout)
	}
	if _, _, err = runCommand(t, &filesDelete{apiFlags: f.api(), ID: "file-1"}, ""); exitCodeOf(err) != 1 {
		t.Errorf("delete again: %v", err)
	}
}
