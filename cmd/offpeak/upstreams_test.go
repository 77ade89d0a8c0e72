package main

import (
	"testing"

	"offpeak/internal/openai"
)

// TestUpstreamLimit says how many requests an upstream may get, of this node and of all.
func TestUpstreamLimit(t *testing.T) {
	stated := 8
	share := &openai.UpstreamShare{Nodes: 3, InFlight: 8, Limit: 8, Granted: 3}
	for _, test := range []struct {
		u            openai.Upstream
		want, status string
	}{
		{openai.Upstream{}, "auto", "ok"},
		{openai.Upstream{Limit: 70, InFlight: 70}, "70 (auto)", "full"},
		{openai.Upstream{Limit: 8, MaxInFlight: &stated}, "8", "ok"},
		{openai.Upstream{Limit: 2, InFlight: 2, MaxInFlight: &stated, Cluster: share}, "3 of 8 (nodes: 3)", "full"},
		{openai.Upstream{Limit: 2, InFlight: 2, Cluster: &openai.UpstreamShare{Nodes: 2, InFlight: 3, Limit: 16, Granted: 2}}, "2 of 16 (auto, nodes: 2)", "ok"},
	} {
		test.u.Healthy = true
		if got := upstreamLimit(test.u); got != test.want {
			t.Errorf("limit of %+v is %q, want %q", test.u, got, test.want)
		}
		if got := upstreamStatus(test.u); got != test.status {
			t.Errorf("status of %+v is %q, want %q", test.u, got, test.status)
		}
	}
}
