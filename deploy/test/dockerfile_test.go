package deploy

import (
	"bytes"
	"context"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// TestDockerfile reads the Dockerfile as BuildKit does, and looks for what the image promises.
func TestDockerfile(t *testing.T) {
	file, err := parser.Parse(strings.NewReader(read(t, filepath.Join(root, "Dockerfile"))))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range file.Warnings {
		t.Errorf("%s", w.Short)
	}
	lint := linter.New(&linter.Config{Warn: func(rule, description, _, message string, at []parser.Range) {
		t.Errorf("%s: %s: %s (%v)", rule, message, description, at)
	}})
	stages, _, err := instructions.Parse(file.AST, lint)
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range stages {
		for _, c := range stage.Commands {
			arg, ok := c.(*instructions.ArgCommand)
			for i := 0; ok && i < len(arg.Args); i++ {
				if a := arg.Args[i]; strings.HasPrefix(a.Key, "TARGET") && a.Value != nil {
					t.Errorf("%s has a default, so an image for another platform would have a program for that", a.Key)
				}
			}
		}
	}
	last := stages[len(stages)-1]
	var user, stop string
	var health, entry []string
	for _, c := range last.Commands {
		switch c := c.(type) {
		case *instructions.RunCommand:
			t.Errorf("the image has nothing to run this with: %s", c)
		case *instructions.UserCommand:
			user = c.User
		case *instructions.StopSignalCommand:
			stop = c.Signal
		case *instructions.HealthCheckCommand:
			health = c.Health.Test
		case *instructions.EntrypointCommand:
			if c.PrependShell {
				t.Errorf("the image has no shell for %s", c)
			}
			entry = c.CmdLine
		}
	}
	if !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(user) {
		t.Errorf("user %q, want numbers other than 0, by which a cluster sees that it is not root", user)
	}
	if stop != "SIGTERM" {
		t.Errorf("stop signal %q: only SIGTERM drains", stop)
	}
	if len(health) == 0 || health[0] != "CMD" {
		t.Fatalf("health check %q, want one without a shell", health)
	}
	bin, err := offpeak()
	if err != nil {
		t.Fatal(err)
	}
	if health[1] != entry[0] {
		t.Errorf("health check runs %s, the image %s", health[1], entry[0])
	}
	wantRefused(t, bin, health[2:]...)
}

// TestDockerIgnore sees to it that whatever is copied into the build is there, and that nothing else
// is.
func TestDockerIgnore(t *testing.T) {
	patterns, err := ignorefile.ReadAll(bytes.NewReader([]byte(read(t, filepath.Join(root, ".dockerignore")))))
	if err != nil {
		t.Fatal(err)
	}
	ignore, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"go.mod": true, "go.sum": true, "cmd/offpeak/main.go": true, "internal/api/openapi.yaml": true,
		"internal/store/migrations/sqlite/00001_schema.sql": true,
		"internal/store/store_test.go":                      false, "internal/store/testdata/x.db": false, "offpeak-data/offpeak.db": false,
		".git/config": false, "deploy/offpeak.environment": false, ".cache/bin/x": false,
	} {
		ignored, err := ignore.MatchesOrParentMatches(path)
		if err != nil || ignored == want {
			t.Errorf("%s: in the build %t, want %t (%v)", path, !ignored, want, err)
		}
	}
	// Whatever is embedded has to come along.
	text, err := source()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^//go:embed (.+)$`).FindAllStringSubmatch(text, -1) {
		for _, path := range strings.Fields(m[1]) {
			if ignored, err := ignore.MatchesOrParentMatches("internal/x/" + path); err != nil || ignored {
				t.Errorf("%s is embedded, and not in the build (%v)", path, err)
			}
		}
	}
}

// wantRefused runs a command of Offpeak that asks a server on this machine, with another address to
// ask at: it must understand its arguments, and find nobody there.
func wantRefused(t *testing.T, bin string, args ...string) {
	t.Helper()
	if len(args) == 0 || args[0] != "health" {
		t.Fatalf("offpeak %q, want a health check", args)
	}
	out := runOffpeak(context.Background(), bin, append(slices.Clone(args), "--listen", "127.0.0.1:1")...)
	if !strings.Contains(out, "connection refused") {
		t.Errorf("offpeak %q: %s", args, out)
	}
}
