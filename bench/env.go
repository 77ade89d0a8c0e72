package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// env is where rows find what they need: binaries, a folder, what was asked for.
type env struct {
	out     io.Writer // for the table
	full    bool
	reps    int
	offpeak string

	began   time.Time
	self    string // this program, for references
	dir     string // is removed in the end
	scratch string // in it, for one row
	row     string // that is being measured
	figures []figure
}

func (e *env) prepare(ctx context.Context) (err error) {
	e.began = time.Now()
	if e.self, err = os.Executable(); err != nil {
		return err
	}
	if e.dir, err = os.MkdirTemp("", "offpeak-bench-"); err != nil {
		return err
	}
	e.scratch = filepath.Join(e.dir, "row")
	if err := os.Mkdir(e.scratch, 0o700); err != nil {
		return err
	}
	if e.offpeak != "" {
		return nil
	}
	e.offpeak = filepath.Join(e.dir, "offpeak")
	// As a release is built.
	return command(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", e.offpeak, "./cmd/offpeak").Run()
}

func (e *env) close() { os.RemoveAll(e.dir) }

// tidy removes what a row has left.
func (e *env) tidy() {
	os.RemoveAll(e.scratch)
	os.Mkdir(e.scratch, 0o700)
}

// path is one in the row's folder.
func (e *env) path(name string) string { return filepath.Join(e.scratch, name) }

// size returns the number that the row is measured at.
func (e *env) size(small, full int) int {
	if e.full {
		return full
	}
	return small
}

// command is a child that shows what goes wrong and does not outlive this process.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// A usage is what a child took.
type usage struct {
	wall, cpu time.Duration
	peak      float64 // MiB
	output    []byte
}

// measure runs a command to its end.
func measure(c *exec.Cmd) (usage, error) {
	c.Stderr = nil
	start := time.Now()
	out, err := c.CombinedOutput()
	u := usage{wall: time.Since(start), output: out}
	if err != nil {
		return u, fmt.Errorf("%s: %w: %s", c, err, out)
	}
	u.cpu = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	rusage, ok := c.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return u, errors.New("this system does not say what a process took")
	}
	u.peak = float64(rusage.Maxrss) / 1024
	return u, nil
}

// reference runs one of the references in a process of its own.
func (e *env) reference(ctx context.Context, name string, args ...string) (usage, error) {
	return measure(command(ctx, e.self, append([]string{name}, args...)...))
}
