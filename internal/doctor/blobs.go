package doctor

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
)

// A suspect is a blob that something names and that does not look as it should.
type suspect struct {
	by   string // what names it
	want int64  // bytes
	got  int64
	err  error
}

// names are what may name a blob: queries for key and size, who it is, and the marks of its row.
// Of each key, pending and deleted are NULL if it has no row.
var names = []string{
	`SELECT p.blob_key, p.bytes, 'file ' || p.file_id, b.pending, b.deleted_at FROM file_parts p LEFT JOIN blobs b ON b.key = p.blob_key`,
	`SELECT p.output_key, p.output_bytes, 'batch ' || p.batch_id, b.pending, b.deleted_at FROM segments p LEFT JOIN blobs b ON b.key = p.output_key
		WHERE p.output_key IS NOT NULL`,
	`SELECT p.error_key, p.error_bytes, 'batch ' || p.batch_id, b.pending, b.deleted_at FROM segments p LEFT JOIN blobs b ON b.key = p.error_key
		WHERE p.error_key IS NOT NULL`,
	`SELECT p.blob_key, p.bytes, 'the database', b.pending, b.deleted_at FROM storage p LEFT JOIN blobs b ON b.key = p.blob_key`,
	`SELECT p.blob_key, p.bytes, 'upload ' || p.upload_id, b.pending, b.deleted_at FROM upload_parts p LEFT JOIN blobs b ON b.key = p.blob_key`,
}

// atOnce is of how many blobs is asked at a time, and how many are on their way before it is their turn
// to be read: in a bucket it takes a while until one begins to come.
const atOnce = 16

// examineNamedBlobs looks whether every blob that something names is there and whole.
func (x *examination) examineNamedBlobs(ctx context.Context) error {
	var mu sync.Mutex // of suspects, and of the row that each is of
	rows := map[string]int64{}
	slots := make(chan struct{}, atOnce)
	var asking sync.WaitGroup
	defer asking.Wait()
	for _, query := range names {
		if err := each(ctx, x.q, func(r row) error {
			var key, by string
			var want, pending, deleted sql.NullInt64
			if err := r.Scan(&key, &want, &by, &pending, &deleted); err != nil {
				return err
			}
			about := subject{Blob: key}
			switch {
			case !pending.Valid:
				x.find(3, "blob-unknown", about, doRestore, "%s names it, and it has no row", by)
			case deleted.Valid:
				x.find(3, "blob-deleted", about, doReport, "%s names it, and it is marked as deleted: its bytes are going", by)
			case pending.Int64 != 0:
				x.find(3, "blob-pending", about, doReport, "%s names it, and it is marked as pending: a sweep will delete it", by)
			}
			x.report.Examined.Blobs++
			x.report.Examined.Bytes += want.Int64
			row := x.report.Examined.Blobs
			slots <- struct{}{}
			asking.Go(func() {
				defer func() { <-slots }()
				size, err := x.d.blobs.Size(ctx, key)
				if err == nil && size == want.Int64 {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if row > rows[key] { // of several that name it, the last
					rows[key] = row
					x.suspects[key] = suspect{by: by, want: want.Int64, got: size, err: err}
				}
			})
			return ctx.Err()
		}, query); err != nil {
			return fmt.Errorf("blobs: %w", err)
		}
	}
	return nil
}

// examineBlobRows looks for blobs that nothing names and that no sweep will take.
func (x *examination) examineBlobRows(ctx context.Context) error {
	lost, err := all(ctx, x.q, scalar[string], `SELECT key FROM blobs b WHERE pending = 0 AND deleted_at IS NULL
		AND NOT EXISTS (SELECT 1 FROM file_parts WHERE blob_key = b.key)
		AND NOT EXISTS (SELECT 1 FROM segments WHERE output_key = b.key)
		AND NOT EXISTS (SELECT 1 FROM segments WHERE error_key = b.key)
		AND NOT EXISTS (SELECT 1 FROM upload_parts WHERE blob_key = b.key)
		AND NOT EXISTS (SELECT 1 FROM storage WHERE blob_key = b.key) ORDER BY key LIMIT $1`, mostInAll)
	if err != nil {
		return fmt.Errorf("blobs: %w", err)
	}
	for _, key := range lost {
		x.find(9, "blob-unnamed", subject{Blob: key}, doReport, "nothing names it, and no sweep will take it: it is neither pending nor deleted")
	}
	return nil
}

// examineBlobBytes looks whether every blob that is there will be found again.
func (x *examination) examineBlobBytes(ctx context.Context) error {
	for info, err := range x.d.blobs.List(ctx) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // there never was one
		}
		if err != nil {
			return err
		}
		known, err := count(ctx, x.q, `SELECT count(*) FROM blobs WHERE key = $1`, info.Key)
		if err != nil {
			return fmt.Errorf("blobs: %w", err)
		}
		if known == 0 && len(x.orphans) < mostInAll {
			x.orphans = append(x.orphans, info)
		}
	}
	return nil
}

// lookAgain judges what did not fit together by what there is now: since the moment of which we
// read, blobs may have come, and gone.
func (x *examination) lookAgain(ctx context.Context) error {
	x.q = x.c.db
	for _, o := range x.orphans {
		known, err := count(ctx, x.q, `SELECT count(*) FROM blobs WHERE key = $1`, o.Key)
		if err != nil {
			return fmt.Errorf("blobs: %w", err)
		}
		if _, err := x.d.blobs.Size(ctx, o.Key); known > 0 || errors.Is(err, blob.ErrNotFound) {
			continue
		}
		x.find(9, "blob-orphan", subject{Blob: o.Key}, doDelete, "it is there with %d bytes, and nobody knows of it", o.Size)
	}
	for _, key := range slices.Sorted(maps.Keys(x.suspects)) {
		s := x.suspects[key]
		named, err := count(ctx, x.q, `SELECT (SELECT count(*) FROM file_parts WHERE blob_key = $1) +
			(SELECT count(*) FROM segments WHERE output_key = $1) + (SELECT count(*) FROM segments WHERE error_key = $1) +
			(SELECT count(*) FROM upload_parts WHERE blob_key = $1)`, key)
		if err != nil {
			return fmt.Errorf("blobs: %w", err)
		}
		size, err := x.d.blobs.Size(ctx, key)
		about := subject{Blob: key}
		switch {
		case named == 0 || err == nil && size == s.want:
		case errors.Is(err, blob.ErrNotFound):
			x.find(3, "blob-missing", about, doPutBack, "%s names it, and it is not there", s.by)
		case err != nil:
			x.find(3, "blob-unreadable", about, doPutBack, "%s names it, and it cannot be read: %v", s.by, err)
		default:
			x.find(3, "blob-size", about, doPutBack, "%s names it, and it has %d bytes instead of %d", s.by, size, s.want)
		}
	}
	return nil
}

// whole reports whether all parts are as they should be. Where they are not, a finding says so, and
// what stands in them needs no further look.
func (x *examination) whole(parts []batch.Part) bool {
	return !slices.ContainsFunc(parts, func(p batch.Part) bool { _, ok := x.suspects[p.Key]; return ok })
}

// errUnread tells that a part cannot be read, which is noted.
var errUnread = errors.New("a part cannot be read")

// unread notes that a part could not be read that looked well before.
func (x *examination) unread(ctx context.Context, p batch.Part, by string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !errors.Is(err, blob.ErrNotFound) { // else it may have gone since: see lookAgain
		x.find(3, "blob-unreadable", subject{Blob: p.Key}, doPutBack, "%s names it, and it cannot be read: %v", by, err)
	}
	x.suspects[p.Key] = suspect{by: by, want: p.Bytes, err: err}
	return errUnread
}

// longest is how long a line may be here, whatever the settings are that it was let through by.
const longest = 1 << 30

// A coming part is one that is on its way.
type coming struct {
	batch.Part
	r   *bufio.Reader
	c   io.Closer
	err error
}

// readAhead is how much there is of a part when it is its turn to be read.
const readAhead = 64 << 10

// open opens a part, and waits until it has begun to come.
func (x *examination) open(ctx context.Context, p batch.Part) coming {
	r, err := x.d.blobs.Open(ctx, p.Key, 0, -1)
	if err != nil {
		return coming{Part: p, err: err}
	}
	ahead := bufio.NewReaderSize(r, readAhead)
	ahead.Peek(readAhead) // what is wrong with it, whoever reads will see
	return coming{p, ahead, r, nil}
}

// eachLine calls f with every line of result parts, which are of finished lines, in their order.
func (x *examination) eachLine(ctx context.Context, parts []batch.Part, by string, about subject, f func(line []byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	ahead := make(chan chan coming, atOnce-1) // and one that is about to be put in
	var opening sync.WaitGroup
	opening.Go(func() {
		defer close(ahead)
		for _, p := range parts {
			next := make(chan coming, 1)
			select {
			case ahead <- next:
				opening.Go(func() { next <- x.open(ctx, p) })
			case <-ctx.Done():
				return
			}
		}
	})
	defer func() {
		cancel()
		for next := range ahead {
			if p := <-next; p.err == nil {
				p.c.Close()
			}
		}
		opening.Wait()
	}()
	for next := range ahead {
		if err := x.eachLineOf(ctx, <-next, by, about, f); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// eachLineOf is eachLine for one part, which it closes.
func (x *examination) eachLineOf(ctx context.Context, p coming, by string, about subject, f func(line []byte) error) error {
	if p.err != nil {
		return x.unread(ctx, p.Part, by, p.err)
	}
	defer p.c.Close()
	about.Blob = p.Key
	for x.lines.Reset(p.r, 0, 1); ; {
		line, err := x.lines.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return x.unread(ctx, p.Part, by, err)
		case line.TooLong:
			x.find(8, "line", about, doRestore, "line %d of this part of %s is longer than %d bytes", line.Number, by, longest)
			continue
		case int(line.Length) != len(line.Text)+1:
			x.find(8, "line", about, doRestore, "line %d of this part of %s does not end in a line break: %.80q", line.Number, by, line.Text)
		}
		if err := f(line.Text); err != nil {
			return err
		}
	}
}
