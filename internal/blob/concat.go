package blob

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"offpeak/internal/batch"
)

// An Opener opens ranges of blobs. [Dir] says how.
type Opener interface {
	Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)
}

// Concat reads n bytes from offset off on of a file that consists of parts, or what there is of
// them. A negative n reads to the end.
//
// It opens a part when the one before it is read and closed, so that a file of any number of parts
// costs one open blob. Errors show on Read: who must know before the first byte whether there is
// one, reads it. A part with fewer bytes than it should have is an io.ErrUnexpectedEOF.
func Concat(ctx context.Context, blobs Opener, parts []batch.Part, off, n int64) io.ReadCloser {
	c := &concat{parts: parts, skip: off, left: n}
	c.open = func(key string, off, n int64) (io.ReadCloser, error) {
		return blobs.Open(ctx, key, off, n)
	}
	if n < 0 {
		c.left = 1<<63 - 1
	}
	if off < 0 {
		c.err = fmt.Errorf("read file: negative offset %d", off)
	}
	return c
}

type concat struct {
	open  func(key string, off, n int64) (io.ReadCloser, error)
	parts []batch.Part // those still to come
	skip  int64        // bytes of parts that precede the range
	left  int64        // bytes of the range that parts will give
	err   error        // what every further Read returns

	body io.ReadCloser // the open part, or nil
	key  string        // its key
	want int64         // bytes that it still owes; above 0
}

func (c *concat) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for c.err == nil {
		if c.body == nil {
			c.err = c.next()
			continue
		}
		n, err := c.body.Read(p[:min(int64(len(p)), c.want)])
		c.want -= int64(n)
		switch {
		case c.want == 0:
			c.body.Close()
			c.body = nil
		case err == io.EOF:
			c.err = fmt.Errorf("blob %s lacks its last %d bytes: %w", c.key, c.want, io.ErrUnexpectedEOF)
		default:
			c.err = err
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, c.err
}

// next opens the next part that has bytes of the range. Without one it returns io.EOF.
func (c *concat) next() error {
	for len(c.parts) > 0 && c.left > 0 {
		p := c.parts[0]
		c.parts = c.parts[1:]
		if c.skip >= p.Bytes {
			c.skip -= p.Bytes
			continue
		}
		n := min(p.Bytes-c.skip, c.left)
		body, err := c.open(p.Key, c.skip, n)
		if err != nil {
			return err
		}
		c.body, c.key, c.want = body, p.Key, n
		c.skip, c.left = 0, c.left-n
		return nil
	}
	return io.EOF
}

// Close closes the part that is open. Reads fail from then on.
func (c *concat) Close() error {
	c.err = fs.ErrClosed
	if c.body == nil {
		return nil
	}
	body := c.body
	c.body = nil
	return body.Close()
}
