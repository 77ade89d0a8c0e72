package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // to ask how large the database is
)

// A postgres is a PostgreSQL server as the system's packages have it, in a folder of its own on the
// disk that everything else is on. Its settings are the default ones: every commit is synced.
type postgres struct {
	dir     string
	process *exec.Cmd
}

var errNoPostgres = errors.New("PostgreSQL is not installed (Debian package postgresql)")

// startPostgres starts a server. As root it runs as nobody, since PostgreSQL refuses to be root.
func startPostgres(ctx context.Context) (*postgres, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if path, err := exec.LookPath("initdb"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		return nil, errNoPostgres
	}
	slices.Sort(found)
	bin := filepath.Dir(found[len(found)-1])
	dir, err := os.MkdirTemp("", "offpeak-bench-postgres-")
	if err != nil {
		return nil, err
	}
	p := &postgres{dir: dir}
	as := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Geteuid() == 0 {
		const nobody = 65534
		as.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			return nil, err
		}
	}
	data := filepath.Join(dir, "data")
	init := command(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
	init.Dir, init.SysProcAttr = dir, as
	if _, err := measure(init); err != nil {
		p.stop()
		return nil, err
	}
	p.process = command(ctx, filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "log_min_messages=fatal")
	p.process.Dir, p.process.SysProcAttr, p.process.Stderr = dir, as, nil
	if err := p.process.Start(); err != nil {
		p.stop()
		return nil, err
	}
	for {
		if _, err = p.size(ctx); err == nil {
			return p, nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			p.stop()
			return nil, fmt.Errorf("PostgreSQL does not start: %w", err)
		}
	}
}

func (p *postgres) stop() {
	if p.process != nil && p.process.Process != nil {
		p.process.Process.Signal(syscall.SIGINT)
		p.process.Wait()
	}
	os.RemoveAll(p.dir)
}

func (p *postgres) dsn() string {
	return "postgres:///postgres?user=postgres&host=" + url.QueryEscape(p.dir)
}

// size is how many bytes the database has, its log apart, which the server bounds by itself.
func (p *postgres) size(ctx context.Context) (n int64, err error) {
	db, err := sql.Open("pgx", p.dsn())
	if err != nil {
		return 0, err
	}
	defer db.Close()
	err = db.QueryRowContext(ctx, "SELECT pg_database_size('postgres')").Scan(&n)
	return n, err
}
