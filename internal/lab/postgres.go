package lab

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Postgres is a PostgreSQL primary and, if it was asked for, a synchronous standby: what is
// committed is on both. Its servers are on two addresses that stay the same; which one is the primary
// changes. Its methods are not safe for concurrent use.
type Postgres struct {
	// Addrs are where the two servers listen, or the one.
	Addrs []string

	lab     *Lab
	bin     string
	servers []*server
	primary int
}

type server struct {
	*process // nil: not running
	dir      string
	port     string
}

// deadline is how long a server may take to do what it was asked to.
const deadline = 60 * time.Second

// Postgres starts PostgreSQL with an empty database "offpeak", and a standby if that is wanted.
func (l *Lab) Postgres(standby bool) (*Postgres, error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	g := &Postgres{lab: l, bin: bin}
	if err := g.init(standby); err != nil {
		return nil, err
	}
	return g, nil
}

func postgresBin() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return "", fmt.Errorf("PostgreSQL is %w: apt-get install postgresql (Debian)", ErrMissing)
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(major(a), major(b)) })
	return filepath.Dir(newest), nil
}

func major(initdb string) int {
	n, _ := strconv.Atoi(strings.Split(initdb, "/")[4])
	return n
}

func (g *Postgres) init(standby bool) error {
	n := 1
	if standby {
		n = 2
	}
	for i := range n {
		dir, err := g.lab.folder(fmt.Sprintf("postgres%d", i+1))
		if err != nil {
			return err
		}
		port, err := freePort()
		if err != nil {
			return err
		}
		g.servers = append(g.servers, &server{dir: dir, port: port})
		g.Addrs = append(g.Addrs, "127.0.0.1:"+port)
	}
	first := g.servers[0]
	if _, err := g.lab.run(filepath.Join(g.bin, "initdb"), "-D", first.data(), "-U", "postgres", "-A", "trust",
		"-E", "UTF8", "--locale=C", "--no-sync"); err != nil {
		return err
	}
	if err := g.start(first); err != nil {
		return err
	}
	if _, err := g.ask(first, "postgres", "CREATE DATABASE offpeak"); err != nil {
		return err
	}
	if standby {
		return g.Attach()
	}
	return nil
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

// start starts a server and waits until it answers.
func (g *Postgres) start(s *server) (err error) {
	s.process, err = g.lab.start(s.dir, nil, filepath.Join(g.bin, "postgres"), "-D", s.data(), "-k", s.dir, "-p", s.port,
		"-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200", "-c", "shared_buffers=64MB",
		"-c", "hot_standby=on", "-c", "wal_keep_size=512MB", "-c", "wal_sender_timeout=10s", "-c", "wal_receiver_timeout=10s",
		"-c", "wal_retrieve_retry_interval=200ms", "-c", "dynamic_shared_memory_type=mmap") // which goes with the folder
	if err != nil {
		return err
	}
	var last error
	err = g.await("PostgreSQL", s, func() bool {
		_, last = g.ask(s, "postgres", "SELECT 1")
		return last == nil
	})
	return errors.Join(err, last)
}

// await waits for something of a server.
func (g *Postgres) await(what string, s *server, look func() bool) error {
	for late := time.Now().Add(deadline); !look(); time.Sleep(20 * time.Millisecond) {
		if s.hasEnded() || time.Now().After(late) {
			return fmt.Errorf("waited in vain for %s:\n%s", what, s.tail())
		}
	}
	return nil
}

// Query asks the primary, and returns what it answers as lines of columns with | between.
func (g *Postgres) Query(query string) (string, error) {
	return g.ask(g.servers[g.primary], "offpeak", query)
}

func (g *Postgres) ask(s *server, database, query string) (string, error) {
	out, err := g.lab.run(filepath.Join(g.bin, "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", s.dir, "-p", s.port, "-U", "postgres",
		"-d", database, "-c", query)
	return strings.TrimSpace(out), err
}

// DSN names the database at some addresses, of which the one is meant that takes writes.
func DSN(addrs ...string) string {
	return "postgres://postgres@" + strings.Join(addrs, ",") + "/offpeak?target_session_attrs=read-write"
}

// Kill kills the primary and all its processes at once.
func (g *Postgres) Kill() {
	s := g.servers[g.primary]
	pid := s.cmd.Process.Pid
	signal(pid, syscall.SIGSTOP) // so that none starts another one meanwhile
	for _, child := range children(pid) {
		syscall.Kill(child, syscall.SIGKILL)
	}
	s.kill()
}

// Promote makes the standby the primary.
func (g *Postgres) Promote() error {
	s := g.servers[1-g.primary]
	if _, err := g.lab.run(filepath.Join(g.bin, "pg_ctl"), "promote", "-D", s.data(), "-w", "-t", "60"); err != nil {
		return fmt.Errorf("%w\n%s", err, s.tail())
	}
	g.primary = 1 - g.primary
	return nil
}

// Attach makes the server that is not the primary a standby of it, as fresh as it is, and has every
// commit from now on wait for it.
func (g *Postgres) Attach() error {
	p, s := g.servers[g.primary], g.servers[1-g.primary]
	if s.process != nil && !s.hasEnded() {
		return errors.New("the other server is running")
	}
	// What it left in the kernel is named there: see [Lab.watch].
	left := filepath.Join(s.dir, fmt.Sprintf("killed-%d", time.Now().UnixNano()))
	if err := os.Rename(filepath.Join(s.data(), "postmaster.pid"), left); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	if _, err := g.lab.run(filepath.Join(g.bin, "pg_basebackup"), "-h", p.dir, "-p", p.port, "-U", "postgres", "-D", s.data(),
		"-X", "stream", "-c", "fast", "--no-sync"); err != nil {
		return err
	}
	// Once it is the primary there is nobody to wait for until somebody is attached.
	settings := fmt.Sprintf("primary_conninfo = 'host=%s port=%s user=postgres application_name=standby'\n", p.dir, p.port)
	for name, text := range map[string]string{"standby.signal": "", "postgresql.auto.conf": settings} {
		path := filepath.Join(s.data(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		if g.lab.as != nil {
			if err := os.Chown(path, int(g.lab.as.Uid), int(g.lab.as.Gid)); err != nil {
				return err
			}
		}
	}
	if err := g.start(s); err != nil {
		return err
	}
	for _, query := range []string{"ALTER SYSTEM SET synchronous_standby_names = 'standby'", "SELECT pg_reload_conf()"} {
		if _, err := g.Query(query); err != nil {
			return err
		}
	}
	return g.await("the standby", s, func() bool {
		if state, err := g.Query("SELECT sync_state FROM pg_stat_replication"); err != nil || state != "sync" {
			return false
		}
		// By the process that tells others to wait for standbys, once it has read the settings.
		_, err := g.Query("CHECKPOINT")
		return err == nil
	})
}

// Restart restarts the primary: at once, as after a crash, or with its connections ended in order.
func (g *Postgres) Restart(crash bool) error {
	s, how := g.servers[g.primary], syscall.SIGINT
	if crash {
		how = syscall.SIGQUIT
	}
	s.cmd.Process.Signal(how)
	select {
	case <-s.ended:
	case <-time.After(deadline):
		return fmt.Errorf("PostgreSQL does not stop:\n%s", s.tail())
	}
	return g.start(s)
}

// Pause stops all processes of the primary, or of the standby, as a hypervisor does.
func (g *Postgres) Pause(standby bool) { g.both(standby, syscall.SIGSTOP) }

// Resume lets them go on.
func (g *Postgres) Resume(standby bool) { g.both(standby, syscall.SIGCONT) }

func (g *Postgres) both(standby bool, s syscall.Signal) {
	i := g.primary
	if standby {
		i = 1 - i
	}
	pid := g.servers[i].cmd.Process.Pid
	signal(pid, s)
	signal(pid, s) // who was being started
}

// Terminate ends every connection that a client has.
func (g *Postgres) Terminate() error {
	_, err := g.Query("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'offpeak' AND pid <> pg_backend_pid()")
	return err
}

// children returns the processes that a process has started.
func children(pid int) (pids []int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, f := range strings.Fields(string(text)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}
