package batch

import (
	"bytes"
	"math/rand/v2"
	"strconv"
	"testing"
)

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

// Numbers are passed over in steps of eight bytes: wherever one ends, and whatever stands there, that is
// seen. The longest ends where the text does.
func TestNumbersQuickly(t *testing.T) {
	digits := bytes.Repeat([]byte("1234567890"), 4)
	for n := 1; n < 30; n++ {
		for c := range 256 {
			text := append(bytes.Clone(digits[:n]), byte(c))
			want := n
			if isDigit(byte(c)) {
				want++
			}
			for _, behind := range []int{0, 1, 7, 8, 30} {
				if got := countDigits(append(text[:n+1:n+1], digits[:behind]...)); got != want && !(want > n && got == want+behind) {
					t.Fatalf("%q and %d digits: %d digits, want %d", text, behind, got, want)
				}
			}
		}
	}
	var q quick
	for _, good := range []string{"0", "-0", "0.5", "-12345678.123456789e-10", "1E+05", "123456789012345678901234567890", "0.00000000000000000001"} {
		for _, separator := range []string{",", ", ", " ,", "\n,\n", ",  "} {
			for _, text := range []string{
				`{"a":[` + good + `]}`, `{"a":[1` + separator + good + `]}`, `{"a":[` + good + separator + "7.25" + separator + good + separator + good + `]}`,
				`{"a":[` + good + separator + `"x"` + separator + `[` + good + separator + `{}]` + separator + `null]}`,
			} {
				if _, ok := q.usage([]byte(text)); !ok {
					t.Errorf("%s is not found quickly", text)
				}
			}
		}
	}
	for _, wrong := range []string{
		"-", "01", "00.5", "-01", "1.", "1.e5", ".5", "1e", "1e+", "1e-", "+1", "1.2.3", "1-2", "0x10", "1,,2", "1 2", "1,", ",1", "1e5e5", "--1",
		"12345678a", "0.12345678:9", "0.1234567/", "1\xb1", "0.1234567\x8a1", "12345678 12345678", "1_000",
	} {
		for _, text := range []string{`{"a":[` + wrong + `]}`, `{"a":[1,` + wrong + `]}`, `{"a":[1,` + wrong + `,2]}`, `{"a":[` + wrong, `{"a":[1,` + wrong} {
			if _, ok := q.usage([]byte(text)); ok {
				t.Errorf("%q passes", text)
			}
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

// embedding is an answer of so many floats, as OpenAI's servers write them, or with spaces between
// them, as Python does.
func embedding(floats int, separator string) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	text := []byte(`{"object":"list","data":[{"object":"embedding","index":0,"embedding":[`)
	for i := range floats {
		if i > 0 {
			text = append(text, separator...)
		}
		text = strconv.AppendFloat(text, r.NormFloat64()/50, 'g', 8, 64)
	}
	return append(text, `]}],"model":"m","usage":{"prompt_tokens":31,"total_tokens":31}}`...)
}

func BenchmarkUsageOfEmbedding(b *testing.B) {
	for name, separator := range map[string]string{"dense": ",", "spaced": ", "} {
		b.Run(name, func(b *testing.B) {
			var p AnswerParser
			body := embedding(3072, separator)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if u, err := p.Usage(body); err != nil || u.Input != 31 {
					b.Fatal(u, err)
				}
			}
		})
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
