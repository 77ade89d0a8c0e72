package store_test

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"offpeak/internal/batch"
	"offpeak/internal/store"
	"offpeak/internal/store/pgtest"
	"offpeak/internal/store/storetest"
)

// TestAway tells a database that is away from one that refuses: what it says of itself, and what a
// network says.
func TestAway(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("the code is wrong"), false},
		{batch.NoBatch("batch_1"), false},
		{batch.ErrLeaseLost, false},
		{io.ErrUnexpectedEOF, false}, // of the journal, say
		{fmt.Errorf("begin: %w", driver.ErrBadConn), true},
		{&pgconn.PgError{Code: "57P01"}, true},  // admin_shutdown
		{&pgconn.PgError{Code: "57P03"}, true},  // cannot_connect_now
		{&pgconn.PgError{Code: "53300"}, true},  // too_many_connections
		{&pgconn.PgError{Code: "53100"}, true},  // disk_full
		{&pgconn.PgError{Code: "25006"}, true},  // read_only_sql_transaction
		{&pgconn.PgError{Code: "40001"}, true},  // serialization_failure
		{&pgconn.PgError{Code: "57014"}, true},  // query_canceled
		{&pgconn.PgError{Code: "08006"}, true},  // connection_failure
		{&pgconn.PgError{Code: "42601"}, false}, // syntax_error
		{&pgconn.PgError{Code: "23505"}, false}, // unique_violation
		{&pgconn.PgError{Code: "42P01"}, false}, // undefined_table
		{&pgconn.PgError{Code: "XX000"}, false}, // internal_error
		{&pgconn.PgError{}, false},
	} {
		if got := store.Away(test.err); got != test.want {
			t.Errorf("Away(%v) = %v, want %v", test.err, got, test.want)
		}
	}
}

// TestAwayPostgres stops a server in each of its ways, and asks it for what it does not have.
func TestAwayPostgres(t *testing.T) {
	server := pgtest.Start(t)
	s, err := store.Connect(t.Context(), server.DSN("postgres"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	read := func() error { _, err := s.Projects(t.Context()); return err }
	if err := read(); err != nil {
		t.Fatal(err)
	}
	run(t, server.DSN("postgres"), `ALTER TABLE projects RENAME TO others`)
	if err := read(); err == nil || store.Away(err) {
		t.Errorf("without its table, a read ends with %v, and Away says %v", err, store.Away(err))
	}
	run(t, server.DSN("postgres"), `ALTER TABLE others RENAME TO projects`)
	server.Kill(t)
	if err := read(); !store.Away(err) {
		t.Errorf("of a server that was killed, a read ends with %v", err)
	}
	if err := s.ReserveBlob(t.Context(), "a"); !store.Away(err) {
		t.Errorf("of a server that was killed, a write ends with %v", err)
	}
}

// TestAwayCut cuts connections while statements wait, as a server does that is being stopped.
func TestAwayCut(t *testing.T) {
	dsn := storetest.Postgres(t)
	s := connect(t, dsn)
	if err := s.ReserveBlob(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	db := raw(t, dsn)
	lock, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback()
	if _, err := lock.Exec(`LOCK TABLE blobs IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- s.ReserveBlob(t.Context(), "b") }()
	for cut := int64(0); cut == 0; {
		if err := db.QueryRow(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
			AND datname = current_database()`).Scan(&cut); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; !store.Away(err) {
		t.Errorf("a write that was cut ends with %v", err)
	}
}
