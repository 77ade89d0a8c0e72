package upstream

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// A request for an alias goes out under the upstream's own name of the model, and with every other
// byte as it was.
func TestAliasedBodies(t *testing.T) {
	long := `[{"role":"user","content":"` + strings.Repeat(`\"model\": \"fast\" `, 200_000) + `"}]`
	var got string
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = string(body)
		if r.ContentLength != int64(len(body)) {
			t.Errorf("Content-Length %d of %d bytes", r.ContentLength, len(body))
		}
		io.WriteString(w, `{}`)
	}, func(c *Config) {
		c.Aliases = map[string]string{"fast": "meta/llama-8b", "größe": `a"b\c`, "tab\there": "x", "self": "self", "m": "much-longer-name", "meta/llama-8b": "y"}
	})
	c := u.NewCaller()
	for _, b := range []struct{ body, want string }{
		{`{"model":"fast"}`, `{"model":"meta/llama-8b"}`},
		{`{ "model" :  "fast" , "n":1.0 }`, `{ "model" :  "meta/llama-8b" , "n":1.0 }`},
		{"{\"messages\":" + long + ",\n\"model\":\"fast\"}", "{\"messages\":" + long + ",\n\"model\":\"meta/llama-8b\"}"},
		{`{"model":"f\u0061st","x":"f\u0061st"}`, `{"model":"meta/llama-8b","x":"f\u0061st"}`},
		{`{"mo\u0064el":"fast"}`, `{"mo\u0064el":"meta/llama-8b"}`},
		{`{"model":"größe"}`, `{"model":"a\"b\\c"}`},
		{`{"model":"gr\u00f6\u00dfe"}`, `{"model":"a\"b\\c"}`},
		{`{"model":"tab\there"}`, `{"model":"x"}`},
		{`{"model":"self"}`, `{"model":"self"}`},
		{`{"model":"fast","model":"other"}`, `{"model":"fast","model":"other"}`},
		{`{"model":"other","model":"fast"}`, `{"model":"other","model":"meta/llama-8b"}`},
		{`{"model":"fast","x":{"model":"m"},"y":[{"model":"fast"}]}`, `{"model":"meta/llama-8b","x":{"model":"m"},"y":[{"model":"fast"}]}`},
		{`{"x":"model","model":"fast","m":"fast"}`, `{"x":"model","model":"meta/llama-8b","m":"fast"}`},
		{`{"model":"Fast"}`, `{"model":"Fast"}`},
		{`{"model":"other"}`, `{"model":"other"}`},
		{`{"model":7}`, `{"model":7}`},
		{`{"model":"fast","model":null}`, `{"model":"fast","model":null}`},
		{`{}`, `{}`},
		{`[`, `[`},
	} {
		want{class: OK, status: 200}.check(t, c.Call(t.Context(), chat, []byte(b.body)))
		if got != b.want {
			t.Errorf("%.100s\n got %.100s\nwant %.100s", b.body, got, b.want)
		}
	}
}

// Whatever a body looks like: what is sent differs from it in the model, and nowhere else.
func TestAliasedBodiesAreBytes(t *testing.T) {
	u := newUpstream(t, "http://host", func(c *Config) { c.Aliases = map[string]string{"alias": "own"} })
	rapid.Check(t, func(t *rapid.T) {
		space := rapid.StringMatching(`[ \t\n\r]{0,3}`)
		value := rapid.SampledFrom([]string{`1e2`, `"alias"`, `{"model":"alias"}`, `[ "model" , "alias"]`, `"\ud800\"model\":\"alias\""`, `null`, `"ä€🚀"`})
		name := rapid.SampledFrom([]string{"model", "mod", "messages", `mod\u0065l`, "alias", "ä"})
		model := rapid.SampledFrom([]string{`"alias"`, `"al\u0069as"`, `"none"`})
		var before, after, last string
		n := rapid.IntRange(0, 5).Draw(t, "members")
		end := ""
		for i := range n {
			sep := ","
			if i == 0 {
				sep = "{"
			}
			k := name.Draw(t, "name")
			v := value.Draw(t, "value")
			isModel := k == "model" || k == `mod\u0065l`
			if isModel {
				v = model.Draw(t, "model")
			}
			head := sep + space.Draw(t, "space") + `"` + k + `"` + space.Draw(t, "space") + ":" + space.Draw(t, "space")
			if isModel {
				before, last, after = before+last+after+head, v, ""
			} else {
				after += head + v
			}
			after += space.Draw(t, "space")
			end = "}"
		}
		if n == 0 {
			after, end = "{", "}"
		}
		body := before + last + after + end
		want := body
		if last == `"alias"` || last == `"al\u0069as"` {
			want = before + `"own"` + after + end
		}
		parts := u.NewCaller().renamed([]byte(body))
		got, _ := io.ReadAll(open(parts))
		if string(got) != want || lengthOf(parts) != len(want) {
			t.Fatalf("%s\n got %s (%d bytes)\nwant %s", body, got, lengthOf(parts), want)
		}
	})
}

// An alias is served where the model is that it stands for.
func TestAliasServes(t *testing.T) {
	aliases := func(c *Config) { c.Aliases = map[string]string{"alias": "a", "dangling": "none", "b": "a"} }
	for _, c := range []struct {
		name   string
		status int
		body   string
		models []string
		serves string // of the names below
		listed string
	}{
		{"listed", 200, list("a", "b"), nil, "a b alias", "a alias b"},
		{"not listed", 200, list("b"), nil, "", ""}, // b stands for a now
		{"no list", 404, "", nil, "a b alias dangling other", "alias b dangling"},
		{"configured", 0, "", []string{"b"}, "b alias dangling", "alias b dangling"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			}, aliases, func(cfg *Config) { cfg.Models = c.models })
			u.refresh(t.Context())
			var serves []string
			for _, model := range []string{"a", "b", "alias", "dangling", "other"} {
				if ok, certain := u.Serves(model); ok {
					serves = append(serves, model)
				} else if !certain {
					t.Errorf("%s: not certain", model)
				}
			}
			if got := strings.Join(serves, " "); got != c.serves {
				t.Errorf("serves %q, want %q", got, c.serves)
			}
			if got := NewPool(u).ids(); got != c.listed {
				t.Errorf("lists %q, want %q", got, c.listed)
			}
			if got := strings.Join(u.State().Models, " "); got != c.listed {
				t.Errorf("state has %q, want %q", got, c.listed)
			}
		})
	}
}

// Two upstreams may have one model under two names; in front they are one.
func TestAliasUnites(t *testing.T) {
	a := newUpstream(t, "http://a", func(c *Config) { c.Models = []string{"llama"} })
	b := newUpstream(t, "http://b", func(c *Config) {
		c.Models, c.Aliases = []string{"meta/llama"}, map[string]string{"llama": "meta/llama"}
	})
	for _, u := range []*Upstream{a, b} {
		if ok, _ := u.Serves("llama"); !ok {
			t.Errorf("%s does not serve llama", u.Name())
		}
	}
	if got, want := NewPool(a, b).ids(), "llama meta/llama"; got != want {
		t.Errorf("models %q, want %q", got, want)
	}
}

func BenchmarkAliasedCall(b *testing.B) {
	u := newUpstream(b, "http://host", func(c *Config) { c.Aliases = map[string]string{"alias": "own"} })
	c := u.NewCaller()
	for _, size := range []int{300, 100_000} {
		body := []byte(fmt.Sprintf(`{"messages":%q,"model":"alias"}`, strings.Repeat("x", size)))
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if n := lengthOf(c.renamed(body)); n != len(body)-2 {
					b.Fatal(n)
				}
			}
		})
	}
}
