package main

import (
	"context"
	"io"
	"strings"

	"offpeak/internal/blob"
	"offpeak/internal/blob/bucket"
)

// blobStorage is where bytes are kept: a folder or a bucket.
type blobStorage interface {
	blob.Opener
	Create(ctx context.Context, key string) (blob.Writer, error)
	Size(ctx context.Context, key string) (int64, error)
	Delete(ctx context.Context, key string) error
}

var (
	_ blobStorage = (*blob.Dir)(nil)
	_ blobStorage = (*bucket.Bucket)(nil)
)

// isBucket tells the URL of a bucket from the path of a folder.
func isBucket(where string) bool { return strings.Contains(where, "://") }

// copyBlob copies a blob. If the other storage has it already, nothing is done: blobs never change.
func copyBlob(ctx context.Context, key string, from blobReader, to blobStorage) (copied int64, err error) {
	size, err := from.Size(ctx, key)
	if err != nil {
		return 0, err
	}
	there, err := hasBlob(ctx, key, size, to)
	if there || err != nil {
		return 0, err
	}
	r, err := from.Open(ctx, key, 0, -1)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	w, err := to.Create(ctx, key)
	if err != nil {
		return 0, err
	}
	defer w.Abort()
	if n, err := io.Copy(w, r); err != nil {
		return 0, err
	} else if n != size {
		return 0, io.ErrUnexpectedEOF
	}
	return w.Commit()
}
