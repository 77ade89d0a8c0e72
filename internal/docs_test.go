package internal_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	shown   = regexp.MustCompile("`[^`]*go test ([^`]+)`")
	pattern = regexp.MustCompile(`-(?:run|bench) (?:'([^']+)'|(\S+))`)
	defined = regexp.MustCompile(`(?m)^func ((?:Test|Benchmark|Fuzz)\w+)\(`)
)

// TestCommandsOfDocs: each `go test` that a page shows runs something.
func TestCommandsOfDocs(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, command := range shown.FindAllStringSubmatch(string(text), -1) {
			var names []string
			for _, arg := range strings.Fields(command[1]) {
				if !strings.HasPrefix(arg, "./") {
					continue
				}
				files, _ := filepath.Glob(filepath.Join("..", strings.TrimSuffix(arg, "/..."), "*_test.go"))
				for _, file := range files {
					code, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					for _, f := range defined.FindAllStringSubmatch(string(code), -1) {
						names = append(names, f[1])
					}
				}
			}
			for _, p := range pattern.FindAllStringSubmatch(command[1], -1) {
				expression := strings.ReplaceAll(p[1]+p[2], `\|`, "|") // as it stands in a table
				if expression == "-" {
					continue
				}
				// Of alternatives each has to be there; what follows a slash is of the test.
				for one := range strings.SplitSeq(strings.Trim(expression, "()"), "|") {
					one, _, _ = strings.Cut(one, "/")
					if is, err := regexp.Compile(one); err != nil || !slices.ContainsFunc(names, is.MatchString) {
						t.Errorf("%s: %s: no test is called %s", page, command[0], one)
					}
				}
			}
		}
	}
}
