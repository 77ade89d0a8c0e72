package client

import (
	"bytes"
	"context"
	"io"
	"mime/multipart"
	"net/http"

	"offpeak/internal/openai"
)

// An Upload is a file to be sent.
type Upload struct {
	Name    string // as lists show it; the name of a batch's input must end in .jsonl
	Purpose string // "batch" if empty
	Body    io.Reader
	Size    int64 // of Body; -1 if it is not known, which some servers refuse

	// Sent is called, if it isn't nil, with how much of Body was read so far.
	Sent func(n int64)
}

// expectFrom is the size from which on the server is asked whether it wants a file before it
// is sent. A wrong key then costs no upload, and its error is not lost in a broken connection.
const expectFrom = 1 << 20

// Upload sends a file and returns its description. It is not retried: see the package comment.
func (c *Client) Upload(ctx context.Context, u Upload) (*openai.File, error) {
	// The frame around the body is written first, so that the length of the whole is known
	// and the body itself is streamed.
	var frame bytes.Buffer
	form := multipart.NewWriter(&frame)
	purpose := u.Purpose
	if purpose == "" {
		purpose = "batch"
	}
	if err := form.WriteField("purpose", purpose); err != nil {
		return nil, err
	}
	if _, err := form.CreateFormFile("file", u.Name); err != nil {
		return nil, err
	}
	head := frame.Len()
	if err := form.Close(); err != nil {
		return nil, err
	}

	body := &counted{r: u.Body, sent: u.Sent}
	r := call{
		method: http.MethodPost, path: "/files", size: -1,
		header: http.Header{"Content-Type": {form.FormDataContentType()}, "Accept": {"application/json"}},
		body: io.MultiReader(
			bytes.NewReader(frame.Bytes()[:head]),
			body,
			bytes.NewReader(frame.Bytes()[head:])),
	}
	if u.Size >= 0 {
		r.size = int64(frame.Len()) + u.Size
	}
	if u.Size < 0 || u.Size >= expectFrom {
		r.header.Set("Expect", "100-continue")
	}
	f := new(openai.File)
	if err := c.do(ctx, r, func(resp *http.Response) error { return decode(resp, f) }); err != nil {
		if body.failed != nil {
			err = body.failed // the file's fault, not the server's
		}
		return nil, err
	}
	return f, nil
}

// A counted reader tells how much was read of it, and remembers why it failed.
type counted struct {
	r    io.Reader
	n    int64
	sent func(int64)

	failed error // what ended it, if not the end
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if n > 0 && c.sent != nil {
		c.sent(c.n)
	}
	if err != nil && err != io.EOF {
		c.failed = err
	}
	return n, err
}
