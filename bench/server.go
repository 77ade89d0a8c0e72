package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A server is `offpeak serve` as a child, and what the system says of it.
type server struct {
	client
	process *exec.Cmd
	pid     int // of offpeak itself, where something stands before it
	ready   time.Duration
	data    string
}

// A serving says how a server is started. The zero value is as a user would, on a data folder of
// its own.
type serving struct {
	upstream string
	inFlight int      // 0: as the server finds
	data     string   // "": a new folder
	args     []string // further ones
	before   []string // a command in front, such as strace
}

// serve starts a server and waits until it is ready.
func (e *env) serve(ctx context.Context, how serving) (*server, error) {
	s := &server{data: how.data}
	if s.data == "" {
		var err error
		if s.data, err = os.MkdirTemp(e.scratch, "data-"); err != nil {
			return nil, err
		}
	}
	args := append(how.before, e.offpeak, "serve", "--listen", "127.0.0.1:0", "--data", s.data, "--upstream", how.upstream)
	if how.inFlight > 0 {
		args = append(args, "--max-in-flight", strconv.Itoa(how.inFlight))
	}
	args = append(args, how.args...)
	s.process = command(ctx, args[0], args[1:]...)
	s.process.Cancel = func() error { s.signal(syscall.SIGKILL); return nil }
	s.process.Stderr = nil
	stderr, err := s.process.StderrPipe()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	var said strings.Builder
	log := bufio.NewScanner(stderr)
	for s.base == "" && log.Scan() {
		said.WriteString(log.Text() + "\n")
		if _, url, ok := strings.Cut(log.Text(), "base_url="); ok {
			s.client = newClient(strings.TrimSuffix(strings.Fields(url)[0], "/v1"), 64)
		}
	}
	if s.pid = s.process.Process.Pid; len(how.before) > 0 {
		if s.pid, err = childOf(s.pid); err != nil {
			s.process.Process.Kill()
			return nil, fmt.Errorf("child of %s: %w", how.before[0], err)
		}
	}
	go func() {
		for log.Scan() {
			if strings.Contains(log.Text(), "level=ERROR") {
				fmt.Fprintln(os.Stderr, log.Text())
			}
		}
		io.Copy(io.Discard, stderr)
	}()
	if s.base == "" {
		s.stop()
		return nil, fmt.Errorf("the server does not start:\n%s", said.String())
	}
	for s.get(ctx, "/readyz", nil) != nil {
		if ctx.Err() != nil {
			s.stop()
			return nil, ctx.Err()
		}
		time.Sleep(time.Millisecond)
	}
	s.ready = time.Since(start)
	return s, nil
}

// stop ends the server politely, so that its folder can be used again. A command in front ends with
// it, and not the other way round: strace leaves alone what it was looking at.
func (s *server) stop() {
	s.signal(syscall.SIGTERM)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.process.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		s.signal(syscall.SIGKILL)
		<-ended
	}
}

func (s *server) signal(how syscall.Signal) {
	if s.pid != 0 {
		syscall.Kill(s.pid, how)
	} else {
		s.process.Process.Signal(how)
	}
}

// childOf returns the only child of a process.
func childOf(pid int) (child int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err == nil {
		_, err = fmt.Sscan(string(text), &child)
	}
	return child, err
}

// cpu is what the server has used of the processors until now. The system counts in hundredths of a
// second.
func (s *server) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat is short")
	}
	var ticks int
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// peak is the most memory that the server has had, in MiB.
func (s *server) peak() (float64, error) {
	n, err := s.number("status", "VmHWM")
	return n / 1024, err
}

// written is how many bytes the server has sent to the disk.
func (s *server) written() (float64, error) { return s.number("io", "write_bytes") }

// number reads a line of a file below /proc/PID.
func (s *server) number(file, name string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", s.pid, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strconv.ParseFloat(strings.Fields(v)[0], 64)
		}
	}
	return 0, fmt.Errorf("/proc/PID/%s has no %s", file, name)
}

// databaseSize is the size of the SQLite database, its log included.
func (s *server) databaseSize() (size int64) {
	for _, end := range []string{"", "-wal"} {
		if fi, err := os.Stat(filepath.Join(s.data, "offpeak.db"+end)); err == nil {
			size += fi.Size()
		}
	}
	return size
}
