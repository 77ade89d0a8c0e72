package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRunSavesItsOutput asks the kernel in which order `offpeak run` puts its output down: the bytes before
// the name, and the name before the folder goes in which the answers were until then.
func TestRunSavesItsOutput(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace here")
	}
	t.Parallel()
	dir, offpeak := t.TempDir(), filepath.Join(t.TempDir(), "offpeak")
	if self, err := os.Executable(); err != nil {
		t.Fatal(err)
	} else if err := os.Symlink(self, offpeak); err != nil { // by that name it is the program
		t.Fatal(err)
	}
	input, trace := filepath.Join(dir, "in.jsonl"), filepath.Join(t.TempDir(), "trace")
	line := `{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"sim","messages":[{"role":"user","content":"hello"}]}}` + "\n"
	if err := os.WriteFile(input, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(strace, "-D", "-f", "-y", "-qq", "-o", trace, "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,unlinkat",
		offpeak, "run", input, "--upstream", "sim")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	got := text
	for _, step := range []string{
		`(fsync|fdatasync)\(\d+<OUT\.part\w+>\) += 0`, `rename\w*\(.*"OUT\.part\w+", .*"OUT"`, `(fsync|fdatasync)\(\d+<DIR>\) += 0`,
		`unlinkat\(.*offpeak\.db`,
	} {
		step = strings.NewReplacer("OUT", regexp.QuoteMeta(filepath.Join(dir, "in.output.jsonl")), "DIR", regexp.QuoteMeta(dir)).Replace(step)
		at := regexp.MustCompile(step).FindIndex(got)
		if at == nil {
			t.Fatalf("no %s in what is left of the trace:\n%s", step, got)
		}
		got = got[at[1]:]
	}
}
