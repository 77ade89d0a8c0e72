package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"offpeak/internal/upstream"
)

// TestUpstreamSettings reads every setting of an upstream as the documentation writes it.
func TestUpstreamSettings(t *testing.T) {
	const text = `
upstreams:
  - name: gpu
    url: https://gpu-1:8443/v1
    key_env: GPU_KEY
    headers: {X-Team: batch}
    headers_env: {X-Secret: TEAM_SECRET}
    models: [a, meta-llama/Llama-3.1-8B]
    aliases: {fast: a, "meta/llama": meta-llama/Llama-3.1-8B}
    weight: 2
    max_in_flight: 128
    requests_per_minute: 600_000
    tokens_per_minute: 90000
    shared: true
    timeouts: {connect: 5s, first_byte: 10m, between_bytes: 90s, total: 2h}
    tls: {server_name: gpu.internal, insecure_skip_verify: true}
    metrics_url: http://gpu-1:9000/metrics
  - url: http://plain:8000/v1
    max_in_flight: auto
  - url: http://plain-2:8000/v1
    headers: {authorization: Basic eA}
`
	c := &configFile{}
	if err := c.parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"GPU_KEY": "k1", "TEAM_SECRET": "k2", "OFFPEAK_UPSTREAM_KEY": "k3"}
	f := &engineFlags{MaxInFlight: 7, Timeout: time.Hour, MaxAnswer: 1 << 20}
	got, err := f.upstreams(c, func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	want := []upstream.Config{
		{
			Name: "gpu", URL: "https://gpu-1:8443/v1", Key: "k1", Headers: map[string]string{"X-Team": "batch", "X-Secret": "k2"},
			Models: []string{"a", "meta-llama/Llama-3.1-8B"}, Aliases: map[string]string{"fast": "a", "meta/llama": "meta-llama/Llama-3.1-8B"},
			Weight: 2, MaxInFlight: 128, Limits: upstream.Limits{RequestsPerMinute: 600_000, TokensPerMinute: 90000}, Shared: true,
			Connect: 5 * time.Second, FirstByte: 10 * time.Minute, BetweenBytes: 90 * time.Second, Timeout: 2 * time.Hour,
			TLS:       upstream.TLS{ServerName: "gpu.internal", InsecureSkipVerify: true},
			MaxAnswer: 1 << 20, MetricsURL: "http://gpu-1:9000/metrics",
		},
		{URL: "http://plain:8000/v1", Key: "k3", MaxInFlight: 0, Timeout: time.Hour, MaxAnswer: 1 << 20},
		{URL: "http://plain-2:8000/v1", Headers: map[string]string{"authorization": "Basic eA"}, MaxInFlight: 7, Timeout: time.Hour, MaxAnswer: 1 << 20},
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("upstream %d\n got %+v\nwant %+v", i+1, got[i], want[i])
		}
	}

	// Those of the flags, by URL or by name, with what the file says of them.
	f.Upstream = []string{"gpu", "http://plain:8000/v1/", "http://new/v1"}
	got, err = f.upstreams(c, func(name string) string { return env[name] })
	if err != nil || len(got) != 3 || got[0].Name != "gpu" || got[0].Weight != 2 || got[1].MaxInFlight != 0 || got[2].MaxInFlight != 7 || got[2].URL != "http://new/v1" {
		t.Errorf("got %+v, %v", got, err)
	}
	delete(env, "TEAM_SECRET")
	if _, err := f.upstreams(c, func(name string) string { return env[name] }); err == nil || err.Error() != "upstream gpu: its header X-Secret is to be in the environment variable TEAM_SECRET, which is empty" {
		t.Errorf("got %v", err)
	}
}

// TestUpstreamSettingErrors: what is wrong is told with the upstream and the setting.
func TestUpstreamSettingErrors(t *testing.T) {
	for _, c := range []struct{ setting, want string }{
		{"nmae: x", `upstream 1 has no setting "nmae", only name, url, key, key_env, headers, headers_env, models,`},
		{"timeouts: {conect: 1s}", `upstream 1: timeouts has no setting "conect", only connect, first_byte, between_bytes, total`},
		{"timeouts: 5s", "upstream 1: timeouts has no settings below it"},
		{"timeouts: {connect: 5}", "upstream 1: timeouts: connect is 5; write it with its unit, like 30s"},
		{"timeouts: {connect: soon}", "upstream 1: timeouts: connect is soon; write it with its unit, like 30s"},
		{"timeouts: {total: 5 seconds}", "upstream 1: timeouts: total is 5 seconds; write it with its unit, like 30s"},
		{"timeouts: {total: 0}", "upstream 1: timeouts: total is 0, want more than 0; leave it out for the default"},
		{"timeouts: {total: 0s}", "upstream 1: timeouts: total is 0, want more than 0; leave it out for the default"},
		{"key: 0123", "upstream 1: key is not a text; put it in quotes"},
		{"tls: {server_name: 5}", "upstream 1: tls: server_name is not a text; put it in quotes"},
		{"headers: {X-Team: 007}", "upstream 1: headers is not texts by name; write it like {a: b}, numbers in quotes"},
		{"weight: 0", "upstream 1: weight is 0, want at least 1; leave it out for the default"},
		{"requests_per_minute: 0", "upstream 1: requests_per_minute is 0, want at least 1; leave it out for the default"},
		{"timeouts: {connect: -5s}", "upstream 1: http://host/v1: timeouts: connect is -5s, want more than 0"},
		{"tls: {cert: x}", "upstream 1: http://host/v1: it has settings for tls, but its url begins with http://"},
		{"tls: {certificate: x}", `upstream 1: tls has no setting "certificate", only ca, cert, key, server_name, insecure_skip_verify`},
		{"weight: 1.5", "upstream 1: weight is 1.5, want a whole number"},
		{"weight: heavy", "upstream 1: weight is heavy, want a whole number"},
		{"weight: -1", "upstream 1: http://host/v1: weight is -1, want at least 1"},
		{"requests_per_minute: 0.5", "upstream 1: requests_per_minute is 0.5, want a whole number"},
		{"tokens_per_minute: -5", "upstream 1: http://host/v1: tokens_per_minute is -5, want at least 1"},
		{"max_in_flight: 0", "upstream 1: max_in_flight is 0, want a number of at least 1, or auto"},
		{"max_in_flight: 1.5", "upstream 1: max_in_flight is 1.5, want a whole number or auto"},
		{"max_in_flight: many", "upstream 1: max_in_flight is many, want a whole number or auto"},
		{"shared: perhaps", "upstream 1: shared is perhaps, want true or false"},
		{"shared: 5", "upstream 1: shared is 5, want true or false"},
		{"models: {a: b}", "upstream 1: models is not a list of texts; write it like [a, b], numbers in quotes, or leave it out for the default"},
		{"models: a, b", "upstream 1: models is not a list of texts"},
		{"models: []", "upstream 1: models is not a list of texts"},
		{"models: [4]", "upstream 1: models is not a list of texts"},
		{"aliases: [a]", "upstream 1: aliases is not texts by name; write it like {a: b}, numbers in quotes"},
		{"aliases: {a: }", `upstream 1: http://host/v1: aliases: "a" stands for ""; neither may be empty`},
		{"headers: {Host: x}", "upstream 1: http://host/v1: headers: Host cannot be set"},
		{"{key: a, key_env: B}", "upstream 1: it has a key and a key_env; keep one of them"},
		{"{headers: {X: a}, headers_env: {X: B}}", "upstream 1: header X is in headers and in headers_env; keep one of them"},
		{"metrics_url: nowhere", `upstream 1: http://host/v1: metrics_url is "nowhere"; want a URL like http://localhost:8000/metrics, or none`},
		{"{name: gpu, weight: -1}", "upstream 1: gpu: weight is -1, want at least 1"},
	} {
		text := "upstreams:\n  - url: http://host/v1\n    " + c.setting + "\n"
		if strings.HasPrefix(c.setting, "{") {
			text = "upstreams:\n  - {url: http://host/v1, " + c.setting[1:] + "\n"
		}
		err := new(configFile).parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.setting, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: several lines: %v", c.setting, err)
		}
	}
	for text, want := range map[string]string{
		"upstreams: [http://host/v1]":              `upstream 1 has no settings; write "- url: http://…"`,
		"max-in-flight: 5\nmax_in_flight: 6":       "max-in-flight and max_in_flight are the same setting; keep one of them",
		"upstreams:\n  - url: http://host/v1\n  -": `upstream 2 has no settings; write "- url: http://…"`,
	} {
		if err := new(configFile).parse([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	for _, c := range []struct{ url, want string }{
		{"gpu:8000", `upstream 1: the URL is "gpu:8000"; want a URL like http://localhost:8000/v1`},
		{"http://me:secret@gpu/v1", "upstream 1: its URL has a user or password in it"},
	} {
		err := new(configFile).parse([]byte("upstreams:\n  - url: " + c.url + "\n"))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v, want %s", c.url, err, c.want)
		}
	}
}
