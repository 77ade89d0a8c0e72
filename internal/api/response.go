package api

import (
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// A response is the answer to one request on its way to the client, and what is known of the
// request by now.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	body    *body // of the request
	stall   time.Duration

	id      string // x-request-id
	start   time.Time
	project string // empty while nobody is authenticated
	status  int    // 0 until the header is written
	early   bool   // the answer goes out before the request has been read
	broken  bool   // the client does not take the answer
	cut     bool   // the answer broke off; the connection must too
}

// openaiVersion is the version of OpenAI's API that is served (contract §14).
const openaiVersion = "2020-10-01"

// newResponse begins the answer to r, and returns r with its body under limits.
func newResponse(rw http.ResponseWriter, r *http.Request, stall time.Duration) (*response, *http.Request) {
	w := &response{
		ResponseWriter: rw, control: http.NewResponseController(rw),
		stall: stall, id: "req_" + strings.ToLower(rand.Text()), start: time.Now(),
	}
	w.Header().Set("x-request-id", w.id)
	w.Header().Set("openai-version", openaiVersion)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store") // what is asked for changes, or is private
	w.body = &body{
		ReadCloser: r.Body, request: r, control: w.control,
		left: maxJSON, stall: stall, whole: true, ended: r.ContentLength == 0,
	}
	// In a copy: the net/http server looks at the body of its own request when it answers early.
	r = r.WithContext(r.Context())
	r.Body = w.body
	return w, r
}

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
		if !w.early {
			w.body.finish()
		}
		w.Header().Set("openai-processing-ms", strconv.FormatInt(time.Since(w.start).Milliseconds(), 10))
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter. It fails if the client takes nothing for too long.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.control.SetWriteDeadline(time.Now().Add(w.stall)) // where that is not supported: no limit
	n, err := w.ResponseWriter.Write(p)
	w.broken = w.broken || err != nil
	return n, err
}

// Unwrap serves http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// A client that is told off in the middle of a large upload may not read before it has written
// everything. Were the connection closed under it, the reset would wipe out the answer on its way,
// and the SDK would report a broken connection, and try again, instead of what is wrong. So the
// answer goes out early, says that the connection will be closed, and then what still arrives is
// thrown away for a while, as RFC 9112, section 9.6, recommends.
const (
	lingerStall = 5 * time.Second
	lingerTotal = 30 * time.Second
)

// answerEarly prepares to answer before the request has been read.
func (w *response) answerEarly() {
	w.early = true
	w.Header().Set("Connection", "close") // without it the server would read on before it answers
}

// linger sends the early answer and reads on, so that the client comes to see it.
func (w *response) linger() {
	if w.control.Flush() != nil {
		return
	}
	end := time.Now().Add(lingerTotal)
	buf := make([]byte, 8<<10) // very many may be told off at once
	for now := time.Now(); now.Before(end); now = time.Now() {
		w.control.SetReadDeadline(now.Add(lingerStall))
		if _, err := w.body.ReadCloser.Read(buf); err != nil {
			return
		}
	}
}

// A body is the body of a request: of bounded length, and from a client that does not stall.
type body struct {
	io.ReadCloser
	request *http.Request
	control *http.ResponseController
	left    int64 // bytes that may still be read
	stall   time.Duration
	whole   bool      // it must arrive within stall altogether, not only each byte after the other
	until   time.Time // when that ends
	got     int64
	begun   bool // a read was tried
	ended   bool // there is nothing more to read, or no way to
}

// Read implements io.Reader. It fails with errBodyTooLarge or errStalled.
func (b *body) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errBodyTooLarge
	}
	b.begun = true
	until := time.Now().Add(b.stall)
	if b.whole {
		if b.until.IsZero() {
			b.until = until
		}
		until = b.until
	}
	b.control.SetReadDeadline(until) // where that is not supported: no limit
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	b.got += int64(n)
	if b.left -= int64(n); b.left < 0 {
		return n - 1, errBodyTooLarge // the byte too many stays here
	}
	b.ended = err != nil
	switch {
	case err == io.EOF:
		// From here on the server itself reads, to learn of the client's leaving, and takes a
		// deadline for that.
		b.control.SetReadDeadline(time.Time{})
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errStalled
	}
	return n, err
}

// smallRest is how much of a body is read for nothing but to keep the connection.
const smallRest = 256 << 10

// hangs reports whether so much of the body is still to come that the client may not see an answer
// now.
func (b *body) hangs() bool {
	length := b.request.ContentLength
	return b.open() && (length < 0 || length-b.got > smallRest)
}

// finish reads what is left of a body, if that is little. The server would do that too, but wait
// for it as long as the client likes.
func (b *body) finish() {
	if b.open() {
		io.CopyN(io.Discard, b, smallRest)
	}
}

// open reports whether the client is still sending. It is not where HTTP/2 lets us end a request
// alone, nor while it waits for our word to begin.
func (b *body) open() bool {
	waits := !b.begun && strings.EqualFold(b.request.Header.Get("Expect"), "100-continue")
	return !b.ended && b.request.ProtoMajor == 1 && !waits
}
