package s3test

import (
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// run starts cmd. It is killed by stop, or by the kernel if this process dies. The kernel goes by
// the thread that started it, which therefore lives as long.
func run(t testing.TB, cmd *exec.Cmd) (ended chan struct{}, stop func()) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return ended, func() {
		cmd.Process.Kill()
		<-ended
	}
}
