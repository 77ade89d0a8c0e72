// Package pgtest starts a PostgreSQL server for the tests of one process, from the system's packages
// and in a scratch folder, and gives each test a database of its own. The server ends with the
// process, however that ends.
package pgtest

import (
	"context"
	"errors"
	"fmt"
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

// A Server is a running PostgreSQL that anybody on this machine may use.
type Server struct {
	dir   string
	port  int
	shell *exec.Cmd // holds the pipe open that tells the shell that we are there
	made  atomic.Int64

	mu        sync.Mutex
	templates map[string]string // databases to copy, by what made them
}

// shared is the one server of this process, started by the first test that wants it.
var shared = sync.OnceValues(start)

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
	return s.temporary(t, template)
}

// Empty returns the DSN of an empty database that lives as long as the test.
func Empty(t testing.TB) string {
	t.Helper()
	return Get(t).temporary(t, "")
}

func (s *Server) temporary(t testing.TB, template string) string {
	t.Helper()
	name := s.create(t, template)
	t.Cleanup(func() {
		// Not the test's context, which is cancelled by now.
		if err := s.exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return s.DSN(name)
}

// create makes a database, as a copy of the template if that has a name.
func (s *Server) create(t testing.TB, template string) string {
	t.Helper()
	name := fmt.Sprintf("test%d", s.made.Add(1))
	query := "CREATE DATABASE " + name
	if template != "" {
		query += " TEMPLATE " + template
	}
	if err := s.exec(context.Background(), query); err != nil {
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
		return filepath.Dir(path), nil
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

// start makes and starts a server. A shell waits beside it for this process to end, which closes the
// shell's input, and takes everything away then.
func start() (*Server, error) {
	bin, err := bin()
	if err != nil {
		return nil, err
	}
	scratch := "/dev/shm"
	if _, err := os.Stat(scratch); err != nil {
		scratch = os.TempDir()
	}
	dir, err := os.MkdirTemp(scratch, "offpeak-pg")
	if err != nil {
		return nil, err
	}
	as := &syscall.SysProcAttr{Setpgid: true} // a ^C is for the test; the shell follows
	if os.Geteuid() == 0 {                    // which PostgreSQL refuses to be
		as.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		if err := os.Chown(dir, 65534, 65534); err != nil {
			return nil, err
		}
	}
	init := exec.Command(filepath.Join(bin, "initdb"), "-D", filepath.Join(dir, "data"), "-U", "postgres", "-A", "trust",
		"-E", "UTF8", "--locale=C", "--no-sync")
	init.Dir, init.SysProcAttr = dir, as
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	for range 3 { // the port may be taken before the server is there
		s := &Server{dir: dir, templates: map[string]string{}}
		if s.port, err = freePort(); err != nil {
			return nil, err
		}
		if err = s.run(bin, as); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func (s *Server) run(bin string, as *syscall.SysProcAttr) error {
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("sh", "-c", `"$@" <&- & read -r _; kill -QUIT $! 2>&-; wait; rm -rf "$PWD"`, "sh",
		filepath.Join(bin, "postgres"), "-D", filepath.Join(s.dir, "data"), "-k", s.dir, "-p", strconv.Itoa(s.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "max_connections=300", "-c", "shared_buffers=64MB", "-c", "max_wal_size=256MB")
	cmd.Dir, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = s.dir, as, log, log
	if _, err := cmd.StdinPipe(); err != nil { // held open by s.shell, for which nobody waits
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

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
