package sim

import (
	"net/http"
	"strconv"
)

// all returns every model, the one that serves any name among them.
func (s *Server) all() []*model {
	models := make([]*model, 0, len(s.cfg.Models)+1)
	if s.any != nil {
		models = append(models, s.any)
	}
	for _, m := range s.cfg.Models {
		models = append(models, s.models[m.ID])
	}
	return models
}

// Load returns how many calls are worked on and how many wait for a slot, all models together.
func (s *Server) Load() (running, waiting int) {
	for _, m := range s.all() {
		running += int(m.running.Load())
		waiting += int(m.waiting.Load())
	}
	return running, waiting
}

// PrefixTokens returns how many tokens of prompts were looked up in the prefix cache, and found.
func (s *Server) PrefixTokens() (asked, found uint64) {
	for _, m := range s.all() {
		asked += m.cacheQueries.Load()
		found += m.cacheHitTokens.Load()
	}
	return asked, found
}

// writeMetrics answers GET /metrics in Prometheus' text format, under vLLM's names. The use of the
// KV cache is the share of slots that are busy.
func (s *Server) writeMetrics(w http.ResponseWriter, r *http.Request) {
	if s.cfg.NoMetrics {
		s.refuse(w, &refusal{status: http.StatusNotFound, msg: "this server has no metrics"})
		return
	}
	models := s.all()
	cacheUsage := func(m *model) float64 { return float64(m.running.Load()) / float64(s.cfg.Slots) }

	var b []byte
	for _, metric := range []struct {
		name, kind, help string
		value            func(*model) float64
	}{
		{"vllm:num_requests_running", "gauge", "Number of requests in model execution batches.",
			func(m *model) float64 { return float64(m.running.Load()) }},
		{"vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.",
			func(m *model) float64 { return float64(m.waiting.Load()) }},
		{"vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", cacheUsage},
		{"vllm:gpu_cache_usage_perc", "gauge", "KV-cache usage, by its older name.", cacheUsage},
		{"vllm:prefix_cache_queries_total", "counter", "Prefix cache queries, in terms of number of queried tokens.",
			func(m *model) float64 { return float64(m.cacheQueries.Load()) }},
		{"vllm:prefix_cache_hits_total", "counter", "Prefix cache hits, in terms of number of cached tokens.",
			func(m *model) float64 { return float64(m.cacheHitTokens.Load()) }},
		{"vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed.",
			func(m *model) float64 { return float64(m.promptTokens.Load()) }},
		{"vllm:generation_tokens_total", "counter", "Number of generation tokens processed.",
			func(m *model) float64 { return float64(m.outputTokens.Load()) }},
	} {
		b = append(b, "# HELP "+metric.name+" "+metric.help+"\n# TYPE "+metric.name+" "+metric.kind+"\n"...)
		for _, m := range models {
			b = append(b, metric.name+`{engine="0",model_name=`...)
			b = append(appendLabel(b, m.id), "} "...)
			b = strconv.AppendFloat(b, metric.value(m), 'f', -1, 64)
			b = append(b, '\n')
		}
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Write(b)
}

// appendLabel appends the value of a label, with the three escapes that the format has.
func appendLabel(b []byte, value string) []byte {
	b = append(b, '"')
	for i := range len(value) {
		switch c := value[i]; c {
		case '\\', '"':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
