package store

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
)

// What is committed is copied to the database file without anybody asking, and whoever commits without
// a break does not make the log grow for ever.
func TestCheckpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s, err := Open(t.Context(), dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		write := func(query string, args ...any) {
			t.Helper()
			if _, err := s.change(t.Context(), query, args...); err != nil {
				t.Fatal(err)
			}
		}
		waiting := func() int {
			t.Helper()
			synctest.Wait() // for the checkpointer to have nothing to do
			n, err := s.checkpoints.checkpoint(t.Context(), "NOOP")
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		const page = 4096
		write(`CREATE TABLE scratch (id INTEGER PRIMARY KEY, data BLOB)`)
		write(`INSERT INTO scratch VALUES (-1, zeroblob($1))`, (checkpointAt-100)*page)
		if n := waiting(); n < checkpointAt-100 {
			t.Errorf("%d pages are in the log alone: copied before there are %d", n, checkpointAt)
		}
		write(`INSERT INTO scratch VALUES (-2, zeroblob($1))`, 200*page)
		if n := waiting(); n != 0 {
			t.Errorf("%d pages are in the log alone", n)
		}
		for i := range 4 * fullLog / 100 { // what is there at a time is little
			write(`REPLACE INTO scratch VALUES ($1, zeroblob($2))`, i%10, 100*page)
		}
		log, err := os.Stat(filepath.Join(dir, "offpeak.db-wal"))
		if err != nil {
			t.Fatal(err)
		}
		if most := int64(2 * fullLog * page); log.Size() > most {
			t.Errorf("the log has %d bytes, more than %d", log.Size(), most)
		}
	})
}
