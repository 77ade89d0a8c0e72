package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/store"
	"offpeak/internal/store/storetest"
)

// TestCopy copies the data of every version of the schema, with something in every table, from
// SQLite to PostgreSQL, back, and once more. Nothing is lost or changed on the way, and the numbering
// of rows goes on behind them.
func TestCopy(t *testing.T) {
	folders, err := filepath.Glob("testdata/schema/*")
	if err != nil || len(folders) == 0 {
		t.Fatal(folders, err)
	}
	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(folder)); err != nil {
				t.Fatal(err)
			}
			then := time.Date(2000, 1, 1, 0, 59, 0, 0, time.UTC) // when the fixture was made
			from := open(t, dir, store.Options{Now: func() time.Time { return then }})
			node, err := from.Join(t.Context(), "the one that moves it")
			if err != nil {
				t.Fatal(err)
			}
			if err := from.Leave(t.Context(), node); err != nil {
				t.Fatal(err)
			}
			// Numbers that were given and are not there any more.
			last := createFiles(t, from, 3)
			for _, f := range last {
				if err := from.DeleteFile(t.Context(), batch.DefaultProject, f); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := from.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			want, numbers := dump(t, from)
			for table, rows := range want {
				if len(rows) == 0 && folder == folders[len(folders)-1] {
					t.Errorf("there is nothing in table %s to copy: see furnish in package engine", table)
				}
			}

			for _, to := range []*store.Store{connectTo(t, storetest.Postgres(t)), open(t, t.TempDir(), store.Options{}), connectTo(t, storetest.Postgres(t))} {
				if yes, err := to.Received(t.Context(), node); yes || err != nil {
					t.Fatalf("Received before the copy: %t, %v", yes, err)
				}
				var rows, all int64
				if err := from.CopyTo(t.Context(), to, func(done, of int64) { rows, all = done, of }); err != nil {
					t.Fatal(err)
				}
				got, theirs := dump(t, to)
				sum := int64(0)
				for table := range want {
					sum += int64(len(want[table]))
					if !slices.Equal(got[table], want[table]) {
						t.Errorf("table %s has %d rows, want %d, or others:\n%s\nwant\n%s", table, len(got[table]), len(want[table]),
							short(got[table]), short(want[table]))
					}
				}
				if fmt.Sprint(theirs) != fmt.Sprint(numbers) {
					t.Errorf("the numbering goes on behind %v, want %v", theirs, numbers)
				}
				if rows != sum || all != sum {
					t.Errorf("progress told of %d rows of %d; there are %d", rows, all, sum)
				}
				if yes, err := to.Received(t.Context(), node); !yes || err != nil {
					t.Errorf("Received: %t, %v", yes, err)
				}
				if err := from.CopyTo(t.Context(), to, func(int64, int64) {}); !errors.Is(err, store.ErrNotEmpty) {
					t.Errorf("copied once more: %v, want ErrNotEmpty", err)
				}
				from = to
			}
			createFiles(t, from, 1) // gets a number that is free
		})
	}
}

// TestCopyIsWhole breaks a copy off, and loses the reply to one.
func TestCopyIsWhole(t *testing.T) {
	from := open(t, t.TempDir(), store.Options{})
	node, err := from.Join(t.Context(), "the one that moves it")
	if err != nil {
		t.Fatal(err)
	}
	createFiles(t, from, 1000)
	dsn := storetest.Postgres(t)
	lost := false
	to, err := store.Connect(t.Context(), dsn, store.Options{Fault: func(op string) (bool, error) {
		if op == "CopyTo" && lost {
			return true, errors.New("the reply was lost")
		}
		return false, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()

	ctx, cancel := context.WithCancel(t.Context())
	err = from.CopyTo(ctx, to, func(rows, all int64) {
		if rows > all/2 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled in the middle: %v", err)
	}
	if yes, err := to.Received(t.Context(), node); yes || err != nil {
		t.Errorf("Received after that: %t, %v; want an empty database", yes, err)
	}

	lost = true
	if err := from.CopyTo(t.Context(), to, func(int64, int64) {}); err == nil {
		t.Error("the lost reply is no error")
	}
	if yes, err := to.Received(t.Context(), node); !yes || err != nil {
		t.Errorf("Received after a lost reply: %t, %v; want true", yes, err)
	}
	if _, err := to.Received(t.Context(), "another"); !errors.Is(err, store.ErrNotEmpty) {
		t.Errorf("Received from another: %v, want ErrNotEmpty", err)
	}
}

// TestMovedFolder has the note keep everybody out.
func TestMovedFolder(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, store.Options{}).Close()
	m := store.Move{ID: "id", Database: "postgres://db/offpeak", Blobs: "s3://bucket", Began: time.Now()}
	for _, m.Done = range []bool{false, true} {
		if err := m.Save(dir); err != nil {
			t.Fatal(err)
		}
		for _, guest := range []bool{false, true} {
			s, err := store.Open(t.Context(), dir, store.Options{Guest: guest})
			if err == nil {
				s.Close()
				t.Fatalf("it opens (guest: %t, done: %t)", guest, m.Done)
			}
			for _, want := range []string{m.Database, m.Blobs, filepath.Join(dir, "moved")} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v; want it to name %s", err, want)
				}
			}
		}
		open(t, dir, store.Options{Moving: true}).Close()
		if got, err := store.ReadMove(dir); err != nil || got.ID != m.ID || got.Done != m.Done {
			t.Errorf("ReadMove = %+v, %v", got, err)
		}
	}
	if err := m.Drop(dir); err != nil {
		t.Fatal(err)
	}
	open(t, dir, store.Options{})
	if err := os.WriteFile(filepath.Join(dir, "moved"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(t.Context(), dir, store.Options{Guest: true}); err == nil {
		t.Error("it opens with a note that cannot be read")
	}
}

func connectTo(t *testing.T, dsn string) *store.Store {
	t.Helper()
	s, err := store.Connect(t.Context(), dsn, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// createFiles makes files of one blob each and returns their ids.
func createFiles(t *testing.T, s *store.Store, n int) (ids []string) {
	t.Helper()
	for range n {
		f := batch.File{ID: batch.NewFileID(), Project: batch.DefaultProject, Purpose: batch.PurposeBatch, Filename: "in.jsonl",
			Bytes: 1, CreatedAt: time.Now(), Parts: []batch.Part{{Key: batch.NewToken(), Bytes: 1}}}
		if err := s.ReserveBlob(t.Context(), f.Parts[0].Key); err != nil {
			t.Fatal(err)
		}
		if err := s.CreateFile(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, f.ID)
	}
	return ids
}

// dump returns every row of every table as text, sorted, and how far the numbering of each is.
func dump(t *testing.T, s *store.Store) (rows map[string][]string, numbers map[string]int64) {
	t.Helper()
	rows, numbers, err := store.Dump(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return rows, numbers
}

// short is the beginning of every row.
func short(rows []string) string {
	var b strings.Builder
	for _, r := range rows[:min(len(rows), 10)] {
		fmt.Fprintf(&b, "\t%.200s\n", r)
	}
	return b.String()
}
