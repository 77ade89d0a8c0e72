package blob_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCommitOnDisk asks the kernel what a commit did, and in which order: a step that a fault can
// strike may still be an empty one.
func TestCommitOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "blobs")
	wantSteps(t, path, []string{
		// The folder, from above: a name is durable once the folder that it stands in is.
		`mkdirat\(.*"ABOVE"`, `fsync\(\d+<TOP>\) += 0`,
		`mkdirat\(.*"PATH"`, `fsync\(\d+<ABOVE>\) += 0`,
		`mkdirat\(.*"PATH/tmp"`, `fsync\(\d+<PATH>\) += 0`,
		// The bytes before the name, and the name before the word.
		`write\(\d+<PATH/tmp/KEY\.\d+>`,
		`fsync\(\d+<PATH/tmp/KEY\.\d+>\) += 0`,
		`mkdirat\(.*"PATH/[0-9a-f]{2}"`, `fsync\(\d+<PATH>\) += 0`,
		`linkat\(.*"PATH/tmp/KEY\.\d+", .*"PATH/[0-9a-f]{2}/KEY"`,
		`fsync\(\d+<PATH/[0-9a-f]{2}>\) += 0`,
		`unlinkat\(.*"PATH/tmp/`,
	})
}

// TestFoundOnDisk has the folder be there: whoever made it may have died before that was durable.
func TestFoundOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "blobs")
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	wantSteps(t, path, []string{
		`mkdirat\(.*"PATH", .* EEXIST`, `fsync\(\d+<ABOVE>\) += 0`,
		`mkdirat\(.*"PATH/tmp"`, `fsync\(\d+<PATH>\) += 0`,
		`write\(\d+<PATH/tmp/KEY\.\d+>`,
	})
}

// wantSteps wants these calls, in this order, of who opens a folder at path and commits a blob.
func wantSteps(t *testing.T, path string, steps []string) {
	t.Helper()
	got := trace(t, path, "write,fsync,fdatasync,mkdirat,linkat,unlinkat,renameat,renameat2")
	above := filepath.Dir(path)
	for _, step := range steps {
		step = strings.NewReplacer("PATH", regexp.QuoteMeta(path), "ABOVE", regexp.QuoteMeta(above),
			"TOP", regexp.QuoteMeta(filepath.Dir(above)), "KEY", `[0-9a-f]{32}`).Replace(step)
		at := regexp.MustCompile(step).FindIndex(got)
		if at == nil {
			t.Fatalf("no %s in what is left of the trace:\n%s", step, got)
		}
		got = got[at[1]:]
	}
}

// trace runs the test binary under strace and returns those of its calls that concern the path.
func trace(t *testing.T, path, calls string) []byte {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace here")
	}
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-y", "-qq", "-o", out, "-e", "trace="+calls, os.Args[0])
	cmd.Env = append(os.Environ(), traceEnv+"="+path)
	if said, err := cmd.CombinedOutput(); err != nil {
		if bytes.Contains(said, []byte("ptrace")) {
			t.Skipf("strace may not trace here: %s", said)
		}
		t.Fatalf("%v: %s", err, said)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	// A call stands in two halves if another thread made one meanwhile.
	var lines bytes.Buffer
	half := map[string]string{}
	for line := range strings.Lines(string(text)) {
		pid, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		if begun, ok := strings.CutSuffix(call, "<unfinished ...>"); ok {
			half[pid] = strings.TrimSpace(begun)
			continue
		}
		if strings.HasPrefix(call, "<... ") {
			_, rest, _ := strings.Cut(call, "resumed>")
			call = half[pid] + rest
		}
		if strings.Contains(call, filepath.Dir(filepath.Dir(path))) {
			fmt.Fprintln(&lines, call)
		}
	}
	return lines.Bytes()
}
