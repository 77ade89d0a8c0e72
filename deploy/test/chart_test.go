package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const chartDir = root + "/deploy/helm/offpeak"

// A scaledObject is KEDA's, as far as ours goes: https://keda.sh/docs/latest/reference/scaledobject-spec/
type scaledObject struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		ScaleTargetRef struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Name       string `json:"name"`
		} `json:"scaleTargetRef"`
		MinReplicaCount int `json:"minReplicaCount"`
		MaxReplicaCount int `json:"maxReplicaCount"`
		Fallback        struct {
			FailureThreshold int    `json:"failureThreshold"`
			Replicas         int    `json:"replicas"`
			Behavior         string `json:"behavior"`
		} `json:"fallback"`
		Advanced struct {
			HorizontalPodAutoscalerConfig struct {
				Behavior autoscaling.HorizontalPodAutoscalerBehavior `json:"behavior"`
			} `json:"horizontalPodAutoscalerConfig"`
		} `json:"advanced"`
		Triggers []struct {
			Type       string            `json:"type"`
			MetricType string            `json:"metricType"`
			Metadata   map[string]string `json:"metadata"`
		} `json:"triggers"`
	} `json:"spec"`
}

// DeepCopyObject implements runtime.Object; nobody copies one.
func (s *scaledObject) DeepCopyObject() runtime.Object { return s }

// An installed is what the chart makes of some values.
type installed struct {
	objects     []runtime.Object
	deployments map[string]*apps.Deployment // by name
	services    map[string]*core.Service
	config      string
	notes       string
	monitored   []labels.Selector // of services
}

// render is what helm template and helm install do with values.
func render(values map[string]any) (map[string]string, error) {
	chart, err := loader.Load(chartDir)
	if err != nil {
		return nil, err
	}
	caps := chartutil.DefaultCapabilities.Copy()
	caps.KubeVersion = chartutil.KubeVersion{Version: "v1.30.0", Major: "1", Minor: "30"}
	if !chartutil.IsCompatibleRange(chart.Metadata.KubeVersion, caps.KubeVersion.Version) {
		return nil, fmt.Errorf("the chart does not want Kubernetes %s", caps.KubeVersion.Version)
	}
	all, err := chartutil.ToRenderValues(chart, values, chartutil.ReleaseOptions{Name: "offpeak", Namespace: "batch", Revision: 1, IsInstall: true}, caps)
	if err != nil {
		return nil, err
	}
	return engine.Render(chart, all)
}

// install renders the chart and reads the result as the API server would: with types, and nothing
// that they do not have.
func install(t *testing.T, values map[string]any) *installed {
	t.Helper()
	files, err := render(values)
	if err != nil {
		t.Fatal(err)
	}
	in := &installed{deployments: map[string]*apps.Deployment{}, services: map[string]*core.Service{}}
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	for path, text := range files {
		if strings.HasSuffix(path, "NOTES.txt") {
			in.notes = text
			continue
		}
		for _, doc := range strings.Split("\n"+text, "\n---\n") {
			var kind meta.TypeMeta
			if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
				t.Fatalf("%s: %v\n%s", path, err, doc)
			}
			var o runtime.Object
			switch kind.Kind {
			case "": // comments
				continue
			case "ServiceMonitor":
				o = &monitoring.ServiceMonitor{}
			case "PrometheusRule":
				o = &monitoring.PrometheusRule{}
			case "ScaledObject":
				o = &scaledObject{}
			}
			if o != nil {
				err = yaml.UnmarshalStrict([]byte(doc), o)
			} else {
				o, _, err = strict.Decode([]byte(doc), nil, nil)
			}
			if err != nil {
				t.Fatalf("%s: %v\n%s", path, err, doc)
			}
			in.add(t, o)
		}
	}
	return in
}

func (in *installed) add(t *testing.T, o runtime.Object) {
	in.objects = append(in.objects, o)
	switch o := o.(type) {
	case *apps.Deployment:
		in.deployments[o.Name] = o
	case *core.Service:
		in.services[o.Name] = o
	case *core.ConfigMap:
		in.config = o.Data["offpeak.yaml"]
	case *monitoring.ServiceMonitor:
		s, err := meta.LabelSelectorAsSelector(&o.Spec.Selector)
		if err != nil {
			t.Error(err)
		}
		in.monitored = append(in.monitored, s)
	}
}

// pods returns the names of the deployments whose pods a selector takes.
func (in *installed) pods(selector labels.Selector) (names []string) {
	for name, d := range in.deployments {
		if selector.Matches(labels.Set(d.Spec.Template.Labels)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func valuesFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(chartDir + "/ci/*-values.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	return files
}

func valuesOf(t *testing.T, file string) map[string]any {
	t.Helper()
	values, err := chartutil.ReadValuesFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// TestLint is helm lint --strict, with the defaults and with each file of values.
func TestLint(t *testing.T) {
	sets := []map[string]any{{}}
	for _, file := range valuesFiles(t) {
		sets = append(sets, valuesOf(t, file))
	}
	defer log.SetOutput(log.Writer())
	log.SetOutput(t.Output()) // of the defaults it says what is missing in them
	version := chartutil.KubeVersion{Version: "v1.34.0", Major: "1", Minor: "34"}
	for i, values := range sets {
		for _, m := range lint.AllWithKubeVersion(chartDir, values, "batch", &version).Messages {
			if m.Severity >= support.WarningSev {
				t.Errorf("values %d: %s", i, m)
			}
		}
	}
}

// TestChart renders the chart with each file of values, and looks whether its parts fit together.
func TestChart(t *testing.T) {
	for _, file := range valuesFiles(t) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			in := install(t, valuesOf(t, file))
			for name, d := range in.deployments {
				checkDeployment(t, in, name, d)
			}
			for name, s := range in.services {
				if len(in.pods(labels.SelectorFromSet(s.Spec.Selector))) == 0 {
					t.Errorf("service %s finds no pods", name)
				}
				for _, p := range s.Spec.Ports {
					if p.TargetPort.String() != "http" {
						t.Errorf("service %s: port %v", name, p)
					}
				}
			}
			for _, o := range in.objects {
				checkReferences(t, in, o)
			}
			for _, s := range in.monitored {
				found := 0
				for _, service := range in.services {
					if s.Matches(labels.Set(service.Labels)) {
						found++
						if got := in.pods(labels.SelectorFromSet(service.Spec.Selector)); len(got) != len(in.deployments) {
							t.Errorf("metrics of %v only", got)
						}
					}
				}
				if found != 1 {
					t.Errorf("each node is asked for its metrics %d times", found)
				}
			}
			wantConfig(t, in.config)
			if strings.Contains(in.notes, "%!") || strings.Contains(in.notes, "<no value>") || !strings.Contains(in.notes, "keys create") {
				t.Errorf("notes:\n%s", in.notes)
			}
		})
	}
}

func checkDeployment(t *testing.T, in *installed, name string, d *apps.Deployment) {
	t.Helper()
	selector, err := meta.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		t.Fatal(err)
	}
	if got := in.pods(selector); len(got) != 1 || got[0] != name {
		t.Errorf("%s takes the pods of %v", name, got)
	}
	if r := d.Spec.Strategy.RollingUpdate; r == nil || r.MaxUnavailable.IntValue() != 0 || r.MaxSurge.IntValue() == 0 {
		t.Errorf("%s: an update takes a node away before there is another: %v", name, r)
	}
	pod, c := d.Spec.Template.Spec, d.Spec.Template.Spec.Containers[0]
	env := map[string]core.EnvVar{}
	for _, v := range c.Env {
		if _, twice := env[v.Name]; twice {
			t.Errorf("%s has %s twice", name, v.Name)
		}
		env[v.Name] = v
	}
	drain, err := time.ParseDuration(env["OFFPEAK_DRAIN"].Value)
	if err != nil {
		t.Error(err)
	}
	wait := time.Duration(c.Lifecycle.PreStop.Sleep.Seconds) * time.Second
	if grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second; grace < wait+drain+5*time.Second {
		t.Errorf("%s is killed after %v: it waits %v and drains %v", name, grace, wait, drain)
	}
	if env["OFFPEAK_NODE"].ValueFrom.FieldRef.FieldPath != "metadata.name" || env["OFFPEAK_DATABASE"].ValueFrom.SecretKeyRef.Name == "" {
		t.Errorf("%s: %+v", name, env)
	}
	for probe, path := range map[*core.Probe]string{c.StartupProbe: "/healthz", c.LivenessProbe: "/healthz", c.ReadinessProbe: "/readyz"} {
		if probe == nil || probe.HTTPGet.Path != path || probe.HTTPGet.Port.String() != "http" {
			t.Errorf("%s: probe %v, want %s", name, probe, path)
		}
	}
	s := c.SecurityContext
	if !*pod.SecurityContext.RunAsNonRoot || *pod.SecurityContext.RunAsUser == 0 || pod.SecurityContext.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault ||
		*s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) ||
		*pod.AutomountServiceAccountToken || *pod.EnableServiceLinks {
		t.Errorf("%s may do more than it has to: %+v %+v", name, pod.SecurityContext, s)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
	}
	writable := map[string]bool{}
	for _, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			t.Errorf("%s: volume %s is not there", name, m.Name)
		}
		writable[m.MountPath] = !m.ReadOnly
	}
	if !writable["/tmp"] {
		t.Errorf("%s has nowhere to write: %v", name, writable)
	}
	for _, spread := range pod.TopologySpreadConstraints {
		if s, err := meta.LabelSelectorAsSelector(spread.LabelSelector); err != nil || len(in.pods(s)) != 1 {
			t.Errorf("%s spreads %v (%v)", name, spread, err)
		}
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Limits.Memory().IsZero() {
		t.Errorf("%s: resources %v", name, c.Resources)
	}
}

// checkReferences finds what an object names and is not there.
func checkReferences(t *testing.T, in *installed, o runtime.Object) {
	t.Helper()
	scales := func(name, target string) {
		d := in.deployments[target]
		if d == nil || d.Spec.Replicas != nil {
			t.Errorf("%s scales %s, which is not there or has a number of its own", name, target)
		}
	}
	switch o := o.(type) {
	case *policy.PodDisruptionBudget:
		if s, err := meta.LabelSelectorAsSelector(o.Spec.Selector); err != nil || len(in.pods(s)) != 1 {
			t.Errorf("%s covers %v (%v), want the nodes of one kind", o.Name, in.pods(s), err)
		}
	case *autoscaling.HorizontalPodAutoscaler:
		scales(o.Name, o.Spec.ScaleTargetRef.Name)
	case *scaledObject:
		scales(o.Name, o.Spec.ScaleTargetRef.Name)
		query := o.Spec.Triggers[0].Metadata["query"]
		if _, err := parse(query); err != nil {
			t.Errorf("%s: %v", query, err)
		}
		_, rest, _ := strings.Cut(query, `service="`)
		if service, _, _ := strings.Cut(rest, `"`); in.services[service] == nil {
			t.Errorf("there is no service %q of which Prometheus could know: %s", service, query)
		}
	case *networking.Ingress:
		if s := o.Spec.Rules[0].HTTP.Paths[0].Backend.Service.Name; in.services[s] == nil {
			t.Errorf("ingress leads to %s", s)
		}
	case *networking.NetworkPolicy:
		if s, err := meta.LabelSelectorAsSelector(&o.Spec.PodSelector); err != nil || len(in.pods(s)) != len(in.deployments) {
			t.Errorf("%s covers %v (%v)", o.Name, in.pods(s), err)
		}
	case *monitoring.PrometheusRule:
		if len(o.Spec.Groups) == 0 || len(o.Spec.Groups[0].Rules) == 0 {
			t.Errorf("%s has no rules", o.Name)
		}
	}
}

// TestRoles sees to it that clients come to nodes that have the API, whatever the layout.
func TestRoles(t *testing.T) {
	for layout, want := range map[string]map[string]string{
		"all":      {"offpeak": "all"},
		"separate": {"offpeak-api": "api", "offpeak-worker": "worker"},
	} {
		values := valuesOf(t, chartDir+"/ci/least-values.yaml")
		values["layout"] = layout
		in := install(t, values)
		if len(in.deployments) != len(want) {
			t.Errorf("%s: %d deployments", layout, len(in.deployments))
		}
		for name, role := range want {
			d := in.deployments[name]
			i := slices.IndexFunc(d.Spec.Template.Spec.Containers[0].Env, func(v core.EnvVar) bool { return v.Name == "OFFPEAK_ROLE" })
			if got := d.Spec.Template.Spec.Containers[0].Env[i].Value; got != role {
				t.Errorf("%s: %s is %s", layout, name, got)
			}
		}
		for _, name := range in.pods(labels.SelectorFromSet(in.services["offpeak"].Spec.Selector)) {
			if want[name] == "worker" {
				t.Errorf("%s: clients come to %s", layout, name)
			}
		}
	}
}

// TestConfigChanges sees to it that pods are replaced when their config is another.
func TestConfigChanges(t *testing.T) {
	values := valuesOf(t, chartDir+"/ci/least-values.yaml")
	before := install(t, values).deployments["offpeak"].Spec.Template.Annotations
	values["config"].(map[string]any)["max-input"] = "1GiB"
	after := install(t, values).deployments["offpeak"].Spec.Template.Annotations
	if before["checksum/config"] == "" || before["checksum/config"] == after["checksum/config"] {
		t.Errorf("before %v, after %v", before, after)
	}
}

// TestRefusals holds the sentences that stand for values nobody could run with.
func TestRefusals(t *testing.T) {
	upstream := []any{map[string]any{"url": "http://vllm:8000/v1"}}
	for _, row := range []struct {
		set  map[string]any
		want string
	}{
		{map[string]any{"config": map[string]any{"upstreams": []any{}}}, "config.upstreams is empty: say where"},
		{map[string]any{"database": map[string]any{"existingSecret": ""}}, "database.existingSecret is empty"},
		{map[string]any{"blobs": map[string]any{"url": "/data"}}, `blobs.url is "/data": name a bucket`},
		{map[string]any{"config": map[string]any{"upstreams": upstream, "database": "postgres://u:p@h/d"}}, "config.database is set"},
		{map[string]any{"config": map[string]any{"upstreams": []any{map[string]any{"url": "http://a/v1", "key": "sk-1"}}}}, "put the key into a secret"},
		{map[string]any{"config": map[string]any{"upstreams": []any{map[string]any{"name": "a"}}}}, "url"},
		{map[string]any{"autoscaling": map[string]any{"enabled": true, "by": "keda"}}, "autoscaling.prometheus is empty"},
		{map[string]any{"ingress": map[string]any{"enabled": true}}, "ingress.host is empty"},
		{map[string]any{"layout": "both"}, "layout"},
		{map[string]any{"replicas": 3}, "replicas"},
		{map[string]any{"preStopSeconds": 0}, "preStopSeconds"},
		{map[string]any{"drainSeconds": -1}, "drainSeconds"},
		{map[string]any{"all": map[string]any{"replicas": "two"}}, "replicas"},
	} {
		values := valuesOf(t, chartDir+"/ci/least-values.yaml")
		for name, v := range row.set {
			values[name] = v
		}
		if _, err := render(values); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%v: %v, want %q", row.set, err, row.want)
		}
	}
}

// TestNumbers sees to it that large numbers stay whole on their way to the config file.
func TestNumbers(t *testing.T) {
	values := valuesOf(t, chartDir+"/ci/least-values.yaml")
	text, err := yaml.Marshal(map[string]any{"upstreams": []any{map[string]any{"url": "http://a/v1", "tokens_per_minute": 20_000_000}}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := chartutil.ReadValues(text)
	if err != nil {
		t.Fatal(err)
	}
	values["config"] = config.AsMap()
	wantConfig(t, install(t, values).config)
}

// wantConfig has Offpeak read a config file. A command that needs a data folder reads it first, and
// then says that there is none.
func wantConfig(t *testing.T, text string) {
	t.Helper()
	bin, err := offpeak()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "offpeak.yaml")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := runOffpeak(context.Background(), bin, "keys", "list", "--config", config, "--data", filepath.Join(dir, "none")); !strings.Contains(out, "not the data folder of a server") {
		t.Errorf("config file: %s\n%s", out, text)
	}
}

// TestSchema holds the defaults against the schema: each has a rule, each rule a default.
func TestSchema(t *testing.T) {
	var schema struct {
		Properties map[string]struct {
			Properties map[string]any `json:"properties"`
		} `json:"properties"`
	}
	if err := json.Unmarshal([]byte(read(t, chartDir+"/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	values := valuesOf(t, chartDir+"/values.yaml")
	for name, rule := range schema.Properties {
		if _, ok := values[name]; !ok && name != "global" { // which is Helm's
			t.Errorf("%s has no default", name)
		}
		below, _ := values[name].(map[string]any)
		for inner := range rule.Properties {
			if _, ok := below[inner]; !ok {
				t.Errorf("%s.%s has no default", name, inner)
			}
		}
	}
}

// runOffpeak returns what Offpeak says, without settings of the environment.
func runOffpeak(ctx context.Context, bin string, args ...string) string {
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Run()
	return out.String()
}
