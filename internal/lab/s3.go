package lab

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// An S3 is a server with the bucket "offpeak".
type S3 struct {
	// Addr is where it listens.
	Addr string
	// Dir is where it keeps the bucket's objects.
	Dir string

	lab     *Lab
	program string
	process *process
}

// The credentials of every S3 server in the lab, also as the environment of those who use it.
const (
	accessKey = "offpeak"
	secretKey = "offpeak-secret"
)

// S3Env is the environment of processes that use the S3 server.
var S3Env = []string{"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey}

// versitygw is the version that .ci/versitygw installs.
const versitygw = "v1.8.0"

// S3 starts an S3 server.
func (l *Lab) S3() (*S3, error) {
	path, err := s3Server()
	if err != nil {
		return nil, err
	}
	dir, err := l.folder("s3")
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"s3/data", "s3/data/offpeak", "s3/sidecar"} {
		if _, err := l.folder(d); err != nil {
			return nil, err
		}
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &S3{Addr: "127.0.0.1:" + port, Dir: filepath.Join(dir, "data", "offpeak"), lab: l, program: path}
	return s, s.Restart()
}

// Restart starts a server that does not run.
func (s *S3) Restart() (err error) {
	dir := filepath.Join(s.lab.dir, "s3")
	if s.process, err = s.lab.start(dir, []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey}, s.program,
		"--port", s.Addr, "--quiet", "posix", "--sidecar", filepath.Join(dir, "sidecar"), filepath.Join(dir, "data")); err != nil {
		return err
	}
	for late := time.Now().Add(deadline); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", s.Addr)
		if err == nil {
			return c.Close()
		}
		if s.process.hasEnded() || time.Now().After(late) {
			return fmt.Errorf("versitygw: %w\n%s", err, s.process.tail())
		}
	}
}

// Kill kills the server.
func (s *S3) Kill() { s.process.kill() }

// Pause stops the server, as a hypervisor does.
func (s *S3) Pause() { s.process.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets it go on.
func (s *S3) Resume() { s.process.cmd.Process.Signal(syscall.SIGCONT) }

// S3URL is what a bucket is for --blobs, at an address.
func S3URL(addr string) string {
	q := url.Values{"region": {"us-east-1"}, "endpoint": {"http://" + addr}, "use_path_style": {"true"}}
	return "s3://offpeak?" + q.Encode()
}

// s3Server finds the program, which .ci/test installs in the module's .cache/bin.
func s3Server() (string, error) {
	if path := os.Getenv("VERSITYGW"); path != "" {
		return path, nil
	}
	for dir, _ := os.Getwd(); ; dir = filepath.Dir(dir) {
		path := filepath.Join(dir, ".cache", "bin", "versitygw-"+versitygw)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if path, err := exec.LookPath("versitygw"); err == nil {
		return path, nil
	}
	return "", fmt.Errorf("versitygw is %w: run .ci/versitygw, or name one with VERSITYGW", ErrMissing)
}
