package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"offpeak/internal/blob"
)

// attemptField is where an object says which writer it is of. Answers get lost: a writer that finds
// an object under its key can tell whether it is its own.
const attemptField = "offpeak-attempt"

// dropTime is how long to try to drop a blob that nobody wants. What stays, Tidy removes.
const dropTime = 10 * time.Second

// Create begins the blob of key. It is the caller's to end it by Commit or Abort.
func (b *Bucket) Create(ctx context.Context, key string) (blob.Writer, error) {
	if err := admit(ctx, key); err != nil {
		return nil, fmt.Errorf("create blob %s: %w", key, err)
	}
	w := &writer{b: b, key: key, attempt: blob.NewKey(), buf: b.buffers.takeSmall()}
	w.ctx, w.cancel = context.WithCancel(ctx)
	return w, nil
}

// A writer is a blob on its way. One that a single part can hold becomes an object by a single call.
// A larger one is a multipart upload, of which nobody sees anything until it is completed; one part
// is sent while the next is filled, if there is a buffer for that.
type writer struct {
	b       *Bucket
	ctx     context.Context // the one it was created with, as package blob has it, until it is done
	cancel  context.CancelFunc
	key     string
	attempt string
	buf     []byte // nil once committed or aborted
	size    int64
	err     error // what every further Write and Commit returns

	// The multipart upload; a nil id: there is none yet.
	upload *string
	parts  []types.CompletedPart
	onWay  chan sent // gets the part that is on its way; nil if none is
	shown  int       // how often we tried to make the blob visible
}

// sent is how the sending of a part ended.
type sent struct {
	part types.CompletedPart
	err  error
}

func (w *writer) Write(p []byte) (n int, err error) {
	if err = w.usable(); err == nil {
		n, err = w.fill(p)
		w.size += int64(n)
	}
	if err != nil {
		w.err = err
		return n, fmt.Errorf("write blob %s: %w", w.key, err)
	}
	return n, nil
}

func (w *writer) fill(p []byte) (n int, err error) {
	for {
		took := copy(w.buf[len(w.buf):cap(w.buf)], p)
		w.buf = w.buf[:len(w.buf)+took]
		n += took
		if p = p[took:]; len(p) == 0 {
			return n, nil
		}
		if cap(w.buf) == smallSize {
			err = w.grow()
		} else {
			err = w.send()
		}
		if err != nil {
			return n, err
		}
	}
}

// grow takes a buffer for a whole part.
func (w *writer) grow() error {
	large, err := w.b.buffers.take(w.ctx, w.b.patience.total)
	if err != nil {
		return err
	}
	large = append(large, w.buf...)
	w.b.buffers.give(w.buf)
	w.buf = large
	return nil
}

// send sends what is in the buffer as a part, and leaves an empty one.
func (w *writer) send() error {
	if err := w.settle(); err != nil {
		return err
	}
	if w.upload == nil {
		if err := w.begin(); err != nil {
			return err
		}
	}
	number := int32(len(w.parts) + 1)
	if number > maxParts {
		return fmt.Errorf("a blob in a bucket can have %d bytes at most", int64(maxParts)*partSize)
	}
	full := w.buf
	spare, ok := w.b.buffers.tryTake()
	if !ok {
		part, err := w.sendPart(number, full)
		w.parts = append(w.parts, part)
		w.buf = full[:0]
		return err
	}
	w.buf = spare
	w.onWay = make(chan sent, 1)
	go func(done chan<- sent) {
		part, err := w.sendPart(number, full)
		w.b.buffers.give(full) // here and not at settle, so that nobody who waits for one waits for us
		done <- sent{part, err}
	}(w.onWay)
	return nil
}

// settle waits for the part that is on its way.
func (w *writer) settle() error {
	if w.onWay == nil {
		return nil
	}
	s := <-w.onWay
	w.onWay = nil
	w.parts = append(w.parts, s.part)
	return s.err
}

// begin begins the multipart upload. If its answer is lost, there is one that Tidy will remove.
func (w *writer) begin() error {
	return w.b.try(w.ctx, w.b.patience.call, func(ctx context.Context) error {
		out, err := w.b.s3.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
			Bucket: &w.b.name, Key: w.b.object(w.key), Metadata: w.metadata(),
		})
		if err == nil {
			w.upload = out.UploadId
		}
		return err
	})
}

func (w *writer) sendPart(number int32, data []byte) (part types.CompletedPart, err error) {
	err = w.b.fault.Do(blob.OpWrite, w.key, func() error {
		return w.b.send(w.ctx, data, func(ctx context.Context, body io.ReadSeeker) error {
			out, err := w.b.s3.UploadPart(ctx, &s3.UploadPartInput{
				Bucket: &w.b.name, Key: w.b.object(w.key), UploadId: w.upload, PartNumber: &number,
				Body: body,
			})
			if err == nil {
				part = types.CompletedPart{ETag: out.ETag, PartNumber: &number}
			}
			return err
		})
	})
	w.b.buffers.note(err)
	return part, err
}

func (w *writer) metadata() map[string]string { return map[string]string{attemptField: w.attempt} }

func (w *writer) Commit() (int64, error) {
	err := w.usable()
	if err == nil {
		err = w.commit()
	}
	if err == nil {
		w.upload = nil // it is the blob now
	}
	w.Abort()
	if err != nil {
		return 0, fmt.Errorf("commit blob %s: %w", w.key, err)
	}
	return w.size, nil
}

// commit makes the blob visible by one call, which is durable when it is answered.
func (w *writer) commit() error {
	show := w.put
	if w.upload != nil {
		if len(w.buf) > 0 {
			if err := w.send(); err != nil {
				return err
			}
		}
		if err := w.settle(); err != nil {
			return err
		}
		show = w.complete
	}
	err := w.b.fault.Do(blob.OpLink, w.key, show)
	taken := isTaken(err)
	switch {
	case (taken || isNotFound(err)) && w.shown > 1:
		// An earlier try may have taken effect and its answer been lost; then the upload is gone, too.
		return w.recognise(err)
	case taken:
		return fmt.Errorf("%w: %w", blob.ErrExists, err)
	}
	return err
}

func (w *writer) put() error {
	return w.b.send(w.ctx, w.buf, func(ctx context.Context, body io.ReadSeeker) error {
		w.shown++
		_, err := w.b.s3.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &w.b.name, Key: w.b.object(w.key), Metadata: w.metadata(), IfNoneMatch: aws.String("*"),
			Body: body,
		})
		return err
	})
}

func (w *writer) complete() error {
	return w.b.try(w.ctx, w.b.patience.part, func(ctx context.Context) error {
		w.shown++
		_, err := w.b.s3.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &w.b.name, Key: w.b.object(w.key), UploadId: w.upload, IfNoneMatch: aws.String("*"),
			MultipartUpload: &types.CompletedMultipartUpload{Parts: w.parts},
		})
		return err
	})
}

// recognise asks whose object stands under the key, after a commit that was refused with err.
func (w *writer) recognise(err error) error {
	head, look := seen(w.ctx, w.b.patience, func() (*s3.HeadObjectOutput, error) { return w.b.head(w.ctx, w.key) })
	switch {
	case look == nil && head.Metadata[attemptField] == w.attempt && aws.ToInt64(head.ContentLength) == w.size:
		return nil
	case look == nil:
		return fmt.Errorf("%w: %w", blob.ErrExists, err)
	default:
		return errors.Join(err, look)
	}
}

func (w *writer) Abort() {
	if w.buf == nil {
		return
	}
	w.cancel()
	w.settle()
	w.b.buffers.give(w.buf)
	w.buf = nil
	if w.upload == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), dropTime)
	defer cancel()
	w.b.fault.Do(blob.OpUnlink, w.key, func() error { return w.b.drop(ctx, w.key, w.upload) })
}

func (w *writer) usable() error {
	switch {
	case w.buf == nil:
		return fs.ErrClosed
	case w.ctx.Err() != nil:
		return w.ctx.Err()
	}
	return w.err
}
