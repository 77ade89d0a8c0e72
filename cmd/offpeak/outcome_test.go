package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"offpeak/internal/batch"
)

func TestOutcome(t *testing.T) {
	for _, tt := range []struct {
		status batch.Status
		failed int64
		want   int
	}{
		{batch.Completed, 0, 0},
		{batch.Completed, 1, exitSomeFailed},
		{batch.Failed, 0, exitInvalid},
		{batch.Expired, 0, exitUnfinished},
		{batch.Cancelled, 5, exitUnfinished},
		{batch.Cancelling, 0, exitUnfinished},
		{batch.InProgress, 0, exitUnfinished}, // interrupted
		{batch.Validating, 0, exitUnfinished},
	} {
		if got := exitCodeOf(outcome(tt.status, tt.failed)); got != tt.want {
			t.Errorf("outcome(%s, %d) is exit code %d, want %d", tt.status, tt.failed, got, tt.want)
		}
	}
}

func TestErrorsPath(t *testing.T) {
	for out, want := range map[string]string{
		"out.jsonl": "out.errors.jsonl", "a.b/out": "a.b/out.errors", "/x/y.1.jsonl": "/x/y.1.errors.jsonl",
	} {
		if got := errorsPath(out); got != want {
			t.Errorf("errorsPath(%q) = %q, want %q", out, got, want)
		}
	}
}

func TestErrorCode(t *testing.T) {
	answered := func(status int, body string) string {
		return fmt.Sprintf(`{"id":"b","custom_id":"c","response":{"status_code":%d,"request_id":"r","body":%s},"error":null}`, status, body)
	}
	for line, want := range map[string]string{
		answered(400, `{"error":{"message":"m","type":"invalid_request_error","param":null,"code":"invalid_value"}}`): "invalid_value",
		answered(400, `{"error":{"message":"m","type":"BadRequestError","param":null,"code":400}}`):                   "BadRequestError", // vLLM
		answered(500, `{"error":{"message":"m","type":"server_error","code":null}}`):                                  "server_error",
		answered(404, `{"error":"text"}`):        "http_404",
		answered(404, `{"detail":"Not Found"}`):  "http_404",
		answered(422, `"text"`):                  "http_422",
		answered(422, `null`):                    "http_422",
		answered(400, `{"error":{},"error":{}}`): "http_400",
		`{"id":"b","custom_id":"c","response":null,"error":{"code":"batch_expired","message":"m"}}`: "batch_expired",
		`{"id":"b","custom_id":"c","response":null,"error":null}`:                                   "unknown",
		`17`: "unknown",
	} {
		if got := errorCode([]byte(line)); got != want {
			t.Errorf("errorCode(%s) = %q, want %q", line, got, want)
		}
	}
}

func TestCountErrorCodes(t *testing.T) {
	line := func(code string) string {
		return fmt.Sprintf(`{"response":null,"error":{"code":%q,"message":"m"}}`, code) + "\n"
	}
	got, err := countErrorCodes(strings.NewReader(strings.Repeat(line("a"), 3) + line("b")))
	if want := map[string]int64{"a": 3, "b": 1}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if got, err := countErrorCodes(strings.NewReader("")); err != nil || len(got) > 0 {
		t.Errorf("empty: %v, %v", got, err)
	}
	got, err = countErrorCodes(strings.NewReader(line("a") + "{oops\n"))
	if err == nil || !strings.Contains(err.Error(), "line 2") || got["a"] != 1 {
		t.Errorf("damaged: %v, %v", got, err)
	}

	var many strings.Builder
	for i := range 3 * maxCodes {
		many.WriteString(line(fmt.Sprint("code", i)))
	}
	got, err = countErrorCodes(strings.NewReader(many.String()))
	if err != nil || len(got) != maxCodes+1 || got["other"] != 2*maxCodes {
		t.Errorf("many: %d codes, %d others, %v", len(got), got["other"], err)
	}
}

func TestSave(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	text := func(s string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
	}
	if err := save(path, nil, text("one")); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, map[string]string{"out": "one"})
	// A failure leaves what was there, and nothing else.
	broken := errors.New("broken")
	err := save(path, nil, func(w io.Writer) error { io.WriteString(w, "half"); return broken })
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	wantFiles(t, dir, map[string]string{"out": "one"})

	// A link stays one; its file is replaced.
	link := filepath.Join(dir, "link")
	if err := os.Symlink("out", link); err != nil {
		t.Fatal(err)
	}
	if err := save(link, nil, text("two")); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, map[string]string{"out": "two", "link": "two"})
	if st, err := os.Lstat(link); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}

	if err := save(os.DevNull, nil, text("x")); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(os.DevNull); err != nil || st.Mode().IsRegular() {
		t.Fatal("the null device is a file now")
	}
	var stdout strings.Builder
	if err := save("-", &stdout, text("x")); err != nil || stdout.String() != "x" {
		t.Errorf("%v, %q", err, stdout.String())
	}
	if err := save(filepath.Join(dir, "none", "out"), nil, text("x")); err == nil {
		t.Error("no folder, no error")
	}
}
