package crash

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"offpeak/internal/client"
)

// patience is how long anything may take that a test waits for, on a slow machine.
const patience = 180 * time.Second

// offpeak is the path of the real binary, which TestMain builds.
var offpeak string

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "5") // tests wait for other processes more than they compute
	dir, err := os.MkdirTemp("", "offpeak-crash-")
	if err != nil {
		panic(err)
	}
	offpeak = filepath.Join(dir, "offpeak")
	build := []string{"build", "-o", offpeak}
	if os.Getenv("OFFPEAK_CRASH_RACE") != "" {
		// A race ends the process with a code that nobody expects. SQLite is looked after by others: see .ci/test.
		build = append(build, "-race", "-gcflags=modernc.org/...=-race=false")
		os.Setenv("GORACE", "halt_on_error=1 atexit_sleep_ms=0")
	}
	if out, err := exec.Command("go", append(build, "../cmd/offpeak")...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// slow skips a test in short mode.
func slow(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("breaks real processes")
	}
}

// setting reads a number from the environment.
func setting(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// chance returns a source of chance of this test's own, and prints how to have it again.
func chance(t *testing.T) *rand.Rand {
	t.Helper()
	seed := setting(t, "OFFPEAK_TEST_SEED", uint64(time.Now().UnixNano()))
	t.Logf("OFFPEAK_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// rounds returns how often something is to be done that is left to chance: n times where nobody
// asks for more.
func rounds(t *testing.T, n int) int { return int(setting(t, "OFFPEAK_CRASH_ROUNDS", uint64(n))) }

// A process is one of the binary.
type process struct {
	t       *testing.T
	cmd     *exec.Cmd
	started time.Time
	ended   chan struct{} // closed when it has
	well    bool          // it has, as it was to

	mu      sync.Mutex
	log     strings.Builder
	changed chan struct{} // closed with every line, and replaced
}

// start starts the binary with its output in p.log. It is killed when the test ends.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	return startCommand(t, exec.Command(offpeak, args...))
}

// startCommand is start for any command. Once it has started, the held functions are called before
// anybody waits for it.
func startCommand(t *testing.T, cmd *exec.Cmd, held ...func()) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, ended: make(chan struct{}), changed: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	p.started = time.Now()
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range held {
		f()
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer r.Close()
		for lines := bufio.NewReader(r); ; {
			line, err := lines.ReadString('\n')
			p.mu.Lock()
			p.log.WriteString(line)
			close(p.changed)
			p.changed = make(chan struct{})
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() {
		cmd.Wait() // see ProcessState
		<-read
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.signal(syscall.SIGCONT)
		p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() && !p.well {
			t.Logf("%s:\n%s", strings.Join(cmd.Args, " "), lastLines(p.text(), 40))
		}
	})
	return p
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// awaitLog waits until the log has a match, and returns its groups. If the process ends before, it
// returns nil.
func (p *process) awaitLog(expr string) []string {
	p.t.Helper()
	re := regexp.MustCompile(expr)
	late := time.After(patience)
	for {
		ended := p.hasEnded() // before the look
		p.mu.Lock()
		m, changed := re.FindStringSubmatch(p.log.String()), p.changed
		p.mu.Unlock()
		if m != nil || ended {
			return m
		}
		select {
		case <-changed:
		case <-p.ended:
		case <-late:
			p.t.Fatalf("waited %s in vain for %q in the log:\n%s", patience, expr, p.text())
		}
	}
}

// signal sends a signal. A process that has ended by itself does not mind.
func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
}

// suspend stops the process where it stands, and returns once all of its threads do: until then one of
// them may go on with an answer.
func (p *process) suspend() {
	p.t.Helper()
	p.signal(syscall.SIGSTOP)
	going := func(thread string) bool {
		stat, err := os.ReadFile(thread)
		_, state, _ := strings.Cut(string(stat), ") ") // behind its name
		return err == nil && !strings.HasPrefix(state, "T")
	}
	for late := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		if err != nil {
			p.t.Fatal(err)
		}
		if !slices.ContainsFunc(threads, going) {
			return
		}
		if time.Now().After(late) {
			p.t.Fatalf("waited %s in vain for the process to stand still", patience)
		}
	}
}

// kill kills the process and returns when that was.
func (p *process) kill() time.Time {
	p.t.Helper()
	at := time.Now()
	p.signal(syscall.SIGKILL)
	<-p.ended
	p.well = true
	return at
}

// end waits for the process to end by itself, with this exit code.
func (p *process) end(code int) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("it does not end:\n%s", p.text())
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("%v, want exit code %d:\n%s", p.cmd.ProcessState, code, p.text())
	}
	p.well = true
}

// A server is a process of "offpeak serve".
type server struct {
	*process
	api *client.Client // once it is ready
	url string
}

// maxInFlight is how many calls a server under test has in flight at most.
const maxInFlight = 16

// serve starts a server on a folder, and does not wait for it.
func serve(t *testing.T, dir, upstream string, args ...string) *server {
	t.Helper()
	return &server{process: start(t, serveArgs(dir, upstream, args...)...)}
}

func serveArgs(dir, upstream string, args ...string) []string {
	return append([]string{"serve", "--listen", "127.0.0.1:0", "--data", dir, "--upstream", upstream,
		"--max-in-flight", strconv.Itoa(maxInFlight)}, args...)
}

// ready waits until the server serves, and reports whether it does: it may have been killed.
func (s *server) ready() bool {
	s.t.Helper()
	m := s.awaitLog(`msg=serving base_url=(\S+)`)
	if m == nil {
		return false
	}
	s.url = m[1]
	api, err := client.New(s.url, "any", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.api = api
	return true
}

// mustBeReady is ready for a server that nobody kills.
func (s *server) mustBeReady() *server {
	s.t.Helper()
	if !s.ready() {
		s.t.Fatalf("the server has ended:\n%s", s.text())
	}
	return s
}

// stop asks the server to stop, which it is to do well.
func (s *server) stop() {
	s.t.Helper()
	s.signal(syscall.SIGTERM)
	s.end(0)
}

// poll looks until there is what is waited for.
func poll(t *testing.T, what string, look func() bool) {
	t.Helper()
	for late := time.Now().Add(patience); !look(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("waited %s in vain for %s", patience, what)
		}
	}
}

// content returns the bytes of a file on a server.
func content(t *testing.T, api *client.Client, id string) []byte {
	t.Helper()
	r, err := api.Content(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// lastLines returns the last n lines of a text.
func lastLines(text string, n int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}
