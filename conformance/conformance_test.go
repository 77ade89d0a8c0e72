package conformance

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A suite is one SDK and the program that puts it to the test. Its commands are for sh, with a
// folder of its own in $CACHE.
type suite struct {
	name     string
	programs []string // that must be on the machine
	pins     string   // file that says which versions are wanted
	install  string   // makes what run needs; skipped while pins is unchanged
	run      string   // prints the report
}

var suites = []suite{
	pythonSuite("python", "python/requirements.txt"),
	pythonSuite("python-2", "python/requirements-2.txt"),
	nodeSuite("node", "openai"),
	nodeSuite("node-6", "openai-6"),
	{
		name: "go", programs: []string{"go"},
		run: `go build -o "$CACHE/checks" ./go
			"$CACHE/checks"`,
	},
	{
		// Maven finds out whether anything is newer, unless it is told to stay offline.
		name: "java", programs: []string{"java", "javac", "mvn"}, pins: "java/pom.xml",
		install: `rm -rf "$CACHE/jars"
			jars() { mvn --quiet --batch-mode --file java/pom.xml "$@" dependency:copy-dependencies "-DoutputDirectory=$CACHE/jars"; }
			jars --offline >"$CACHE/offline.log" 2>&1 || jars`,
		run: `javac -encoding UTF-8 -nowarn -proc:none -cp "$CACHE/jars/*" -d "$CACHE/classes" java/*.java
			java -XX:TieredStopAtLevel=1 -Dfile.encoding=UTF-8 -cp "$CACHE/classes:$CACHE/jars/*" Checks`,
	},
}

func pythonSuite(name, requirements string) suite {
	return suite{
		name: name, programs: []string{"python3"}, pins: requirements,
		install: `python3 -m venv --clear "$CACHE/venv"
			"$CACHE/venv/bin/pip" install --quiet --disable-pip-version-check -r ` + requirements,
		run: `"$CACHE/venv/bin/python" -B python/checks.py`,
	}
}

// nodeSuite is the suite of the generation that package.json calls sdk.
func nodeSuite(name, sdk string) suite {
	return suite{
		name: name, programs: []string{"node", "npm"}, pins: "node/package-lock.json",
		install: `cp node/package*.json "$CACHE"
			npm ci --prefix "$CACHE" --silent --no-audit --no-fund`,
		run: `cp node/*.mjs "$CACHE"
			SDK=` + sdk + ` node "$CACHE/checks.mjs"`,
	}
}

// TestSDKs runs every suite against servers of their own and prints the table.
func TestSDKs(t *testing.T) {
	if testing.Short() {
		t.Skip("installs SDKs and starts servers")
	}
	cache, err := filepath.Abs("../.cache/conformance")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, cache)
	var reports []Report
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			if why := s.missing(); why != "" {
				report, _ := ReadReport(s.name, strings.NewReader(""))
				reports = append(reports, report)
				if os.Getenv("CI") == "true" {
					t.Fatal(why)
				}
				t.Skip(why)
			}
			report := s.report(t, filepath.Join(cache, s.name), w.env(t, s.name))
			reports = append(reports, report)
			for _, c := range Checks() {
				switch o := report.Outcomes[c.ID]; o.Result {
				case Failed:
					t.Errorf("%s: %s", c.ID, o.Detail)
				case Missing:
					t.Errorf("%s: not checked", c.ID)
				}
			}
		})
	}
	var table bytes.Buffer
	WriteTable(&table, reports)
	fmt.Print("\n", table.String())
	// The file has another use: what a test reads that is so new, go test does not take for
	// unchanged the next time. It knows nothing of the binary that it would have to build anew.
	path := filepath.Join(cache, "table.txt")
	if err := os.WriteFile(path, table.Bytes(), 0o600); err != nil {
		t.Error(err)
	}
	os.Stat(path)
}

// missing says what s needs that is not on this machine, if anything.
func (s *suite) missing() string {
	missing := slices.DeleteFunc(slices.Clone(s.programs), func(p string) bool {
		_, err := exec.LookPath(p)
		return err == nil
	})
	if len(missing) == 0 {
		return ""
	}
	return "not on this machine: " + strings.Join(missing, ", ")
}

// report installs what s needs and runs it.
func (s *suite) report(t *testing.T, cache string, env []string) Report {
	t.Helper()
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	pinned, _ := os.ReadFile(s.pins)
	stamp := filepath.Join(cache, "installed")
	if have, _ := os.ReadFile(stamp); s.install != "" && !bytes.Equal(have, pinned) {
		os.Remove(stamp)
		sh(t, "install", s.install, append(os.Environ(), "CACHE="+cache))
		if err := os.WriteFile(stamp, pinned, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	report, err := ReadReport(s.name, bytes.NewReader(sh(t, "run", s.run, append(env, "CACHE="+cache))))
	if err != nil {
		t.Error(err)
	}
	return report
}

// sh runs a script of a suite and returns what it prints.
func sh(t *testing.T, what, script string, env []string) []byte {
	t.Helper()
	start := time.Now()
	printed := output(t, exec.Command("sh", "-ec", script), env)
	t.Logf("%s: %s", what, time.Since(start).Round(time.Second/10))
	return printed
}

// output runs a command and returns what it prints. The test ends if the command fails: a suite
// whose checks fail does not.
func output(t *testing.T, c *exec.Cmd, env []string) []byte {
	t.Helper()
	var out, errs bytes.Buffer
	c.Env, c.Stdout, c.Stderr, c.WaitDelay = env, &out, &errs, time.Second
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(3*time.Minute, func() { syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }).Stop()
	if err := c.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(c.Args, " "), err, out.String(), errs.String())
	}
	return out.Bytes()
}
