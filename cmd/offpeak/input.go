package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/dustin/go-humanize"

	"offpeak/internal/client"
	"offpeak/internal/openai"
)

// An inputFile is a file to upload.
type inputFile struct {
	body io.Reader
	file io.Closer
	name string
	size int64 // -1 if unknown
}

// openInput opens the file at path, or standard input if that is "-". Reading ends with ctx, even
// where nothing comes.
func openInput(ctx context.Context, path string, s *streams) (*inputFile, error) {
	if path == "-" {
		return &inputFile{body: &interruptible{ctx: ctx, r: s.In, waits: true}, name: "stdin.jsonl", size: -1}, nil
	}
	if err := checkInput(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	in := &inputFile{file: f, name: filepath.Base(path), size: -1}
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
		in.size = st.Size() // a pipe has none
	}
	in.body = &interruptible{ctx: ctx, r: f, waits: in.size < 0}
	return in, nil
}

// checkInput returns why path cannot be opened as an input, as far as that shows without doing so:
// a pipe can be opened once.
func checkInput(path string) error {
	if path == "-" {
		return nil
	}
	st, err := os.Stat(path)
	if err == nil && st.IsDir() {
		return fmt.Errorf("%s is a folder; give a file of requests", path)
	}
	return err
}

// inputName is how messages call the input at path.
func inputName(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

// An interruptible reads from r until ctx ends.
type interruptible struct {
	ctx   context.Context
	r     io.Reader
	waits bool // r may have nothing for now, as a terminal; that must not keep us
	buf   []byte
}

func (i *interruptible) Read(p []byte) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	if !i.waits {
		return i.r.Read(p)
	}
	if i.buf == nil {
		i.buf = make([]byte, 64<<10)
	}
	buf := i.buf[:min(len(i.buf), len(p))]
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := i.r.Read(buf)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return copy(p, buf[:r.n]), r.err
	case <-i.ctx.Done():
		i.buf = nil // the reader has it
		return 0, context.Cause(i.ctx)
	}
}

// Close closes the file.
func (in *inputFile) Close() error {
	if in.file == nil {
		return nil
	}
	return in.file.Close()
}

// upload sends in. Where that takes a while, lines on standard error tell how far it is.
func (in *inputFile) upload(ctx context.Context, c *client.Client, s *streams, purpose string) (*openai.File, error) {
	told := time.Now()
	return c.Upload(ctx, client.Upload{
		Name: in.name, Purpose: purpose, Body: in.body, Size: in.size,
		Sent: func(n int64) {
			if time.Since(told) < 5*time.Second {
				return
			}
			told = time.Now()
			line := fmt.Sprintf("uploading %s: %s", in.name, humanize.Bytes(uint64(n)))
			if in.size > 0 {
				line += fmt.Sprintf(" of %s (%d%%)", humanize.Bytes(uint64(in.size)), n*100/in.size)
			}
			fmt.Fprintln(s.Err, line)
		},
	})
}
