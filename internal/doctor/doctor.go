// Package doctor examines a data folder, at rest or at work, and says where it does not keep what
// docs/design.md promises.
//
//	d := doctor.Open("offpeak-data", doctor.Options{})
//	report, err := d.Examine(ctx)
//	for _, f := range report.Findings {
//		fmt.Println(f)
//	}
//
// It reads the database beside package store and the blobs beside whoever writes them, so that a
// mistake in the one is not repeated in the other. It sees every row as of one moment, while blobs
// never change once they are there; so a server may work on the folder meanwhile, and nothing is
// locked, written or removed.
//
// Its memory grows with the requests of the largest batch, by 33 bytes for each, with the segments
// that a running batch has, and with the longest line. What it cannot tell: whether a
// file that is gone was deleted by its owner, whether bytes that have the right size and form are
// those that were written, and whether time passed as the clock said.
package doctor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/journal"
)

// Blobs is where the bytes are. See [blob.View].
type Blobs interface {
	Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)
	Size(ctx context.Context, key string) (int64, error)
	List(ctx context.Context) iter.Seq2[blob.Info, error]
}

// Options are what else a Doctor is told. The zero value is for a folder of which nothing is known;
// the rest is for tests, which know more.
type Options struct {
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// NothingDeleted tells that no result file was deleted or has expired: one that is not there is
	// a finding.
	NothingDeleted bool
	// Input returns a file that was uploaded once, so that batches can be examined whose input is
	// gone; nil if it does not know the file.
	Input func(file string) []byte
	// Recorded is called with every answer that is recorded. Bodies of requests are kept in memory
	// for it, and for Calls.
	Recorded func(Recorded)
	// Calls returns how often upstreams were sent a body. Of one Doctor's examinations, none may
	// find more calls for a recorded request than the first that found it recorded.
	Calls func(body []byte) int
}

// Recorded is an answer that must never be asked for again. Its slices are valid during the call.
type Recorded struct {
	Batch    string
	Endpoint string
	CustomID string
	Line     int64
	Request  []byte // body
	OK       bool
	Status   int    // of the response; 0: there is none
	Response []byte // its body
}

// A Doctor examines one folder, as often as it is asked to.
type Doctor struct {
	o       Options
	connect func(careful bool) (*connection, error)
	blobs   Blobs
	calls   map[[16]byte]int // of bodies whose answers were found recorded
}

// A connection is a database opened for one examination.
type connection struct {
	db *sql.DB
	// alone tells that one process at a time works on the database, as with SQLite.
	alone bool
	// running tells that one does, as far as can be seen.
	running bool
	// alive finds that out for a database that is shared. Nil: running is known.
	alive func(ctx context.Context, q querier) (bool, error)
	// health looks for damage to the database as such. Nil: it sees to that itself.
	health func(ctx context.Context, q querier) (damage []string, err error)
	// stale reports whether what was read cannot be relied upon. Nil: it always can.
	stale func() bool
	close func() error
}

// Open returns a doctor for a data folder with a SQLite database and its blobs.
func Open(dir string, o Options) *Doctor {
	return OpenWith(dir, blob.NewView(filepath.Join(dir, "blobs")), o)
}

// OpenWith is Open for a folder whose blobs are elsewhere.
func OpenWith(dir string, blobs Blobs, o Options) *Doctor {
	return &Doctor{
		o: o, blobs: blobs, calls: map[[16]byte]int{},
		connect: func(careful bool) (*connection, error) { return openSQLite(dir, careful) },
	}
}

// New returns a doctor for a database that several nodes may share, and their blobs.
func New(db *sql.DB, blobs Blobs, o Options) *Doctor {
	return &Doctor{o: o, blobs: blobs, calls: map[[16]byte]int{}, connect: func(bool) (*connection, error) {
		return &connection{db: db, close: func() error { return nil }}, nil
	}}
}

// ErrNoDatabase is returned by Examine for a folder without a database.
var ErrNoDatabase = errors.New("no offpeak database")

// Examine examines everything. An error tells that it could not.
func (d *Doctor) Examine(ctx context.Context) (*Report, error) {
	r, stale, err := d.examineOnce(ctx, false)
	if stale {
		// Somebody began to work on the folder under our eyes; this time we know of them.
		r, _, err = d.examineOnce(ctx, true)
	}
	return r, err
}

func (d *Doctor) examineOnce(ctx context.Context, careful bool) (_ *Report, stale bool, err error) {
	c, err := d.connect(careful)
	if err != nil {
		return nil, false, err
	}
	defer c.close()
	tx, err := c.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return nil, false, err
	}
	defer tx.Rollback()
	x := &examination{
		d: d, c: c, q: tx, report: &Report{Running: c.running}, suspects: map[string]suspect{},
		lines: batch.NewLines(nil, 0, 1, longest),
	}
	if d.o.Now == nil {
		x.now = time.Now()
	} else {
		x.now = d.o.Now()
	}
	x.unpack = journal.NewUnpacker()
	defer x.unpack.Close()
	err = x.all(ctx)
	tx.Rollback() // what was there at the beginning is known; from here on what is there now counts
	if err == nil {
		err = x.lookAgain(ctx)
	}
	if stale = c.stale != nil && c.stale(); err != nil && x.damaged && ctx.Err() == nil && !stale {
		// Of a damaged database no more can be expected. That it is damaged has been said.
		x.find(3, "unreadable", subject{}, doRestore, "the examination ends here, because the database cannot be read: %v", err)
		err = nil
	}
	return x.report, stale, err
}

// An examination is one look at everything.
type examination struct {
	d       *Doctor
	c       *connection
	q       querier
	now     time.Time
	report  *Report
	damaged bool // the database is

	suspects map[string]suspect // blobs that are named, and missing or of another size, by key
	orphans  []blob.Info        // blobs that nobody seems to know of

	requests requests     // of the batch that is examined
	ids      requests     // of its results, if its input is gone
	lines    *batch.Lines // of one input or part at a time
	parser   batch.Parser
	answer   batch.AnswerParser
	line     lineParser
	unpack   *journal.Unpacker
}

func (x *examination) all(ctx context.Context) error {
	if err := x.checkSchema(ctx); err != nil {
		return err
	}
	if x.c.alive != nil {
		running, err := x.c.alive(ctx, x.q)
		if err != nil {
			return err
		}
		x.c.running, x.report.Running = running, running
	}
	if x.c.health != nil {
		damage, err := x.c.health(ctx, x.q)
		if err != nil {
			return err
		}
		for _, text := range damage {
			x.damaged = true
			x.find(3, "database", subject{}, doRestore, "the database is damaged: %s", text)
		}
	}
	for _, examine := range []func(context.Context) error{
		x.examineNamedBlobs, x.examineBlobRows, x.examineBlobBytes, x.examineFiles, x.examineUploads, x.examineProjects,
		x.examineNodes, x.examineBatches,
	} {
		if err := examine(ctx); err != nil {
			return err
		}
	}
	return nil
}

// schema is the version of the schema that this package reads.
const schema = 3

func (x *examination) checkSchema(ctx context.Context) error {
	var version int64
	if err := x.q.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version`).Scan(&version); err != nil {
		return fmt.Errorf("%w: %w", ErrNoDatabase, err)
	}
	switch {
	case version > schema:
		return fmt.Errorf("the schema has version %d, this offpeak knows %d: use the newer offpeak that wrote it", version, schema)
	case version < schema:
		return fmt.Errorf("the schema has version %d, this offpeak knows %d: start the server once, which brings the database up to date, or use the offpeak that wrote it", version, schema)
	}
	return nil
}
