package store_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"offpeak/internal/store"
	"offpeak/internal/store/pgtest"
	"offpeak/internal/store/storetest"
)

// TestPooled passes the suite behind PgBouncer in transaction mode with two connections to the server,
// so that each transaction comes to whichever is free, and knows nothing of the one before. Settings
// of a session are the pooler's; those that a client asks for are refused.
func TestPooled(t *testing.T) {
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		if bin = "/usr/sbin/pgbouncer"; !exists(bin) {
			if os.Getenv("CI") != "" {
				t.Fatal("PgBouncer is not installed: apt-get install pgbouncer (Debian)")
			}
			t.Skip("PgBouncer is not installed: apt-get install pgbouncer (Debian)")
		}
	}
	server := pgtest.Get(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	l.Close()
	dir, err := os.MkdirTemp("", "pooled")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	host, port, _ := net.SplitHostPort(server.Addr())
	config := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(config, fmt.Appendf(nil, `[databases]
* = host=%s port=%s user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_db_connections = 2
server_idle_timeout = 1
`, host, port, addr.Port), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.Command(bin, config)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 { // which PgBouncer refuses to be
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	}()
	for range 200 {
		if c, err := net.Dial("tcp", addr.String()); err == nil {
			c.Close()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	direct := server.TCP(storetest.Postgres(t))
	pooled := strings.Replace(direct, server.Addr(), addr.String(), 1)
	for _, c := range []struct {
		dsn  string
		want bool
	}{
		{direct, true},
		{direct + "?default_query_exec_mode=exec", false},
		{pooled, false},
		{pooled + "?default_query_exec_mode=cache_statement", true}, // who says so knows the pooler
	} {
		if yes, err := store.Prepares(t.Context(), c.dsn); err != nil || yes != c.want {
			t.Errorf("%s: statements are prepared: %v, %v, want %v", c.dsn, yes, err, c.want)
		}
	}
	// In a group, so that the pooler is there until the last parallel test has ended.
	t.Run("transactions", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Database {
			dsn := storetest.Postgres(t)
			pooled := strings.Replace(server.TCP(dsn), server.Addr(), addr.String(), 1)
			return storetest.Database{
				Open: func(o store.Options) (*store.Store, error) { return store.Connect(t.Context(), pooled, o) },
			}
		})
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}
