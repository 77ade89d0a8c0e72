package batch

import "testing"

const usualAnswer = `{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1789000000,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"It is \"forty-two\",\nas everybody knows.\u00e9","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":31,"completion_tokens":18,"total_tokens":49,"prompt_tokens_details":{"cached_tokens":16},"completion_tokens_details":null},"system_fingerprint":null}`

// What comes in every day is found quickly; FuzzLine and FuzzAnswer see to it that it is found right.
func TestQuickly(t *testing.T) {
	var q quick
	if u, ok := q.usage([]byte(usualAnswer)); !ok || u != (Usage{Input: 31, Cached: 16, Output: 18, Total: 49}) {
		t.Errorf("usage %+v, %v", u, ok)
	}
	for _, body := range []string{
		` { "usage" : { "input_tokens" : 5 } , "x" : [ 1 , -0.5e+7 , true , false , null , { } , [ ] , "" ] } `, "{}", `{"embedding":[0.1,-2E3,0,10]}`,
	} {
		if _, ok := q.usage([]byte(body)); !ok {
			t.Errorf("%s is not found quickly", body)
		}
	}
	var f fields
	if !q.request([]byte(request("a", chat, chatBody)), &f) || string(f.body) != chatBody || string(f.customID) != `"a"` {
		t.Errorf("%+v", f)
	}
	for _, wrong := range []string{
		"", "{", "}", "[]", `"`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `{"a":01}`, `{"a":1.}`, `{"a":.1}`, `{"a":-}`, `{"a":1e}`, `{"a":+1}`, `{"a":tru}`,
		`{"a":"`, `{"a":"\`, `{"a":"\u12`, `{"a":"\u12g4"}`, `{"a":"\x"}`, "{\"a\":\"\n\"}", "{\"a\":\"\xff\"}", "{\"a\":\"\x00\"}", `{} {}`, `{"a":[1,]}`, `{"a":[1 2]}`, `{"a":{"b"}}`, `{"a" 1}`, "\ufeff{}",
	} {
		if _, ok := q.usage([]byte(wrong)); ok {
			t.Errorf("%q passes", wrong)
		}
	}
}

func BenchmarkUsage(b *testing.B) {
	var p AnswerParser
	body := []byte(usualAnswer)
	b.SetBytes(int64(len(usualAnswer)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Usage(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	var p Parser
	line := Line{Number: 1, Text: []byte(request("a", chat, chatBody))}
	b.SetBytes(int64(len(line.Text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Request(line); err != nil {
			b.Fatal(err)
		}
	}
}
