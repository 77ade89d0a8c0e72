package deploy

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

// rules is a file of rules as Prometheus reads it, as far as ours goes.
type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []struct {
			Alert       string            `json:"alert"`
			Expr        string            `json:"expr"`
			For         string            `json:"for"`
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"rules"`
	} `json:"groups"`
}

// TestAlerts parses each rule. That its metrics exist TestNames sees; here also that operations.md
// says what to do about it.
func TestAlerts(t *testing.T) {
	var file rules
	if err := yaml.UnmarshalStrict([]byte(read(t, filepath.Join(root, "deploy/alerts.yaml"))), &file); err != nil {
		t.Fatal(err)
	}
	operations := read(t, filepath.Join(root, "docs/operations.md"))
	seen := map[string]bool{}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if seen[r.Alert] {
				t.Errorf("%s is there twice", r.Alert)
			}
			seen[r.Alert] = true
			if _, err := parse(r.Expr); err != nil {
				t.Errorf("%s: %v", r.Alert, err)
			}
			if _, err := model.ParseDuration(r.For); r.For != "" && err != nil {
				t.Errorf("%s: for: %v", r.Alert, err)
			}
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" {
				t.Errorf("%s has no summary", r.Alert)
			}
			if !strings.Contains(operations, "`"+r.Alert+"`") {
				t.Errorf("docs/operations.md says nothing of %s", r.Alert)
			}
		}
	}
	if len(seen) == 0 {
		t.Error("no alerts")
	}
}

// TestAdapter parses the rule for the Prometheus adapter with what that puts in.
func TestAdapter(t *testing.T) {
	var file struct {
		Rules struct {
			Custom []struct {
				SeriesQuery string `json:"seriesQuery"`
				Resources   struct {
					Overrides map[string]struct {
						Resource string `json:"resource"`
					} `json:"overrides"`
				} `json:"resources"`
				Name struct {
					As string `json:"as"`
				} `json:"name"`
				MetricsQuery string `json:"metricsQuery"`
			} `json:"custom"`
		} `json:"rules"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, filepath.Join(root, "deploy/prometheus-adapter.yaml"))), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Rules.Custom) != 1 || file.Rules.Custom[0].Name.As != "offpeak_calls_in_flight" {
		t.Fatalf("%+v", file)
	}
	r := file.Rules.Custom[0]
	filled := strings.NewReplacer("<<.Series>>", "offpeak_upstream_in_flight", "<<.LabelMatchers>>", `namespace="batch",pod=~"offpeak-1|offpeak-2"`, "<<.GroupBy>>", "pod").Replace(r.MetricsQuery)
	for _, q := range []string{r.SeriesQuery, filled} {
		if _, err := parse(q); err != nil {
			t.Errorf("%s: %v", q, err)
		}
	}
}

func parse(query string) (parser.Expr, error) {
	return parser.NewParser(parser.Options{}).ParseExpr(query)
}
