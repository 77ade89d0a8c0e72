package crash

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A clock is the wall clock of one process: the machine's, so much ahead or behind. The machine's own
// is left alone.
//
// A Go program reads the clock in the vDSO, where nothing can come between, and asks the kernel if
// there is none. So the process is held at its first instruction, the vDSO's address is taken from
// what the kernel has told it (the auxiliary vector), and a seccomp filter is put in that has us
// answer when it asks for CLOCK_REALTIME. The monotonic clock it reads itself.
type clock struct{ ahead atomic.Int64 }

func (c *clock) step(d time.Duration) { c.ahead.Add(int64(d)) }

// Of linux/seccomp.h and linux/auxvec.h.
const (
	seccompSetModeFilter = 1
	seccompNewListener   = 1 << 3
	seccompUserNotif     = 0x7fc00000
	seccompAllow         = 0x7fff0000
	seccompRecv          = 0xc0502100
	seccompSend          = 0xc0182101
	auxIgnore            = 1
	auxVDSO              = 33
)

type seccompNotif struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type seccompAnswer struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// serveClocked starts a server with a clock of its own.
func serveClocked(t *testing.T, c *clock, dir, upstream string) *server {
	t.Helper()
	runtime.LockOSThread() // a process is traced by a thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command(offpeak, serveArgs(dir, upstream)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	var listener int
	var failed error
	// Before anybody else waits for the process, who would be told of its stops in our stead.
	s := &server{process: startCommand(t, cmd, func() {
		late := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		defer late.Stop()
		if listener, failed = withoutClock(cmd.Process.Pid); failed != nil {
			cmd.Process.Kill()
		}
	})}
	switch {
	case failed == nil:
		go c.answer(listener)
	case os.Getenv("CI") == "true":
		t.Fatalf("a process cannot be given a clock here: %v", failed)
	default:
		t.Skipf("a process cannot be given a clock here: %v", failed)
	}
	return s
}

// withoutClock takes the clock from a process that is held at its first instruction, lets it go, and
// returns where it asks for the time.
func withoutClock(pid int) (listener int, err error) {
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, syscall.WALL, nil); err != nil {
		return 0, fmt.Errorf("wait: %w", err)
	}
	var regs syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(pid, &regs); err != nil {
		return 0, fmt.Errorf("registers: %w", err)
	}
	if err := hideVDSO(pid, uintptr(regs.Rsp)); err != nil {
		return 0, fmt.Errorf("auxiliary vector: %w", err)
	}

	// The filter, and what points to it, below the stack.
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CLOCK_GETTIME, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16}, // its first argument
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.CLOCK_REALTIME, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: seccompUserNotif},
		{Code: unix.BPF_RET | unix.BPF_K, K: seccompAllow},
	}
	at := uintptr(regs.Rsp) - 4096
	program := little.AppendUint64(nil, uint64(len(filter)))
	program = little.AppendUint64(program, uint64(at)+16)
	for _, f := range filter {
		program = little.AppendUint16(program, f.Code)
		program = append(program, f.Jt, f.Jf)
		program = little.AppendUint32(program, f.K)
	}
	// The calls that the process makes in our name need an instruction, which we lend it.
	rip, old := uintptr(regs.Rip), make([]byte, 2)
	_, errPoke := syscall.PtracePokeData(pid, at, program)
	_, errPeek := syscall.PtracePeekText(pid, rip, old)
	_, errLend := syscall.PtracePokeText(pid, rip, []byte{0x0f, 0x05})
	if err := errors.Join(errPoke, errPeek, errLend); err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	ask := func(nr, a, b, c uint64) (int, error) {
		r := regs
		r.Rax, r.Orig_rax, r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8 = nr, ^uint64(0), a, b, c, 0, 0
		if err := errors.Join(syscall.PtraceSetRegs(pid, &r), syscall.PtraceSingleStep(pid)); err != nil {
			return 0, err
		}
		if _, err := syscall.Wait4(pid, &status, syscall.WALL, nil); err != nil {
			return 0, err
		}
		if err := syscall.PtraceGetRegs(pid, &r); err != nil {
			return 0, err
		}
		if got := int64(r.Rax); got < 0 {
			return 0, syscall.Errno(-got)
		}
		return int(r.Rax), nil
	}
	if _, err := ask(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return 0, fmt.Errorf("prctl: %w", err)
	}
	theirs, err := ask(unix.SYS_SECCOMP, seccompSetModeFilter, seccompNewListener, uint64(at))
	if err != nil {
		return 0, fmt.Errorf("seccomp: %w", err)
	}
	_, err = syscall.PtracePokeText(pid, rip, old)
	if err := errors.Join(err, syscall.PtraceSetRegs(pid, &regs)); err != nil {
		return 0, fmt.Errorf("registers: %w", err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("pidfd: %w", err)
	}
	defer unix.Close(pidfd)
	if listener, err = unix.PidfdGetfd(pidfd, theirs, 0); err != nil {
		return 0, fmt.Errorf("listener: %w", err)
	}
	return listener, syscall.PtraceDetach(pid)
}

var little = binary.LittleEndian

// hideVDSO takes the vDSO from the auxiliary vector of a process that has not begun. Its stack holds
// argc, argv, NULL, environment, NULL, and then pairs of words.
func hideVDSO(pid int, sp uintptr) error {
	word := func(at uintptr) (uint64, error) {
		var b [8]byte
		_, err := syscall.PtracePeekData(pid, at, b[:])
		return little.Uint64(b[:]), err
	}
	at := sp + 8
	for nulls := 0; nulls < 2; at += 8 {
		w, err := word(at)
		if err != nil {
			return err
		}
		if w == 0 {
			nulls++
		}
	}
	for ; ; at += 16 {
		tag, err := word(at)
		if err != nil {
			return err
		}
		switch tag {
		case 0:
			return fmt.Errorf("no vDSO")
		case auxVDSO:
			_, err := syscall.PtracePokeData(pid, at, little.AppendUint64(nil, auxIgnore))
			return err
		}
	}
}

// answer tells the time to whoever asks, until there is nobody left.
func (c *clock) answer(fd int) {
	defer unix.Close(fd)
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		} else if err != nil || poll[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n seccompNotif
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), seccompRecv, uintptr(unsafe.Pointer(&n))); e != 0 {
			continue // whoever asked was interrupted, and asks again
		}
		now := time.Now().Add(time.Duration(c.ahead.Load())).UnixNano()
		text := little.AppendUint64(nil, uint64(now/1e9))
		text = little.AppendUint64(text, uint64(now%1e9))
		local := []unix.Iovec{{Base: &text[0], Len: 16}}
		remote := []unix.RemoteIovec{{Base: uintptr(n.args[1]), Len: 16}}
		answer := seccompAnswer{id: n.id}
		if _, err := unix.ProcessVMWritev(int(n.pid), local, remote, 0); err != nil {
			answer.err = -int32(unix.EFAULT)
		}
		unix.Syscall(unix.SYS_IOCTL, uintptr(fd), seccompSend, uintptr(unsafe.Pointer(&answer)))
	}
}

// check looks whether the server has this clock.
func (c *clock) check(t *testing.T, s *server) {
	t.Helper()
	_, last, _ := strings.Cut(lastLines(s.text(), 2), "time=")
	stamp, _, _ := strings.Cut(last, " ")
	at, err := time.Parse(time.RFC3339, stamp)
	if off := time.Until(at) - time.Duration(c.ahead.Load()); err != nil || off.Abs() > patience {
		t.Errorf("the server's clock is off by %s, %v:\n%s", off, err, last)
	}
}

// TestClockSteps steps the clock of a server to and fro while it works. Batches end as they should,
// by deadlines as that clock has them; and no batch's times run backwards.
func TestClockSteps(t *testing.T) {
	slow(t)
	t.Parallel()
	r, u, w, dir := chance(t), newUpstream(t, killSim), newWork(), filepath.Join(t.TempDir(), "data")
	var c clock
	u.next(t)
	s := serveClocked(t, &c, dir, u.url()).mustBeReady()
	steps := []time.Duration{time.Hour, -2 * time.Hour, -24 * time.Hour, 40 * time.Hour, -time.Second, -30 * 24 * time.Hour, 29 * 24 * time.Hour}
	for _, step := range steps {
		// At any moment of a batch's life, from its creation to its end.
		before := u.answersOf()
		id := w.submit(t, s.api, 100)
		at := before + r.IntN(110)
		poll(t, "answers", func() bool {
			b, err := s.api.Batch(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return u.answersOf() >= at || ended(*b)
		})
		if step < 24*time.Hour {
			c.step(step)
		} else {
			w.finishHere(t, s) // else it would expire, and rightly
			c.step(step)
		}
		w.finishHere(t, s)
	}
	w.finish(t, s.api, u)
	for id, body := range w.bodies {
		if calls, _ := u.times(body); calls != 1 {
			t.Errorf("%s was sent %d times", id, calls)
		}
	}
	examine(t, dir)

	// A batch that the clock carries past its deadline expires, and stays so whatever comes.
	release := u.hold()
	defer release()
	id := w.submit(t, s.api, 100)
	u.await(t, "calls in flight", func() bool { return inFlight(u) == maxInFlight })
	c.step(25 * time.Hour)
	poll(t, "the deadline", func() bool {
		b, err := s.api.Batch(t.Context(), id)
		return err == nil && b.Status == "finalizing"
	})
	release()
	w.finishHere(t, s)
	c.check(t, s)
	c.step(-48 * time.Hour)
	b, err := s.api.Batch(t.Context(), id)
	if err != nil || b.Status != "expired" || b.RequestCounts.Completed != maxInFlight {
		t.Errorf("%+v, %v; want it expired, with what was in flight", b, err)
	}
	s.stop()
	examine(t, dir)
}

// answersOf returns how many answers there were in this life.
func (u *upstream) answersOf() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.answers[u.life]
}
