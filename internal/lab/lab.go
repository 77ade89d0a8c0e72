// Package lab starts what a cluster stands on, for tests and benchmarks that break it: PostgreSQL
// with a synchronous standby, PgBouncer, an S3 server, and relays that can be cut. All of it is the
// real thing, from the system's packages, in a scratch folder, and ends with this process, however
// that ends.
//
//	l, err := lab.New()
//	if err != nil { … }
//	defer l.Close()
//	pg, err := l.Postgres(true)
//	s3, err := l.S3()
package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// ErrMissing is wrapped by errors that tell that a program is not installed.
var ErrMissing = errors.New("not installed")

// A Lab is a scratch folder, and somebody who tidies up.
type Lab struct {
	dir     string
	watcher *exec.Cmd
	held    *os.File // the watcher waits for the end of it
	as      *syscall.Credential
}

// New makes a lab, in memory where that is a folder.
func New() (*Lab, error) {
	scratch := "/dev/shm"
	if _, err := os.Stat(scratch); err != nil {
		scratch = os.TempDir()
	}
	return NewIn(scratch)
}

// NewIn makes a lab in a folder, which everybody may look into.
func NewIn(scratch string) (*Lab, error) {
	dir, err := os.MkdirTemp(scratch, "offpeak-lab-")
	if err != nil {
		return nil, err
	}
	l := &Lab{dir: dir}
	if os.Geteuid() == 0 { // which PostgreSQL refuses to be
		l.as = &syscall.Credential{Uid: 65534, Gid: 65534}
		if err := os.Chown(dir, 65534, 65534); err != nil {
			return nil, err
		}
	}
	if err := l.watch(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return l, nil
}

// watch starts a shell that waits for the end of this process, which ends its input, and then takes
// away what was started here, stopped processes too, and what killed servers leave in the kernel: a
// segment of shared memory each, of which a machine has 4,096.
func (l *Lab) watch() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	l.watcher = exec.Command("sh", "-c", `read -r _
for f in pids/*; do
	p=${f#pids/}
	for c in $(cat "/proc/$p/task/$p/children" 2>&-) "$p"; do kill -9 "$c" 2>&-; done
done
for f in */data/postmaster.pid */killed-*; do
	ipcrm -m "$(sed -n '7s/.* //p' "$f" 2>&-)" 2>&-
done
cd / && rm -rf "$1"`, "sh", l.dir)
	l.watcher.Dir, l.watcher.Stdin = l.dir, r
	l.watcher.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C is for us; the shell follows
	if err := os.Mkdir(filepath.Join(l.dir, "pids"), 0o755); err != nil {
		return err
	}
	l.held = w
	return l.watcher.Start()
}

// Close ends everything that was started in the lab.
func (l *Lab) Close() error {
	l.held.Close()
	return l.watcher.Wait()
}

// A process is one that was started in the lab.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	log   string // path
}

// start starts a program that may write to the folder dir of the lab.
func (l *Lab) start(dir string, env []string, name string, args ...string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{cmd: exec.Command(name, args...), ended: make(chan struct{}), log: log.Name()}
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = dir, append(os.Environ(), env...), log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.as, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	mark := filepath.Join(l.dir, "pids", fmt.Sprint(p.cmd.Process.Pid))
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		p.kill()
		return nil, err
	}
	go func() {
		p.cmd.Wait()
		os.Remove(mark) // the number may be somebody else's from now on
		close(p.ended)
	}()
	return p, nil
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	if p.ended != nil {
		<-p.ended
	}
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// tail returns the end of what a process said.
func (p *process) tail() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-4000):])
}

// folder makes a folder in the lab.
func (l *Lab) folder(name string) (string, error) {
	dir := filepath.Join(l.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	if l.as != nil {
		return dir, os.Chown(dir, int(l.as.Uid), int(l.as.Gid))
	}
	return dir, nil
}

// run runs a program to its end, as whom start starts them.
func (l *Lab) run(name string, args ...string) (string, error) {
	c := exec.Command(name, args...)
	c.Dir, c.SysProcAttr = l.dir, &syscall.SysProcAttr{Credential: l.as}
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %q: %w\n%s", filepath.Base(name), args, err, out)
	}
	return string(out), nil
}

// freePort returns the number of a port that nobody uses just now.
func freePort() (string, error) {
	c, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer c.Close()
	_, port, err := net.SplitHostPort(c.Addr().String())
	return port, err
}
