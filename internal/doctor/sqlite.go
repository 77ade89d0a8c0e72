package doctor

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// openSQLite opens the database in a folder for reading. A database at rest is read as a file that
// does not change, because SQLite's own way to read would leave files behind; careful avoids that.
func openSQLite(dir string, careful bool) (*connection, error) {
	path := filepath.Join(dir, "offpeak.db")
	before, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w in %s: %w", ErrNoDatabase, dir, err)
	}
	log := func() bool { _, err := os.Stat(path + "-wal"); return err == nil }
	c := &connection{alone: true, running: Running(dir), health: checkSQLite}
	still := !careful && !log()
	if still {
		c.stale = func() bool {
			after, err := os.Stat(path)
			return err != nil || log() || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime())
		}
	}
	if c.db, err = sql.Open("sqlite", sqliteDSN(path, still)); err != nil {
		return nil, err
	}
	c.db.SetMaxOpenConns(1)
	c.close = c.db.Close
	return c, nil
}

// sqliteDSN names a database file, to be read and nothing else.
func sqliteDSN(path string, still bool) string {
	q := url.Values{"mode": {"ro"}, "_pragma": {"query_only(1)", "busy_timeout(10000)", "cache_size(-4096)"}}
	if still {
		q.Set("immutable", "1")
	}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// checkSQLite has SQLite look at its own file.
func checkSQLite(ctx context.Context, q querier) (damage []string, err error) {
	found, err := all(ctx, q, scalar[string], "PRAGMA integrity_check(10)")
	if err != nil {
		return nil, err
	}
	for _, text := range found {
		if text != "ok" {
			damage = append(damage, strings.TrimSpace(text))
		}
	}
	broken, err := all(ctx, q, scalar[string], `SELECT "table" || ' refers to nothing in ' || parent FROM pragma_foreign_key_check LIMIT 10`)
	for _, text := range broken {
		damage = append(damage, "a row of "+text)
	}
	return damage, err
}

// Running reports whether some process works on the data folder, as far as the system tells.
func Running(dir string) bool { return locked(filepath.Join(dir, "lock")) }

// locked reports whether some process holds a lock on the file at path, where the system tells
// (Linux): to try the lock would keep others out of it.
func locked(path string) bool {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return false
	}
	for range 5 { // while locks come and go, the list may lack one that stays
		locks, _ := os.ReadFile("/proc/locks")
		for line := range strings.Lines(string(locks)) {
			// 1: FLOCK  ADVISORY  WRITE 4711 fd:01:1234567 0 EOF
			f := strings.Fields(line)
			if len(f) > 5 && f[1] == "FLOCK" && f[3] == "WRITE" && strings.HasSuffix(f[5], fmt.Sprintf(":%d", st.Ino)) {
				return true
			}
		}
	}
	return false
}
