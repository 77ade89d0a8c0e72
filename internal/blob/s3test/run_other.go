//go:build !linux

package s3test

import (
	"os/exec"
	"testing"
)

// run starts cmd, which is killed by stop.
func run(t testing.TB, cmd *exec.Cmd) (ended chan struct{}, stop func()) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	return ended, func() {
		cmd.Process.Kill()
		<-ended
	}
}
