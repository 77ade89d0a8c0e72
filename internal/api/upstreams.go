package api

import (
	"context"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

type noUpstreams struct{}

func (noUpstreams) Upstreams() []batch.UpstreamState { return nil }

func (s *server) listUpstreams(context.Context, batch.Project, struct{}) (openai.UpstreamList, error) {
	return openai.UpstreamList{Object: "list", Data: wireAll(s.Upstreams.Upstreams(), wireUpstream)}, nil
}

func wireUpstream(u batch.UpstreamState) openai.Upstream {
	w := openai.Upstream{
		Object: "offpeak.upstream", Name: u.Name, URL: u.URL,
		Models: u.Models, ModelsKnown: !u.ModelsUnread, AnyModel: u.AnyModel, Aliases: u.Aliases,
		Healthy: u.Healthy, UnhealthySince: unix(u.Since), Reason: nullable(u.Why),
		InFlight: u.InFlight, Limit: u.Limit, MaxInFlight: limit(u.Max), ThrottledUntil: unix(u.ThrottledUntil), LimitedUntil: unix(u.LimitedUntil),
		RequestsPerMinute: limit(u.RequestsPerMinute), TokensPerMinute: limit(u.TokensPerMinute),
		Shared: u.Shared, Weight: u.Weight,
	}
	if u.Nodes > 0 {
		w.Cluster = &openai.UpstreamShare{Nodes: u.Nodes, InFlight: u.AllInFlight, Limit: u.AllLimit, Granted: u.Granted}
	}
	if u.Observed {
		w.Running, w.Waiting = &u.Running, &u.Waiting
	}
	return w
}

// limit returns n as the API shows it: null if it is no limit.
func limit(n int) *int {
	if n == 0 {
		return nil
	}
	return &n
}
