package batch

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
)

const chat = "/v1/chat/completions"

// chatBody is a body that the rules of this package find nothing wrong with.
const chatBody = `{"model":"m","messages":[]}`

// check validates an input as admission does, and returns all errors in the order of a batch object.
func check(t testing.TB, r Rules, input string) (*Checker, []LineError) {
	t.Helper()
	if r.MaxLine == 0 {
		r.MaxLine = DefaultMaxLine
	}
	c := NewChecker(r)
	var errs []LineError
	for lines := NewLines(strings.NewReader(input), 0, 1, r.MaxLine); ; {
		line, err := lines.Next()
		if errors.Is(err, io.EOF) {
			return c, append(c.End(), errs...)
		}
		if err != nil {
			t.Fatal(err)
		}
		if line.Blank() {
			continue
		}
		if _, _, err := c.Line(line); err != nil {
			err.Detail = ""
			errs = append(errs, *err)
		}
	}
}

// request is a line of an input.
func request(customID, url, body string) string {
	return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":%q,"body":%s}`, customID, url, body)
}

func requests(n int, url, body string) string {
	var s strings.Builder
	for i := range n {
		s.WriteString(request(fmt.Sprint("r-", i), url, body) + "\n")
	}
	return s.String()
}

const notJSON = "This line is not parseable as valid JSON."

// One row for each code of contract §7.3, and for each way to get it.
func TestLineErrors(t *testing.T) {
	const maxLine = 60 << 10
	served := func(l Lane) bool { return l.Model == "m" }
	at1 := func(code, param, message string) []LineError {
		return []LineError{{Code: code, Param: param, Message: message, Line: 1}}
	}
	missing := func(param string) []LineError {
		return at1("missing_required_parameter", param, "Missing required parameter: '"+param+"'.")
	}
	wrong := func(param, want, got string) []LineError {
		return at1("invalid_type", param, fmt.Sprintf("Invalid type for '%s': expected %s, but got %s instead.", param, want, got))
	}
	bad := at1("invalid_json_line", "", notJSON)
	model := at1("invalid_request", "body.model", "Model parameter is required.")
	messages := at1("invalid_request", "body.messages", "Messages parameter is required.")
	input := at1("invalid_request", "body.input", "Input parameter is required.")
	url := at1("invalid_url", "url", "The URL provided for this request does not match the batch endpoint.")

	for _, c := range []struct {
		name     string
		endpoint string // empty: chat
		line     string
		want     []LineError
	}{
		{"good", "", request("a", chat, chatBody), nil},
		{"unknown keys", "", `{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[],"x":1},"priority":{"a":[null]}}`, nil},
		{"white space", "", " \t{ \"custom_id\"\r:\t\"a\" , \"method\" : \"POST\",\"url\":\"/v1/chat/completions\",\"body\" : " + chatBody + " }\t ", nil},
		{"escaped names", "", `{"custom\u005fid":"a","\u006dethod":"POST","url":"/v1/chat/completions","bod\u0079":{"mod\u0065l":"m","messages":[]}}`, nil},
		{"escaped values", "", `{"custom_id":"a","method":"P\u004fST","url":"\/v1\/chat\/completions","body":{"model":"\u006d","messages":[]}}`, nil},
		{"duplicate names, last good", "", `{"custom_id":1,"method":"GET","url":"x","body":[],"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":` + chatBody + `}`, nil},
		{"duplicate names, last bad", "", `{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":` + chatBody + `,"body":{"messages":[]}}`, model},
		{"lone surrogate in body", "", request("a", chat, `{"model":"m","messages":["\ud800"]}`), nil},
		{"number beyond 2^53", "", request("a", chat, `{"model":"m","messages":[],"seed":9007199254740993,"x":1e999}`), nil},
		{"content of parts", "", request("a", chat, `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"data:,"}}]}]}`), nil},
		{"deep", "", request("a", chat, `{"model":"m","messages":`+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+`}`), nil},
		{"far too deep", "", request("a", chat, `{"model":"m","messages":`+strings.Repeat("[", 20000)+strings.Repeat("]", 20000)+`}`), bad},

		{"no JSON", "", `custom_id,method,url,body`, bad},
		{"no object", "", `["custom_id"]`, bad},
		{"null", "", `null`, bad},
		{"cut off", "", `{"custom_id":"a","method":"POST"`, bad},
		{"cut off in a string", "", `{"custom_id":"a`, bad},
		{"text behind", "", request("a", chat, chatBody) + ` x`, bad},
		{"two objects", "", request("a", chat, chatBody) + request("b", chat, chatBody), bad},
		{"trailing comma", "", `{"custom_id":"a",}`, bad},
		{"single quotes", "", `{'custom_id':'a'}`, bad},
		{"comment", "", request("a", chat, chatBody) + ` // hello`, bad},
		{"NaN", "", request("a", chat, `{"model":"m","messages":[],"x":NaN}`), bad},
		{"leading zero", "", request("a", chat, `{"model":"m","messages":[],"x":01}`), bad},
		{"control character", "", request("a", chat, "{\"model\":\"m\",\"messages\":[\"\x01\"]}"), bad},
		{"bad escape", "", request("a", chat, `{"model":"m","messages":["\x"]}`), bad},
		{"not UTF-8", "", request("a", chat, "{\"model\":\"m\",\"messages\":[\"\xff\"]}"), bad},
		{"not UTF-8 outside strings", "", request("a", chat, chatBody) + "\xff", bad},
		{"UTF-8 of a surrogate", "", request("a", chat, "{\"model\":\"m\",\"messages\":[\"\xed\xa0\x80\"]}"), bad},
		{"byte order mark", "", "\ufeff" + request("a", chat, chatBody), bad},
		{"NUL", "", "\x00", bad},

		{"nothing", "", `{}`, missing("custom_id")},
		{"no custom_id", "", `{"method":"POST","url":"/v1/chat/completions","body":{}}`, missing("custom_id")},
		{"empty custom_id", "", request("", chat, chatBody), missing("custom_id")},
		{"null custom_id", "", `{"custom_id":null,"method":"POST","url":"/v1/chat/completions","body":{}}`, missing("custom_id")},
		{"no method", "", `{"custom_id":"a","url":"/v1/chat/completions","body":{}}`, missing("method")},
		{"no url", "", `{"custom_id":"a","method":"POST","body":{}}`, missing("url")},
		{"no body", "", `{"custom_id":"a","method":"POST","url":"/v1/chat/completions"}`, missing("body")},
		{"null body", "", request("a", chat, `null`), missing("body")},
		{"names are case-sensitive", "", `{"Custom_ID":"a","method":"POST","url":"/v1/chat/completions","body":{}}`, missing("custom_id")},

		{"custom_id a number", "", `{"custom_id":7,"method":"POST","url":"/v1/chat/completions","body":{}}`, wrong("custom_id", "a string", "a number")},
		{"custom_id negative", "", `{"custom_id":-7}`, wrong("custom_id", "a string", "a number")},
		{"method a boolean", "", `{"custom_id":"a","method":true,"url":"/v1/chat/completions","body":{}}`, wrong("method", "a string", "a boolean")},
		{"url an array", "", `{"custom_id":"a","method":"POST","url":[],"body":{}}`, wrong("url", "a string", "an array")},
		{"body a string", "", request("a", chat, `"{}"`), wrong("body", "an object", "a string")},
		{"body an array", "", request("a", chat, `[{}]`), wrong("body", "an object", "an array")},
		{"model an object", "", request("a", chat, `{"model":{},"messages":[]}`), wrong("body.model", "a string", "an object")},

		{"method GET", "", `{"custom_id":"a","method":"GET","url":"/v1/chat/completions","body":{}}`, at1("invalid_method", "method", "Invalid method: 'GET'. Only 'POST' is supported in the Batch API.")},
		{"method post", "", `{"custom_id":"a","method":"post","url":"/v1/chat/completions","body":{}}`, at1("invalid_method", "method", "Invalid method: 'post'. Only 'POST' is supported in the Batch API.")},
		{"method empty", "", `{"custom_id":"a","method":"","url":"/v1/chat/completions","body":{}}`, at1("invalid_method", "method", "Invalid method: ''. Only 'POST' is supported in the Batch API.")},
		{"method long", "", `{"custom_id":"a","method":"` + strings.Repeat("é", 200) + `","url":"x","body":{}}`, at1("invalid_method", "method", "Invalid method: '"+strings.Repeat("é", 128)+"…'. Only 'POST' is supported in the Batch API.")},

		{"another endpoint", "", request("a", "/v1/embeddings", `{"model":"m","input":""}`), url},
		{"trailing slash", "", request("a", chat+"/", chatBody), url},
		{"without /v1", "", request("a", "/chat/completions", chatBody), url},
		{"whole URL", "", request("a", "https://api.openai.com/v1/chat/completions", chatBody), url},
		{"url empty", "", request("a", "", chatBody), url},

		{"streaming", "", request("a", chat, `{"model":"m","messages":[],"stream":true}`), at1("streaming_unsupported", "body.stream", "Chat Completions: Streaming is not supported in the Batch API.")},
		{"streaming responses", "/v1/responses", request("a", "/v1/responses", `{"model":"m","stream":true,"input":""}`), at1("streaming_unsupported", "body.stream", "Responses: Streaming is not supported in the Batch API.")},
		{"streaming images", "/v1/images/generations", request("a", "/v1/images/generations", `{"model":"m","stream":true}`), at1("streaming_unsupported", "body.stream", "Images Generations: Streaming is not supported in the Batch API.")},
		{"stream false", "", request("a", chat, `{"model":"m","messages":[],"stream":false}`), nil},
		{"stream null", "", request("a", chat, `{"model":"m","messages":[],"stream":null}`), nil},
		{"stream deeper down", "", request("a", chat, `{"model":"m","messages":[{"stream":true}],"x":{"stream":true}}`), nil},

		{"no model", "", request("a", chat, `{"messages":[]}`), model},
		{"null model", "", request("a", chat, `{"model":null,"messages":[]}`), model},
		{"empty model", "", request("a", chat, `{"model":"","messages":[]}`), model},
		{"empty body", "", request("a", chat, `{}`), model},
		{"no messages", "", request("a", chat, `{"model":"m"}`), messages},
		{"null messages", "", request("a", chat, `{"model":"m","messages":null}`), messages},
		{"no input for embeddings", "/v1/embeddings", request("a", "/v1/embeddings", `{"model":"m"}`), input},
		{"null input for embeddings", "/v1/embeddings", request("a", "/v1/embeddings", `{"model":"m","input":null}`), input},
		{"no input for responses", "/v1/responses", request("a", "/v1/responses", `{"model":"m"}`), input},
		{"no input for moderations", "/v1/moderations", request("a", "/v1/moderations", `{"model":"m"}`), input},
		{"completions need no more", "/v1/completions", request("a", "/v1/completions", `{"model":"m"}`), nil},
		{"unknown model", "", request("a", chat, `{"model":"gpt-9","messages":[]}`), at1("model_not_found", "body.model", "The provided model 'gpt-9' is not supported by the Batch API.")},
		{"model with a NUL", "", request("a", chat, `{"model":"m\u0000","messages":[]}`), at1("model_not_found", "body.model", "The provided model 'm\x00' is not supported by the Batch API.")},

		{"too long", "", strings.Repeat("x", maxLine+1), at1("line_too_long", "", "This line has 61441 bytes; a line may have at most 61440 bytes.")},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Rules{Endpoint: chat, Serves: served, MaxLine: maxLine}
			if c.endpoint != "" {
				r.Endpoint = c.endpoint
			}
			if _, got := check(t, r, c.line); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%.300s\n got %+v\nwant %+v", c.line, got, c.want)
			}
		})
	}
}

// Some rules are about several lines.
func TestInputErrors(t *testing.T) {
	const embeddings = "/v1/embeddings"
	duplicate := func(id string, line int64) LineError {
		return LineError{Code: "duplicate_custom_id", Param: "custom_id", Line: line, Message: "The custom_id '" + id +
			"' for this request is a duplicate of another request. The custom_id parameter must be unique for each request in a batch."}
	}
	bad := func(line int64) LineError {
		return LineError{Code: "invalid_json_line", Message: notJSON, Line: line}
	}
	empty := LineError{
		Code: "empty_file", Message: "The input file is empty. Please ensure that the batch contains at least one request.",
	}
	tooLong := func(length int, line int64) LineError {
		return LineError{Code: "string_above_max_length", Param: "custom_id", Line: line, Message: fmt.Sprintf(
			"Invalid 'custom_id': string too long. Expected a string with maximum length 512, but got a string with length %d instead.", length)}
	}
	a, b := request("a", chat, chatBody), request("b", chat, chatBody)
	other := request("b", chat, `{"model":"n","messages":[]}`)
	mismatch := LineError{Code: "mismatched_model", Param: "body.model", Line: 2, Message: "The model 'n' for this request does not match the rest of the batch. Each batch must contain requests for a single model."}
	long := func(id string, n int) string { return request(strings.Repeat(id, n), chat, chatBody) }

	for _, c := range []struct {
		name  string
		rules Rules
		input string
		want  []LineError
	}{
		{"two good", Rules{}, a + "\n" + b + "\n", nil},
		{"no final newline", Rules{}, a + "\n" + b, nil},
		{"CRLF", Rules{}, a + "\r\n" + b + "\r\n", nil},
		{"blank lines", Rules{}, "\n  \t\r\n" + a + "\n\n" + b + "\n\n\r\n", nil},

		{"empty", Rules{}, "", []LineError{empty}},
		{"blank", Rules{}, "\n \r\n\t", []LineError{empty}},
		{"blank lines are counted", Rules{}, "\n\n" + a + "\n\r\n \nx\n", []LineError{bad(6)}},
		{"byte order mark alone", Rules{}, "\ufeff\n" + a, []LineError{bad(1)}},
		{"byte order mark further down", Rules{}, a + "\n\ufeff" + b, []LineError{bad(2)}},
		{"carriage returns alone end no line", Rules{}, a + "\r" + b + "\r", []LineError{bad(1)}},
		{"UTF-16", Rules{}, "\xff\xfe{\x00}\x00\n\x00", []LineError{bad(1), bad(2)}},
		{"all lines are checked", Rules{}, "x\n" + a + "\n[]\n" + b + "\n{\n", []LineError{bad(1), bad(3), bad(5)}},
		{"one error a line", Rules{}, `{"custom_id":"","method":"GET","url":"x","body":[]}` + "\n" + `{"custom_id":"a","method":"GET","url":"x","body":{"stream":true}}`, []LineError{
			{Code: "missing_required_parameter", Param: "custom_id", Message: "Missing required parameter: 'custom_id'.", Line: 1},
			{Code: "invalid_method", Param: "method", Message: "Invalid method: 'GET'. Only 'POST' is supported in the Batch API.", Line: 2},
		}},

		{"duplicate", Rules{}, a + "\n" + b + "\n" + a + "\n\n" + b, []LineError{duplicate("a", 3), duplicate("b", 5)}},
		{"duplicate in other words", Rules{}, a + "\n" + `{"custom_id":"\u0061","method":"POST","url":"/v1/chat/completions","body":` + chatBody + `}`, []LineError{duplicate("a", 2)}},
		{"duplicate beyond the BMP", Rules{}, request("😀", chat, chatBody) + "\n" + `{"custom_id":"\ud83d\ude00","method":"POST","url":"/v1/chat/completions","body":` + chatBody + `}`, []LineError{duplicate("😀", 2)}},
		{"duplicate of a bad line", Rules{}, request("a", "/x", chatBody) + "\n" + a, []LineError{
			{Code: "invalid_url", Param: "url", Message: "The URL provided for this request does not match the batch endpoint.", Line: 1}, duplicate("a", 2),
		}},
		{"case and normal forms make a difference", Rules{}, a + "\n" + request("A", chat, chatBody) + "\n" + request("\u00e9", chat, chatBody) + "\n" + request("e\u0301", chat, chatBody), nil},
		{"custom_id of 512", Rules{}, long("x", 512) + "\n" + long("é", 512) + "\n" + long("😀", 512), nil},
		{"custom_id of 513", Rules{}, long("x", 513) + "\n" + long("é", 513) + "\n" + long("😀", 513), []LineError{tooLong(513, 1), tooLong(513, 2), tooLong(513, 3)}},
		{"custom_id of 512 escapes", Rules{}, `{"custom_id":"` + strings.Repeat(`\u0061`, 512) + `","method":"POST","url":"/v1/chat/completions","body":` + chatBody + `}`, nil},

		{"mixed models", Rules{}, a + "\n" + other, nil},
		{"mixed models refused", Rules{OneModel: true}, a + "\n" + other, []LineError{mismatch}},
		{"mixed embeddings endpoint", Rules{Endpoint: embeddings}, request("e", embeddings, `{"model":"m","input":"x"}`) + "\n" + a, []LineError{
			{Code: "invalid_url", Param: "url", Message: "The URL provided for this request does not match the batch endpoint.", Line: 2},
		}},

		{"as many requests as may be", Rules{MaxRequests: 2}, a + "\n\n" + b, nil},
		{"too many requests", Rules{MaxRequests: 50_000}, requests(50_001, chat, chatBody), []LineError{
			{Code: "too_many_tasks", Message: "The input file contains 50,001 requests. A batch may contain at most 50,000 requests."},
		}},
		{"as many inputs as may be", Rules{Endpoint: embeddings, MaxEmbeddingInputs: 4}, requests(2, embeddings, `{"model":"m","input":["x","y"]}`), nil},
		{"too many inputs", Rules{Endpoint: embeddings, MaxEmbeddingInputs: 50_000}, requests(51, embeddings, `{"model":"m","input":["`+strings.Repeat(`x","`, 999)+`x"]}`), []LineError{
			{Code: "too_many_embedding_inputs", Message: "The batch contains 51,000 embedding inputs. A batch may contain at most 50,000 embedding inputs."},
		}},
		{"inputs count only for embeddings", Rules{Endpoint: "/v1/moderations", MaxEmbeddingInputs: 1}, requests(2, "/v1/moderations", `{"model":"m","input":["x","y"]}`), nil},
		{"the whole file first, then lines", Rules{MaxRequests: 1}, "x\n" + a + "\n[]", []LineError{
			{Code: "too_many_tasks", Message: "The input file contains 3 requests. A batch may contain at most 1 requests."}, bad(1), bad(3),
		}},
		{"too long lines between good ones", Rules{MaxLine: len(a)}, a + "\r\n" + a + " \r\n" + b + "\n" + b + "  ", []LineError{
			{Code: "line_too_long", Line: 2, Message: fmt.Sprintf("This line has %d bytes; a line may have at most %d bytes.", len(a)+3, len(a))},
			{Code: "line_too_long", Line: 4, Message: fmt.Sprintf("This line has %d bytes; a line may have at most %d bytes.", len(a)+2, len(a))},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.rules.Endpoint == "" {
				c.rules.Endpoint = chat
			}
			_, got := check(t, c.rules, c.input)
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("%.500q\n got %+v\nwant %+v", c.input, got, c.want)
			}
			sorted := append([]LineError(nil), got...)
			if SortLineErrors(sorted); !reflect.DeepEqual(sorted, got) {
				t.Errorf("sorted it is %+v, want the order in which they were found", sorted)
			}
		})
	}
}

func TestFileErrors(t *testing.T) {
	for _, c := range []struct {
		got  LineError
		want string
	}{
		{CannotFindFile("file-x", "org-y"), "Cannot find file file-x, or organization org-y does not have access to it."},
		{WrongPurpose("file-x", "user_data"), "The file file-x has purpose 'user_data'; a batch input file must have purpose 'batch'."},
	} {
		if c.got != (LineError{Code: "invalid_request", Param: "file_id", Message: c.want}) {
			t.Errorf("got %+v, want the message %q", c.got, c.want)
		}
		if got := c.got.Error(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	e := LineError{Line: 7, Message: "no"}
	if got, want := e.Error(), "line 7: no"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCheckerKnows(t *testing.T) {
	serves := func(l Lane) bool { return l == Lane{"m", chat} || l == Lane{"n", chat} }
	n := request("n", chat, `{"model":"n","messages":[]}`)
	a, b := request("a", chat, chatBody), request("b", chat, chatBody)
	for _, c := range []struct {
		name     string
		input    string
		requests int64
		model    string
		unserved bool
	}{
		{"one model", a + "\n\n" + b, 2, "m", false},
		{"two models", a + "\n" + n, 2, "", false},
		{"two models and back", a + "\n" + n + "\n" + b, 3, "", false},
		{"unserved", a + "\n" + request("x", chat, `{"model":"x","messages":[]}`), 2, "", true},
		{"bad lines are requests", a + "\nx\n", 2, "m", false},
		{"no line", "\n", 0, "", false},
	} {
		got, _ := check(t, Rules{Serves: serves}, c.input)
		if got.Requests() != c.requests || got.Model() != c.model || got.Unserved() != c.unserved {
			t.Errorf("%s: got %d requests, model %q, unserved %v; want %d, %q, %v",
				c.name, got.Requests(), got.Model(), got.Unserved(), c.requests, c.model, c.unserved)
		}
	}
}

func TestFirstLineDecidesEndpoint(t *testing.T) {
	_, got := check(t, Rules{}, request("a", "/v1/rerank", `{"model":"m"}`)+"\n"+request("b", "/v1/score", `{"model":"m"}`))
	want := []LineError{{Code: "invalid_url", Param: "url", Message: "The URL provided for this request does not match the batch endpoint.", Line: 2}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Beyond MaxRequests nothing is remembered, since the input may be far larger than memory.
func TestCheckerForgetsBeyondMaxRequests(t *testing.T) {
	c, got := check(t, Rules{Endpoint: chat, MaxRequests: 100}, requests(1000, chat, chatBody))
	if len(c.seen) != 100 {
		t.Errorf("%d custom_ids remembered of 1000 lines, want 100", len(c.seen))
	}
	if len(got) != 1 || got[0].Code != "too_many_tasks" {
		t.Errorf("got %+v, want too_many_tasks", got)
	}
}

func TestInputCounts(t *testing.T) {
	for _, c := range []struct {
		input string
		want  int64
	}{
		{`"x"`, 1},
		{`""`, 1},
		{`["x"]`, 1},
		{`["x","y","z"]`, 3},
		{`[]`, 0},
		{`[1,2,3]`, 1}, // the tokens of one input
		{`[[1,2],[3]]`, 2},
		{` [ "x" , "y" ] `, 2},
		{`[{"a":[1,2]},{"b":"]"}]`, 2},
	} {
		var p Parser
		line := []byte(request("a", "/v1/embeddings", `{"model":"m","input":`+c.input+`}`))
		f, err := p.parse(line)
		if err != nil || f.inputs != c.want {
			t.Errorf("%s: %d inputs, %v; want %d", c.input, f.inputs, err, c.want)
		}
	}
}

func TestShorten(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{strings.Repeat("a", 128), strings.Repeat("a", 128)},
		{strings.Repeat("a", 129), strings.Repeat("a", 128) + "…"},
		{strings.Repeat("😀", 500), strings.Repeat("😀", 128) + "…"},
	} {
		if got := shorten(c.in); got != c.want {
			t.Errorf("%.20q…: got %q, want %q", c.in, got, c.want)
		}
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 50_001: "50,001", 1_000_000: "1,000,000", 123_456_789: "123,456,789"} {
		if got := thousands(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}
