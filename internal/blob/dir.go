package blob

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bufferSize is what a Writer gathers before it writes. Larger writes pass it by.
const bufferSize = 128 << 10

// beginEvery is how much of a blob is written before the disk is told to begin with it.
const beginEvery = 8 << 20

// A Dir keeps blobs as files of a folder:
//
//	tmp/
//	    3f09…c1.2718281828    a blob being written; whatever a crash left is removed by Open
//	3f/
//	    3f09…c1               a blob: its key is its name, the key's first two digits its sub-folder
//
// A commit costs two fsyncs, and a third the first time that a sub-folder is used (256 in a folder's
// life). Reading and listing cost none. Delete has none either: a blob may be back after a power
// failure, whole, for List to find.
//
// The folder must be on a file system with hard links, and belong to one process, which whoever opens
// the data folder locks, unless it is [Shared]. Files are readable to their owner only.
type Dir struct {
	root    string
	shared  bool
	fault   Fault
	buffers sync.Pool // of *bufio.Writer

	mu     sync.Mutex
	shards map[string]bool // sub-folders that would survive a power failure
}

// An Option changes how a [Dir] is opened.
type Option func(*Dir)

// Shared tells that other processes may have the folder open, too, perhaps on other machines: what is
// half-written may be theirs, until it is a day old.
func Shared() Option { return func(d *Dir) { d.shared = true } }

// abandoned is how old something half-written is that nobody is going to end.
const abandoned = 24 * time.Hour

// Open opens the folder at path, makes it if need be, and removes what a crash left half-written.
func Open(path string, opts ...Option) (*Dir, error) {
	d := &Dir{root: path, shards: make(map[string]bool)}
	d.buffers.New = func() any { return bufio.NewWriterSize(nil, bufferSize) }
	for _, o := range opts {
		o(d)
	}
	if err := d.prepare(); err != nil {
		return nil, fmt.Errorf("open blob folder: %w", err)
	}
	return d, nil
}

func (d *Dir) prepare() error {
	// A former process may have died between making a folder and the fsync of its parent. To us the
	// folder looks as good as any, yet a power failure would take it with all that we will have put
	// in. So mkdirAll syncs the parent of a folder that it finds too: that of root first, then root
	// itself, which vouches for the sub-folders listed below.
	for _, path := range []string{d.root, d.tmp()} {
		if err := d.step(OpPrepare, "", func() error { return mkdirAll(path) }); err != nil {
			return err
		}
		// One that was restored from a backup may be open to others, and so may what is in it.
		if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o077 != 0 {
			os.Chmod(path, 0o700) // if it is another's, that is not for us to decide
		}
	}
	left, err := os.ReadDir(d.tmp())
	if err != nil {
		return err
	}
	for _, e := range left {
		// Nobody else writes here, but what we cannot have made we do not remove.
		key, _, _ := strings.Cut(e.Name(), ".")
		if CheckKey(key) != nil {
			continue
		}
		if d.shared {
			if fi, err := e.Info(); err != nil || time.Since(fi.ModTime()) < abandoned {
				continue
			}
		}
		err := d.step(OpTidy, key, func() error { return os.Remove(filepath.Join(d.tmp(), e.Name())) })
		if err != nil && !(d.shared && errors.Is(err, fs.ErrNotExist)) { // somebody else has removed it
			return err
		}
	}
	if d.shared {
		return nil // a sub-folder may be another's, who is about to make it durable
	}
	shards, err := d.listShards()
	for _, s := range shards {
		d.shards[s] = true
	}
	return err
}

func (d *Dir) tmp() string             { return filepath.Join(d.root, "tmp") }
func (d *Dir) shard(key string) string { return filepath.Join(d.root, key[:2]) }
func (d *Dir) path(key string) string  { return filepath.Join(d.root, key[:2], key) }

// Create begins the blob of key. It is the caller's to end it by Commit or Abort.
func (d *Dir) Create(ctx context.Context, key string) (Writer, error) {
	w := &writer{dir: d, key: key, alive: ctx.Err}
	err := admit(ctx, key)
	if err == nil {
		err = d.step(OpCreate, key, func() (err error) {
			w.temp, err = os.CreateTemp(d.tmp(), key+".*") // mode 0600
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("create blob %s: %w", key, err)
	}
	w.buf = d.buffers.Get().(*bufio.Writer)
	w.buf.Reset((*unbuffered)(w))
	return w, nil
}

// Open reads n bytes of the blob of key from offset off on, or what there is of them: beyond the
// end there is nothing, which is no error. A negative n reads to the end. Once ctx is cancelled
// reads fail. The caller closes the reader; until then Delete does not disturb it.
func (d *Dir) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	err := admit(ctx, key)
	if err == nil && off < 0 {
		err = fmt.Errorf("negative offset %d", off)
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(d.path(key))
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", key, notFound(err))
	}
	if n < 0 {
		n = 1<<63 - 1
	}
	return &reader{bytes: io.NewSectionReader(f, off, n), file: f, alive: ctx.Err}, nil
}

// Size returns the size of the blob of key.
func (d *Dir) Size(ctx context.Context, key string) (int64, error) {
	err := admit(ctx, key)
	var fi fs.FileInfo
	if err == nil {
		fi, err = os.Stat(d.path(key))
	}
	if err != nil {
		return 0, fmt.Errorf("size of blob %s: %w", key, notFound(err))
	}
	return fi.Size(), nil
}

// Delete removes the blob of key. That there is none is no error.
func (d *Dir) Delete(ctx context.Context, key string) error {
	err := admit(ctx, key)
	if err == nil {
		err = d.step(OpDelete, key, func() error { return os.Remove(d.path(key)) })
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob %s: %w", key, err)
	}
	return nil
}

// List yields all blobs, in no particular order. Of those committed or deleted meanwhile it may
// yield some. After an error it ends.
func (d *Dir) List(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		shards, err := d.listShards()
		for _, s := range shards {
			for info, err := range d.listShard(ctx, s) {
				if err != nil {
					yield(Info{}, fmt.Errorf("list blobs: %w", err))
					return
				}
				if !yield(info, nil) {
					return
				}
			}
		}
		if err != nil {
			yield(Info{}, fmt.Errorf("list blobs: %w", err))
		}
	}
}

// listShards names the sub-folders of blobs.
func (d *Dir) listShards() ([]string, error) {
	entries, err := os.ReadDir(d.root)
	var shards []string
	for _, e := range entries {
		if name := e.Name(); e.IsDir() && len(name) == 2 && isHex(name) {
			shards = append(shards, name)
		}
	}
	return shards, err
}

// listShard yields the blobs of one sub-folder, and passes by whatever is none.
func (d *Dir) listShard(ctx context.Context, shard string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		f, err := os.Open(filepath.Join(d.root, shard))
		if err != nil {
			yield(Info{}, err)
			return
		}
		defer f.Close()
		for {
			entries, err := f.ReadDir(1024) // not at once: a sub-folder may hold very many
			if err == nil {
				err = ctx.Err()
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(Info{}, err)
				return
			}
			for _, e := range entries {
				if CheckKey(e.Name()) != nil || !strings.HasPrefix(e.Name(), shard) {
					continue
				}
				fi, err := e.Info()
				if errors.Is(err, fs.ErrNotExist) {
					continue // deleted since
				}
				if err != nil {
					yield(Info{}, err)
					return
				}
				if !yield(Info{Key: e.Name(), Size: fi.Size()}, nil) {
					return
				}
			}
		}
	}
}

// A writer is a blob on its way: a temporary file that Commit links to its place.
type writer struct {
	dir   *Dir
	key   string
	alive func() error // Err of the context it was created with
	temp  *os.File
	buf   *bufio.Writer // nil once committed or aborted
	size  int64

	written, begun int64 // bytes in the file; those that the disk was told of
}

func (w *writer) Write(p []byte) (n int, err error) {
	if err = w.usable(); err == nil {
		n, err = w.buf.Write(p)
		w.size += int64(n)
	}
	if err != nil {
		return n, fmt.Errorf("write blob %s: %w", w.key, err)
	}
	return n, nil
}

func (w *writer) Commit() (int64, error) {
	err := w.usable()
	if err == nil {
		err = w.commit()
	}
	w.Abort() // removes the temporary name; if committed, the blob has its own
	if err != nil {
		return 0, fmt.Errorf("commit blob %s: %w", w.key, err)
	}
	return w.size, nil
}

// commit carries the blob to the disk and into view. None of the steps can be spared, nor their
// order: after a crash a file system may have a name without its bytes, or bytes without their name
// (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014). A crash before the last
// step leaves a temporary file, and at most a blob that nobody was told of, whole.
func (w *writer) commit() error {
	d, temp, path := w.dir, w.temp.Name(), w.dir.path(w.key)
	if err := w.buf.Flush(); err != nil {
		return err
	}
	// The bytes come before the name. A failed fsync is final: the kernel has marked the pages as
	// clean, and a second one would vouch for bytes that are lost (Rebello et al., "Can
	// Applications Recover from fsync Failures?", ATC 2020).
	if err := d.step(OpSync, w.key, w.temp.Sync); err != nil {
		return err
	}
	if err := w.temp.Close(); err != nil {
		return err
	}
	if err := d.makeShard(w.key); err != nil {
		return err
	}
	// link(2) and not rename(2), which overwrites. Linux has renameat2 with RENAME_NOREPLACE, but
	// not on NFS; links refuse an existing name there too, and on every Unix. An error may mean
	// that only the answer was lost (link(2), BUGS), so the file itself is asked.
	err := d.step(OpLink, w.key, func() error { return os.Link(temp, path) })
	if err != nil && !sameFile(temp, path) {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: %s", ErrExists, path)
		}
		return err
	}
	// The name needs an fsync of its own, of the folder that it stands in (fsync(2)). Where that
	// fails nobody knows what the disk has; the caller is told no, so the blob shall go.
	if err := d.step(OpSyncDir, w.key, func() error { return syncDir(d.shard(w.key)) }); err != nil {
		d.step(OpUndo, w.key, func() error { return os.Remove(path) })
		return err
	}
	return nil
}

func (w *writer) Abort() {
	if w.buf == nil {
		return
	}
	w.buf.Reset(nil) // keeps nothing of the blob, nor of an error
	w.dir.buffers.Put(w.buf)
	w.buf = nil
	w.temp.Close()
	// If this fails the next Open does it.
	w.dir.step(OpUnlink, w.key, func() error { return os.Remove(w.temp.Name()) })
}

func (w *writer) usable() error {
	if w.buf == nil {
		return fs.ErrClosed
	}
	return w.alive()
}

// unbuffered is the lower side of a writer, which its buffer writes to.
type unbuffered writer

func (w *unbuffered) Write(p []byte) (n int, err error) {
	err = w.dir.step(OpWrite, w.key, func() (err error) {
		n, err = w.temp.Write(p)
		return err
	})
	// Of a large blob the disk has written most by the time of the fsync.
	if w.written += int64(n); w.written-w.begun >= beginEvery {
		begin(w.temp, w.begun, w.written-w.begun)
		w.begun = w.written
	}
	return n, err
}

// A reader is a range of a blob.
type reader struct {
	bytes *io.SectionReader
	file  *os.File
	alive func() error // Err of the context it was opened with
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.alive(); err != nil {
		return 0, fmt.Errorf("read %s: %w", r.file.Name(), err)
	}
	return r.bytes.Read(p)
}

func (r *reader) Close() error { return r.file.Close() }

// admit says whether an operation may start.
func admit(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	return ctx.Err()
}

// notFound marks the error for a file that is not there as ErrNotFound.
func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// makeShard makes the sub-folder of key if nobody has yet. It holds the lock until the folder is
// durable: a commit that just found it there would acknowledge what may yet vanish with it.
func (d *Dir) makeShard(key string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shards[key[:2]] {
		return nil
	}
	err := d.step(OpMkdir, key, func() error { return mkdirAll(d.shard(key)) })
	if err == nil {
		d.shards[key[:2]] = true
	}
	return err
}

// mkdirAll makes the folder at path and those above it that are missing, durably.
func mkdirAll(path string) error {
	parent := filepath.Dir(path)
	err := os.Mkdir(path, 0o700)
	if errors.Is(err, fs.ErrNotExist) && parent != path {
		if err := mkdirAll(parent); err != nil {
			return err
		}
		err = os.Mkdir(path, 0o700)
	}
	found := errors.Is(err, fs.ErrExist)
	if found {
		_, err = os.Stat(path + "/") // the slash makes a file in its place an error
	}
	if err != nil {
		return err
	}
	// One that was there may be as little durable as one just made: see prepare. But if we may not
	// even look at its parent, it is not of our making.
	if err := syncDir(parent); err != nil && !(found && errors.Is(err, fs.ErrPermission)) {
		return err
	}
	return nil
}

// syncDir makes the names in the folder at path durable. Some file systems refuse to sync folders;
// there is nothing more to be had from them, and PostgreSQL (fsync_fname_ext) passes over it too.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

// sameFile reports whether both paths are names of one file.
func sameFile(a, b string) bool {
	fa, errA := os.Stat(a)
	fb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(fa, fb)
}
