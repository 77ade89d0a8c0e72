package store

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// TestOneWriter wants a transaction that may write to be the only one from its beginning, and to
// run again if all that is wrong is that another came first.
func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	other, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "offpeak.db")+"?_pragma=busy_timeout(0)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()

	var inWay error
	if err := s.tx(t.Context(), func(querier) error {
		var tx *sql.Tx
		if tx, inWay = other.Begin(); inWay == nil {
			tx.Rollback()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !busy(inWay) {
		t.Fatalf("another writer begins meanwhile: %v, want it to be told that the database is busy", inWay)
	}

	for _, test := range []struct {
		err  error
		runs int
	}{{inWay, 3}, {errors.New("something else"), 1}} {
		runs := 0
		err := s.tx(t.Context(), func(querier) error {
			if runs++; runs < 3 {
				return test.err
			}
			return nil
		})
		if runs != test.runs || (err == nil) != (runs == 3) {
			t.Errorf("after %v a transaction runs %d times and fails with %v, want %d runs", test.err, runs, err, test.runs)
		}
	}
}

// TestNotDurable refuses a database whose commits would not be on the disk.
func TestNotDurable(t *testing.T) {
	for _, test := range []struct {
		pragmas string
		good    bool
	}{
		{"_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)", true},
		{"_pragma=journal_mode(WAL)&_pragma=synchronous(EXTRA)", true},
		{"_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)", false},
		{"_pragma=journal_mode(WAL)&_pragma=synchronous(OFF)", false},
		{"_pragma=journal_mode(DELETE)&_pragma=synchronous(FULL)", false},
	} {
		db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "offpeak.db")+"?"+test.pragmas)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		err = checkSQLite(context.Background(), db)
		if (err == nil) != test.good || err != nil && !strings.Contains(err.Error(), "synchronous") {
			t.Errorf("%s: %v, want it to be good: %v", test.pragmas, err, test.good)
		}
	}
}
