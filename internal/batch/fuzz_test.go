package batch

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

// comparable reports whether encoding/json and this package must agree on text: they count the
// depth of nesting a little differently.
func comparable(text []byte) bool {
	return bytes.Count(text, []byte("["))+bytes.Count(text, []byte("{")) < 5000
}

// isObject is what encoding/json thinks of text.
func isObject(text []byte) bool {
	return utf8.Valid(text) && json.Valid(text) && bytes.TrimLeft(text, " \t\r\n")[0] == '{'
}

func FuzzLine(f *testing.F) {
	for _, body := range []string{
		chatBody, `{}`, `{"model":"m","input":["a",[1,2]],"stream":true}`, `{"model":"m","model":2,"\u006dodel":"n"}`, `[]`,
		`{"model":"m","messages":["\ud800\udc00\ud800"],"seed":9007199254740993}`,
	} {
		f.Add([]byte(request("a", chat, body)))
	}
	for _, text := range []string{
		"", "x", "\ufeff{}", "{\"a\":\"\xff\"}", `{"custom\u005fid" : "a\u0061" , "body" : { } , "url":"","method":null}`,
		"\r{\t}\r", strings.Repeat("[", 100), `{"body":{"model":"m"},"body":3}`, `{"custom_id":"😀"}{`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if bytes.IndexByte(text, '\n') >= 0 {
			t.Skip("not a line")
		}
		before := bytes.Clone(text)
		var p Parser
		got, err := p.parse(text)
		if valid := isObject(text); comparable(text) && valid != (err == nil) {
			t.Fatalf("%q: %v, and encoding/json says %v", text, err, valid)
		}
		var q quick
		var quickly fields
		if q.request(text, &quickly) {
			if err != nil || string(quickly.customID) != string(got.customID) || string(quickly.body) != string(got.body) || string(quickly.model) != string(got.model) {
				t.Fatalf("%q: quickly %+v, else %+v, %v", text, quickly, got, err)
			}
		}
		line := Line{Number: 1, Text: text}
		checked, _, lerr := NewChecker(Rules{}).Line(line)
		if (err != nil) != (lerr != nil && lerr.Code == "invalid_json_line") {
			t.Fatalf("%q: the parser says %v, the checker %v", text, err, lerr)
		}
		if lerr != nil && (lerr.Line != 1 || lerr.Message == "") {
			t.Fatalf("%q: error without line or text: %+v", text, lerr)
		}
		if err != nil {
			return
		}

		var whole, body map[string]json.RawMessage
		if err := json.Unmarshal(text, &whole); err != nil {
			t.Fatal(err)
		}
		same(t, text, "custom_id", got.customID, whole)
		same(t, text, "method", got.method, whole)
		same(t, text, "url", got.url, whole)
		same(t, text, "body", got.body, whole)
		if json.Unmarshal(whole["body"], &body) == nil {
			same(t, text, "model", got.model, body)
			same(t, text, "stream", got.stream, body)
			same(t, text, "messages", got.messages, body)
			same(t, text, "input", got.input, body)
		}

		again, err := p.Request(line)
		if err != nil {
			t.Fatalf("%q: good the first time, then %v", text, err)
		}
		if lerr == nil {
			if !reflect.DeepEqual(again, checked) {
				t.Fatalf("%q\nchecked %+v\nparsed  %+v", text, checked, again)
			}
			r := Result{Status: 200, RequestID: "x", Body: checked.Body}
			out := r.AppendLine(nil, "batch_x", checked)
			if got := checkResultLine(t, out, r); !bytes.Equal(compacted(t, got), compacted(t, checked.Body)) {
				t.Fatalf("%q as an answer becomes %q", checked.Body, got)
			}
		}
		if !bytes.Equal(text, before) {
			t.Fatalf("%q was changed to %q", before, text)
		}
	})
}

// same checks that what was cut out of text for the name is what encoding/json finds.
func same(t *testing.T, text []byte, name string, got []byte, want map[string]json.RawMessage) {
	t.Helper()
	if !bytes.Equal(got, want[name]) {
		t.Fatalf("%q\n%s is %q, encoding/json finds %q", text, name, got, want[name])
	}
}

func compacted(t *testing.T, text []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := json.Compact(&buf, text); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return buf.Bytes()
}

func FuzzLines(f *testing.F) {
	for _, text := range []string{"", "a", "a\nb", "a\r\nb\r\n", "\n\n\r\n \n", "\r", "\r\r\n", "long line\nx", "\xff\x00\n\u2028"} {
		f.Add([]byte(text), uint8(4))
		f.Add([]byte(text), uint8(0))
	}
	f.Fuzz(func(t *testing.T, text []byte, maxLine uint8) {
		want := split(text, 1)
		var offset int64
		for i, line := range want {
			if line.Number != int64(i+1) || line.Offset != offset || line.Length == 0 {
				t.Fatalf("%q: line %d of %s does not follow the one before", text, i, show(want))
			}
			offset += line.Length
			ending := string(text[line.Offset:offset][len(line.Text):])
			if !bytes.HasPrefix(text[line.Offset:], line.Text) || ending != "\n" && ending != "\r\n" && (i < len(want)-1 || ending != "" && ending != "\r") {
				t.Fatalf("%q: line %d is %q and then %q", text, i, line.Text, ending)
			}
		}
		if offset != int64(len(text)) {
			t.Fatalf("%q: lines of %d bytes, want %d", text, offset, len(text))
		}
		for i := range want {
			if len(want[i].Text) > int(maxLine) {
				want[i].TooLong, want[i].Text = true, nil
			}
		}
		if got := readLines(t, iotest.OneByteReader(bytes.NewReader(text)), 0, 1, int(maxLine)); show(got) != show(want) {
			t.Fatalf("%q\nLines      %s\nSplitLines %s", text, show(got), show(want))
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, text := range []string{
		"", "null", "{}", " {}\n", "[{}]", "<html>", "{}{}", `{"a":1`, "{\"a\":\"\xff\"}",
		`{"usage":{"prompt_tokens":31,"completion_tokens":2,"total_tokens":33,"prompt_tokens_details":{"cached_tokens":16}}}`,
		`{"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":4},"output_tokens":3,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":8}}`,
		`{"usage":null,"choices":[{"usage":{"prompt_tokens":1}}]}`, `{"usage":{"prompt_tokens":-1,"total_tokens":1e3,"prompt_tokens_details":[]}}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var p AnswerParser
		got, err := p.Usage(body)
		if valid := isObject(body); comparable(body) && valid != (err == nil) {
			t.Fatalf("%q: %v, and encoding/json says %v", body, err, valid)
		}
		for _, n := range []int64{got.Input, got.Cached, got.Output, got.Reasoning, got.Total} {
			if n < 0 || n >= 1<<41 {
				t.Fatalf("%q: usage %+v", body, got)
			}
		}
		var q quick
		if quickly, ok := q.usage(body); ok {
			if slowly, err := p.scan(body); err != nil || slowly != quickly {
				t.Fatalf("%q: quickly %+v, else %+v, %v", body, quickly, slowly, err)
			}
		}
		if again, err2 := p.Usage(body); again != got || (err == nil) != (err2 == nil) {
			t.Fatalf("%q: %+v, %v, then %+v, %v", body, got, err, again, err2)
		}
		if err == nil && bytes.IndexByte(body, '\\') < 0 {
			if want, ok := referenceUsage(body); ok && got != want {
				t.Fatalf("%q: usage %+v, want %+v", body, got, want)
			}
		}
	})
}

// referenceUsage reads usage the slow way. It does not know what to do with repeated names.
func referenceUsage(body []byte) (u Usage, ok bool) {
	// once reports whether at most one of the names occurs, and not twice.
	once := func(names ...string) bool {
		n := 0
		for _, name := range names {
			n += bytes.Count(body, []byte(`"`+name+`"`))
		}
		return n <= 1
	}
	type object map[string]json.RawMessage
	member := func(in object, names ...string) (m object) {
		for _, name := range names {
			json.Unmarshal(in[name], &m) // what is no object has no members
		}
		return m
	}
	number := func(in object, names ...string) (n int64) {
		for _, name := range names {
			if v, err := strconv.ParseInt(string(in[name]), 10, 64); err == nil && v >= 0 && v < 1<<40 {
				n = v
			}
		}
		return n
	}
	var answer object
	if err := json.Unmarshal(body, &answer); err != nil {
		return u, false
	}
	usage := member(answer, "usage")
	u = Usage{
		Input:     number(usage, "prompt_tokens", "input_tokens"),
		Cached:    number(member(usage, "prompt_tokens_details", "input_tokens_details"), "cached_tokens"),
		Output:    number(usage, "completion_tokens", "output_tokens"),
		Reasoning: number(member(usage, "completion_tokens_details", "output_tokens_details"), "reasoning_tokens"),
		Total:     number(usage, "total_tokens"),
	}
	if u.Total == 0 {
		u.Total = u.Input + u.Output
	}
	return u, once("usage") && once("total_tokens") && once("cached_tokens") && once("reasoning_tokens") &&
		once("prompt_tokens", "input_tokens") && once("completion_tokens", "output_tokens") &&
		once("prompt_tokens_details", "input_tokens_details") && once("completion_tokens_details", "output_tokens_details")
}

func FuzzResultLine(f *testing.F) {
	for _, body := range []string{
		"", "{}", "{\n}\n", `{"error":{"message":"no","code":400}}`, `{"error":"no"}`, `{"detail":[1]}`, "<html>\r\n", "\xff", `{"a":"\ud800"}`, `{"error":{"message":"n`,
		"{\"a\" : [ 1 ,\n 2.0 ]}", "null", "[]", `{"Error":"x","error":null}`,
	} {
		for _, status := range []int{0, 200, 400, 503} {
			f.Add(status, "rq-1", "custom", "batch_x", int64(1), []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, status int, requestID, customID, batchID string, line int64, body []byte) {
		r := Result{Status: status, RequestID: requestID, Body: body, Failure: Failure{"server_error", requestID}}
		if r.OK() && !isObject(body) {
			t.Skip("no answer that would be recorded")
		}
		before := bytes.Clone(body)
		req := Request{Line: line, CustomID: appendQuoted(nil, customID)}
		out := r.AppendLine(nil, batchID, req)
		got := checkResultLine(t, out, r)
		switch {
		case r.OK():
			if !bytes.Equal(compacted(t, got), compacted(t, body)) {
				t.Fatalf("%q\nbecame %q", body, got)
			}
		case status != 0:
			var e struct{ Error map[string]any }
			if err := json.Unmarshal(got, &e); err != nil || e.Error == nil {
				t.Fatalf("%q\nbecame %q, which has no error object: %v", body, got, err)
			}
		}
		if again := r.AppendLine(nil, batchID, req); !bytes.Equal(again, out) {
			t.Fatalf("first  %q\nthen %q", out, again)
		}
		if !bytes.Equal(body, before) {
			t.Fatalf("%q was changed to %q", before, body)
		}
	})
}
