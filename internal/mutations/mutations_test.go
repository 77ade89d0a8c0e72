// Package mutations breaks the guards of the code, one at a time, and looks whether a test notices.
//
// A guard that no test misses is a sentence in a design, no promise. The list stands in
// guards_test.go; what came of the last run stands in docs/mutations.md. The run takes a while:
//
//	go test ./internal/mutations -mutate -timeout 0
//
// Without -mutate it is checked that what would be broken still stands in the code.
package mutations

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	mutate = flag.Bool("mutate", false, "break each guard, run its tests, and write docs/mutations.md")
	only   = flag.String("only", "", "with -mutate: only what this expression matches of guards and files")
)

const root, report = "../..", "docs/mutations.md"

// TestGuardsStand checks that each mutation finds its text once, and stands in the report.
func TestGuardsStand(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, report))
	if err != nil && !*mutate {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range mutations {
		if seen[m.guard] {
			t.Errorf("two mutations are called %q", m.guard)
		}
		seen[m.guard] = true
		if _, err := m.mutated(); err != nil {
			t.Error(err)
		}
		if !*mutate && !strings.Contains(string(text), m.row()) {
			t.Errorf("%s does not tell of %q: run with -mutate", report, m.guard)
		}
	}
}

// mutated returns the file of m as it is when the guard is broken.
func (m mutation) mutated() ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		return nil, err
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		return nil, fmt.Errorf("%s: the text to break stands %d times in %s:\n%s", m.guard, n, m.file, m.old)
	}
	return []byte(strings.Replace(string(text), m.old, m.new, 1)), nil
}

// TestMutations runs the tests of each guard on code in which it is broken, and wants one to fail.
func TestMutations(t *testing.T) {
	if !*mutate {
		t.Skip("only with -mutate")
	}
	matching := regexp.MustCompile(*only)
	for _, m := range mutations {
		if !matching.MatchString(m.guard) && !matching.MatchString(m.file) {
			continue
		}
		t.Run(m.guard, func(t *testing.T) {
			noticed := m.run(t)
			if len(noticed) == 0 {
				t.Errorf("nobody notices: go test %s", m.tests)
			}
			t.Log(noticed)
			if err := m.report(noticed); err != nil {
				t.Error(err)
			}
		})
	}
}

// row is the beginning of the line of m in the report.
func (m mutation) row() string { return "| " + m.guard + " |" }

// report writes what came of m to the report, and keeps what stands there of others.
func (m mutation) report(noticed []string) error {
	text, err := os.ReadFile(filepath.Join(root, report))
	if err != nil {
		return err
	}
	out := head
	for _, o := range mutations {
		if o.guard == m.guard {
			if len(noticed) > 0 {
				out += fmt.Sprintf("%s `%s` | %s |\n", m.row(), m.file, strings.Join(noticed, ", "))
			}
		} else if i := strings.Index(string(text), o.row()); i >= 0 {
			line, _, _ := strings.Cut(string(text)[i:], "\n")
			out += line + "\n"
		}
	}
	return os.WriteFile(filepath.Join(root, report), []byte(out), 0o644)
}

const head = `# Guards, and the tests that miss them

Each line is a guard of [design.md](design.md): it was broken in a copy of the code, the tests of its
package were run, and those named failed. What exactly was broken stands in
[guards_test.go](../internal/mutations/guards_test.go). ` + "`make mutations`" + ` does it again and writes this page.

| guard | broken in | noticed by |
| --- | --- | --- |
`

var failed = regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`)

// run returns the tests that fail when the guard is broken, some of them if they are many.
func (m mutation) run(t *testing.T) (noticed []string) {
	text, err := m.mutated()
	if err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(t.TempDir(), filepath.Base(m.file))
	if err := os.WriteFile(broken, text, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := filepath.Abs(filepath.Join(root, m.file))
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{file: broken}})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", append([]string{"test", "-overlay", list, "-vet=off", "-ldflags=-w", "-failfast", "-timeout=90s"}, strings.Fields(m.tests)...)...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if strings.Contains(string(out), "[build failed]") || strings.Contains(string(out), "[setup failed]") {
		t.Fatalf("the broken code does not build:\n%s", out)
	}
	for _, f := range failed.FindAllSubmatch(out, -1) {
		noticed = append(noticed, string(f[1]))
	}
	// Of tests in tests, the innermost; of many, a few.
	noticed = slices.DeleteFunc(noticed, func(name string) bool {
		return slices.ContainsFunc(noticed, func(other string) bool { return strings.HasPrefix(other, name+"/") })
	})
	slices.Sort(noticed)
	if len(noticed) == 0 { // it panicked, or came to no end
		for _, test := range regexp.MustCompile(`(?m)^\s+(Test\S+) \(.*\)$`).FindAllSubmatch(out, 3) {
			noticed = append(noticed, string(test[1])+" (which does not end)")
		}
		noticed = append(noticed, regexp.MustCompile(`(?m)^panic: (synctest|runtime).*$`).FindAllString(string(out), 1)...)
	}
	if len(noticed) == 0 {
		t.Fatalf("it fails, and no test does:\n%s", out)
	}
	return noticed[:min(len(noticed), 3)]
}
