package deploy

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// TestCompose reads the compose file as compose does, schema and all, and follows what it refers to.
func TestCompose(t *testing.T) {
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "deploy/compose.yaml")}, cli.WithEnv([]string{}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	bin, err := offpeak()
	if err != nil {
		t.Fatal(err)
	}
	var nodes []string
	for _, name := range slices.Sorted(maps.Keys(project.Services)) {
		s := project.Services[name]
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind {
				if _, err := os.Stat(v.Source); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		for other, need := range s.DependsOn {
			if h := project.Services[other].HealthCheck; need.Condition == types.ServiceConditionHealthy && (h == nil || h.Disable) {
				t.Errorf("%s waits for the health of %s, which has no check", name, other)
			}
		}
		if s.Build == nil {
			if !strings.Contains(s.Image, ":") || strings.HasSuffix(s.Image, ":latest") {
				t.Errorf("%s: image %s may be another one tomorrow", name, s.Image)
			}
			continue
		}
		if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || s.User != "" {
			t.Errorf("%s may do more than the image needs", name)
		}
		if s.Command[0] != "serve" {
			continue
		}
		nodes = append(nodes, name)
		if s.StopGracePeriod == nil || time.Duration(*s.StopGracePeriod) <= drain(t) {
			t.Errorf("%s is killed after %v, within its drain", name, s.StopGracePeriod)
		}
		wantRefused(t, bin, s.HealthCheck.Test[2:]...)
		if got := s.Environment["OFFPEAK_NODE"]; got == nil || *got != name {
			t.Errorf("%s calls itself %v", name, got)
		}
	}
	if len(nodes) != 2 {
		t.Errorf("nodes %v, want two", nodes)
	}
	front := read(t, filepath.Join(root, "deploy/haproxy.cfg"))
	for _, name := range nodes {
		if !strings.Contains(front, "server "+name+" "+name+":8080\n") {
			t.Errorf("the front does not know %s", name)
		}
	}
}

// drain is for how long offpeak serve lets calls end where nobody says otherwise.
func drain(t *testing.T) time.Duration {
	t.Helper()
	text, err := source()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(text, "Drain           time.Duration `default:\"")
	value, _, _ := strings.Cut(rest, `"`)
	d, err := time.ParseDuration(value)
	if err != nil {
		t.Fatalf("the default of --drain was not found: %v", err)
	}
	return d
}
