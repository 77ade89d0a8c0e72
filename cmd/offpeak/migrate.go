package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"offpeak/internal/blob"
	"offpeak/internal/blob/bucket"
	"offpeak/internal/store"
)

// copiesAtOnce is how many blobs are copied at a time: fewer than a bucket has buffers for parts.
const copiesAtOnce = 4

// copyTries is how often it is tried to copy one.
const copyTries = 3

// migrateCmd is `offpeak migrate`.
type migrateCmd struct {
	From  string `default:"offpeak-data" type:"path" placeholder:"DIR" env:"OFFPEAK_DATA" help:"Data folder of the server, which must be stopped (default: ${default})."`
	To    string `required:"" placeholder:"URL" env:"OFFPEAK_DATABASE" help:"PostgreSQL database to move it to, such as postgres://user@host/offpeak. It must be empty."`
	Blobs string `required:"" placeholder:"URL" env:"OFFPEAK_BLOBS" help:"Where files go: a bucket, such as s3://bucket?region=eu-central-1, or a folder that every node will see; the data folder's own \"blobs\" stays where it is."`
}

// Help implements kong.HelpProvider.
func (migrateCmd) Help() string {
	return "Moves everything that a stopped server has, keys, files, batches and the answers of those that run, so that " +
		"one or more servers go on with it where it stood: offpeak serve --database URL --blobs URL.\n\n" +
		"First the files are copied, then all rows of the database in one transaction. It may be broken off at any time and repeated: what is there already is not " +
		"copied again. The data folder is left as it is, but for a file called \"moved\" in it, without which it could be served again " +
		"by mistake. To go back, see that nothing serves the database, and remove that file: the folder has what it had when it was moved."
}

// A mover is one run of migrate.
type mover struct {
	cmd  *migrateCmd
	out  io.Writer
	from *store.Store
	to   *store.Store
	told time.Time // when progress was last shown
}

// Run moves the folder.
func (cmd *migrateCmd) Run(ctx context.Context, s *streams) (err error) {
	if !exists(cmd.From) {
		return fmt.Errorf("%s is not the data folder of a server; say where that is with --from", cmd.From)
	}
	note, err := store.ReadMove(cmd.From)
	if err != nil {
		return err
	}
	if note != nil && note.Done {
		return fmt.Errorf("%s was moved to %s and %s on %s", cmd.From, note.Database, note.Blobs, note.Began.Format(time.DateOnly))
	}
	m := &mover{cmd: cmd, out: s.Err}
	m.from, err = store.Open(ctx, cmd.From, store.Options{Moving: true})
	if errors.Is(err, store.ErrLocked) {
		return fmt.Errorf("a server works on %s: stop it first", cmd.From)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.from.Close()) }()
	if m.to, err = store.Connect(ctx, cmd.To, store.Options{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.to.Close()) }()
	if note == nil {
		note, err = m.begin(ctx)
	} else {
		err = m.goOn(note)
	}
	if err != nil {
		return err
	}
	return m.move(ctx, note)
}

// begin makes the note for a folder that nobody has begun to move. What a former process held is
// free from here on, as it would be for the next to start; and the node that does it is what the
// other database is known by once it has everything.
func (m *mover) begin(ctx context.Context) (*store.Move, error) {
	blobs := m.cmd.Blobs
	if !strings.Contains(blobs, "://") {
		var err error
		if blobs, err = filepath.Abs(blobs); err != nil {
			return nil, err
		}
	}
	id, err := m.from.Join(ctx, "offpeak migrate")
	if err != nil {
		return nil, err
	}
	return &store.Move{ID: id, Database: store.Describe(m.cmd.To), Blobs: blobs, Began: time.Now()}, m.from.Leave(ctx, id)
}

// goOn is for a folder whose move was broken off while nobody could know if it was done.
func (m *mover) goOn(note *store.Move) error {
	if to := store.Describe(m.cmd.To); to != note.Database {
		return fmt.Errorf("%s was on its way to %s, and may have arrived: repeat that; or see that it is empty and nobody serves it, remove %s, and choose anew",
			m.cmd.From, note.Database, filepath.Join(m.cmd.From, "moved"))
	}
	m.tell("going on with the move that began %s", note.Began.Format(time.DateTime))
	return nil
}

// move does everything that is not done yet.
//
// The bytes come first: rows must not name what is not there. Then the note, so that from the
// moment in which the rows may be in both places nobody serves this one. If we crash before the
// note, nothing has happened that the next attempt does not find as it needs it; if after, the next
// attempt asks the other database.
func (m *mover) move(ctx context.Context, note *store.Move) error {
	arrived, err := m.to.Received(ctx, note.ID)
	if err != nil {
		return fmt.Errorf("database %s: %w", note.Database, err)
	}
	if !arrived {
		if err := m.moveBlobs(ctx); err != nil {
			return err
		}
		if err := note.Save(m.cmd.From); err != nil {
			return err
		}
		if err := m.moveRows(ctx, note); err != nil {
			return err
		}
	}
	note.Done = true
	if err := note.Save(m.cmd.From); err != nil {
		return err
	}
	counts, err := m.to.CountBatches(ctx)
	if err != nil {
		return err
	}
	running := int64(0)
	for _, n := range counts {
		running += n
	}
	all, err := m.to.TotalBatches(ctx)
	if err != nil {
		return err
	}
	m.tell("moved: %s, %s of them running", batches(all), humanize.Comma(running))
	m.tell("go on with: offpeak serve --database %s --blobs %s", note.Database, note.Blobs)
	m.tell("%s is as it was, and not to be served any more: see %s", m.cmd.From, filepath.Join(m.cmd.From, "moved"))
	return nil
}

// moveRows copies the database. If that fails and nothing arrived, the folder is as good as before.
func (m *mover) moveRows(ctx context.Context, note *store.Move) error {
	err := m.from.CopyTo(ctx, m.to, func(rows, all int64) {
		m.progress(rows == all, "rows: %s of %s", humanize.Comma(rows), humanize.Comma(all))
	})
	if err == nil {
		return nil
	}
	ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	switch arrived, lost := m.to.Received(ask, note.ID); {
	case arrived:
		return nil // only the reply was lost
	case lost == nil:
		err = errors.Join(err, note.Drop(m.cmd.From))
		return fmt.Errorf("nothing was moved: %w", err)
	default:
		return fmt.Errorf("it is not known whether the rows have arrived; repeat this command to find out: %w", err)
	}
}

// moveBlobs copies the bytes that something names.
func (m *mover) moveBlobs(ctx context.Context) error {
	source := filepath.Join(m.cmd.From, "blobs")
	var to blobStore
	var err error
	if strings.Contains(m.cmd.Blobs, "://") {
		to, err = bucket.Open(ctx, m.cmd.Blobs, bucket.Certain)
	} else if sameFolder(source, m.cmd.Blobs) {
		m.tell("blobs: they stay in %s", source)
		return nil
	} else {
		to, err = blob.Open(m.cmd.Blobs)
	}
	if err != nil {
		return err
	}
	all, err := m.from.CountBlobs(ctx)
	if err != nil {
		return err
	}

	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	keys := make(chan string)
	var workers sync.WaitGroup
	var mu sync.Mutex // of what follows, and of progress
	var blobs, bytes int64
	from := blob.NewView(source)
	for range copiesAtOnce {
		workers.Go(func() {
			for key := range keys {
				n, err := copyBlobSurely(ctx, key, from, to)
				if errors.Is(err, blob.ErrNotFound) {
					err = fmt.Errorf("%w; offpeak doctor --data %s says whose it is", err, m.cmd.From)
				}
				if err != nil {
					fail(err)
					return
				}
				mu.Lock()
				blobs++
				bytes += n
				m.progress(blobs == all, "blobs: %s of %s, %s copied", humanize.Comma(blobs), humanize.Comma(all), humanize.IBytes(uint64(bytes)))
				mu.Unlock()
			}
		})
	}
	err = m.from.EachBlob(ctx, "", func(key string) error {
		select {
		case keys <- key:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(keys)
	workers.Wait()
	if ctx.Err() != nil { // it failed for the last ones
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("copy blobs: %w; what is copied stays, repeat this command to go on", err)
	}
	return nil
}

// copyBlob copies a blob. If the other storage has it already, nothing is done: blobs never change.
func copyBlob(ctx context.Context, key string, from blob.View, to blobStore) (copied int64, err error) {
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

// copyBlobSurely is copyBlob, repeated: a key is given here, so that it cannot be left to others to
// try another one.
func copyBlobSurely(ctx context.Context, key string, from blob.View, to blobStore) (copied int64, err error) {
	for range copyTries {
		copied, err = copyBlob(ctx, key, from, to)
		if err == nil || ctx.Err() != nil || errors.Is(err, blob.ErrNotFound) || errors.Is(err, errOtherBlob) {
			break
		}
	}
	return copied, err
}

// errOtherBlob tells of storage that has something else under a key.
var errOtherBlob = errors.New("there is another blob of that key, of another size: choose another bucket, prefix or folder")

// hasBlob reports whether to has a blob, which has size bytes.
func hasBlob(ctx context.Context, key string, size int64, to blobStore) (bool, error) {
	n, err := to.Size(ctx, key)
	switch {
	case errors.Is(err, blob.ErrNotFound):
		return false, nil
	case err == nil && n != size:
		return false, fmt.Errorf("blob %s: %w", key, errOtherBlob)
	}
	return err == nil, err
}

func sameFolder(a, b string) bool {
	fa, errA := os.Stat(a)
	fb, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(fa, fb)
}

// progress tells how far it is, every other second and at the end.
func (m *mover) progress(last bool, format string, args ...any) {
	if now := time.Now(); last || now.Sub(m.told) >= 2*time.Second {
		m.told = now
		m.tell(format, args...)
	}
}

func (m *mover) tell(format string, args ...any) { fmt.Fprintf(m.out, format+"\n", args...) }
