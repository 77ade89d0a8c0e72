package internal_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowed says which of our packages each package may import: only what stands below it
// (docs/design.md, Packages). A new package gets a line here before it gets a second file.
var allowed = map[string]string{
	"internal/batch":           "",
	"internal/openai":          "",
	"internal/progress":        "",
	"internal/sim":             "",
	"internal/blob":            "batch",
	"internal/journal":         "",
	"internal/blob/blobtest":   "batch blob",
	"internal/blob/bucket":     "blob",
	"internal/blob/s3test":     "",
	"internal/sched":           "batch",
	"internal/store":           "batch",
	"internal/store/pgtest":    "",
	"internal/store/storetest": "batch blob store store/pgtest",
	"internal/upstream":        "batch",
	"internal/client":          "openai",
	"internal/doctor":          "batch blob journal",
	"internal/engine":          "batch blob journal outage sched upstream",
	"internal/mutations":       "",
	"internal/outage":          "",
	"internal/lab":             "",
	"internal/api":             "batch blob journal openai outage sched",
	"cmd/offpeak":              "api batch blob blob/bucket client doctor engine openai progress sched sim store upstream",
	"bench":                    "lab",
	"bench/load":               "",
	"bench/scheduling":         "",
}

// TestImportsGoDown holds the code against the picture of it: imports go down only, and siblings
// do not know each other. What tests import is not asked.
func TestImportsGoDown(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "offpeak/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		name := strings.TrimPrefix(fields[0], "offpeak/")
		if strings.HasPrefix(name, "conformance") || name == "crash" || name == "internal" {
			continue // tests only
		}
		may, known := allowed[name]
		if !known {
			t.Errorf("package %s is not in the table: say what it may import", name)
		}
		for _, imported := range fields[1:] {
			if ours, ok := strings.CutPrefix(imported, "offpeak/internal/"); ok && !slices.Contains(strings.Fields(may), ours) {
				t.Errorf("%s imports %s, which does not stand below it", name, ours)
			}
		}
	}
}
