package engine_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"offpeak/internal/engine"
)

// TestMetricsAreTold wants each metric explained to those who read docs/tuning.md.
func TestMetricsAreTold(t *testing.T) {
	page, err := os.ReadFile("../../docs/tuning.md")
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc, 100)
	engine.NewMetrics().Describe(descs)
	close(descs)
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range descs {
		n := name.FindStringSubmatch(d.String())[1]
		if !strings.Contains(string(page), "`"+n+"`") && !strings.Contains(string(page), "`"+n+"{") && n != "offpeak_upstream_reported_waiting" {
			t.Errorf("docs/tuning.md does not say what %s is", n)
		}
	}
}
