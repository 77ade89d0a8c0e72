package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// stallBytes is what has to come of a download within patience.stall, or its connection is taken for
// broken.
const stallBytes = 32 << 10

var (
	errNoLength = errors.New("the storage does not say how many bytes there are")
	errNoRange  = errors.New("the storage sends other bytes than those asked for: it does not know Range")
	errBroken   = errors.New("the connection to the storage broke")
	errStalled  = errors.New("the storage has all but stopped sending")
)

// A reader is a range of a blob. Where a connection breaks it goes on at the same byte by another
// one, since the bytes never change.
type reader struct {
	b    *Bucket
	ctx  context.Context // the one it was opened with, as package blob has it
	key  string
	off  int64 // of the next byte
	left int64 // bytes still to come; before the first answer, as many as were asked for
	err  error // what every further Read returns

	// The connection; a nil body: there is none.
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	waited time.Duration // for the storage, since it last sent stallBytes
	got    int64         // bytes since then
	broken int           // connections in a row that broke before they sent stallBytes
}

// open asks for the bytes that are left.
func (r *reader) open() error {
	in := &s3.GetObjectInput{Bucket: &r.b.name, Key: r.b.object(r.key)}
	last := int64(-1)
	if r.left > 0 && r.left-1 <= 1<<63-1-r.off {
		last = r.off + r.left - 1
	}
	switch {
	case last >= 0:
		in.Range = new(fmt.Sprintf("bytes=%d-%d", r.off, last))
	case r.off > 0:
		in.Range = new(fmt.Sprintf("bytes=%d-", r.off))
	}
	var out *s3.GetObjectOutput
	var cancel context.CancelCauseFunc
	// Not within try's limits: the body comes after the call, and takes as long as it takes.
	err := r.b.repeat(r.ctx, func() error {
		var ctx context.Context
		ctx, cancel = context.WithCancelCause(r.ctx)
		limit := time.AfterFunc(r.b.patience.call, func() { cancel(errSlow) })
		var err error
		out, err = r.b.s3.GetObject(ctx, in)
		if !limit.Stop() && err == nil {
			out.Body.Close()
			err = errSlow
		}
		if err != nil {
			cancel(nil)
		}
		return cause(ctx, err)
	})
	if isBeyond(err) {
		r.left = 0
		return nil
	}
	if err != nil {
		return notFound(err)
	}
	switch {
	case out.ContentLength == nil || *out.ContentLength < 0:
		err = errNoLength
	case in.Range != nil && out.ContentRange == nil && (r.off > 0 || r.left > 0 && *out.ContentLength > r.left):
		err = errNoRange
	}
	if err != nil {
		cancel(nil)
		out.Body.Close()
		return err
	}
	r.body, r.cancel, r.left = out.Body, cancel, *out.ContentLength
	r.waited, r.got = 0, 0
	return nil
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.err == nil {
		if r.err = r.ctx.Err(); r.err != nil {
			break
		}
		if r.left == 0 {
			r.err = io.EOF
			break
		}
		if r.body == nil {
			want := r.left
			if r.err = r.open(); r.err == nil && r.left != want {
				r.err = fmt.Errorf("%w: %d bytes are left where %d were", errNoRange, r.left, want)
			}
			continue
		}
		n, err := r.receive(p[:min(int64(len(p)), r.left)])
		r.off += int64(n)
		r.left -= int64(n)
		switch {
		case r.left == 0:
			r.hangUp()
		case err != nil:
			r.hangUp()
			if r.broken++; r.broken > r.b.patience.tries {
				r.err = err
			} else if r.broken > 1 {
				r.err = sleep(r.ctx, r.b.patience.pause<<(r.broken-1))
			}
		}
		if n > 0 {
			return n, nil
		}
	}
	if r.err == io.EOF {
		return 0, io.EOF
	}
	return 0, fmt.Errorf("read blob %s: %w", r.key, r.err)
}

// receive reads from the connection, as long as that brings bytes at all.
func (r *reader) receive(p []byte) (int, error) {
	start := time.Now()
	limit := time.AfterFunc(r.b.patience.stall-r.waited, func() { r.cancel(errStalled) })
	n, err := r.body.Read(p)
	stalled := !limit.Stop()
	r.waited += time.Since(start)
	if r.got += int64(n); r.got >= stallBytes {
		r.waited, r.got, r.broken = 0, 0, 0
	}
	if stalled {
		return n, errStalled
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // or nobody looks at it
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errBroken, err)
	}
	return n, err
}

func (r *reader) hangUp() {
	r.body.Close()
	r.cancel(nil)
	r.body = nil
}

// Close ends the download. Reads fail from then on.
func (r *reader) Close() error {
	r.err = fs.ErrClosed
	if r.body != nil {
		r.hangUp()
	}
	return nil
}
