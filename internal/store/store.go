// Package store keeps metadata, queue and journal in a SQL database.
//
// It is the one place where something becomes true: a batch exists, an answer is recorded, a
// segment is sealed when the transaction that says so has committed, and every method that writes
// returns after that. Each of them is a single transaction, so no caller ever has to undo half of
// something. The bytes of files are elsewhere (package blob); here stand their keys.
//
// There is one Store and a dialect for what differs between databases. SQL is written by hand
// with $N placeholders; times are unix milliseconds.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
)

//go:embed migrations
var migrations embed.FS

// A Store is an open database. It is safe for concurrent use.
type Store struct {
	pools // on SQLite one connection to write with: writers queue there, not at the file
	d     dialect
	now   func() time.Time
	fault Fault
	lock  *os.File // on the data folder; nil if we are a guest in it
}

// Options adjust a Store. The zero value is what a server wants.
type Options struct {
	// Guest opens a database that a server may have open at the same moment, for commands that
	// look at it or create keys. A guest does not lock the folder and must not Join.
	Guest bool
	// Moving opens a folder that was moved elsewhere, for the command that moves it: see Move.
	Moving bool
	// Shared has several processes work on a folder as they do on PostgreSQL, for tests of what nodes
	// do to each other: nothing is locked, and nodes are judged by their heartbeats.
	Shared bool
	// Now is the clock, also in place of the database's. Zero: time.Now.
	Now func() time.Time
	// Fault decides the fate of every write, for tests. Nil: they run undisturbed.
	Fault Fault
}

// ErrLocked is returned by Open for a folder that another process works on.
var ErrLocked = errors.New("another offpeak process works on this data folder; stop it, or choose another folder with --data")

// Open opens the SQLite database in the folder dir, creates what is missing and brings the schema
// up to date. The folder is this process's alone until Close.
func Open(ctx context.Context, dir string, o Options) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	s := newStore(sqlite3Dialect, o)
	s.d.exclusive = !o.Shared
	if !o.Guest && !o.Shared {
		var err error
		if s.lock, err = lockFile(filepath.Join(dir, "lock"), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			return nil, fmt.Errorf("data folder %s: %w", dir, err)
		}
	}
	if !o.Moving { // asked under the lock, which whoever moves it holds
		if err := refuseMoved(dir); err != nil {
			s.Close()
			return nil, err
		}
	}
	// One at a time brings the schema up to date: a guest may be the first to come, or a newer one.
	schema, err := lockFile(filepath.Join(dir, "lock.schema"), syscall.LOCK_EX)
	if err == nil {
		err = s.open(ctx, filepath.Join(dir, "offpeak.db"))
		schema.Close()
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("database in %s: %w", dir, err)
	}
	return s, nil
}

// Connect opens the PostgreSQL database that dsn names (postgres://…), which any number of processes
// may share, and brings its schema up to date.
func Connect(ctx context.Context, dsn string, o Options) (*Store, error) {
	s := newStore(postgresDialect, o)
	if err := s.open(ctx, dsn); err != nil {
		s.Close()
		return nil, fmt.Errorf("database: %w", err)
	}
	return s, nil
}

func newStore(d dialect, o Options) *Store {
	s := &Store{d: d, now: o.Now, fault: o.Fault}
	if s.now == nil {
		s.now = time.Now
	} else {
		s.d.clock = ""
	}
	return s
}

// clock returns SQL for the time in unix milliseconds by which nodes reckon each other's leases: the
// database's, so that the clocks of nodes need not agree. Args are those of the statement that it is
// put into, and are returned with what the SQL takes behind them: a time in the text itself would make
// each statement one that was never prepared.
func (s *Store) clock(args ...any) (now string, all []any) {
	if s.d.clock != "" {
		return s.d.clock, args
	}
	return fmt.Sprintf("CAST($%d AS bigint)", len(args)+1), append(args, s.now().UnixMilli())
}

func (s *Store) open(ctx context.Context, dsn string) (err error) {
	if s.pools, err = s.d.open(dsn); err != nil {
		return err
	}
	if err := s.d.check(ctx, s.write); err != nil {
		return err
	}
	dir, err := fs.Sub(migrations, "migrations/"+s.d.name)
	if err != nil {
		return err
	}
	options := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	if s.d.migrating != nil {
		lock, err := s.d.migrating()
		if err != nil {
			return err
		}
		options = append(options, lock)
	}
	p, err := goose.NewProvider(s.d.goose, s.slow, dir, options...)
	if err != nil {
		return err
	}
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return err
	}
	if current == target {
		return nil
	}
	if current > target {
		return fmt.Errorf("the schema has version %d, this offpeak knows %d: use the newer offpeak that wrote it", current, target)
	}
	_, err = p.Up(ctx)
	return err
}

// Close closes the database and gives the folder free.
func (s *Store) Close() error {
	err := s.pools.close()
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	return s.read.QueryRowContext(ctx, "SELECT 1").Scan(&one)
}

// A querier runs statements inside or outside a transaction.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// tx runs f in a transaction that may write, and is the only way to write. It runs f again if the
// database asks for that, so f must not have effects of its own; results that it leaves behind are
// those of its last run.
func (s *Store) tx(ctx context.Context, f func(q querier) error) error {
	return s.step(func() error { return s.retry(ctx, f) })
}

// change runs one statement in a transaction of its own and returns how many rows it changed.
func (s *Store) change(ctx context.Context, query string, args ...any) (n int64, err error) {
	err = s.tx(ctx, func(q querier) error {
		n, err = exec(ctx, q, query, args...)
		return err
	})
	return n, err
}

func (s *Store) retry(ctx context.Context, f func(q querier) error) error {
	for attempt := 0; ; attempt++ {
		err := s.once(ctx, f)
		if err == nil || !s.d.retryable(err) || attempt == 5 {
			return err
		}
		select {
		case <-time.After(time.Duration(rand.Int64N(int64(10*time.Millisecond) << attempt))):
		case <-ctx.Done():
			return err
		}
	}
}

func (s *Store) once(ctx context.Context, f func(q querier) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() // after a commit this does nothing
	if err := f(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.checkpoints.committed()
	return nil
}

// exec runs a statement and returns how many rows it changed.
func exec(ctx context.Context, q querier, query string, args ...any) (int64, error) {
	r, err := q.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// all scans every row of a query.
func all[T any](ctx context.Context, q querier, scan func(row) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// A row is what can be scanned: *sql.Row or *sql.Rows.
type row interface{ Scan(dest ...any) error }

// scalar scans rows of one column.
func scalar[T any](r row) (v T, err error) {
	err = r.Scan(&v)
	return v, err
}

// millis is a time as it stands in the database: unix milliseconds, NULL if zero.
type millis struct{ *time.Time }

func at(t *time.Time) millis { return millis{t} }

// Scan implements sql.Scanner.
func (m millis) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*m.Time = time.Time{}
	case int64:
		*m.Time = time.UnixMilli(v)
	default:
		return fmt.Errorf("time is a %T", v)
	}
	return nil
}

// ms returns t as it goes into the database.
func ms(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMilli()
}

// null returns s, or NULL if it is empty.
func null(s string) any {
	if s == "" {
		return nil
	}
	return s
}
