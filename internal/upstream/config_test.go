package upstream

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestConfigErrors(t *testing.T) {
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Name = "a\nb" }, "name has a control character in it"},
		{func(c *Config) { c.Weight = -1 }, "upstream gpu: weight is -1, want at least 1"},
		{func(c *Config) { c.RequestsPerMinute = -1 }, "upstream gpu: requests_per_minute is -1, want at least 1"},
		{func(c *Config) { c.TokensPerMinute = -1 }, "upstream gpu: tokens_per_minute is -1, want at least 1"},
		{func(c *Config) { c.Connect = -time.Second }, "upstream gpu: timeouts: connect is -1s, want more than 0"},
		{func(c *Config) { c.FirstByte = -time.Second }, "upstream gpu: timeouts: first_byte is -1s"},
		{func(c *Config) { c.BetweenBytes = -time.Second }, "upstream gpu: timeouts: between_bytes is -1s"},
		{func(c *Config) { c.Timeout = -time.Second }, "upstream gpu: timeouts: total is -1s"},
		{func(c *Config) { c.Aliases = map[string]string{"": "m"} }, `upstream gpu: aliases: "" stands for "m"; neither may be empty`},
		{func(c *Config) { c.Aliases = map[string]string{"m": ""} }, `upstream gpu: aliases: "m" stands for ""; neither may be empty`},
		{func(c *Config) { c.Headers = map[string]string{"X Y": "z"} }, `upstream gpu: headers: "X Y" is no name of a header`},
		{func(c *Config) { c.Headers = map[string]string{"": "z"} }, `upstream gpu: headers: "" is no name of a header`},
		{func(c *Config) { c.Headers = map[string]string{"Größe": "z"} }, `is no name of a header`},
		{func(c *Config) { c.Headers = map[string]string{"host": "z"} }, `upstream gpu: headers: Host cannot be set`},
		{func(c *Config) { c.Headers = map[string]string{"content-length": "1"} }, `upstream gpu: headers: Content-Length cannot be set`},
		{func(c *Config) { c.Headers = map[string]string{"X-A": "1", "x-a": "2"} }, `upstream gpu: headers: X-A is set twice`},
		{func(c *Config) { c.Headers = map[string]string{"X-A": testKey + "\r\nX-Evil: 1"} }, `upstream gpu: headers: X-A has a control character in it`},
		{func(c *Config) { c.Key, c.Headers = testKey, map[string]string{"authorization": testKey} }, `upstream gpu: headers: Authorization is set, and so is its key`},
		{func(c *Config) { c.MetricsURL = "/metrics" }, `upstream gpu: metrics_url is "/metrics"; want a URL like`},
		{func(c *Config) { c.MetricsURL = "http://" + testKey + "@host/metrics" }, `upstream gpu: metrics_url has a user or password in it`},
		{func(c *Config) { c.MetricsURL = "http://ho st/metrics" }, `upstream gpu: metrics_url: invalid character`},
		{func(c *Config) { c.URL = "ftp://host" }, `upstream gpu: the URL is "ftp://host"`},
	} {
		config := Config{Name: "gpu", URL: "http://host"}
		c.change(&config)
		_, err := New(config)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %s", config, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), testKey) {
			t.Errorf("the key is in the error: %v", err)
		}
	}
}

// Headers go with every call, and what is secret in them stays so.
func TestHeaders(t *testing.T) {
	const secret = "another-secret-0123"
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for name, want := range map[string]string{
			"Authorization": "Basic " + testKey, "Api-Key": secret, "User-Agent": "ours/1", "X-Empty": "",
			"Content-Type": "application/json", "Accept": "application/json",
		} {
			if got, ok := r.Header[name]; !ok && !(r.Method == "GET" && name == "Content-Type") || ok && got[0] != want {
				t.Errorf("%s: header %s is %q, want %q", r.Method, name, got, want)
			}
		}
		w.WriteHeader(400)
		io.WriteString(w, `{"error":{"message":"`+testKey+` and `+secret+` are wrong for ours/1"}}`)
	}, func(c *Config) {
		c.Key = ""
		c.Headers = map[string]string{"authorization": "Basic " + testKey, "api-key": " " + secret + "\n", "user-agent": "ours/1", "X-Empty": ""}
	})
	a := u.NewCaller().Call(t.Context(), chat, []byte(`{}`))
	want{class: Permanent, status: 400, err: "HTTP 400: (key) and (key) are wrong for ours/1"}.check(t, a)
	if _, _, err := u.list(t.Context()); err == nil || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), testKey) {
		t.Errorf("list: %v", err)
	}
}

// What an upstream is called is up to whoever configures it.
func TestName(t *testing.T) {
	for _, c := range []struct{ name, want string }{{"", "http://host/v1"}, {" gpu 1 ", "gpu 1"}} {
		u := newUpstream(t, "http://host/", func(cfg *Config) { cfg.Name = c.name })
		if u.Name() != c.want || u.State().Name != c.want || u.State().URL != "http://host/v1" {
			t.Errorf("%q: name %q, state %+v", c.name, u.Name(), u.State())
		}
	}
}

// State tells what is configured and found, and nothing secret.
func TestState(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			io.WriteString(w, "vllm:num_requests_running 3\nvllm:num_requests_waiting 2\n")
			return
		}
		io.WriteString(w, list("a", "b"))
	}, func(c *Config) {
		c.Aliases = map[string]string{"x": "a", "y": "gone"}
		c.Weight, c.MaxInFlight, c.Shared = 3, 40, true
		c.Limits = Limits{RequestsPerMinute: 60, TokensPerMinute: 1000}
	})
	unlisted, err := u.Look(t.Context())
	if err != nil || len(unlisted) != 1 || unlisted[0] != "gone" {
		t.Errorf("unlisted %v, %v; want gone", unlisted, err)
	}
	s := u.State()
	if strings.Join(s.Models, " ") != "a b x" || s.AnyModel || s.ModelsUnread || !s.Healthy || s.Why != "" {
		t.Errorf("found %+v", s)
	}
	if s.Weight != 3 || s.Max != 40 || !s.Shared || s.RequestsPerMinute != 60 || s.TokensPerMinute != 1000 {
		t.Errorf("configured %+v", s)
	}
	if !s.Observed || s.Running != 3 || s.Waiting != 2 {
		t.Errorf("load %+v", s)
	}

	away := newUpstream(t, "http://"+nobody(t))
	if _, err := away.Look(t.Context()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody there: %v", err)
	}
	if s := away.State(); s.Healthy || s.Since.IsZero() || !strings.Contains(s.Why, "connection refused") || !s.ModelsUnread || s.Observed {
		t.Errorf("nobody there: %+v", s)
	}
}
