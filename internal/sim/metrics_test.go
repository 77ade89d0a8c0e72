package sim

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(Config{
			Models:       []Model{{ID: "m"}, {ID: `a"b`}},
			Slots:        2,
			MedianTokens: 10, P99Tokens: 10,
			PrefixCache: 10,
			Timing:      Timing{Latency: time.Second},
		})
		c.send(t.Context(), prompt(0))
		time.Sleep(500 * time.Millisecond)
		for i := range 4 {
			c.send(t.Context(), prompt(i))
		}
		time.Sleep(600 * time.Millisecond)

		_, text := get(c.server, "/metrics")
		for _, want := range []string{
			"# TYPE vllm:num_requests_running gauge",
			`vllm:num_requests_running{engine="0",model_name="m"} 2`,
			`vllm:num_requests_waiting{engine="0",model_name="m"} 2`,
			`vllm:num_requests_waiting{engine="0",model_name="a\"b"} 0`,
			`vllm:kv_cache_usage_perc{engine="0",model_name="m"} 1`,
			`vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 1`,
			"# TYPE vllm:prompt_tokens_total counter",
			`vllm:prompt_tokens_total{engine="0",model_name="m"} 7`,
			`vllm:generation_tokens_total{engine="0",model_name="m"} 10`,
			`vllm:prefix_cache_queries_total{engine="0",model_name="m"} 21`,
			`vllm:prefix_cache_hits_total{engine="0",model_name="m"} 0`,
		} {
			if !strings.Contains(text, want+"\n") {
				t.Errorf("metrics lack %q:\n%s", want, text)
			}
		}
		c.wg.Wait()
	})
}

func TestNoMetrics(t *testing.T) {
	if status, _ := get(New(Config{NoMetrics: true}), "/metrics"); status != 404 {
		t.Errorf("GET /metrics is answered %d, want 404", status)
	}
}
