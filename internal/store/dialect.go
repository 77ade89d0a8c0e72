package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// A dialect holds what differs between databases.
type dialect struct {
	name      string // of the folder with its migrations
	goose     goose.Dialect
	open      func(dsn string) (pools, error)
	check     func(ctx context.Context, db *sql.DB) error
	retryable func(error) bool
	// forUpdate ends a SELECT of rows that the transaction is going to change. SQLite needs
	// nothing: a transaction that may write is the only one from its beginning.
	forUpdate string
	// skipLocked, behind forUpdate, leaves out rows that another transaction is about to change.
	skipLocked string
	// clock is the database's time in unix milliseconds, by which nodes reckon each other's leases.
	// Empty: a database in the process has the process's.
	clock string
	// vacuum gives free what was deleted from the journal; empty where the database does so itself.
	vacuum string
	// exclusive tells that one process has the database: what a former one held is free.
	exclusive bool
	// migrating returns what keeps two processes from changing the schema at once; nil if nothing
	// needs to, since they are kept apart before.
	migrating func() (goose.ProviderOption, error)

	// What CopyTo asks: the names of tables, and of one table its columns, the tables that it refers
	// to, and the column that the database numbers.
	tables, columns, refers, numbered string
	// overriding is what an INSERT says that gives a number itself.
	overriding string
	// identity returns the last number that was given; setIdentity has the numbering go on behind it.
	identity    func(ctx context.Context, q querier, t table) (int64, error)
	setIdentity func(ctx context.Context, q querier, t table, last int64) error
}

// pools are the connections to one database.
type pools struct {
	write, read *sql.DB
	beat        *sql.DB // for heartbeats, which wait for nobody
	slow        *sql.DB // for what may take its time: migrations, vacuum
	// copies what is committed; nil where the database does so itself.
	checkpoints *checkpointer
}

// close closes each pool once.
func (p pools) close() error {
	errs := []error{p.checkpoints.close()}
	closed := map[*sql.DB]bool{nil: true}
	for _, db := range []*sql.DB{p.read, p.beat, p.slow, p.write} {
		if !closed[db] {
			errs = append(errs, db.Close())
		}
		closed[db] = true
	}
	return errors.Join(errs...)
}

var sqlite3Dialect = dialect{
	name: "sqlite", goose: goose.DialectSQLite3,
	open: openSQLite, check: checkSQLite, retryable: busy,
	exclusive: true,
	tables:    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'",
	columns:   "SELECT name FROM pragma_table_info($1)",
	refers:    `SELECT DISTINCT "table" FROM pragma_foreign_key_list($1)`,
	numbered: `SELECT c.name FROM sqlite_master m, pragma_table_info(m.name) c
		WHERE m.name = $1 AND m.type = 'table' AND m.sql LIKE '%AUTOINCREMENT%' AND c.pk = 1`,
	identity: func(ctx context.Context, q querier, t table) (int64, error) {
		return queryInt(ctx, q, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = $1", t.name)
	},
	setIdentity: func(ctx context.Context, q querier, t table, last int64) error {
		// A row is there only once something was inserted.
		if _, err := exec(ctx, q, "DELETE FROM sqlite_sequence WHERE name = $1", t.name); err != nil {
			return err
		}
		_, err := exec(ctx, q, "INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)", t.name, last)
		return err
	},
}

// openSQLite opens two pools on one file. Writers queue for the single connection of the first;
// readers see the last commit and never wait.
func openSQLite(path string) (p pools, err error) {
	dsn := func(pragmas ...string) string {
		q := url.Values{"_pragma": append([]string{
			"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)",
			"cache_size(-4096)", "temp_store(MEMORY)", fmt.Sprintf("wal_autocheckpoint(%d)", fullLog),
		}, pragmas...)}
		return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
	}
	// The file is made here, so that its owner alone may read it. SQLite gives what it makes beside
	// it the same mode. One that was restored from a backup may have any.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return pools{}, err
	}
	f.Close()
	for _, p := range []string{path, path + "-wal", path + "-shm"} {
		if fi, err := os.Stat(p); err == nil && fi.Mode().Perm()&0o077 != 0 {
			os.Chmod(p, 0o600) // if it is another's, that is not for us to decide
		}
	}
	if p.write, err = openPrepared(dsn() + "&_txlock=immediate"); err != nil {
		return pools{}, err
	}
	p.write.SetMaxOpenConns(1)
	p.beat, p.slow = p.write, p.write
	if p.read, err = openPrepared(dsn("query_only(1)")); err != nil {
		p.write.Close()
		return pools{}, err
	}
	p.read.SetMaxOpenConns(4)
	p.read.SetMaxIdleConns(4)
	beside, err := openPrepared(dsn("query_only(1)"))
	if err != nil {
		p.close()
		return pools{}, err
	}
	beside.SetMaxOpenConns(1)
	p.checkpoints = newCheckpointer(beside)
	return p, nil
}

// checkSQLite refuses versions that may lose a commit when the WAL is reset
// (https://sqlite.org/wal.html#walresetbug), and databases that are not durable.
func checkSQLite(ctx context.Context, db *sql.DB) error {
	var version, mode string
	var sync int
	if err := db.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&version); err != nil {
		return explainSQLite(err)
	}
	var a, b, c int
	if _, err := fmt.Sscanf(version, "%d.%d.%d", &a, &b, &c); err != nil || a*1e6+b*1e3+c < 3_051_003 {
		return fmt.Errorf("SQLite %s may lose commits; 3.51.3 or newer is needed", version)
	}
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return explainSQLite(err)
	}
	if err := db.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&sync); err != nil {
		return explainSQLite(err)
	}
	if mode != "wal" || sync < 2 {
		return fmt.Errorf("journal_mode is %s and synchronous %d; write-ahead log and full synchronisation are needed", mode, sync)
	}
	return nil
}

func explainSQLite(err error) error {
	if e, ok := errors.AsType[*sqlite.Error](err); ok && e.Code()&0xff == sqlite3.SQLITE_NOTADB {
		return fmt.Errorf("the file is not an offpeak database: %w", err)
	}
	return err
}

// busy reports whether a transaction failed only because of others and may run again.
func busy(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && (e.Code()&0xff == sqlite3.SQLITE_BUSY || e.Code()&0xff == sqlite3.SQLITE_LOCKED)
}

// lockFile locks the file at path until it is closed, which the kernel does for a process that
// dies.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// free ends a SELECT of a row of table that the transaction is going to take, and that nobody else is
// about to take.
func (s *Store) free(table string) string {
	if s.d.forUpdate == "" {
		return ""
	}
	return s.d.forUpdate + " OF " + table + s.d.skipLocked
}

// but returns a condition, to be put behind another, that leaves out n values of a column,
// placeholders from $first on.
func but(column string, first, n int) string {
	if n == 0 {
		return ""
	}
	return " AND " + column + " NOT IN (" + in(first, n) + ")"
}

// computed is a parameter that SQLite does not look at while it plans. It does look at one that stands
// alone behind LIMIT, and then plans anew whenever it is bound: a third of what a page costs.
func computed(parameter string) string { return parameter + ` + 0` }

// in returns a list of n placeholders, from $first on.
func in(first, n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "$%d", first+i)
	}
	return b.String()
}
