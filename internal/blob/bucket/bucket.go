// Package bucket keeps blobs in a bucket of S3, or of storage that speaks its protocol.
//
//	blobs, err := bucket.Open(ctx, "s3://offpeak/blobs?region=eu-central-1")
//
// A [Bucket] promises what package blob does, and passes the same tests. The storage has to: show
// an object once it acknowledged it, to everybody, and keep it; refuse a second one under its name
// (If-None-Match), also at the end of a multipart upload. Amazon S3, MinIO, Ceph, Cloudflare R2 and
// versitygw do. Should one overlook If-None-Match, nothing is lost: keys are random.
//
// The network is not trusted. Every call has a limit in time and is repeated a few times; a download
// goes on where it was cut; a write whose answer was lost is recognised as ours. What is still
// refused after that is an error, within seconds, and the caller's to repeat under a new key. Where
// the storage says nothing at all, that takes a minute, or two where a write had to wait for a buffer
// before; see [Away].
//
// Bounded memory: a blob of up to 256 KiB costs 256 KiB while it is written, a larger one a buffer of
// 5 MiB, the least that a part of a multipart upload may have, or two. There are eight of these;
// who needs one waits. See [Bucket.Apart].
package bucket

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"offpeak/internal/blob"
)

// A Bucket keeps blobs as objects: a blob's key, behind the prefix if there is one, is the name of
// its object. Several nodes may share a bucket, and several clusters if each has its own prefix.
type Bucket struct {
	s3       *s3.Client
	name     string
	prefix   string
	where    string // for people
	buffers  *buffers
	patience patience
	fault    blob.Fault
}

// An Option changes how a [Bucket] is opened.
type Option func(*Bucket)

// WithFault lets f decide about every step of a [Bucket] that changes it, each of them once however
// often it is tried: blob.OpWrite for a part, blob.OpLink for what makes the blob visible,
// blob.OpUnlink for what drops one that is not, blob.OpTidy and blob.OpDelete.
func WithFault(f blob.Fault) Option {
	return func(b *Bucket) { b.fault = f }
}

// Certain is an Option for a bucket that nobody else uses yet: a blob that is not there is not waited
// for.
func Certain(b *Bucket) { b.patience.unseen = 0 }

// patience says how long to wait for the storage.
type patience struct {
	tries int           // of a call
	pause time.Duration // after the first; doubled after each
	total time.Duration // after which there is no other try
	// call is how long one try may take, if it carries little, and how long it may carry nothing on;
	// part the same, if it carries a part.
	call, part time.Duration
	// unseen is how long a blob that should be there is looked for. It may be a moment until every
	// server of the storage knows of it.
	unseen time.Duration
	// stall is how long a download may take for stallBytes, save what its reader takes.
	stall time.Duration
}

var usual = patience{
	tries: 4, pause: 200 * time.Millisecond, total: 50 * time.Second, call: 20 * time.Second, part: time.Minute,
	unseen: 2 * time.Second, stall: 20 * time.Second,
}

// Open opens the bucket that url names, and looks into it so that what is wrong shows at once:
//
//	s3://BUCKET[/PREFIX][?region=R&endpoint=URL&use_path_style=true&profile=P]
//
// An endpoint is the address of storage that is not Amazon's; buckets are then addressed by path
// unless use_path_style=false. Keys come from where the AWS tools have theirs: the environment
// (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), ~/.aws, or the platform's identity for the machine or
// container. No error shows one.
func Open(ctx context.Context, url string, opts ...Option) (*Bucket, error) {
	c, err := parse(url)
	if err != nil {
		return nil, err
	}
	b := &Bucket{name: c.bucket, prefix: c.prefix, buffers: newBuffers(), patience: usual}
	for _, o := range opts {
		o(b)
	}
	if err := b.connect(ctx, c); err != nil {
		return nil, err
	}
	return b, nil
}

// Apart returns the same bucket with buffers of its own, for another use: as many slow clients as
// wait for buffers in one keep nobody waiting in the other.
func (b *Bucket) Apart() *Bucket {
	other := *b
	other.buffers = newBuffers()
	return &other
}

func (b *Bucket) object(key string) *string { return aws.String(b.prefix + key) }

// Size returns the size of the blob of key.
func (b *Bucket) Size(ctx context.Context, key string) (int64, error) {
	err := admit(ctx, key)
	var head *s3.HeadObjectOutput
	if err == nil {
		head, err = seen(ctx, b.patience, func() (*s3.HeadObjectOutput, error) { return b.head(ctx, key) })
	}
	if err == nil && head.ContentLength == nil {
		err = errNoLength
	}
	if err != nil {
		return 0, fmt.Errorf("size of blob %s: %w", key, err)
	}
	return *head.ContentLength, nil
}

func (b *Bucket) head(ctx context.Context, key string) (head *s3.HeadObjectOutput, err error) {
	err = b.try(ctx, b.patience.call, func(ctx context.Context) (err error) {
		head, err = b.s3.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: b.object(key)})
		return err
	})
	return head, notFound(err)
}

// Delete removes the blob of key. That there is none is no error. A reader that has it open may
// fail.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	err := admit(ctx, key)
	if err == nil {
		err = b.fault.Do(blob.OpDelete, key, func() error {
			return b.try(ctx, b.patience.call, func(ctx context.Context) error {
				_, err := b.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: b.object(key)})
				return err
			})
		})
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("delete blob %s: %w", key, err)
	}
	return nil
}

// List yields all blobs, in no particular order. Of those committed or deleted meanwhile it may
// yield some. After an error it ends.
func (b *Bucket) List(ctx context.Context) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for token := (*string)(nil); ; {
			var page *s3.ListObjectsV2Output
			err := ctx.Err()
			if err == nil {
				err = b.try(ctx, b.patience.call, func(ctx context.Context) (err error) {
					page, err = b.s3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &b.prefix, ContinuationToken: token})
					return err
				})
			}
			if err != nil {
				yield(blob.Info{}, fmt.Errorf("list blobs: %w", err))
				return
			}
			for _, o := range page.Contents {
				key, ok := b.key(o.Key)
				if ok && !yield(blob.Info{Key: key, Size: aws.ToInt64(o.Size)}, nil) {
					return
				}
			}
			if token = page.NextContinuationToken; !aws.ToBool(page.IsTruncated) || token == nil {
				return
			}
		}
	}
}

// key returns the key of the blob that the object is, if it is one.
func (b *Bucket) key(object *string) (string, bool) {
	key, ok := strings.CutPrefix(aws.ToString(object), b.prefix)
	return key, ok && blob.CheckKey(key) == nil
}

// Tidy removes what crashes left half-written more than age ago: parts that nobody sees, and that
// cost room all the same. Any node may do it at any time; what is still being written is younger.
func (b *Bucket) Tidy(ctx context.Context, age time.Duration) error {
	in := &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: &b.prefix}
	for {
		var page *s3.ListMultipartUploadsOutput
		err := b.try(ctx, b.patience.call, func(ctx context.Context) (err error) {
			page, err = b.s3.ListMultipartUploads(ctx, in)
			return err
		})
		if err != nil {
			return fmt.Errorf("tidy %s: %w", b.where, err)
		}
		for _, u := range page.Uploads {
			key, ok := b.key(u.Key)
			if !ok || u.Initiated == nil || time.Since(*u.Initiated) < age {
				continue
			}
			err := b.fault.Do(blob.OpTidy, key, func() error { return b.drop(ctx, key, u.UploadId) })
			if err != nil {
				return fmt.Errorf("tidy blob %s: %w", key, err)
			}
		}
		if !aws.ToBool(page.IsTruncated) || page.NextKeyMarker == nil {
			return nil
		}
		in.KeyMarker, in.UploadIdMarker = page.NextKeyMarker, page.NextUploadIdMarker
	}
}

// drop drops a multipart upload. That it is gone is no error.
func (b *Bucket) drop(ctx context.Context, key string, upload *string) error {
	err := b.try(ctx, b.patience.call, func(ctx context.Context) error {
		_, err := b.s3.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: b.object(key), UploadId: upload})
		return err
	})
	if isNotFound(err) {
		return nil
	}
	return err
}

// Open reads n bytes of the blob of key from offset off on, or what there is of them: beyond the
// end there is nothing, which is no error. A negative n reads to the end. Once ctx is cancelled
// reads fail. The caller closes the reader.
func (b *Bucket) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	err := admit(ctx, key)
	if err == nil && off < 0 {
		err = fmt.Errorf("negative offset %d", off)
	}
	if err == nil && n == 0 {
		if _, err := b.Size(ctx, key); err != nil {
			return nil, fmt.Errorf("open blob: %w", err)
		}
		return http.NoBody, nil
	}
	r := &reader{b: b, ctx: ctx, key: key, off: off, left: n}
	if err == nil {
		_, err = seen(ctx, b.patience, func() (struct{}, error) { return struct{}{}, r.open() })
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", key, err)
	}
	return r, nil
}

// admit says whether an operation may start.
func admit(ctx context.Context, key string) error {
	if err := blob.CheckKey(key); err != nil {
		return err
	}
	return ctx.Err()
}
