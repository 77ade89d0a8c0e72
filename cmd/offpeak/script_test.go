package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes the test binary serve as offpeak, too, so that scripts run what main runs, with
// the race detector if the test has it.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "offpeak" {
		// Scripts wait for other processes more than they compute.
		flag.Set("test.parallel", "6")
	}
	testscript.Main(m, map[string]func(){"offpeak": main})
}

// TestScripts runs testdata/script/*.txtar: what a person or a program meets at the command line.
//
// Beside testscript's own commands scripts have those of scriptCommands. None of them sleeps: each
// waits for something that can be seen, for patience at most. What is left to chance is drawn from
// a seed, which is printed.
func TestScripts(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("OFFPEAK_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("OFFPEAK_TEST_SEED=%d", seed)
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		Cmds:               scriptCommands,
		Setup: func(env *testscript.Env) error {
			if os.Getenv("GORACE") == "" {
				// A race ends the process with a code that no script expects.
				env.Setenv("GORACE", "halt_on_error=1 atexit_sleep_ms=0")
			}
			s := &script{t: env.T().(testing.TB), dir: env.WorkDir, env: env.Vars, processes: map[string]*process{}}
			name := fnv.New64()
			io.WriteString(name, filepath.Base(env.WorkDir))
			s.random = rand.New(rand.NewPCG(seed, name.Sum64()))
			env.Values[scriptKey{}] = s
			env.Defer(s.close)
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "mount": // this user may mount file systems
				return canMount(t.TempDir()), nil
			case "quiet": // nothing listens where offpeak looks for upstreams
				return quiet(t), nil
			}
			return false, fmt.Errorf("there is no condition %q", cond)
		},
	})
}

// patience is how long anything may take that a script waits for, on a slow machine.
const patience = 60 * time.Second

var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"code":      code,
	"start":     start,
	"signal":    sendSignal,
	"ends":      ends,
	"killed":    killed,
	"waitfor":   waitFor,
	"random":    random,
	"sum":       sum,
	"atleast":   atLeast,
	"save":      saveMatch,
	"bytes":     writeBytes,
	"gen":       generate,
	"answers":   answers,
	"samelines": sameLines,
	"resent":    resent,
	"recorded":  recorded,
	"sql":       changeDatabase,
	"http":      call,
	"until":     until,
	"calls":     calls,
	"port":      freePort,
	"odd":       oddUpstream,
	"tmpfs":     tmpfs,
	"fill":      fill,
	"cluster":   cluster,
}

// A script is what the commands of one running script share.
type script struct {
	t         testing.TB
	dir       string
	env       []string
	random    *rand.Rand
	processes map[string]*process
	atEnd     []func()
}

type scriptKey struct{}

func scriptOf(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

func (s *script) close() {
	for _, p := range s.processes {
		p.cmd.Process.Kill()
		<-p.ended
	}
	for _, f := range slices.Backward(s.atEnd) {
		f()
	}
}

// usage ends the script unless the command is used as text says, which has no negation.
func usage(ts *testscript.TestScript, neg, ok bool, text string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", text)
	}
}

// poll looks until there is what is waited for. state tells what there is instead.
func poll(ts *testscript.TestScript, state func() string, look func() bool) {
	for end := time.Now().Add(patience); !look(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("waited %s in vain; last seen:\n%s", patience, state())
		}
	}
}

func number(ts *testscript.TestScript, text string) int {
	n, err := strconv.Atoi(text)
	ts.Check(err)
	return n
}

// code N PROGRAM ARGS… runs a program, which must end with this exit code.
func code(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2, "code N PROGRAM ARGS…")
	got, want := 0, number(ts, args[0])
	err := ts.Exec(args[1], args[2:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// A process runs in the background. Its output is in files, for waitfor and grep.
type process struct {
	cmd      *exec.Cmd
	out, err string
	ended    chan struct{} // closed when it has
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// text returns what the process has written.
func (p *process) text() string {
	out, _ := os.ReadFile(p.out)
	errs, _ := os.ReadFile(p.err)
	return string(out) + string(errs)
}

func (s *script) process(ts *testscript.TestScript, name string) *process {
	p := s.processes[name]
	if p == nil {
		ts.Fatalf("%s was not started", name)
	}
	return p
}

// readyLine is how "offpeak serve" and "offpeak sim" say that they serve, and where.
var readyLine = regexp.MustCompile(`base_url=(http://\S+)|simulated upstream on (http://\S+)`)

// start NAME [VAR=VALUE…] PROGRAM ARGS… starts a program in the background, with its output in
// NAME.out and NAME.err. "offpeak serve" and "offpeak sim" serve when start returns; $NAME is then
// the base URL, $NAME_host what comes before its /v1, and $NAME_addr that without http://.
func start(ts *testscript.TestScript, neg bool, args []string) {
	const text = "start NAME [VAR=VALUE…] PROGRAM ARGS…"
	usage(ts, neg, len(args) >= 2, text)
	s, name, args := scriptOf(ts), args[0], args[1:]
	if old := s.processes[name]; old != nil && !old.hasEnded() {
		ts.Fatalf("%s is running", name)
	}
	env := slices.Clone(s.env)
	for len(args) > 0 && strings.Contains(args[0], "=") {
		env, args = append(env, args[0]), args[1:]
	}
	usage(ts, false, len(args) > 0, text)

	p := &process{
		cmd: exec.Command(args[0], args[1:]...), ended: make(chan struct{}),
		out: filepath.Join(s.dir, name+".out"), err: filepath.Join(s.dir, name+".err"),
	}
	p.cmd.Dir, p.cmd.Env = ts.MkAbs("."), env
	out, err := os.Create(p.out)
	ts.Check(err)
	defer out.Close() // the process has it, too
	errs, err := os.Create(p.err)
	ts.Check(err)
	defer errs.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, errs
	ts.Check(p.cmd.Start())
	s.processes[name] = p
	go func() {
		p.cmd.Wait() // see ProcessState
		close(p.ended)
	}()
	if args[0] != "offpeak" || len(args) < 2 || args[1] != "serve" && args[1] != "sim" {
		return
	}
	poll(ts, p.text, func() bool {
		ended := p.hasEnded() // before the look
		m := readyLine.FindStringSubmatch(p.text())
		if m == nil && ended {
			ts.Fatalf("%s ended (%v):\n%s", name, p.cmd.ProcessState, p.text())
		}
		if m == nil {
			return false
		}
		url := cmp.Or(m[1], m[2])
		host := strings.TrimSuffix(url, "/v1")
		ts.Setenv(name, url)
		ts.Setenv(name+"_host", host)
		ts.Setenv(name+"_addr", strings.TrimPrefix(host, "http://"))
		return true
	})
}

// signal NAME INT|TERM|HUP|KILL sends a signal to a process in the background.
func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"INT": os.Interrupt, "TERM": syscall.SIGTERM, "HUP": syscall.SIGHUP, "KILL": os.Kill}
	usage(ts, neg, len(args) == 2 && signals[args[1]] != nil, "signal NAME INT|TERM|HUP|KILL")
	ts.Check(scriptOf(ts).process(ts, args[0]).cmd.Process.Signal(signals[args[1]]))
}

// ends NAME CODE waits until a process in the background has ended, with this exit code, or -1 if
// a signal ended it.
func ends(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "ends NAME CODE")
	p := scriptOf(ts).process(ts, args[0])
	poll(ts, p.text, p.hasEnded)
	if got, want := p.cmd.ProcessState.ExitCode(), number(ts, args[1]); got != want {
		ts.Fatalf("%s ended with exit code %d, want %d:\n%s", args[0], got, want, p.text())
	}
	if text := p.text(); strings.Contains(text, "DATA RACE") || strings.Contains(text, "goroutine ") {
		ts.Fatalf("%s:\n%s", args[0], text)
	}
}

// killed TIMES MOST CODE PROGRAM ARGS… runs a program again and again, and kills it each time after
// a random time of up to MOST, or not if it ends earlier, which must be with this exit code.
func killed(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 4, "killed TIMES MOST CODE PROGRAM ARGS…")
	s, times, want := scriptOf(ts), number(ts, args[0]), number(ts, args[2])
	most, err := time.ParseDuration(args[1])
	ts.Check(err)
	for range times {
		after := time.Duration(s.random.Int64N(int64(most)))
		start(ts, false, append([]string{"killed"}, args[3:]...))
		p := s.processes["killed"]
		select {
		case <-time.After(after):
			p.cmd.Process.Kill()
			<-p.ended
		case <-p.ended:
		}
		ts.Logf("%v, %v:\n%s", after, p.cmd.ProcessState, p.text())
		if got := p.cmd.ProcessState.ExitCode(); got >= 0 && got != want {
			ts.Fatalf("it ended with exit code %d, want %d", got, want)
		}
	}
}

// waitfor FILE REGEXP waits until the file has a match.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "waitfor FILE REGEXP")
	re := compile(ts, args[1])
	var text []byte
	poll(ts, func() string { return string(text) }, func() bool {
		text, _ = os.ReadFile(ts.MkAbs(args[0]))
		return re.Match(text)
	})
}

func compile(ts *testscript.TestScript, expr string) *regexp.Regexp {
	re, err := regexp.Compile("(?m)" + expr)
	ts.Check(err)
	return re
}

// random VAR LEAST MOST sets a variable to a random number.
func random(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 3, "random VAR LEAST MOST")
	least, most := number(ts, args[1]), number(ts, args[2])
	n := strconv.Itoa(least + scriptOf(ts).random.IntN(most-least+1))
	ts.Logf("%s=%s", args[0], n)
	ts.Setenv(args[0], n)
}

// sum VAR N… sets a variable to the sum of numbers.
func sum(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2, "sum VAR N…")
	n := 0
	for _, arg := range args[1:] {
		n += number(ts, arg)
	}
	ts.Setenv(args[0], strconv.Itoa(n))
}

// atleast N LEAST compares two numbers.
func atLeast(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "atleast N LEAST")
	if number(ts, args[0]) < number(ts, args[1]) {
		ts.Fatalf("%s is less than %s", args[0], args[1])
	}
}

// save VAR FILE REGEXP sets a variable to what the first group of REGEXP matches in the file, or
// in stdout or stderr.
func saveMatch(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 3, "save VAR FILE REGEXP")
	m := compile(ts, args[2]).FindStringSubmatch(ts.ReadFile(args[1]))
	if len(m) < 2 {
		ts.Fatalf("no match for %q in:\n%s", args[2], ts.ReadFile(args[1]))
	}
	ts.Setenv(args[0], m[1])
}
