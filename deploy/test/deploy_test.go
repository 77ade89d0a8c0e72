// Package deploy holds what stands in ../ against those who will read it: Helm and the types of
// Kubernetes, the parsers of Dockerfiles, of compose files and of Prometheus, systemd, and Offpeak
// itself. It is a module of its own, so that the product depends on none of them. Nothing is started
// in a container here, and nothing is installed in a cluster.
package deploy

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// root is the product's folder, seen from here.
const root = "../.."

// offpeak returns the program, built once for all tests.
var offpeak = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "offpeak-deploy")
	if err != nil {
		return "", err
	}
	built = dir
	bin := filepath.Join(dir, "offpeak")
	build := exec.Command("go", "build", "-o", bin, "./cmd/offpeak")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return bin, nil
})

// built is the folder that offpeak made, if it did.
var built string

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(built)
	os.Exit(code)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// source returns the text of all Go files of the product that are not tests.
var source = sync.OnceValues(func() (string, error) {
	var all strings.Builder
	for _, dir := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			all.Write(text)
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return all.String(), nil
})

// settings returns the environment variables that the product reads.
func settings(t *testing.T) map[string]bool {
	t.Helper()
	text, err := source()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"OFFPEAK_UPSTREAM_KEY": strings.Contains(text, `"OFFPEAK_UPSTREAM_KEY"`)}
	for _, m := range regexp.MustCompile(`env:"([A-Z_,]+)"`).FindAllStringSubmatch(text, -1) {
		for _, name := range strings.Split(m[1], ",") {
			known[name] = true
		}
	}
	return known
}

// metrics returns the names of metrics that the product has, without suffixes.
func metrics(t *testing.T) []string {
	t.Helper()
	text, err := source()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range regexp.MustCompile(`"(offpeak_[a-z_]+)"`).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

// histogram is what Prometheus adds to the name of one.
var histogram = regexp.MustCompile(`_(bucket|count|sum)$`)

// TestNames sees to it that nothing we hand out, or tell people to do, has a setting or a metric that
// Offpeak does not have.
func TestNames(t *testing.T) {
	known, have := settings(t), metrics(t)
	var files []string
	for _, path := range []string{"Dockerfile", "deploy", "docs/operations.md"} {
		err := filepath.WalkDir(filepath.Join(root, path), func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == "test" {
				return filepath.SkipDir
			}
			if err == nil && d.Type().IsRegular() {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	variable, metric := regexp.MustCompile(`\bOFFPEAK_[A-Z_]*[A-Z]\b`), regexp.MustCompile(`\boffpeak_[a-z_]*[a-z]\b`)
	foreign := map[string]bool{
		"OFFPEAK_PORT":            true, // compose's own
		"offpeak_calls_in_flight": true, // the adapter's
	}
	for _, file := range files {
		text := read(t, file)
		for _, name := range variable.FindAllString(text, -1) {
			if !known[name] && !foreign[name] {
				t.Errorf("%s: Offpeak reads no variable %s", file, name)
			}
		}
		for _, name := range metric.FindAllString(text, -1) {
			if !foreign[name] && !slices.Contains(have, name) && !slices.Contains(have, histogram.ReplaceAllString(name, "")) {
				t.Errorf("%s: Offpeak has no metric %s", file, name)
			}
		}
	}
}
