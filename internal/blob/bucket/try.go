package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"offpeak/internal/blob"
)

// errSlow is why a call that takes too long ends.
var errSlow = errors.New("the storage does not answer in time")

// try makes a call, each try of it within limit, and repeats it where that may help.
func (b *Bucket) try(ctx context.Context, limit time.Duration, call func(ctx context.Context) error) error {
	return b.repeat(ctx, func() error {
		ctx, cancel := context.WithTimeoutCause(ctx, limit, errSlow)
		defer cancel()
		return cause(ctx, call(ctx))
	})
}

// send is try for a call that carries data.
func (b *Bucket) send(ctx context.Context, data []byte, call func(ctx context.Context, body io.ReadSeeker) error) error {
	p := b.patience
	limit := p.call + time.Duration(float64(p.part-p.call)*float64(len(data))/partSize)
	return b.try(ctx, limit, func(ctx context.Context) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		stall := time.AfterFunc(p.call, func() { cancel(errSlow) })
		defer stall.Stop()
		return cause(ctx, call(ctx, &sending{bytes.NewReader(data), stall, p.call}))
	})
}

// sending is the body of a call. It gives up the call if nothing of it is taken for too long. When all
// is taken, much may be on its way yet.
type sending struct {
	r     *bytes.Reader // and nothing else of it: all that is taken is to be seen here
	stall *time.Timer
	most  time.Duration
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.r.Len() > 0 {
		s.stall.Reset(s.most)
	} else {
		s.stall.Stop()
	}
	return n, err
}

func (s *sending) Seek(offset int64, whence int) (int64, error) { return s.r.Seek(offset, whence) }

// repeat makes a call a few times at most, until it succeeds or fails for good.
func (b *Bucket) repeat(ctx context.Context, call func() error) error {
	start := time.Now()
	for n := 1; ; n++ {
		err := call()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case n == b.patience.tries || isFinal(err) || time.Since(start) >= b.patience.total:
			return err
		}
		// At least half of it, so that the tries outlast what passes in a second.
		pause := b.patience.pause << (n - 1)
		if err := sleep(ctx, pause/2+rand.N(pause)); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cause says of a call that failed since ctx ended why it did.
func cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// seen repeats a call that does not find its blob. Whoever asks for one was told that it is there.
func seen[T any](ctx context.Context, p patience, call func() (T, error)) (T, error) {
	deadline := time.Now().Add(p.unseen)
	for pause := p.unseen / 32; ; pause *= 2 {
		v, err := call()
		if !errors.Is(err, blob.ErrNotFound) || time.Now().Add(pause).After(deadline) {
			return v, err
		}
		if err := sleep(ctx, pause); err != nil {
			return v, err
		}
	}
}

// isFinal reports whether a call would fail again, whatever the weather: the storage has understood
// and refuses.
func isFinal(err error) bool {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		switch e.ErrorCode() {
		case "RequestTimeout", "ExpiredToken": // of status 400
			return false
		}
	}
	switch status := statusOf(err); status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	default:
		return status >= 300 && status < 500
	}
}

// Away reports whether err, of a method of Bucket, tells only that the storage cannot be reached or
// cannot serve now. What has failed so is asked for again with success once that is over.
func Away(err error) bool {
	for _, e := range []error{errSlow, errStalled, errBroken} {
		if errors.Is(err, e) {
			return true
		}
	}
	_, ours := errors.AsType[*smithy.OperationError](err)
	return ours && !isFinal(err)
}

// statusOf returns the status of the answer that err stands for; 0 if there was none.
func statusOf(err error) int {
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return e.HTTPStatusCode()
	}
	return 0
}

// codeOf returns the storage's own name for an error; empty if it gave none.
func codeOf(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

// isNotFound reports whether an object, or a multipart upload, is not there. A bucket or a key pair
// that is not there has the same status, and is another matter. An answer to HEAD has no body to
// tell why.
func isNotFound(err error) bool {
	switch codeOf(err) {
	case "NoSuchKey", "NoSuchUpload", "NotFound":
		return statusOf(err) == http.StatusNotFound
	}
	return false
}

// isBeyond reports whether a range begins behind the end of its object, which is there.
func isBeyond(err error) bool { return statusOf(err) == http.StatusRequestedRangeNotSatisfiable }

// isTaken reports whether there is an object under the name already.
func isTaken(err error) bool { return statusOf(err) == http.StatusPreconditionFailed }

// notFound marks the error for an object that is not there as blob.ErrNotFound.
func notFound(err error) error {
	if isNotFound(err) {
		return fmt.Errorf("%w: %w", blob.ErrNotFound, err)
	}
	return err
}
