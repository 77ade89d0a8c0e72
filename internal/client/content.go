package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// Content opens the bytes of a file. They come as they are read, and a connection that breaks
// on the way is replaced by one that goes on behind the last byte. The reader must be closed.
func (c *Client) Content(ctx context.Context, fileID string) (io.ReadCloser, error) {
	f := &content{ctx: ctx, c: c, path: "/files/" + url.PathEscape(fileID) + "/content"}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

// Recorded opens what is recorded so far of a batch that still runs: its answers or, with
// failed, its failures, as whole lines. Only Offpeak knows this call. The reader must be closed.
func (c *Client) Recorded(ctx context.Context, batchID string, failed bool) (io.ReadCloser, error) {
	path := "/batches/" + url.PathEscape(batchID) + "/output"
	if failed {
		path = "/batches/" + url.PathEscape(batchID) + "/errors"
	}
	var body io.ReadCloser
	err := c.do(ctx, call{method: http.MethodGet, path: path}, func(resp *http.Response) error {
		body = resp.Body
		return nil
	})
	return body, err
}

// maxStalls is how often in a row a download may break without a byte in between.
const maxStalls = 3

// A content is a file being downloaded. It may be resumed because files never change.
type content struct {
	ctx    context.Context // of all its calls: reading has none of its own
	c      *Client
	path   string
	body   io.ReadCloser
	offset int64 // of the next byte
	stalls int
}

// open asks for the file from offset on.
func (f *content) open() error {
	r := call{method: http.MethodGet, path: f.path, header: http.Header{}}
	if f.offset > 0 {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", f.offset))
	}
	return f.c.do(f.ctx, r, func(resp *http.Response) error {
		err := f.skip(resp)
		if err != nil {
			resp.Body.Close()
			return err
		}
		f.body = resp.Body
		return nil
	})
}

// skip brings the body of resp to offset, which it is at if the server knows ranges.
func (f *content) skip(resp *http.Response) error {
	if f.offset == 0 {
		return nil
	}
	if resp.StatusCode == http.StatusPartialContent {
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", f.offset)) {
			return fmt.Errorf("resume %s%s at byte %d: got %q", f.c.name, f.path, f.offset, got)
		}
		return nil
	}
	_, err := io.CopyN(io.Discard, resp.Body, f.offset)
	return err
}

// Read implements io.Reader.
func (f *content) Read(p []byte) (int, error) {
	for {
		n, err := f.body.Read(p)
		f.offset += int64(n)
		if n > 0 {
			f.stalls = 0
			if Temporary(err) {
				err = nil // it comes again with the next Read
			}
			return n, err
		}
		if err == nil || !Temporary(err) || f.stalls == maxStalls {
			return 0, err
		}
		f.stalls++
		f.body.Close()
		if err := f.open(); err != nil {
			return 0, err
		}
	}
}

// Close implements io.Closer.
func (f *content) Close() error { return f.body.Close() }
