package lab

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A PgBouncer pools transactions: two of one client may meet different connections to PostgreSQL.
type PgBouncer struct {
	// Addr is where it listens.
	Addr string

	lab     *Lab
	dir     string
	program string
	process *process
}

// PgBouncer starts a pooler in front of the database "offpeak" at an address, with so many
// connections to it for all of its clients.
func (l *Lab) PgBouncer(addr string, connections int) (*PgBouncer, error) {
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		// Where Debian has it, which is not in everybody's PATH.
		if program = "/usr/sbin/pgbouncer"; exec.Command(program, "--version").Run() != nil {
			return nil, fmt.Errorf("PgBouncer is %w: apt-get install pgbouncer (Debian)", ErrMissing)
		}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	own, err := freePort()
	if err != nil {
		return nil, err
	}
	b := &PgBouncer{Addr: "127.0.0.1:" + own, lab: l, program: program}
	if b.dir, err = l.folder("pgbouncer" + own); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"users": "\"postgres\" \"\"\n",
		"ini": fmt.Sprintf(`[databases]
offpeak = host=%s port=%s dbname=offpeak
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
default_pool_size = %d
max_client_conn = 500
server_login_retry = 1
`, host, port, own, filepath.Join(b.dir, "users"), connections),
	} {
		// It may be read by whom the program runs as.
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return b, b.Restart()
}

// Restart starts a pooler that does not run.
func (b *PgBouncer) Restart() (err error) {
	if b.process, err = b.lab.start(b.dir, nil, b.program, filepath.Join(b.dir, "ini")); err != nil {
		return err
	}
	for late := time.Now().Add(deadline); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", b.Addr)
		if err == nil {
			return c.Close()
		}
		if b.process.hasEnded() || time.Now().After(late) {
			return fmt.Errorf("pgbouncer: %w\n%s", err, b.process.tail())
		}
	}
}

// Kill kills the pooler.
func (b *PgBouncer) Kill() { b.process.kill() }
