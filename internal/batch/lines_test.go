package batch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// readLines reads all lines of r. Their text is copied.
func readLines(t testing.TB, r io.Reader, offset, first int64, maxLine int) []Line {
	t.Helper()
	var got []Line
	for lines := NewLines(r, offset, first, maxLine); ; {
		line, err := lines.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		line.Text = bytes.Clone(line.Text)
		got = append(got, line)
	}
}

// show writes lines as number@offset+length and text.
func show(lines []Line) string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = fmt.Sprintf("%d@%d+%d %+q", l.Number, l.Offset, l.Length, l.Text)
		if l.TooLong {
			out[i] += " too long"
		}
	}
	return strings.Join(out, ", ")
}

func TestLines(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", ``},
		{"no newline", "a", `1@0+1 "a"`},
		{"newline", "a\n", `1@0+2 "a"`},
		{"CRLF", "a\r\nb\r\n", `1@0+3 "a", 2@3+3 "b"`},
		{"one carriage return goes", "a\r\r\n", `1@0+4 "a\r"`},
		{"blank", "\n\r\n\n", `1@0+1 "", 2@1+2 "", 3@3+1 ""`},
		{"blank first", "\n\na", `1@0+1 "", 2@1+1 "", 3@2+1 "a"`},
		{"carriage return at the end", "a\n\r", `1@0+2 "a", 2@2+1 ""`},
		{"other line breaks are none", "a\u2028b\vc\fd\u0085\n", `1@0+12 "a\u2028b\vc\fd\u0085"`},
		{"any bytes", "\x00\xff\n", `1@0+3 "\x00\xff"`},
	} {
		if got := show(readLines(t, strings.NewReader(c.in), 0, 1, 100)); got != c.want {
			t.Errorf("%s: Lines of %q\n got %s\nwant %s", c.name, c.in, got, c.want)
		}
		if got := show(split([]byte(c.in), 1)); got != c.want {
			t.Errorf("%s: SplitLines of %q\n got %s\nwant %s", c.name, c.in, got, c.want)
		}
	}
}

func split(window []byte, first int64) (got []Line) {
	for line := range SplitLines(window, first) {
		got = append(got, line)
	}
	return got
}

// TestLinesReset reads one reader after another, the first one only in part.
func TestLinesReset(t *testing.T) {
	lines := NewLines(strings.NewReader("a\nb\n"+strings.Repeat("long", 100_000)), 0, 1, 1<<20)
	if l, err := lines.Next(); err != nil || string(l.Text) != "a" {
		t.Fatalf("Next() = %q, %v", l.Text, err)
	}
	lines.Reset(strings.NewReader("c\n"), 10, 7)
	if l, err := lines.Next(); err != nil || string(l.Text) != "c" || l.Number != 7 || l.Offset != 10 {
		t.Errorf("Next() = %+v, %v; want line 7 at 10, which is c", l, err)
	}
	if l, err := lines.Next(); err != io.EOF {
		t.Errorf("Next() = %+v, %v, want io.EOF", l, err)
	}
}

func TestSplitLinesStops(t *testing.T) {
	n := 0
	for range SplitLines([]byte("a\nb\nc\n"), 1) {
		n++
		break
	}
	if n != 1 {
		t.Errorf("%d lines after a break, want 1", n)
	}
}

// Lines starts anywhere in a file; numbers and offsets are those of the file.
func TestLinesFromTheMiddle(t *testing.T) {
	if got, want := show(readLines(t, strings.NewReader("b\nc\n"), 200, 7, 100)), `7@200+2 "b", 8@202+2 "c"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The limit is one of the text, without the line break, wherever the buffer's edge falls.
func TestLinesLimit(t *testing.T) {
	const buffer = 256 << 10
	for _, maxLine := range []int{1, 10, buffer - 2, buffer - 1, buffer, buffer + 1, 2*buffer - 1, 3 * buffer} {
		for _, end := range []string{"\n", "\r\n", ""} {
			for _, over := range []int{-1, 0, 1, 2, buffer} {
				n := maxLine + over
				in := "1" + end + strings.Repeat("x", n) + end + "3" + end
				if end == "" {
					in = "1\n" + strings.Repeat("x", n)
				}
				got := readLines(t, strings.NewReader(in), 0, 1, maxLine)
				if n == 0 && end == "" {
					continue // no second line
				}
				if len(got) < 2 || end != "" && len(got) != 3 {
					t.Fatalf("max %d, line of %d, end %q: %d lines", maxLine, n, end, len(got))
				}
				if got[1].TooLong != (over > 0) || over <= 0 && len(got[1].Text) != n || over > 0 && got[1].Text != nil {
					t.Errorf("max %d, line of %d, end %q: too long %v, text of %d", maxLine, n, end, got[1].TooLong, len(got[1].Text))
				}
				if want := int64(n + len(end)); got[1].Length != want {
					t.Errorf("max %d, line of %d, end %q: length %d, want %d", maxLine, n, end, got[1].Length, want)
				}
				if end != "" && (string(got[2].Text) != "3" || got[2].Offset != got[1].Offset+got[1].Length) {
					t.Errorf("max %d, line of %d, end %q: the line behind is %q at %d", maxLine, n, end, got[2].Text, got[2].Offset)
				}
			}
		}
	}
}

// A line that is far too long is passed over without being held.
func TestLinesBoundedMemory(t *testing.T) {
	const length = 64 << 20
	in := io.MultiReader(io.LimitReader(endless('x'), length), strings.NewReader("\nb\n"))
	lines := NewLines(in, 0, 1, 1<<20)
	line, err := lines.Next()
	if err != nil || !line.TooLong || line.Length != length+1 {
		t.Fatalf("got %+v, %v; want a line too long with %d bytes", line, err, length+1)
	}
	if cap(lines.long) > 4<<20 {
		t.Errorf("%d bytes held of a line too long", cap(lines.long))
	}
	if line, err = lines.Next(); err != nil || string(line.Text) != "b" || line.Number != 2 || line.Offset != length+1 {
		t.Errorf("the line behind: %+v, %v", line, err)
	}
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

func TestLinesReadError(t *testing.T) {
	broken := errors.New("disk on fire")
	lines := NewLines(io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(broken)), 0, 1, 100)
	if line, err := lines.Next(); err != nil || string(line.Text) != "a" {
		t.Fatalf("first line: %q, %v", line.Text, err)
	}
	if line, err := lines.Next(); !errors.Is(err, broken) {
		t.Errorf("a line that breaks off: %q, %v; want %v", line.Text, err, broken)
	}
}

func TestBlank(t *testing.T) {
	for _, c := range []struct {
		line Line
		want bool
	}{
		{Line{}, true},
		{Line{Text: []byte(" \t\r\v\f")}, true},
		{Line{Text: []byte("\u00a0\u2003")}, true},
		{Line{TooLong: true}, false},
		{Line{Text: []byte("\ufeff")}, false},
		{Line{Text: []byte("\x00")}, false},
		{Line{Text: []byte(" x ")}, false},
	} {
		if got := c.line.Blank(); got != c.want {
			t.Errorf("%+q: blank is %v, want %v", c.line.Text, got, c.want)
		}
	}
}

// What the parser cuts out of a line are the line's own bytes.
func TestParserCutsBytes(t *testing.T) {
	line := ` {"x":[1,{"a":2}], "custom_id" : "a\u0062" ,"method":"POST","url":"/v1/embeddings","body" :  {"model":"m","n":9007199254740993,"f":1.0,"f":2,"s":"<>&\ud800", "input" : ["a","b"] } , "z":null} `
	var p Parser
	for range 3 { // the parser is used again
		r, err := p.Request(Line{Number: 7, Text: []byte(line)})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(r.Body), `{"model":"m","n":9007199254740993,"f":1.0,"f":2,"s":"<>&\ud800", "input" : ["a","b"] }`; got != want {
			t.Errorf("body %s\nwant %s", got, want)
		}
		if got, want := string(r.CustomID), `"a\u0062"`; got != want {
			t.Errorf("custom_id %s, want %s", got, want)
		}
		f, err := p.parse([]byte(line))
		if got, want := string(f.input), `["a","b"]`; got != want || err != nil {
			t.Errorf("input %s, want %s", got, want)
		}
		if r.Line != 7 || r.Model != "m" {
			t.Errorf("line %d, model %q; want 7, m", r.Line, r.Model)
		}
	}
}

// The parser does not hold a large line until the next one comes.
func TestParserForgetsLargeLines(t *testing.T) {
	var p Parser
	line := []byte(request("a", chat, `{"model":"m","messages":["`+strings.Repeat("x", 2<<20)+`"]}`))
	r, err := p.Request(Line{Text: line})
	if err != nil || len(r.Body) < 2<<20 {
		t.Fatalf("body of %d bytes, %v", len(r.Body), err)
	}
	if p.s.raw != nil || p.s.dec != nil {
		t.Error("the parser still holds the line")
	}
}

func TestParserError(t *testing.T) {
	var p Parser
	_, err := p.Request(Line{Number: 7, Text: []byte("{")})
	if err == nil || !strings.HasPrefix(err.Error(), "line 7: ") {
		t.Errorf("got %v, want an error that names line 7", err)
	}
}

// Promise 8: a body reaches its upstream as it stands in the input, whatever is in it.
func TestBodyIsBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		object := drawObject(t, "body", [2]string{"model", `"m"`}, [2]string{"messages", `[]`})
		before, after := drawMembers(t, "before"), drawMembers(t, "after")
		members := join(t, append(append(before,
			`"custom_id":"a"`, `"method":"POST"`, `"url":"/v1/chat/completions"`,
			`"body"`+space(t)+":"+space(t)+object), after...))
		line := Line{Number: 3, Text: []byte(space(t) + "{" + members + "}" + space(t))}

		r, lane, lerr := NewChecker(Rules{Endpoint: chat}).Line(line)
		if lerr != nil {
			t.Fatalf("%s\nrefused: %v (%s)", line.Text, lerr, lerr.Detail)
		}
		if string(r.Body) != object {
			t.Fatalf("%s\n got %s\nwant %s", line.Text, r.Body, object)
		}
		if want := (Lane{"m", chat}); lane != want {
			t.Fatalf("lane %s, want %s", lane, want)
		}
		var p Parser
		if again, err := p.Request(line); err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%s\nparsed again: %+v, %v\nwant %+v", line.Text, again, err, r)
		}
	})
}

// The generators below make JSON text in every disguise that the grammar allows on one line.

func space(t *rapid.T) string {
	return rapid.StringOfN(rapid.SampledFrom([]rune(" \t\r")), 0, 2, -1).Draw(t, "space")
}

// drawString draws a string token: plain text, escapes of every kind, lone surrogates.
func drawString(t *rapid.T) string {
	pieces := rapid.SliceOfN(rapid.OneOf(
		rapid.SampledFrom([]string{"a", "<>&", "é", "東京", "🚀", " ", "{", "]", ":", ",", "'", "/", "\u2028", "\x7f", "\ufeff", "body"}),
		rapid.SampledFrom([]string{`\"`, `\\`, `\/`, `\b`, `\f`, `\n`, `\r`, `\t`, `\u0000`, `\u0061`, `\uD83D\uDE00`, `\ud800`, `\udc00`, `\uFFFF`}),
	), 0, 4).Draw(t, "string")
	return `"` + strings.Join(pieces, "") + `"`
}

func drawValue(t *rapid.T, depth int) string {
	kinds := 6
	if depth == 0 {
		kinds = 4
	}
	switch rapid.IntRange(1, kinds).Draw(t, "kind") {
	case 1:
		return rapid.SampledFrom([]string{"null", "true", "false"}).Draw(t, "literal")
	case 2, 3:
		return rapid.OneOf(
			rapid.StringMatching(`-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,5})?([eE][+-]?[0-9]{1,3})?`),
			rapid.Just("9007199254740993"), rapid.Just("-0"), rapid.Just("1.0"),
		).Draw(t, "number")
	case 4:
		return drawString(t)
	case 5:
		elements := make([]string, rapid.IntRange(0, 3).Draw(t, "elements"))
		for i := range elements {
			elements[i] = drawValue(t, depth-1)
		}
		return "[" + join(t, elements) + "]"
	}
	members := make([]string, rapid.IntRange(0, 3).Draw(t, "members"))
	for i := range members {
		members[i] = drawString(t) + space(t) + ":" + space(t) + drawValue(t, depth-1)
	}
	return "{" + join(t, members) + "}"
}

// drawMembers draws members of an object whose names mean nothing to this package, some of them twice.
func drawMembers(t *rapid.T, label string) []string {
	members := make([]string, rapid.IntRange(0, 3).Draw(t, label))
	for i := range members {
		name := rapid.SampledFrom([]string{`"x"`, `"x"`, `"Body"`, `"\u0078"`, `""`, `"body "`, `"custom-id"`, `"n"`}).Draw(t, "name")
		members[i] = name + space(t) + ":" + space(t) + drawValue(t, 3)
	}
	return members
}

// drawObject draws an object that has the given members among others.
func drawObject(t *rapid.T, label string, with ...[2]string) string {
	members := drawMembers(t, label)
	for _, m := range with {
		members = append(members, `"`+m[0]+`"`+space(t)+":"+space(t)+m[1])
	}
	return "{" + join(t, rapid.Permutation(members).Draw(t, "order")) + "}"
}

func join(t *rapid.T, parts []string) string {
	var s strings.Builder
	s.WriteString(space(t))
	for i, part := range parts {
		if i > 0 {
			s.WriteString("," + space(t))
		}
		s.WriteString(part + space(t))
	}
	return s.String()
}

// The generators are only worth something if they draw JSON.
func TestDrawObject(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		if text := drawObject(t, "object"); !json.Valid([]byte(text)) {
			t.Fatalf("no JSON: %s", text)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	line := []byte(`{"custom_id":"request-000001","method":"POST","url":"/v1/chat/completions","body":{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends every day with four."}],"max_tokens":1000}}`)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	c := NewChecker(Rules{Endpoint: chat})
	for b.Loop() {
		clear(c.seen)
		if _, _, err := c.Line(Line{Number: 1, Text: line}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestBodyModel finds the model where it stands in a body, and nothing that only looks like it.
func TestBodyModel(t *testing.T) {
	var p BodyParser
	for _, c := range []struct{ body, model, token string }{
		{`{"model":"m"}`, "m", `"m"`},
		{" {\n\"a\" : [{\"model\":\"x\"}] , \"model\" :\t\"m\" }", "m", `"m"`},
		{`{"model":"a","model":"\u0062"}`, "b", `"\u0062"`},
		{`{"mod\u0065l":"größe"}`, "größe", `"größe"`},
		{`{"model":""}`, "", `""`},
		{`{"model":null}`, "", ""},
		{`{"model":"m","model":7}`, "", ""},
		{`{"x":"model"}`, "", ""},
		{`{"model":"m"`, "", ""},
		{`["model"]`, "", ""},
	} {
		model, from, to, ok := p.Model([]byte(c.body))
		if model != c.model || ok != (c.token != "") || c.body[from:to] != c.token {
			t.Errorf("%s: got %q at %q, %v; want %q at %q", c.body, model, c.body[from:to], ok, c.model, c.token)
		}
	}
}

// What a body says of the length of its answer counts where it stands on its own, for all answers that are
// asked for.
func TestMostTokens(t *testing.T) {
	var p BodyParser
	for body, want := range map[string]int64{
		`{"model":"m"}`:      0,
		`{"max_tokens":100}`: 100,
		`{"max_completion_tokens" : 7,"max_tokens":5}`:   7,
		`{"max_output_tokens":12}`:                       12,
		`{"max_tokens":100,"n":8}`:                       800,
		`{"n":null,"max_tokens":100}`:                    100,
		`{"max_tokens":10,"n":2,"best_of":4}`:            40,
		`{"max_tokens":10,"n":2,"prompt":["a","b","c"]}`: 60,
		`{"max_tokens":10,"prompt":[1,2,3]}`:             10,
		`{"max_tokens":10,"prompt":[]}`:                  10,
		`{"max_tokens":10,"prompt":[[1,2],[3]]}`:         20,
		`{"max_tokens":400,"metadata":{"max_tokens":1}}`: 400,
		`{"metadata":{"max_tokens":1}}`:                  0,
		`{"messages":[{"content":"\"max_tokens\":3"}]}`:  0,
		`{"max_tokens":null}`:                            0,
		`{"max_tokens":"100"}`:                           0,
		`{"max_tokens":1e2}`:                             100,
		`{"max_tokens":-5}`:                              0,
		`{"max_tokens":1e300}`:                           0,
		`{"max_\u0074okens":9,"max_tokens":3}`:           9,
		`{"max_tokens":3`:                                0,
	} {
		if got := p.MostTokens([]byte(body)); got != want {
			t.Errorf("%s: %d, want %d", body, got, want)
		}
	}
}
