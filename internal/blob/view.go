package blob

import (
	"context"
	"io"
	"iter"
)

// A View is the folder of a [Dir] for reading alone: it makes nothing, removes nothing, and whoever
// works on the folder is not disturbed by it.
type View struct{ dir *Dir }

// NewView returns a view of the folder at path, which need not exist: then it has no blobs.
func NewView(path string) View { return View{&Dir{root: path}} }

// Open reads n bytes of a blob, as [Dir.Open] does.
func (v View) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	return v.dir.Open(ctx, key, off, n)
}

// Size returns the size of a blob, as [Dir.Size] does.
func (v View) Size(ctx context.Context, key string) (int64, error) { return v.dir.Size(ctx, key) }

// List yields all blobs, as [Dir.List] does.
func (v View) List(ctx context.Context) iter.Seq2[Info, error] { return v.dir.List(ctx) }
