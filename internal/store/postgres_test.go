package store_test

import (
	"database/sql"
	"testing"

	"offpeak/internal/store"
	"offpeak/internal/store/storetest"
)

func TestPostgres(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Database { return postgres(t).Database })
}

// TestInterleavings is of PostgreSQL alone: on SQLite no two transactions that write ever meet.
func TestInterleavings(t *testing.T) { storetest.Interleavings(t, postgres) }

// postgres returns a database with the schema in it.
func postgres(t *testing.T) storetest.Shared {
	t.Helper()
	dsn := storetest.Postgres(t)
	db := raw(t, dsn)
	return storetest.Shared{
		Database: storetest.Database{
			Open: func(o store.Options) (*store.Store, error) { return store.Connect(t.Context(), dsn, o) },
		},
		Gated: func(o store.Options, gate func(string) error) (*store.Store, error) {
			return store.ConnectGated(t.Context(), dsn, o, gate)
		},
		Waiting: func() (n int, err error) {
			err = db.QueryRow(`SELECT count(*) FROM pg_stat_activity
				WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n)
			return n, err
		},
	}
}

// raw opens the database without a store.
func raw(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}
