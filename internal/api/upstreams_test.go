package api

import (
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

type fakeUpstreams []batch.UpstreamState

func (f fakeUpstreams) Upstreams() []batch.UpstreamState { return f }

// TestUpstreams: what is known of an upstream is told, and what is not is null.
func TestUpstreams(t *testing.T) {
	since := time.Unix(1762340000, 0)
	x := newTester(t, func(c *Config) {
		c.Upstreams = fakeUpstreams{
			{
				Name: "gpu", URL: "http://gpu:8000/v1", Models: []string{"fast", "llama"}, Aliases: map[string]string{"fast": "llama"},
				Healthy: true, InFlight: 7, Limit: 12, Max: 40, ThrottledUntil: since, LimitedUntil: since, Observed: true, Running: 9,
				RequestsPerMinute: 60, TokensPerMinute: 1000, Shared: true, Weight: 3,
				Nodes: 3, AllInFlight: 20, AllLimit: 36, Granted: 11,
			},
			{Name: "new", URL: "http://new/v1", ModelsUnread: true, Since: since, Why: "connection refused", Weight: 1},
			{Name: "any", URL: "http://any/v1", AnyModel: true, Healthy: true, Limit: 1, Weight: 1},
		}
	})
	a := x.get("/v1/offpeak/upstreams")
	x.wantStatus(a, 200)
	const want = `{"object":"list","data":[` +
		`{"object":"offpeak.upstream","name":"gpu","url":"http://gpu:8000/v1","models":["fast","llama"],"models_known":true,"any_model":false,` +
		`"aliases":{"fast":"llama"},"healthy":true,"unhealthy_since":null,"reason":null,"in_flight":7,"limit":12,"max_in_flight":40,"cluster":{"nodes":3,"in_flight":20,"limit":36,"granted":11},` +
		`"throttled_until":1762340000,"limited_until":1762340000,"running":9,"waiting":0,"requests_per_minute":60,"tokens_per_minute":1000,"shared":true,"weight":3},` +
		`{"object":"offpeak.upstream","name":"new","url":"http://new/v1","models":[],"models_known":false,"any_model":false,` +
		`"aliases":null,"healthy":false,"unhealthy_since":1762340000,"reason":"connection refused","in_flight":0,"limit":0,"max_in_flight":null,"cluster":null,` +
		`"throttled_until":null,"limited_until":null,"running":null,"waiting":null,"requests_per_minute":null,"tokens_per_minute":null,"shared":false,"weight":1},` +
		`{"object":"offpeak.upstream","name":"any","url":"http://any/v1","models":[],"models_known":true,"any_model":true,` +
		`"aliases":null,"healthy":true,"unhealthy_since":null,"reason":null,"in_flight":0,"limit":1,"max_in_flight":null,"cluster":null,` +
		`"throttled_until":null,"limited_until":null,"running":null,"waiting":null,"requests_per_minute":null,"tokens_per_minute":null,"shared":false,"weight":1}]}`
	if string(a.body) != want {
		t.Errorf("got %s\nwant %s", a.body, want)
	}
	x.key = "sk-unknown"
	x.wantStatus(x.get("/v1/offpeak/upstreams"), 401)

	x = newTester(t, nil) // a node without an engine
	if l := decode[openai.UpstreamList](x, x.get("/v1/offpeak/upstreams")); l.Object != "list" || len(l.Data) != 0 {
		t.Errorf("got %+v, want an empty list", l)
	}
	x = newTester(t, func(c *Config) { c.Policy.Profile = batch.ProfileOpenAI })
	x.wantStatus(x.get("/v1/offpeak/upstreams"), 404)
}
