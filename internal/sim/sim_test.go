package sim

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// post calls the handler itself. It returns status 0 for a call that was cut.
func post(s *Server, path, body string) (status int, answer string) {
	return do(s, httptest.NewRequest("POST", path, strings.NewReader(body)))
}

func get(s *Server, path string) (status int, answer string) {
	return do(s, httptest.NewRequest("GET", path, nil))
}

func do(s *Server, r *http.Request) (status int, answer string) {
	w := httptest.NewRecorder()
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			status, answer = 0, ""
		}
	}()
	s.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// parse fails the test unless text is JSON.
func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("not a JSON object: %v\n%s", err, text)
	}
	return v
}

// at walks a parsed answer: at(v, "choices", 0, "text").
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[step]
		case int:
			l, _ := v.([]any)
			if step >= len(l) {
				t.Fatalf("%v: no element %d in %v", path, step, v)
			}
			v = l[step]
		}
	}
	return v
}

func TestAnswers(t *testing.T) {
	s := New(Config{MedianTokens: 50, P99Tokens: 50})
	type want struct {
		path  []any
		value any
	}
	for _, c := range []struct {
		name, path, body string
		want             []want
	}{
		{"chat", "/v1/chat/completions",
			`{"model":"m","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"What is 2 + 2?"}]}`,
			[]want{
				{[]any{"object"}, "chat.completion"},
				{[]any{"model"}, "m"},
				{[]any{"choices", 0, "message", "role"}, "assistant"},
				{[]any{"choices", 0, "finish_reason"}, "stop"},
				{[]any{"usage", "prompt_tokens"}, 15.0}, // 3 and 4 of text, 4 around each message
				{[]any{"usage", "completion_tokens"}, 50.0},
				{[]any{"usage", "total_tokens"}, 65.0},
			}},
		{"chat, capped, two choices", "/v1/chat/completions",
			`{"n":2,"max_completion_tokens":7,"max_tokens":9,"messages":[{"role":"user","content":"Hi"}],"model":"m\u0021"}`,
			[]want{
				{[]any{"model"}, "m!"},
				{[]any{"choices", 1, "index"}, 1.0},
				{[]any{"choices", 1, "finish_reason"}, "length"},
				{[]any{"usage", "completion_tokens"}, 14.0},
			}},
		{"chat with an image", "/v1/chat/completions",
			`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"Look!"},{"type":"image_url","image_url":{"url":"data:,x"}}]}]}`,
			[]want{{[]any{"usage", "prompt_tokens"}, 2.0 + mediaTokens + 4}}},
		{"completions", "/v1/completions", `{"model":"m","prompt":["One","Two"],"n":2,"max_tokens":5}`,
			[]want{
				{[]any{"object"}, "text_completion"},
				{[]any{"choices", 3, "index"}, 3.0},
				{[]any{"usage", "prompt_tokens"}, 2.0},
				{[]any{"usage", "completion_tokens"}, 20.0},
			}},
		{"completions of tokens", "/v1/completions", `{"model":"m","prompt":[[1,2,3],[4,5]]}`,
			[]want{
				{[]any{"usage", "prompt_tokens"}, 5.0},
				{[]any{"usage", "completion_tokens"}, 32.0}, // 16 is this endpoint's own limit
			}},
		{"responses", "/v1/responses", `{"model":"m","input":"What now?","max_output_tokens":100}`,
			[]want{
				{[]any{"object"}, "response"},
				{[]any{"status"}, "completed"},
				{[]any{"output", 0, "content", 0, "type"}, "output_text"},
				{[]any{"usage", "input_tokens"}, 3.0},
				{[]any{"usage", "output_tokens"}, 50.0},
			}},
		{"responses, capped", "/v1/responses",
			`{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"What now?"}]}],"max_output_tokens":10}`,
			[]want{
				{[]any{"status"}, "incomplete"},
				{[]any{"incomplete_details", "reason"}, "max_output_tokens"},
				{[]any{"usage", "total_tokens"}, 17.0},
			}},
		{"moderations", "/v1/moderations", `{"model":"m","input":["Hello","there"]}`,
			[]want{{[]any{"results", 1, "flagged"}, false}}},
		{"moderation of parts", "/v1/moderations", `{"model":"m","input":[{"type":"text","text":"Hello"},{"type":"text","text":"there"}]}`,
			[]want{{[]any{"results", 0, "categories", "hate"}, false}}},
		{"embeddings", "/v1/embeddings", `{"model":"m","input":"Hello","dimensions":3}`,
			[]want{
				{[]any{"data", 0, "object"}, "embedding"},
				{[]any{"usage", "total_tokens"}, 2.0},
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, text := post(s, c.path, c.body)
			if status != 200 {
				t.Fatalf("%s: %d %s", c.body, status, text)
			}
			v := parse(t, text)
			for _, w := range c.want {
				if got := at(t, v, w.path...); got != w.value {
					t.Errorf("%s: %v is %v, want %v in\n%s", c.body, w.path, got, w.value, text)
				}
			}
		})
	}
}

func TestAnswerEchoesTheUser(t *testing.T) {
	s := New(Config{MedianTokens: 50, P99Tokens: 50})
	_, text := post(s, "/v1/chat/completions",
		`{"model":"m","messages":[{"role":"user","content":"not this"},{"role":"assistant","content":"nor this"},{"content":"but \"this\"","role":"user"}]}`)
	content, _ := at(t, parse(t, text), "choices", 0, "message", "content").(string)
	if !strings.HasPrefix(content, `You asked: but "this" — `) {
		t.Errorf("content is %q", content)
	}
}

func TestEmbeddings(t *testing.T) {
	s := New(Config{Dimensions: 5})
	vectors := func(body string) [][]float32 {
		status, text := post(s, "/v1/embeddings", body)
		if status != 200 {
			t.Fatalf("%s: %d %s", body, status, text)
		}
		var v struct {
			Data []struct{ Embedding json.RawMessage }
		}
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		var out [][]float32
		for _, d := range v.Data {
			var vector []float32
			var packed []byte
			if json.Unmarshal(d.Embedding, &packed) == nil {
				for ; len(packed) > 0; packed = packed[4:] {
					vector = append(vector, math.Float32frombits(binary.LittleEndian.Uint32(packed)))
				}
			} else if err := json.Unmarshal(d.Embedding, &vector); err != nil {
				t.Fatal(err)
			}
			out = append(out, vector)
		}
		return out
	}

	a := vectors(`{"model":"m","input":["red","blue","red"]}`)
	if len(a) != 3 || len(a[0]) != 5 {
		t.Fatalf("got %v, want three vectors of five", a)
	}
	if !slices.Equal(a[0], a[2]) || slices.Equal(a[0], a[1]) {
		t.Errorf("equal texts must have equal vectors, others not: %v", a)
	}
	var norm float64
	for _, x := range a[0] {
		norm += float64(x) * float64(x)
	}
	if math.Abs(norm-1) > 1e-5 {
		t.Errorf("the square of the length is %g, want 1", norm)
	}
	if b := vectors(`{"model":"m","input":"blue","encoding_format":"base64"}`); !slices.Equal(a[1], b[0]) {
		t.Errorf("base64 says %v, floats say %v", b[0], a[1])
	}
	if b := vectors(`{"model":"other","input":"blue"}`); slices.Equal(a[1], b[0]) {
		t.Error("two models have the same vector")
	}
	if b := vectors(`{"model":"m","input":[[1,2],[3]],"dimensions":2}`); len(b) != 2 || len(b[0]) != 2 {
		t.Errorf("got %v, want two vectors of two", b)
	}
}

func TestRefusals(t *testing.T) {
	s := New(Config{Models: []Model{{ID: "m"}}, Context: 100, MaxBody: 2000})
	const chatPath = "/v1/chat/completions"
	for _, c := range []struct {
		name, path, body string
		status           int
		param            string
	}{
		{"no such model", chatPath, `{"model":"x","messages":[{"role":"user","content":"Hi"}]}`, 404, "model"},
		{"no model", chatPath, `{"messages":[{"role":"user","content":"Hi"}]}`, 400, "model"},
		{"null model", chatPath, `{"model":null,"messages":[{"role":"user","content":"Hi"}]}`, 400, "model"},
		{"model is a number", chatPath, `{"model":1,"messages":[{"role":"user","content":"Hi"}]}`, 400, "model"},
		{"no messages", chatPath, `{"model":"m"}`, 400, "messages"},
		{"messages elsewhere", chatPath, `{"model":"m","prompt":"Hi"}`, 400, "messages"},
		{"empty messages", chatPath, `{"model":"m","messages":[]}`, 400, "messages"},
		{"messages of text", chatPath, `{"model":"m","messages":["Hi"]}`, 400, "messages"},
		{"messages is text", chatPath, `{"model":"m","messages":"Hi"}`, 400, "messages"},
		{"no role", chatPath, `{"model":"m","messages":[{"content":"Hi"}]}`, 400, "messages"},
		{"no prompt", "/v1/completions", `{"model":"m"}`, 400, "prompt"},
		{"mixed prompt", "/v1/completions", `{"model":"m","prompt":["a",1]}`, 400, "prompt"},
		{"broken tokens", "/v1/completions", `{"model":"m","prompt":[[1],["a"]]}`, 400, "prompt"},
		{"empty tokens", "/v1/completions", `{"model":"m","prompt":[[1],[]]}`, 400, "prompt"},
		{"no input", "/v1/embeddings", `{"model":"m","input":null}`, 400, "input"},
		{"dimensions", "/v1/embeddings", `{"model":"m","input":"a","dimensions":0}`, 400, "dimensions"},
		{"stream", chatPath, `{"model":"m","stream":true,"messages":[{"role":"user","content":"Hi"}]}`, 400, "stream"},
		{"max_tokens", chatPath, `{"model":"m","max_tokens":99,"messages":[{"role":"user","content":"Hi"}]}`, 400, "max_tokens"},
		{"max_tokens is text", chatPath, `{"model":"m","max_tokens":"9","messages":[{"role":"user","content":"Hi"}]}`, 400, "max_tokens"},
		{"too many answers", "/v1/completions", `{"model":"m","n":128,"prompt":[` + strings.Repeat("[1],", 16) + `[1]]}`, 400, "n"},
		{"prompt too long", chatPath, `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("a", 400) + `"}]}`, 400, "messages"},
		{"too large", chatPath, strings.Repeat(" ", 2001), 413, ""},
		{"cut short", chatPath, `{"model":"m","messages":[`, 400, ""},
		{"cut short in a message", chatPath, `{"model":"m","messages":[{"role"`, 400, ""},
		{"not JSON", chatPath, `hello`, 400, ""},
		{"nothing", chatPath, ``, 400, ""},
		{"a list", chatPath, `[]`, 400, ""},
		{"two objects", chatPath, `{"model":"m","messages":[{"role":"user","content":"Hi"}]}{}`, 400, ""},
		{"not UTF-8", chatPath, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", 400, ""},
		{"no such path", "/v1/audio", `{}`, 404, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, text := post(s, c.path, c.body)
			e, _ := at(t, parse(t, text), "error").(map[string]any)
			if status != c.status || e["message"] == "" || e["type"] == nil || e["code"] != float64(c.status) {
				t.Errorf("%q: %d %s, want %d", c.body, status, text, c.status)
			}
			if param, _ := e["param"].(string); param != c.param {
				t.Errorf("%q: param is %q, want %q in %s", c.body, param, c.param, text)
			}
		})
	}
}

func TestModels(t *testing.T) {
	listed := New(Config{Models: []Model{{ID: "small"}, {ID: "org/large"}}})
	status, text := get(listed, "/v1/models")
	if v := parse(t, text); status != 200 || at(t, v, "data", 1, "id") != "org/large" {
		t.Errorf("list: %d %s", status, text)
	}
	status, text = get(listed, "/v1/models/org/large")
	if v := parse(t, text); status != 200 || v["id"] != "org/large" {
		t.Errorf("one: %d %s", status, text)
	}
	if status, _ := get(listed, "/v1/models/none"); status != 404 {
		t.Errorf("unknown: %d, want 404", status)
	}

	anything := New(Config{})
	if status, _ := get(anything, "/v1/models"); status != 404 {
		t.Errorf("a server for any model lists some: %d, want 404", status)
	}
	if status, text := post(anything, "/v1/chat/completions", chatBody); status != 200 {
		t.Errorf("a server for any model: %d %s", status, text)
	}
}

func TestAPIKey(t *testing.T) {
	s := New(Config{APIKey: "sk-1", Models: []Model{{ID: "m"}}})
	for _, c := range []struct {
		key, path string
		want      int
	}{
		{"", "/v1/models", 401},
		{"Bearer sk-2", "/v1/models", 401},
		{"Bearer sk-2", "/v1/models/m", 401},
		{"Bearer sk-1", "/v1/models", 200},
		{"", "/health", 200},
		{"", "/metrics", 200},
	} {
		r := httptest.NewRequest("GET", c.path, nil)
		r.Header.Set("Authorization", c.key)
		if status, text := do(s, r); status != c.want {
			t.Errorf("%s with %q: %d %s, want %d", c.path, c.key, status, text, c.want)
		}
	}
	if status, text := post(s, "/v1/chat/completions", chatBody); status != 401 || !strings.Contains(text, `"error"`) {
		t.Errorf("chat without a key: %d %s, want 401", status, text)
	}
}

// A request's answer is the same on every server with the same seed, whatever came before.
func TestAnswersAreDeterministic(t *testing.T) {
	plain := New(Config{Seed: 1})
	busy := New(Config{Seed: 1, PrefixCache: 100, CountCalls: true, Slots: 1, Timing: Timing{Jitter: 0.5}})
	other := New(Config{Seed: 2})
	rapid.Check(t, func(t *rapid.T) {
		content, _ := json.Marshal(rapid.String().Draw(t, "content"))
		body := fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":%s}]}`, content)
		status, first := post(plain, "/v1/chat/completions", body)
		if status != 200 || !json.Valid([]byte(first)) {
			t.Fatalf("%s: %d %s", body, status, first)
		}
		for _, s := range []*Server{plain, busy, busy} {
			if _, again := post(s, "/v1/chat/completions", body); again != first {
				t.Fatalf("%s was answered\n%s\nand then\n%s", body, first, again)
			}
		}
		if _, differs := post(other, "/v1/chat/completions", body); differs == first {
			t.Fatalf("%s has the same answer under another seed", body)
		}
	})
}

func TestLengths(t *testing.T) {
	dice := draw(7)
	lengths := make([]int, 20000)
	for i := range lengths {
		lengths[i] = dice.length(100, 1000)
	}
	slices.Sort(lengths)
	if median := lengths[len(lengths)/2]; median < 95 || median > 105 {
		t.Errorf("the median is %d, want 100", median)
	}
	if p99 := lengths[len(lengths)*99/100]; p99 < 900 || p99 > 1100 {
		t.Errorf("the 99th percentile is %d, want 1000", p99)
	}
	if lengths[len(lengths)-1] < 1500 {
		t.Errorf("the longest of 20,000 is %d: there is no tail", lengths[len(lengths)-1])
	}
}

// However a string is clipped, it stays a string, and the beginning of what it was.
func TestClip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var quoted strings.Builder
		quoted.WriteByte('"')
		for _, r := range rapid.SliceOf(rapid.Rune()).Draw(t, "runes") {
			switch {
			case rapid.Bool().Draw(t, "escaped") && r > 0xffff:
				r -= 0x10000
				fmt.Fprintf(&quoted, `\u%04x\u%04X`, 0xd800+r>>10, 0xdc00+r&0x3ff)
			case r < ' ', r == '"', r == '\\', r > 0x7f && r < 0x800:
				fmt.Fprintf(&quoted, `\u%04x`, r)
			case r == '/':
				quoted.WriteString(`\/`)
			default:
				quoted.WriteRune(r)
			}
		}
		quoted.WriteByte('"')
		raw := []byte(quoted.String())
		var whole, part string
		if err := json.Unmarshal(raw, &whole); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		n := rapid.IntRange(0, 40).Draw(t, "n")
		clipped := clip(inside(raw), n)
		if err := json.Unmarshal([]byte(`"`+string(clipped)+`"`), &part); err != nil {
			t.Fatalf("clip(%s, %d) = %s: %v", raw, n, clipped, err)
		}
		if len(clipped) > n || !strings.HasPrefix(whole, part) || len(clipped) < min(n, len(raw)-2)-11 {
			t.Fatalf("clip(%s, %d) = %s", raw, n, clipped)
		}
	})
}

// Nothing that a client sends may crash the server or be answered with a 5xx.
func FuzzBody(f *testing.F) {
	f.Add(uint8(0), chatBody)
	f.Add(uint8(1), `{"model":"m","prompt":[[1],[2]],"n":2}`)
	f.Add(uint8(2), `{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}]}`)
	f.Add(uint8(3), `{"model":"m","input":["a","b"],"encoding_format":"base64"}`)
	f.Add(uint8(4), `{"model":"m","input":[{"type":"text"}]}`)
	s := New(Config{PrefixCache: 10})
	paths := []string{"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/moderations"}
	f.Fuzz(func(t *testing.T, path uint8, body string) {
		status, text := post(s, paths[int(path)%len(paths)], body)
		if status != 200 && status != 400 || !json.Valid([]byte(text)) {
			t.Errorf("%q: %d %s", body, status, text)
		}
	})
}

func TestHealth(t *testing.T) {
	if status, text := get(New(Config{}), "/health"); status != 200 || text != "" {
		t.Errorf("%d %q, want 200 and nothing", status, text)
	}
}
