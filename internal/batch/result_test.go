package batch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// members returns the names and raw values of a JSON object, in their order.
func members(t testing.TB, raw []byte) (names []string, values []json.RawMessage) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		t.Fatalf("%s\nis no object: %v %v", raw, tok, err)
	}
	for dec.More() {
		name, err := dec.Token()
		var value json.RawMessage
		if err == nil {
			err = dec.Decode(&value)
		}
		if err != nil {
			t.Fatalf("%s\n%v", raw, err)
		}
		names, values = append(names, name.(string)), append(values, value)
	}
	return names, values
}

// checkResultLine checks what every line of every result file keeps (contract O-01, §9), and
// returns its body; nil if it has no response.
func checkResultLine(t testing.TB, line []byte, r Result) (body json.RawMessage) {
	t.Helper()
	text, ok := bytes.CutSuffix(line, []byte("\n"))
	if !ok || bytes.ContainsAny(text, "\n\r") {
		t.Fatalf("not one line: %q", line)
	}
	if !json.Valid(text) || !utf8.Valid(text) {
		t.Fatalf("not valid JSON in UTF-8: %q", text)
	}
	names, values := members(t, text)
	if want := []string{"id", "custom_id", "response", "error"}; !slices.Equal(names, want) {
		t.Fatalf("%s\nhas the keys %q, want %q", text, names, want)
	}
	response, failure := values[2], values[3]
	if r.Status == 0 {
		if string(response) != "null" {
			t.Fatalf("%s\nhas a response, want none", text)
		}
		if names, _ := members(t, failure); !slices.Equal(names, []string{"code", "message"}) {
			t.Fatalf("%s\nhas an error with the keys %q", text, names)
		}
		return nil
	}
	if string(failure) != "null" {
		t.Fatalf("%s\nhas an error, want none (contract E-01)", text)
	}
	names, values = members(t, response)
	if want := []string{"status_code", "request_id", "body"}; !slices.Equal(names, want) {
		t.Fatalf("%s\nhas a response with the keys %q, want %q", text, names, want)
	}
	if got, want := string(values[0]), fmt.Sprint(r.Status); got != want {
		t.Fatalf("%s\nhas status %s, want %s", text, got, want)
	}
	if values[1][0] != '"' {
		t.Fatalf("%s\nhas request_id %s, want a string", text, values[1])
	}
	return values[2]
}

func TestResultLines(t *testing.T) {
	const head = `{"id":"batch_req_8c8854210579787fe5c28f25ae27c457","custom_id":"a\u0062",`
	wrapped := func(status int, kind, message string) string {
		return fmt.Sprintf(`"response":{"status_code":%d,"request_id":"rq","body":{"error":{"message":%s,"type":%q,"param":null,"code":null}}},"error":null}`, status, message, kind)
	}
	for _, c := range []struct {
		name   string
		result Result
		want   string // behind head
	}{
		{"answer", Result{Status: 200, RequestID: "rq", Body: []byte(`{"b":1.0,"a":[9007199254740993,"<>&\ud800"],"b":2}`)},
			`"response":{"status_code":200,"request_id":"rq","body":{"b":1.0,"a":[9007199254740993,"<>&\ud800"],"b":2}},"error":null}`},
		{"another 2xx", Result{Status: 202, RequestID: "rq", Body: []byte(`{}`)},
			`"response":{"status_code":202,"request_id":"rq","body":{}},"error":null}`},
		{"line break behind", Result{Status: 200, RequestID: "rq", Body: []byte(" {\"a\": 1}\r\n")},
			`"response":{"status_code":200,"request_id":"rq","body":{"a": 1}},"error":null}`},
		{"pretty-printed", Result{Status: 200, RequestID: "rq", Body: []byte("{\r\n  \"b\": 1.0,\n\t\"a\" : \" \\n \\u00e9 \",\n  \"b\": [ ]\n}\n")},
			`"response":{"status_code":200,"request_id":"rq","body":{"b":1.0,"a":" \n \u00e9 ","b":[]}},"error":null}`},
		{"odd request id", Result{Status: 200, RequestID: "a\"\\\n\xff", Body: []byte(`{}`)},
			`"response":{"status_code":200,"request_id":"a\"\\\n` + "\ufffd" + `","body":{}},"error":null}`},

		{"OpenAI error", Result{Status: 400, RequestID: "rq", Body: []byte(`{"error":{"message":"no","type":"invalid_request_error","param":"x","code":"y"}}`)},
			`"response":{"status_code":400,"request_id":"rq","body":{"error":{"message":"no","type":"invalid_request_error","param":"x","code":"y"}}},"error":null}`},
		{"vLLM error, whose code is a number", Result{Status: 400, RequestID: "rq", Body: []byte(`{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}`)},
			`"response":{"status_code":400,"request_id":"rq","body":{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}},"error":null}`},
		{"more beside the error", Result{Status: 400, RequestID: "rq", Body: []byte(`{"status":400,"error":{"message":"no"}}`)},
			`"response":{"status_code":400,"request_id":"rq","body":{"status":400,"error":{"message":"no"}}},"error":null}`},
		{"pretty-printed error", Result{Status: 400, RequestID: "rq", Body: []byte("{\n  \"error\": {\n    \"message\": \"no\"\n  }\n}\n")},
			`"response":{"status_code":400,"request_id":"rq","body":{"error":{"message":"no"}}},"error":null}`},
		{"Ollama error", Result{Status: 404, RequestID: "rq", Body: []byte(`{"error":"model 'x' not found"}`)}, wrapped(404, "invalid_request_error", `"model 'x' not found"`)},
		{"FastAPI error", Result{Status: 404, RequestID: "rq", Body: []byte(`{"detail":"Not Found"}`)}, wrapped(404, "invalid_request_error", `"Not Found"`)},
		{"FastAPI validation", Result{Status: 422, RequestID: "rq", Body: []byte(`{"detail":[{"loc":["body"]}]}`)}, wrapped(422, "invalid_request_error", `"{\"detail\":[{\"loc\":[\"body\"]}]}"`)},
		{"old vLLM error", Result{Status: 400, RequestID: "rq", Body: []byte(`{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}`)}, wrapped(400, "invalid_request_error", `"too long"`)},
		{"capital", Result{Status: 400, RequestID: "rq", Body: []byte(`{"Message":"no"}`)}, wrapped(400, "invalid_request_error", `"no"`)},
		{"error null", Result{Status: 500, RequestID: "rq", Body: []byte(`{"error":null,"detail":"x"}`)}, wrapped(500, "server_error", `"x"`)},
		{"error twice, last a string", Result{Status: 500, RequestID: "rq", Body: []byte(`{"error":{},"error":"x"}`)}, wrapped(500, "server_error", `"x"`)},
		{"escapes in the text", Result{Status: 500, RequestID: "rq", Body: []byte(`{"error":"\u0061\n\ud800"}`)}, wrapped(500, "server_error", "\"a\\n\ufffd\"")},
		{"HTML", Result{Status: 502, RequestID: "rq", Body: []byte("<html>\r\n\"Bad\" Gateway</html>\n")}, wrapped(502, "server_error", `"<html>\r\n\"Bad\" Gateway</html>"`)},
		{"array", Result{Status: 400, RequestID: "rq", Body: []byte(`[{"error":{}}]`)}, wrapped(400, "invalid_request_error", `"[{\"error\":{}}]"`)},
		{"empty object", Result{Status: 400, RequestID: "rq", Body: []byte(`{}`)}, wrapped(400, "invalid_request_error", `"{}"`)},
		{"empty texts", Result{Status: 400, RequestID: "rq", Body: []byte(`{"error":"","message":""}`)}, wrapped(400, "invalid_request_error", `"{\"error\":\"\",\"message\":\"\"}"`)},
		{"cut off", Result{Status: 400, RequestID: "rq", Body: []byte(`{"error":{"message":"n`)}, wrapped(400, "invalid_request_error", `"{\"error\":{\"message\":\"n"`)},
		{"not UTF-8", Result{Status: 500, RequestID: "rq", Body: []byte("caf\xe9")}, wrapped(500, "server_error", "\"caf\ufffd\"")},
		{"nothing", Result{Status: 500, RequestID: "rq"}, wrapped(500, "server_error", `"500 Internal Server Error"`)},
		{"nothing of a status without name", Result{Status: 599, RequestID: "rq", Body: []byte(" \n")}, wrapped(599, "server_error", `"599"`)},
		{"long text", Result{Status: 500, RequestID: "rq", Body: []byte(strings.Repeat("x", 5000))}, wrapped(500, "server_error", `"`+strings.Repeat("x", 4096)+`"`)},

		{"expired", Result{Failure: FailureExpired},
			`"response":null,"error":{"code":"batch_expired","message":"This request could not be executed before the completion window expired."}}`},
		{"cancelled", Result{Failure: FailureCancelled},
			`"response":null,"error":{"code":"batch_cancelled","message":"This request was not executed because the batch was cancelled."}}`},
		{"timeout", Result{Failure: FailureTimeout},
			`"response":null,"error":{"code":"request_timeout","message":"The underlying call to the model timed out."}}`},
		{"server", Result{Failure: FailureServer},
			`"response":null,"error":{"code":"server_error","message":"The server had an error while processing your request."}}`},
		{"large answer", Result{Failure: FailureLargeAnswer},
			`"response":null,"error":{"code":"answer_too_large","message":"The upstream's answer is larger than this server accepts (--max-answer)."}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := bytes.Clone(c.result.Body)
			got := c.result.AppendLine([]byte("before\n"), "batch_x", Request{Line: 7, CustomID: []byte(`"a\u0062"`)})
			line, ok := bytes.CutPrefix(got, []byte("before\n"))
			if !ok {
				t.Fatalf("what was in dst is gone: %q", got)
			}
			checkResultLine(t, line, c.result)
			if want := head + c.want + "\n"; string(line) != want {
				t.Errorf("%.500q\n got %.500s\nwant %.500s", c.result.Body, line, want)
			}
			if !bytes.Equal(c.result.Body, body) {
				t.Errorf("the body became %q, was %q", c.result.Body, body)
			}
			if want := c.result.Status/100 == 2; c.result.OK() != want {
				t.Errorf("status %d: OK is %v, want %v", c.result.Status, c.result.OK(), want)
			}
		})
	}
}

// Promise 8: answers keep every token and the order of keys; what is on one line already is kept
// as it is.
func TestAnswerIsBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := drawObject(t, "answer")
		if got := bodyOf(t, body); strings.ContainsRune(body, '\r') {
			if want := compact(t, body); got != want {
				t.Fatalf("%q\n got %q\nwant %q", body, got, want)
			}
		} else if got != body {
			t.Fatalf("%q\n got %q\nwant it as it is", body, got)
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, []byte(body), "\r\n", "\t"); err != nil {
			t.Fatal(err)
		}
		if got, want := compact(t, bodyOf(t, pretty.String())), compact(t, body); got != want {
			t.Fatalf("%s\n got %s\nwant %s", pretty.Bytes(), got, want)
		}
	})
}

// bodyOf returns the body that stands in the result line of an answer.
func bodyOf(t *rapid.T, body string) string {
	t.Helper()
	r := Result{Status: 200, RequestID: "rq", Body: []byte(body)}
	line := r.AppendLine(nil, "batch_x", Request{Line: 1, CustomID: []byte(`"a"`)})
	if bytes.IndexByte(line, '\n') != len(line)-1 || bytes.ContainsRune(line, '\r') {
		t.Fatalf("not one line: %q", line)
	}
	r.Compact() // changes nothing but where it is done
	if again := r.AppendLine(nil, "batch_x", Request{Line: 1, CustomID: []byte(`"a"`)}); !bytes.Equal(again, line) {
		t.Fatalf("compacted before\n got %q\nwant %q", again, line)
	}
	var l struct {
		Response struct{ Body json.RawMessage }
	}
	if err := json.Unmarshal(line, &l); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return string(l.Response.Body)
}

func compact(t *rapid.T, text string) string {
	t.Helper()
	var buf bytes.Buffer
	if err := json.Compact(&buf, []byte(text)); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return buf.String()
}

// Our lines have the shape of those in the contract's examples: the same keys in the same order
// with values of the same types.
func TestGoldenLines(t *testing.T) {
	const dir = "../../../shared/contract/golden/jsonl"
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("the contract's golden files are not beside the repository: %v", err)
	}
	answer := `{"error":{"message":"no","type":"invalid_request_error","param":"p","code":"c"}}`
	for file, r := range map[string]Result{
		"output_chat.jsonl":     {Status: 200, RequestID: NewToken(), Body: []byte(`{}`)},
		"error_http.jsonl":      {Status: 400, RequestID: NewToken(), Body: []byte(answer)},
		"error_expired.jsonl":   {Failure: FailureExpired},
		"error_cancelled.jsonl": {Failure: FailureCancelled},
		"error_timeout.jsonl":   {Failure: FailureTimeout},
	} {
		golden, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		ours := r.AppendLine(nil, "batch_x", Request{Line: 1, CustomID: []byte(`"a"`)})
		checkResultLine(t, ours, r)
		for line := range bytes.Lines(golden) {
			checkResultLine(t, line, r)
			if got, want := shape(t, ours), shape(t, line); got != want {
				t.Errorf("%s: our line\n%shas the shape %s\nthe golden line\n%shas the shape %s", file, ours, got, line, want)
			}
			var mine, its struct{ Error any }
			if json.Unmarshal(ours, &mine) != nil || json.Unmarshal(line, &its) != nil || !reflect.DeepEqual(mine, its) {
				t.Errorf("%s: got error %v, want %v", file, mine.Error, its.Error)
			}
		}
	}
}

// shape writes a result line with types for values, and the body as far as it is ours.
func shape(t testing.TB, line []byte) string {
	t.Helper()
	names, values := members(t, line)
	var out strings.Builder
	for i, name := range names {
		kind := kindName(values[i])
		if kind == "an object" {
			inner, innerValues := members(t, values[i])
			for j := range inner {
				kind += " " + inner[j] + "=" + kindName(innerValues[j])
			}
		}
		fmt.Fprintf(&out, "%s(%s) ", name, kind)
	}
	return out.String()
}

// The contract's example inputs are good.
func TestGoldenInputs(t *testing.T) {
	const dir = "../../../shared/contract/golden/jsonl"
	files, _ := filepath.Glob(filepath.Join(dir, "input_*.jsonl"))
	if len(files) == 0 {
		t.Skipf("the contract's golden files are not beside the repository: nothing in %s", dir)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		c, errs := check(t, Rules{OneModel: true}, string(text))
		if len(errs) > 0 || c.Requests() == 0 {
			t.Errorf("%s: %d requests, errors %v", filepath.Base(file), c.Requests(), errs)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       Usage
	}{
		{"chat", `{"id":"x","usage":{"prompt_tokens":31,"completion_tokens":2,"total_tokens":33,"prompt_tokens_details":{"cached_tokens":16,"audio_tokens":1},"completion_tokens_details":{"reasoning_tokens":1}}}`, Usage{31, 16, 2, 1, 33}},
		{"responses", `{"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":4},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":8}}`, Usage{5, 4, 3, 2, 8}},
		{"embeddings", `{"usage":{"prompt_tokens":8,"total_tokens":8}}`, Usage{Input: 8, Total: 8}},
		{"total missing", `{"usage":{"prompt_tokens":8,"completion_tokens":2}}`, Usage{Input: 8, Output: 2, Total: 10}},
		{"details null", `{"usage":{"prompt_tokens":8,"total_tokens":8,"prompt_tokens_details":null,"completion_tokens_details":null}}`, Usage{Input: 8, Total: 8}},
		{"before the answer", ` {"usage" : {"prompt_tokens" : 8 , "total_tokens":8 } , "choices":[{"usage":{"prompt_tokens":99}}] } `, Usage{Input: 8, Total: 8}},
		{"escaped", `{"us\u0061ge":{"prompt_t\u006fkens":8,"total_tokens":8}}`, Usage{Input: 8, Total: 8}},
		{"twice", `{"usage":{"prompt_tokens":1,"completion_tokens":1},"usage":{"prompt_tokens":8}}`, Usage{Input: 8, Total: 8}},
		{"none", `{"choices":[]}`, Usage{}},
		{"null", `{"usage":null}`, Usage{}},
		{"no object", `{"usage":[1]}`, Usage{}},
		{"no counts", `{"usage":{"prompt_tokens":"8","completion_tokens":-1,"total_tokens":1e3,"prompt_tokens_details":[],"completion_tokens_details":{"reasoning_tokens":null}}}`, Usage{}},
		{"absurd", `{"usage":{"prompt_tokens":99999999999999999999,"completion_tokens":9007199254740993}}`, Usage{}},
		{"empty", `{}`, Usage{}},
	} {
		var p AnswerParser
		for range 2 {
			if got, err := p.Usage([]byte(c.body)); err != nil || got != c.want {
				t.Errorf("%s: %s\n got %+v, %v\nwant %+v", c.name, c.body, got, err, c.want)
			}
		}
	}
}

func TestAnswerIsNoObject(t *testing.T) {
	var p AnswerParser
	for _, body := range []string{
		"", " ", "null", "[]", `"x"`, "1", "{", `{"a":}`, `{"a":1`, "{}x", "{}{}", "<html>", "data: {}\n\n", "{\"a\":\"\xff\"}", "\ufeff{}",
		`{"usage":{"prompt_tokens":1}`, `{"usage":{"prompt_tokens"`, `{"usage":{"prompt_tokens_details":{"cached_tokens":`,
	} {
		if u, err := p.Usage([]byte(body)); err == nil {
			t.Errorf("%q is taken for an answer with %+v", body, u)
		}
		if _, err := p.Usage([]byte(`{}`)); err != nil {
			t.Errorf("after %q even {} is no answer: %v", body, err)
		}
	}
}

func TestIDs(t *testing.T) {
	for _, c := range []struct {
		name, pattern string
		draw          func() string
	}{
		{"batch", `^batch_6aa1f940[0-9a-f]{24}$`, func() string { return NewBatchID(epoch) }}, // contract B-01
		{"file", `^file-[0-9A-Za-z]{22}$`, NewFileID},
		{"token", `^[0-9A-Za-z]{22}$`, NewToken},
	} {
		const n = 20_000
		pattern := regexp.MustCompile(c.pattern)
		seen := make(map[string]bool, n)
		digits := map[rune]int{}
		for range n {
			id := c.draw()
			if !pattern.MatchString(id) {
				t.Fatalf("%s: got %s, want %s", c.name, id, c.pattern)
			}
			seen[id] = true
			for _, r := range id[len(id)-20:] {
				digits[r]++
			}
		}
		if len(seen) != n {
			t.Errorf("%s: only %d of %d ids differ", c.name, len(seen), n)
		}
		// 400,000 digits: the rarest and the most frequent are within some percent of each other.
		least, most := n*20, 0
		for _, count := range digits {
			least, most = min(least, count), max(most, count)
		}
		if float64(least) < 0.9*float64(most) {
			t.Errorf("%s: digits are not even: from %d to %d times", c.name, least, most)
		}
	}
}

// A request's result has the same id whenever it is written, and no other request has it.
func TestResultIDs(t *testing.T) {
	pattern := regexp.MustCompile(`^batch_req_[0-9a-f]{32}$`)
	seen := map[string]string{}
	for _, batchID := range []string{"batch_x", "batch_y", "batch_x1"} {
		for line := range int64(1000) {
			id := string(appendRequestID(nil, batchID, line))
			if !pattern.MatchString(id) {
				t.Fatalf("got %s", id)
			}
			of := fmt.Sprint(batchID, " line ", line)
			if other, ok := seen[id]; ok {
				t.Fatalf("%s and %s have the id %s", other, of, id)
			}
			seen[id] = of
			if again := string(appendRequestID(nil, batchID, line)); again != id {
				t.Fatalf("%s: first %s, then %s", of, id, again)
			}
		}
	}
}
