package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

// The rules of the inputs below, small enough to be broken.
const (
	fewRequests = 12
	shortLine   = 2000
)

// TestAnyInput: whatever bytes are uploaded as an input, the upload is refused, or the batch fails
// with the right reason at the right line, or it completes with every request in its files once.
func TestAnyInput(t *testing.T) {
	worlds := map[batch.Profile]*world{}
	for _, profile := range []batch.Profile{batch.ProfileOpenAI, batch.ProfileExtended} {
		rules := batch.Rules{OneModel: profile == batch.ProfileOpenAI, MaxRequests: fewRequests, MaxLine: shortLine}
		worlds[profile] = newWorld(t, profile, rules)
	}
	for _, input := range nasty {
		worlds[batch.ProfileOpenAI].checkInput(t, "/v1/chat/completions", []byte(input))
	}
	rapid.Check(t, func(rt *rapid.T) {
		profile := rapid.SampledFrom([]batch.Profile{batch.ProfileOpenAI, batch.ProfileExtended}).Draw(rt, "profile")
		endpoint := rapid.SampledFrom([]string{"/v1/chat/completions", "/v1/embeddings"}).Draw(rt, "endpoint")
		worlds[profile].checkInput(rt, endpoint, inputs(endpoint).Draw(rt, "input"))
	})
	for profile, w := range worlds {
		if t.Log(profile, w.outcomes); len(w.outcomes) != 3 {
			t.Errorf("profile %s: not every outcome was seen: this test proves nothing", profile)
		}
	}
}

// nasty are inputs that chance would hardly find.
var nasty = []string{
	"", "\n", "\r\n\r\n", " ", "\x00", "\ufeff", "\xff\xfe{\x00}\x00", "{", "{}", "[]", "null", "{}{}", "{},", `{"custom_id":}`,
	"\ufeff" + chatLine("bom", quickModel),
	chatLine("no line break", quickModel)[:len(chatLine("no line break", quickModel))-1],
	chatLine("cr alone", quickModel) + "\r" + chatLine("one", quickModel),
	chatLine("blank", quickModel) + "\n \t\n\u00a0\n\r\n" + chatLine("blank", quickModel),
	chatLine("deep", quickModel) + strings.Repeat(`{"a":`, 11_000) + "1" + strings.Repeat("}", 11_000) + "\n{]\n",
	chatLine("deep", quickModel) + strings.Repeat("[", 900) + strings.Repeat("]", 900) + "\n",
	strings.Replace(chatLine("deep body", quickModel), `"hi"`, strings.Repeat("[", 800)+strings.Repeat("]", 800), 1),
	chatLine("long", quickModel) + strings.Repeat("x", shortLine+1) + "\n" + strings.Repeat("x", shortLine) + "\r\n" + strings.Repeat(" ", shortLine+1),
	chatLine(strings.Repeat("é", 512), quickModel) + chatLine(strings.Repeat("é", 513), quickModel),
	chatLine("a", quickModel) + strings.Replace(chatLine("X", quickModel), "X", `\u0061`, 1),
	strings.Replace(chatLine("X", quickModel), "X", `\ud800`, 1) + strings.Replace(chatLine("X", quickModel), "X", `\udfff`, 1),
	strings.Repeat(chatLine("same", quickModel), fewRequests+3),
	strings.Repeat("{}\n", 150),
	strings.Replace(chatLine("twice", "nobodys"), "{", `{"body":1,"custom_id":null,`, 1),
	strings.Replace(chatLine("control", quickModel), "hi", "\x01", 1),
	strings.Replace(chatLine("not UTF-8", quickModel), "hi", "\xc3", 1),
	chatLine("first", quickModel) + chatLine("second", "nobodys") + chatLine("third", stuckModel+"\x00"),
}

// inputs draws files: lines good and bad, and things that are no lines at all.
func inputs(endpoint string) *rapid.Generator[[]byte] {
	return rapid.Custom(func(t *rapid.T) []byte {
		var file []byte
		good := rapid.Bool().Draw(t, "good")
		for i := range rapid.IntRange(0, fewRequests+2).Draw(t, "lines") {
			begins := i == 0 && rapid.Bool().Draw(t, "begins well")
			file = append(file, line(endpoint, good || begins).Draw(t, "line")...)
			file = append(file, rapid.SampledFrom([]string{"\n", "\n", "\n", "\r\n", "\n\n", "\n \n", ""}).Draw(t, "end")...)
		}
		return file
	})
}

// line draws a line; one that is meant to be good may still have the custom_id of another.
func line(endpoint string, good bool) *rapid.Generator[[]byte] {
	pick := func(t *rapid.T, name string, values ...string) string { return rapid.SampledFrom(values).Draw(t, name) }
	return rapid.Custom(func(t *rapid.T) []byte {
		id := fmt.Sprintf("%q", rapid.StringN(1, 4, -1).Draw(t, "id"))
		model, url := fmt.Sprintf("%q", quickModel), fmt.Sprintf("%q", endpoint)
		about := `"messages":[{"role":"user","content":"hi"}],"input":"hi"`
		junk := func() string { return pick(t, "junk", `""`, `null`, `7`, `{}`, `[]`, `true`, `"x"`) }
		method, extra := `"POST"`, ""
		kind := 7
		if !good {
			kind = rapid.IntRange(0, 11).Draw(t, "kind")
		}
		switch kind {
		case 0:
			return rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "bytes")
		case 1:
			id = junk()
		case 2:
			method = pick(t, "method", `"GET"`, `"post"`, `7`)
		case 3:
			url = pick(t, "url", `"/v1/nope"`, `"/v1/embeddings/"`, `null`)
		case 4:
			model = pick(t, "model", `"nobodys"`, `""`, `null`, `"\u0071uick"`, `[1]`)
		case 5:
			about = pick(t, "about", `"messages":null`, `"input":[]`, `"messages":"x","input":[[1,2],[3]]`, `"messages":[{}],"input":7`)
		case 6:
			extra = `,"stream":` + pick(t, "stream", "true", "false", "null", `"true"`)
		}
		text := fmt.Sprintf(`{"custom_id":%s,"method":%s,"url":%s,"body":{"model":%s,%s%s}}`, id, method, url, model, about, extra)
		if !good && rapid.IntRange(0, 9).Draw(t, "harm") == 0 { // somewhere
			at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
			text = text[:at] + string(rapid.Byte().Draw(t, "byte")) + text[at+1:]
		}
		return []byte(text)
	})
}

// A failer is a *testing.T or a *rapid.T.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// checkInput runs a batch of the input and holds what comes of it against judge.
func (w *world) checkInput(t failer, endpoint string, input []byte) {
	t.Helper()
	a := w.upload(forBatch, fileField(string(input)))
	if want := beginsWithJSON(input); (a.StatusCode == 200) != want || a.StatusCode != 200 && a.StatusCode != 400 {
		t.Fatalf("upload of %q: status %d", input, a.StatusCode)
	} else if !want {
		w.outcomes["refused"]++
		return
	}
	want, ids := judge(input, endpoint, w.rules)
	b := w.await(w.createFrom(decode[openai.File](w.tester, a).ID, endpoint).ID, "completed")
	w.outcomes[b.Status]++
	if len(want) > 0 {
		var got []problem
		if b.Errors != nil {
			for _, e := range b.Errors.Data {
				p := problem{code: e.Code}
				if e.Line != nil {
					p.line = *e.Line
				}
				got = append(got, p)
			}
		}
		if want = want[:min(len(want), 100)]; b.Status != "failed" || !slices.Equal(got, want) {
			t.Fatalf("input %q:\ngot  %s %v\nwant failed %v", input, b.Status, got, want)
		}
		return
	}
	if b.Status != "completed" || b.RequestCounts.Total != int64(len(ids)) {
		t.Fatalf("input %q: %+v", input, b)
	}
	got := map[string]int{}
	for i, file := range []*string{b.OutputFileID, b.ErrorFileID} {
		lines := w.results(file)
		if n := []int64{b.RequestCounts.Completed, b.RequestCounts.Failed}[i]; int64(len(lines)) != n {
			t.Fatalf("input %q: %d lines where %d are counted", input, len(lines), n)
		}
		for _, l := range lines {
			got[l.CustomID]++
		}
	}
	if !maps.Equal(got, ids) {
		t.Fatalf("input %q:\ngot  %v\nwant %v", input, got, ids)
	}
}

// beginsWithJSON reports whether the first line that is not blank is JSON, as an upload wants it.
func beginsWithJSON(input []byte) bool {
	first, _, _ := bytes.Cut(bytes.TrimLeft(input, " \t\r\n"), []byte("\n"))
	return json.Valid(bytes.TrimPrefix(first, []byte("\ufeff")))
}

// A problem is what a batch's errors say of one line, or of line 0: the file.
type problem struct {
	code string
	line int64
}

// judge finds the problems of an input in the plainest way, and without them its custom_ids. It
// shares no code with package batch.
func judge(input []byte, endpoint string, rules batch.Rules) (problems []problem, ids map[string]int) {
	ids = map[string]int{}
	var requests int64
	first := ""
	lines := bytes.Split(input, []byte("\n"))
	for i, text := range lines {
		text = bytes.TrimSuffix(text, []byte("\r"))
		if len(text) <= rules.MaxLine && len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		requests++
		if code := judgeLine(text, endpoint, rules, requests, &first, ids); code != "" {
			problems = append(problems, problem{code, int64(i + 1)})
		}
	}
	if requests > rules.MaxRequests {
		problems = append([]problem{{code: "too_many_tasks"}}, problems...)
	}
	return problems, ids
}

func judgeLine(text []byte, endpoint string, rules batch.Rules, n int64, first *string, ids map[string]int) string {
	var line, body map[string]json.RawMessage
	if len(text) > rules.MaxLine {
		return "line_too_long"
	}
	if !utf8.Valid(text) || json.Unmarshal(text, &line) != nil || line == nil {
		return "invalid_json_line"
	}
	for _, name := range []string{"custom_id", "method", "url", "body"} {
		kind := byte('"')
		if name == "body" {
			kind = '{'
		}
		switch v := string(line[name]); {
		case v == "", v == "null", name == "custom_id" && v == `""`:
			return "missing_required_parameter"
		case v[0] != kind:
			return "invalid_type"
		}
	}
	text1 := func(raw json.RawMessage) (s string) { json.Unmarshal(raw, &s); return s }
	id := text1(line["custom_id"])
	if utf8.RuneCountInString(id) > 512 {
		return "string_above_max_length"
	}
	if ids[id] > 0 {
		return "duplicate_custom_id"
	}
	if n <= rules.MaxRequests {
		ids[id]++
	}
	if text1(line["method"]) != "POST" {
		return "invalid_method"
	}
	if text1(line["url"]) != endpoint {
		return "invalid_url"
	}
	json.Unmarshal(line["body"], &body)
	model, about := string(body["model"]), "messages"
	if endpoint == "/v1/embeddings" {
		about = "input"
	}
	switch {
	case model == "", model == "null", model == `""`:
		return "invalid_request"
	case model[0] != '"':
		return "invalid_type"
	case string(body["stream"]) == "true":
		return "streaming_unsupported"
	case len(body[about]) == 0, string(body[about]) == "null":
		return "invalid_request"
	}
	model = text1(body["model"])
	if *first == "" {
		*first = model
	}
	if rules.OneModel && model != *first {
		return "mismatched_model"
	}
	if model != quickModel && model != stuckModel {
		return "model_not_found"
	}
	return ""
}
