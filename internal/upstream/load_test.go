package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseLoad(t *testing.T) {
	const vllm = `# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta/llama"} 12.0
vllm:num_requests_running{engine="1",model_name="meta/llama"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="meta/llama"} 4.0
vllm:num_requests_waiting{engine="1",model_name="meta/llama"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="meta/llama",reason="capacity"} 4.0
vllm:e2e_request_latency_seconds_bucket{le="+Inf",model_name="meta/llama"} 5.0
`
	for _, c := range []struct {
		name, text       string
		running, waiting int
		found            bool
	}{
		{"vLLM", vllm, 15, 4, true},
		{"vLLM of before, with swapped ones", "vllm:num_requests_running{model_name=\"m\"} 2\nvllm:num_requests_swapped{model_name=\"m\"} 3\nvllm:num_requests_waiting{model_name=\"m\"} 1\n", 2, 4, true},
		{"SGLang", "sglang:num_running_reqs{model_name=\"m\"} 162\nsglang:num_queue_reqs{model_name=\"m\"} 2826\n", 162, 2826, true},
		{"SGLang, ranks that work on the same", `sglang:num_running_reqs{model_name="m",engine_type="unified",tp_rank="0",pp_rank="0"} 5
sglang:num_running_reqs{model_name="m",engine_type="unified",tp_rank="1",pp_rank="0"} 5
sglang:num_queue_reqs{model_name="m",engine_type="unified",tp_rank="0",pp_rank="0"} 2
sglang:num_queue_reqs{model_name="m",engine_type="unified",tp_rank="1",pp_rank="0"} 2
`, 5, 2, true},
		{"SGLang, ranks that share the work", `sglang:num_running_reqs{model_name="m",dp_rank="0",tp_rank="0"} 5
sglang:num_running_reqs{model_name="m",dp_rank="1",tp_rank="1"} 6
`, 11, 0, true},
		{"SGLang, with priorities", `sglang:num_running_reqs{model_name="m",priority=""} 5
sglang:num_running_reqs{model_name="m",priority="1"} 3
sglang:num_running_reqs{model_name="m",priority="2"} 2
`, 5, 0, true},
		{"llama.cpp", "llamacpp:requests_processing 3\nllamacpp:requests_deferred 1\n", 3, 1, true},
		{"a timestamp", "vllm:num_requests_running 3 1700000000000\n", 3, 0, true},
		{"odd labels", `vllm:num_requests_running{ a="}, \"x\" \\" , b = "" ,} 3` + "\n", 3, 0, true},
		{"tabs and a carriage return", "vllm:num_requests_running{a=\"b\"}\t3\r\n", 3, 0, true},
		{"no line break at the end", "vllm:num_requests_running 3", 3, 0, true},
		{"exponents", "vllm:num_requests_running 1.2e+01\n", 12, 0, true},
		{"behind a very long line", "x " + strings.Repeat("y", 100_000) + "\nvllm:num_requests_running 3\n", 3, 0, true},
		{"idle", "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n", 0, 0, true},
		{"no number", "vllm:num_requests_running NaN\n", 0, 0, false},
		{"less than nothing", "vllm:num_requests_running -1\n", 0, 0, false},
		{"beyond all bounds", "vllm:num_requests_running +Inf\n", 1 << 30, 0, true},
		{"only those that wait", "vllm:num_requests_waiting 3\n", 0, 3, false},
		{"other names", "vllm:num_requests_running_total 3\nnum_requests_running 4\nprefix_vllm:num_requests_running 5\n", 0, 0, false},
		{"a comment", "# vllm:num_requests_running 3\n", 0, 0, false},
		{"labels without end", "vllm:num_requests_running{a=\"b 3\n", 0, 0, false},
		{"no value", "vllm:num_requests_running{a=\"b\"}\n", 0, 0, false},
		{"HTML", "<html>\nvllm</html>", 0, 0, false},
		{"nothing", "", 0, 0, false},
	} {
		l, found, err := parseLoad(strings.NewReader(c.text))
		if err != nil || found != c.found || found && (l.Running != c.running || l.Waiting != c.waiting) {
			t.Errorf("%s: got %+v, found %v, %v; want %d running, %d waiting, found %v", c.name, l, found, err, c.running, c.waiting, c.found)
		}
	}
}

func FuzzParseLoad(f *testing.F) {
	f.Add("vllm:num_requests_running{a=\"b\",tp_rank=\"0\"} 3 4\nsglang:num_queue_reqs 2\n")
	f.Fuzz(func(t *testing.T, text string) {
		if l, _, err := parseLoad(strings.NewReader(text)); err != nil || l.Running < 0 || l.Waiting < 0 {
			t.Errorf("%q: %+v, %v", text, l, err)
		}
	})
}

// Metrics stand beside the API, or where the configuration says, and strangers get no key.
func TestMetricsURL(t *testing.T) {
	for _, c := range []struct{ url, metrics, want string }{
		{"http://host:8000/v1", "", "http://host:8000/metrics"},
		{"http://host:8000", "", "http://host:8000/metrics"},
		{"http://host/openai/v1", "", "http://host/openai/metrics"},
		{"http://host/v1", "http://host:9000/m?x=1", "http://host:9000/m?x=1"},
		{"http://host/v1", "none", ""},
	} {
		u := newUpstream(t, c.url, func(cfg *Config) { cfg.MetricsURL = c.metrics })
		got := ""
		if u.metrics != nil {
			got = u.metrics.String()
		}
		if got != c.want {
			t.Errorf("%s, %q: metrics at %q, want %q", c.url, c.metrics, got, c.want)
		}
	}
	keys := make(chan string, 1)
	metrics := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		keys <- r.Header.Get("Authorization")
		io.WriteString(w, "vllm:num_requests_running 1\n")
	})
	elsewhere := httptest.NewServer(metrics)
	defer elsewhere.Close()
	own := serve(t, metrics)
	if err := own.readLoad(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-keys; got != "Bearer "+testKey {
		t.Errorf("beside its API it is asked with %q, want the key", got)
	}
	other := serve(t, metrics, func(c *Config) { c.MetricsURL = elsewhere.URL })
	if err := other.readLoad(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-keys; got != "" {
		t.Errorf("elsewhere it is asked with %q, want no key", got)
	}
}

// A meter is an upstream with metrics that a test sets, in made-up time. Its calls hang until they
// are given up.
type meter struct {
	status int
	text   string
	delay  time.Duration
	asked  []time.Duration
}

func (m *meter) upstream(t testing.TB, change ...func(*Config)) *Upstream {
	start := time.Now()
	return newUpstream(t, "http://host", append(change, func(c *Config) {
		c.Models = []string{"m"}
		c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Method == "POST" {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			m.asked = append(m.asked, time.Since(start))
			select {
			case <-time.After(m.delay):
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
			if m.status == 0 {
				return nil, fmt.Errorf("away")
			}
			return &http.Response{StatusCode: m.status, Body: io.NopCloser(strings.NewReader(m.text))}, nil
		})
	})...)
}

func TestLoadIsFollowed(t *testing.T) {
	const text = "vllm:num_requests_running 3\nvllm:num_requests_waiting 2\n"
	run := func(name string, m *meter, shared bool, test func(t *testing.T, u *Upstream, p *Pool)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := m.upstream(t, func(c *Config) { c.Shared, c.Timeout = shared, time.Hour })
				p := NewPool(u)
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { p.Run(ctx); close(done) }()
				synctest.Wait()
				test(t, u, p)
				stop()
				<-done
			})
		})
	}
	// call keeps one call in flight for so long.
	call := func(t *testing.T, u *Upstream, d time.Duration) {
		ctx, stop := context.WithTimeout(t.Context(), d)
		defer stop()
		u.NewCaller().Call(ctx, chat, []byte(`{}`))
		synctest.Wait()
	}
	m := &meter{status: 200, text: text}
	run("while there are calls", m, false, func(t *testing.T, u *Upstream, p *Pool) {
		time.Sleep(time.Hour)
		if len(m.asked) > 0 {
			t.Errorf("asked %d times for nobody", len(m.asked))
		}
		observed := p.Observed()
		call(t, u, 10500*time.Millisecond)
		if n := len(m.asked); n != 11 {
			t.Errorf("asked %d times in 10.5 s, want 11", n)
		}
		select {
		case <-observed:
		default:
			t.Error("nobody is told of the reading")
		}
		if l, ok := u.Load(); !ok || l.Running != 3 || l.Waiting != 2 || time.Since(l.At) > time.Second {
			t.Errorf("got %+v, %v", l, ok)
		}
		n := len(m.asked)
		time.Sleep(time.Hour) // it was looked at, which counts for a while
		synctest.Wait()
		if more := len(m.asked) - n; more > 6 {
			t.Errorf("asked %d times in the hour after", more)
		}
		if l, ok := u.Load(); ok {
			t.Errorf("an hour later %+v still counts", l)
		}
	})
	m = &meter{status: 200, text: text}
	run("shared", m, true, func(t *testing.T, u *Upstream, p *Pool) {
		call(t, u, 9900*time.Millisecond)
		if n := len(m.asked); n != 40 {
			t.Errorf("asked %d times in 9.9 s, want 40", n)
		}
	})
	m = &meter{status: 200, text: text}
	run("while somebody looks", m, false, func(t *testing.T, u *Upstream, p *Pool) {
		for range 100 {
			u.Load()
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := len(m.asked); n < 95 || n > 101 {
			t.Errorf("asked %d times in 100 s, want 100", n)
		}
	})
	for name, m := range map[string]*meter{
		"none":     {status: 404},
		"no page":  {status: 200, text: "<html>"},
		"not ours": {status: 401},
	} {
		run(name, m, false, func(t *testing.T, u *Upstream, p *Pool) {
			call(t, u, 10*time.Minute-time.Second)
			if n := len(m.asked); n != 10 {
				t.Errorf("asked %d times in 10 minutes, want once a minute", n)
			}
			if l, ok := u.Load(); ok {
				t.Errorf("got %+v", l)
			}
		})
	}
	for name, m := range map[string]*meter{"away": {}, "busy": {status: 503}} {
		run(name, m, false, func(t *testing.T, u *Upstream, p *Pool) {
			call(t, u, time.Minute-time.Second)
			if n := len(m.asked); n != 12 {
				t.Errorf("asked %d times in a minute, want every 5 s", n)
			}
		})
	}
	m = &meter{status: 200, text: text, delay: time.Hour}
	run("hangs", m, false, func(t *testing.T, u *Upstream, p *Pool) {
		call(t, u, time.Minute-time.Second)
		if n := len(m.asked); n != 10 {
			t.Errorf("asked %d times in a minute, want a second's try every 6 s", n)
		}
		m.delay = 0
		call(t, u, 20*time.Second)
		if _, ok := u.Load(); !ok {
			t.Error("no reading though it answers again")
		}
	})
}
