package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"offpeak/internal/blob"
	"offpeak/internal/blob/bucket"
	"offpeak/internal/blob/s3test"
	"offpeak/internal/doctor"
	"offpeak/internal/store"
	"offpeak/internal/store/storetest"
)

// furnished returns a data folder with something of everything in it, by a server that died.
func furnished(t *testing.T) string {
	t.Helper()
	folders, err := filepath.Glob("../../internal/store/testdata/schema/*")
	if err != nil || len(folders) == 0 {
		t.Fatal(folders, err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(dir, os.DirFS(slices.Max(folders))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// migrate runs the command and returns what it said.
func (cmd migrateCmd) migrate(ctx context.Context) (said string, err error) {
	var out bytes.Buffer
	err = cmd.Run(ctx, &streams{Err: &out})
	return out.String(), err
}

// wantArrived has the doctor look at what was moved.
func (cmd migrateCmd) wantArrived(t *testing.T, blobs doctor.Blobs) {
	t.Helper()
	then := time.Date(2000, 1, 1, 0, 59, 0, 0, time.UTC) // when the fixture was made
	r, err := doctor.Connect(cmd.To, blobs, doctor.Options{Now: func() time.Time { return then }}).Examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Error(f)
	}
	if r.Examined.Batches < 9 || r.Examined.Blobs < 10 {
		t.Errorf("the doctor has seen %+v", r.Examined)
	}
	note, err := store.ReadMove(cmd.From)
	if err != nil || note == nil || !note.Done {
		t.Errorf("the note in the folder is %+v, %v", note, err)
	}
}

// TestMigrateGoesOn breaks a migration off at each of its steps and repeats it.
func TestMigrateGoesOn(t *testing.T) {
	server := s3test.Start(t)
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, cmd migrateCmd)
	}{
		{"before anything", func(*testing.T, migrateCmd) {}},
		{"among blobs", func(t *testing.T, cmd migrateCmd) {
			to, err := bucket.Open(t.Context(), cmd.Blobs, bucket.Certain)
			if err != nil {
				t.Fatal(err)
			}
			from, err := blob.Open(filepath.Join(cmd.From, "blobs"))
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for info, err := range from.List(t.Context()) {
				if err == nil && n%2 == 0 {
					_, err = copyBlob(t.Context(), info.Key, blob.NewView(filepath.Join(cmd.From, "blobs")), to)
				}
				if err != nil {
					t.Fatal(err)
				}
				n++
			}
		}},
		{"before the rows", func(t *testing.T, cmd migrateCmd) {
			cmd.note(t, "not there")
		}},
		{"after the rows", func(t *testing.T, cmd migrateCmd) {
			if _, err := cmd.migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			note, err := store.ReadMove(cmd.From)
			if err != nil {
				t.Fatal(err)
			}
			note.Done = false
			if err := note.Save(cmd.From); err != nil {
				t.Fatal(err)
			}
		}},
		{"interrupted", func(t *testing.T, cmd migrateCmd) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := cmd.migrate(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := migrateCmd{From: furnished(t), To: storetest.Postgres(t), Blobs: server.Bucket(t)}
			test.spoil(t, cmd)
			said, err := cmd.migrate(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Log(said)
			if !strings.Contains(said, "batches, ") {
				t.Errorf("it says %q", said)
			}
			blobs, err := bucket.Open(t.Context(), cmd.Blobs)
			if err != nil {
				t.Fatal(err)
			}
			cmd.wantArrived(t, blobs)
		})
	}
}

// note leaves the note of a migration that was broken off.
func (cmd migrateCmd) note(t *testing.T, id string) {
	t.Helper()
	err := store.Move{ID: id, Database: store.Describe(cmd.To), Blobs: cmd.Blobs, Began: time.Now()}.Save(cmd.From)
	if err != nil {
		t.Fatal(err)
	}
}

// TestMigrateToFolder has the blobs go to another folder, or stay where they are.
func TestMigrateToFolder(t *testing.T) {
	for _, elsewhere := range []bool{true, false} {
		cmd := migrateCmd{From: furnished(t), To: storetest.Postgres(t)}
		cmd.Blobs = filepath.Join(cmd.From, "blobs")
		if elsewhere {
			cmd.Blobs = filepath.Join(t.TempDir(), "shared", "blobs")
		}
		if _, err := cmd.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		cmd.wantArrived(t, blob.NewView(cmd.Blobs))
	}
}

// TestMigrateRefuses has nothing moved where not everything can be.
func TestMigrateRefuses(t *testing.T) {
	server := s3test.Start(t)
	for _, test := range []struct {
		name   string
		change func(t *testing.T, cmd *migrateCmd, key string)
		want   string
	}{
		{"a blob is missing", func(t *testing.T, cmd *migrateCmd, key string) {
			if err := os.Remove(filepath.Join(cmd.From, "blobs", key[:2], key)); err != nil {
				t.Fatal(err)
			}
		}, "offpeak doctor --data"},
		{"another blob", func(t *testing.T, cmd *migrateCmd, key string) {
			to, err := bucket.Open(t.Context(), cmd.Blobs)
			if err != nil {
				t.Fatal(err)
			}
			w, err := to.Create(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			if _, err := w.Commit(); err != nil {
				t.Fatal(err)
			}
		}, "another blob of that key"},
		{"a server works on it", func(t *testing.T, cmd *migrateCmd, _ string) {
			s, err := store.Open(t.Context(), cmd.From, store.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
		}, "stop it first"},
		{"a full database", func(t *testing.T, cmd *migrateCmd, _ string) {
			s, err := store.Connect(t.Context(), cmd.To, store.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.CreateProject(t.Context(), "theirs", 1); err != nil {
				t.Fatal(err)
			}
		}, "the database is not empty"},
		{"no bucket", func(_ *testing.T, cmd *migrateCmd, _ string) { cmd.Blobs = server.URL("missing") }, "there is no such bucket"},
		{"on its way elsewhere", func(t *testing.T, cmd *migrateCmd, _ string) {
			other := *cmd
			other.To = storetest.Postgres(t)
			other.note(t, "id")
		}, "and may have arrived"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := migrateCmd{From: furnished(t), To: storetest.Postgres(t), Blobs: server.Bucket(t)}
			before, err := store.Open(t.Context(), cmd.From, store.Options{Guest: true})
			if err != nil {
				t.Fatal(err)
			}
			var key string
			if err := before.EachBlob(t.Context(), "", func(k string) error { key = k; return nil }); err != nil {
				t.Fatal(err)
			}
			before.Close()
			test.change(t, &cmd, key)
			noted, err := store.ReadMove(cmd.From)
			if err != nil {
				t.Fatal(err)
			}
			said, err := cmd.migrate(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v; want it to say %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error()+said, s3test.Secret) {
				t.Error("it says a secret")
			}
			if note, err := store.ReadMove(cmd.From); err != nil || (note == nil) != (noted == nil) {
				t.Errorf("the note in the folder is %+v, %v", note, err)
			}
		})
	}
}
