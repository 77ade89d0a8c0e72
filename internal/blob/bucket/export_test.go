package bucket

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Impatient makes a Bucket wait for nothing longer than tests like to.
func Impatient(b *Bucket) {
	b.patience = patience{
		tries: 4, pause: 10 * time.Millisecond, total: 10 * time.Second, call: time.Second, part: 2 * time.Second,
		unseen: 0, stall: 500 * time.Millisecond,
	}
}

// Hurried makes an impatient Bucket give up soon, though a part may take its time if it moves on.
func Hurried(b *Bucket) {
	Impatient(b)
	b.patience.total, b.patience.call, b.patience.part = time.Second, time.Second, 20*time.Second
}

// Expectant makes an impatient Bucket look for a blob for a while that is not there yet.
func Expectant(b *Bucket) {
	Impatient(b)
	b.patience.unseen = 2 * time.Second
}

// Uploads counts the multipart uploads of b that were begun and not ended.
func Uploads(ctx context.Context, b *Bucket) (int, error) {
	out, err := b.s3.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &b.name})
	if err != nil {
		return 0, err
	}
	return len(out.Uploads), nil
}

// PartBuffers returns how many buffers for parts there are, and how many are free.
func PartBuffers(b *Bucket) (all, free int) { return cap(b.buffers.free), len(b.buffers.free) }
