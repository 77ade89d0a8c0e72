// Package pgtest starts a PostgreSQL server for the tests of one process, from the system's packages
// and in a scratch folder, and gives each test a database of its own. The server ends with the
// process, however that ends.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// dirEnv names the folder in which servers have theirs, where memory is too small for what is in them.
const dirEnv = "OFFPEAK_PG_DIR"

// A Server is a running PostgreSQL that anybody on this machine may use.
type Server struct {
	bin  string // the folder of its programs
	dir  string // its own folder
	as   *syscall.SysProcAttr
	port int
	made atomic.Int64

	shell *exec.Cmd
	input io.Closer // open as long as we are there

	mu        sync.Mutex
	templates map[string]string // databases to copy, by what made them
}

// shared is the one server of this process, started by the first test that wants it.
var shared = sync.OnceValues(func() (*Server, error) { return start() })

// Get returns the server of this process. Where PostgreSQL is not installed the test fails, or is
// skipped unless CI is set.
func Get(t testing.TB) *Server {
	t.Helper()
	s, err := shared()
	if errors.Is(err, errMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// New returns the DSN of a database that lives as long as the test. It is a copy of what migrate made
// of an empty one, once per name.
func New(t testing.TB, name string, migrate func(dsn string) error) string {
	t.Helper()
	s := Get(t)
	s.mu.Lock()
	template, ok := s.templates[name]
	if !ok {
		template = s.create(t, "")
		if err := migrate(s.DSN(template)); err != nil {
			s.mu.Unlock()
			t.Fatalf("template %s: %v", name, err)
		}
		s.templates[name] = template
	}
	s.mu.Unlock()
	return s.temporary(t, "TEMPLATE "+template)
}

// Empty returns the DSN of an empty database that lives as long as the test, made WITH options if
// there are any.
func Empty(t testing.TB, options ...string) string {
	t.Helper()
	return Get(t).temporary(t, strings.Join(options, " "))
}

func (s *Server) temporary(t testing.TB, options string) string {
	t.Helper()
	name := s.create(t, options)
	t.Cleanup(func() {
		// Not the test's context, which is cancelled by now.
		if err := s.exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return s.DSN(name)
}

func (s *Server) create(t testing.TB, options string) string {
	t.Helper()
	name := fmt.Sprintf("test%d", s.made.Add(1))
	if err := s.exec(context.Background(), "CREATE DATABASE "+name+" "+options); err != nil {
		t.Fatal(err)
	}
	return name
}

// DSN names a database of the server, by its socket.
func (s *Server) DSN(database string) string {
	return fmt.Sprintf("postgres:///%s?host=%s&port=%d&user=postgres", database, url.QueryEscape(s.dir), s.port)
}

// TCP is what a DSN of this server is by its address, for tests that get in between.
func (s *Server) TCP(dsn string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("postgres://postgres@%s%s", s.Addr(), u.Path)
}

// Addr is where the server listens.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// exec runs a statement as the superuser, outside of a transaction.
func (s *Server) exec(ctx context.Context, query string) error {
	c, err := pgx.Connect(ctx, s.DSN("postgres"))
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	if _, err := c.Exec(ctx, query); err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	return nil
}

var errMissing = errors.New("PostgreSQL is not installed: apt-get install postgresql (Debian), or put initdb and postgres in PATH")

// bin returns the folder of the newest PostgreSQL's programs.
func bin() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		path, err = filepath.EvalSymlinks(path) // beside it are the others
		return filepath.Dir(path), err
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return "", errMissing
	}
	newest := found[0]
	for _, f := range found {
		if version(f) > version(newest) {
			newest = f
		}
	}
	return filepath.Dir(newest), nil
}

func version(initdb string) int {
	n, _ := strconv.Atoi(strings.Split(initdb, "/")[4])
	return n
}

// Start starts a server that is the test's own, to be broken, with settings such as "fsync=off" that
// others need not have.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	Get(t) // or say what is missing
	s, err := start(settings...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

// start makes and starts a server.
func start(settings ...string) (*Server, error) {
	s, err := scratch()
	if err != nil {
		return nil, err
	}
	init := s.command("initdb", "-D", s.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return s, s.run(settings...)
}

// Standby starts a server that follows s. If s has synchronous_standby_names=standby, commits wait
// for it.
func (s *Server) Standby(t testing.TB) *Server {
	t.Helper()
	b, err := scratch()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.stop)
	copy := b.command("pg_basebackup", "-D", b.data(), "-R", "-X", "stream", "--no-sync", "-c", "fast",
		"-d", s.DSN("postgres")+"&application_name=standby")
	if out, err := copy.CombinedOutput(); err != nil {
		t.Fatalf("pg_basebackup: %v: %s", err, out)
	}
	if err := b.run(); err != nil {
		t.Fatal(err)
	}
	return b
}

// Promote makes a standby a primary.
func (s *Server) Promote(t testing.TB) {
	t.Helper()
	if err := s.exec(context.Background(), "SELECT pg_promote()"); err != nil {
		t.Fatal(err)
	}
}

// Kill kills the server, which has no time to say goodbye to anybody.
func (s *Server) Kill(t testing.TB) { s.signal(t, syscall.SIGKILL) }

// Stop stops all of the server's processes where they stand; connections stay, and get no answer.
func (s *Server) Stop(t testing.TB) { s.signal(t, syscall.SIGSTOP) }

// Continue undoes Stop.
func (s *Server) Continue(t testing.TB) { s.signal(t, syscall.SIGCONT) }

// signal sends a signal to every process of the server.
func (s *Server) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append([]string{first}, strings.Fields(string(children))...) {
		pid, _ := strconv.Atoi(p)
		if err := syscall.Kill(pid, sig); err != nil && err != syscall.ESRCH {
			t.Fatal(err)
		}
	}
}

// scratch makes a folder for a server.
func scratch() (*Server, error) {
	bin, err := bin()
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, as: &syscall.SysProcAttr{Setpgid: true}, templates: map[string]string{}} // a ^C is for the test
	parent := os.Getenv(dirEnv)
	if parent == "" {
		parent = "/dev/shm"
	}
	if _, err := os.Stat(parent); err != nil {
		parent = os.TempDir()
	}
	if s.dir, err = os.MkdirTemp(parent, "offpeak-pg"); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 { // which PostgreSQL refuses to be
		s.as.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		return s, os.Chown(s.dir, 65534, 65534)
	}
	return s, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// command returns a program of PostgreSQL, to be run in the folder and by whom it belongs to.
func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir, cmd.SysProcAttr = s.dir, s.as
	return cmd
}

// run starts the server. A shell waits beside it for this process to end, which closes the shell's
// input, and takes everything away then: the shared memory of a server that was killed, too.
func (s *Server) run(settings ...string) (err error) {
	for range 3 { // the port may be taken before the server is there
		if s.port, err = freePort(); err != nil {
			return err
		}
		if err = s.try(settings); err == nil {
			return nil
		}
	}
	return err
}

func (s *Server) try(settings []string) error {
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"-c", `"$@" <&- & read -r _; kill -QUIT $! 2>&-; wait; ipcrm -m "$(sed -n '7s/.* //p' data/postmaster.pid 2>&-)" 2>&-; rm -rf "$PWD"`, "sh",
		filepath.Join(s.bin, "postgres"), "-D", s.data(), "-k", s.dir, "-p", strconv.Itoa(s.port)}
	for _, v := range append([]string{"listen_addresses=127.0.0.1", "max_connections=300", "shared_buffers=64MB", "max_wal_size=256MB", "dynamic_shared_memory_type=mmap"}, settings...) {
		args = append(args, "-c", v)
	}
	cmd := exec.Command("sh", args...)
	cmd.Dir, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = s.dir, s.as, log, log
	if s.input, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.shell = cmd
	for range 600 {
		if err = s.exec(context.Background(), "SELECT 1"); err == nil {
			return nil
		}
		if raw, _ := os.ReadFile(log.Name()); strings.Contains(string(raw), "FATAL:  could not") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	raw, _ := os.ReadFile(log.Name())
	return fmt.Errorf("PostgreSQL does not start: %w\n%s", err, raw)
}

// stop ends the server and its folder.
func (s *Server) stop() {
	if s.shell != nil {
		s.input.Close()
		s.shell.Wait()
	}
	os.RemoveAll(s.dir)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
