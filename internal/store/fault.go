package store

import (
	"runtime"
	"strings"
)

// A Fault decides the fate of a write in a test: with an error whoever writes is told that error,
// and apply says whether the write took effect all the same. Without, the write runs undisturbed.
// op is the method that writes, such as "Claim".
type Fault func(op string) (apply bool, err error)

// step runs one write, as s.fault allows.
func (s *Store) step(do func() error) error {
	if s.fault == nil {
		return do()
	}
	apply, fail := s.fault(writer())
	if fail == nil || apply {
		if err := do(); err != nil {
			return err
		}
	}
	return fail
}

// writer names the method that is writing: the last one on the stack that is still this package's.
// It is asked for and not told, so that no write can go by a wrong name, or by none.
func writer() string {
	var stack [16]uintptr
	frames := runtime.CallersFrames(stack[:runtime.Callers(1, stack[:])])
	first, more := frames.Next()
	ours := strings.TrimSuffix(first.Function, "writer")
	op := ""
	for more {
		var f runtime.Frame
		if f, more = frames.Next(); !strings.HasPrefix(f.Function, ours) {
			break
		}
		op = f.Function[strings.LastIndexByte(f.Function, '.')+1:]
	}
	return op
}
