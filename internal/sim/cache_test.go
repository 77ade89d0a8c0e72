package sim

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPrefixCache(t *testing.T) {
	p := newPrefixCache(4)
	visit := func(model, text string) int {
		t.Helper()
		hits := p.visit(p.chain(nil, []byte(model), []byte(text)))
		if len(p.blocks) != p.recent.Len() || len(p.blocks) > 4 {
			t.Fatalf("%d blocks, %d in order, with a limit of 4", len(p.blocks), p.recent.Len())
		}
		return hits
	}
	block := func(c string) string { return strings.Repeat(c, blockBytes) }
	a, b, c := block("a"), block("b"), block("c")

	for _, step := range []struct {
		model, text string
		want        int
	}{
		{"m", a + b + "tail", 0},
		{"m", a + b + "other tail", 2},
		{"m", a + c, 1},
		{"m", b, 0}, // known after a, not at the beginning
		{"n", a, 0}, // the fifth: the least recently used goes, which is b after a
		{"m", a + b, 1},
		{"m", strings.Repeat(a, 9), 1}, // no more blocks than the cache has
		{"m", strings.Repeat(a, 9), 4},
		{"m", "short", 0},
	} {
		if got := visit(step.model, step.text); got != step.want {
			t.Errorf("%s %.1s…%d: %d blocks hit, want %d", step.model, step.text, len(step.text), got, step.want)
		}
	}
}

// What is cached costs no prefill, and is reported if that is asked for.
func TestPrefixCacheSavesPrefill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{PrefixCache: 1000, ReportCached: true, Timing: Timing{Prefill: time.Second}})
		system := strings.Repeat("You are a careful annotator. ", 200)
		ask := func(question string) (prompt, cached float64, took time.Duration) {
			start := time.Now()
			_, text := post(s, "/v1/chat/completions", fmt.Sprintf(
				`{"model":"m","messages":[{"role":"system","content":%q},{"role":"user","content":%q}]}`, system, question))
			usage := at(t, parse(t, text), "usage")
			prompt, _ = at(t, usage, "prompt_tokens").(float64)
			cached, _ = at(t, usage, "prompt_tokens_details", "cached_tokens").(float64)
			return prompt, cached, time.Since(start)
		}

		prompt, cached, took := ask("One?")
		if cached != 0 || took != time.Duration(prompt)*time.Millisecond {
			t.Errorf("first: %v of %v tokens cached, took %v", cached, prompt, took)
		}
		prompt, cached, took = ask("Two?")
		if cached < prompt-3*blockTokens || cached >= prompt || int(cached)%blockTokens != 0 {
			t.Errorf("second: %v of %v tokens cached", cached, prompt)
		}
		if want := time.Duration(prompt-cached) * time.Millisecond; took != want {
			t.Errorf("second took %v, want %v", took, want)
		}
	})
}
