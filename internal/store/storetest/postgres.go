package storetest

import (
	"context"
	"testing"

	"offpeak/internal/store"
	"offpeak/internal/store/pgtest"
)

// Postgres returns the DSN of a PostgreSQL database with the schema in it, which lives as long as the
// test.
func Postgres(t testing.TB) string {
	t.Helper()
	return pgtest.New(t, "store", func(dsn string) error {
		s, err := store.Connect(context.Background(), dsn, store.Options{})
		if err != nil {
			return err
		}
		return s.Close()
	})
}
