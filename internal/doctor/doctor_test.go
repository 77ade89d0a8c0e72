package doctor_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"offpeak/internal/doctor"
)

func TestMain(m *testing.M) {
	// Nobody pulls the plug here, so there is no need to wait for a disk.
	if _, err := os.Stat("/dev/shm"); err == nil {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	goleak.VerifyTestMain(m)
}

// A ward is a data folder to damage. It is a copy of the newest fixture: a server died over it, with
// batches of every status.
type ward struct {
	*testing.T
	dir string
}

func newWard(t *testing.T) *ward {
	t.Helper()
	fixtures, err := filepath.Glob("../store/testdata/schema/*")
	if err != nil || len(fixtures) == 0 {
		t.Fatal(fixtures, err)
	}
	w := &ward{t, t.TempDir()}
	if err := os.CopyFS(w.dir, os.DirFS(slices.Max(fixtures))); err != nil {
		t.Fatal(err)
	}
	return w
}

// sql runs a statement that must change something, and whatever it does to references.
func (w *ward) sql(statement string, args ...any) {
	w.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.dir, "offpeak.db")+"?_pragma=foreign_keys(0)")
	if err != nil {
		w.Fatal(err)
	}
	defer db.Close()
	r, err := db.Exec(statement, args...)
	if err != nil {
		w.Fatalf("%s: %v", statement, err)
	}
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		w.Fatalf("%s changes %d rows, %v", statement, n, err)
	}
}

// ask returns the value that a query yields.
func (w *ward) ask(query string) (v string) {
	w.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(w.dir, "offpeak.db")+"?mode=ro&immutable=1")
	if err != nil {
		w.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(query).Scan(&v); err != nil {
		w.Fatalf("%s: %v", query, err)
	}
	return v
}

// path returns where a blob is: the first part of a file of the batch with that status.
func (w *ward) path(status, which string) string {
	w.Helper()
	key := w.ask(fmt.Sprintf(`SELECT blob_key FROM file_parts WHERE n = 0 AND file_id = (
		SELECT %s_file_id FROM batches WHERE status = '%s' LIMIT 1)`, which, status))
	return filepath.Join(w.dir, "blobs", key[:2], key)
}

// edit changes the first occurrence of a text in a file, which stays as long as it is if the new
// text is.
func (w *ward) edit(path, from, to string) {
	w.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		w.Fatal(err)
	}
	if !bytes.Contains(text, []byte(from)) {
		w.Fatalf("%s has no %q: %.500s", path, from, text)
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte(from), []byte(to), 1), 0o600); err != nil {
		w.Fatal(err)
	}
}

func (w *ward) examine() *doctor.Report {
	w.Helper()
	before := w.list()
	r, err := doctor.Open(w.dir, doctor.Options{
		NothingDeleted: true, Now: func() time.Time { return time.Date(2000, 1, 1, 1, 0, 0, 0, time.UTC) },
	}).Examine(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	if after := w.list(); after != before {
		w.Errorf("the examination changed the folder from\n%s\nto\n%s", before, after)
	}
	return r
}

// list says which files there are, and when they changed.
func (w *ward) list() string {
	var b strings.Builder
	if err := filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		fmt.Fprintln(&b, path, fi.Size(), fi.ModTime().UnixNano())
		return err
	}); err != nil {
		w.Fatal(err)
	}
	return b.String()
}

// TestSound finds nothing wrong with a folder in which nothing is wrong, and says what it looked at.
func TestSound(t *testing.T) {
	w := newWard(t)
	r := w.examine()
	for _, f := range r.Findings {
		t.Error(f)
	}
	if e := r.Examined; e.Batches != 9 || e.Requests < 20+60+40+60+120 || e.Results < 200 || e.Files < 16 || e.Blobs < 40 || e.Bytes < 10_000 {
		t.Errorf("examined %+v", e)
	}
}

// TestDamage breaks one thing in a folder at a time, by hand, and wants it found.
func TestDamage(t *testing.T) {
	const running = `(SELECT id FROM batches WHERE status = 'in_progress' AND total = 120)`
	const sealed = `(SELECT id FROM segments WHERE sealed_at IS NOT NULL AND batch_id = ` + running + ` LIMIT 1)`
	const journalled = `(SELECT segment_id FROM journal JOIN segments ON id = segment_id WHERE batch_id = ` + running + ` LIMIT 1)`
	sql := func(statement string) func(*ward) { return func(w *ward) { w.sql(statement) } }
	edit := func(status, which, from, to string) func(*ward) {
		return func(w *ward) { w.edit(w.path(status, which), from, to) }
	}
	for _, test := range []struct {
		name string
		harm func(*ward)
		want string // kinds, among those found
	}{
		{"a part is cut off", func(w *ward) { must(w, os.Truncate(w.path("completed", "output"), 100)) }, "blob-size"},
		{"a part is gone", func(w *ward) { must(w, os.Remove(w.path("completed", "output"))) }, "blob-missing"},
		{"an input is gone", func(w *ward) { must(w, os.Remove(w.path("in_progress", "input"))) }, "blob-missing"},
		{"a part of a sealed segment is gone", func(w *ward) {
			key := w.ask(`SELECT output_key FROM segments WHERE id = ` + sealed)
			must(w, os.Remove(filepath.Join(w.dir, "blobs", key[:2], key)))
		}, "blob-missing"},
		{"a part of an upload is gone", func(w *ward) {
			key := w.ask(`SELECT blob_key FROM upload_parts`)
			must(w, os.Remove(filepath.Join(w.dir, "blobs", key[:2], key)))
		}, "blob-missing"},
		{"bytes that nobody knows of", func(w *ward) {
			must(w, os.MkdirAll(filepath.Join(w.dir, "blobs", "ab"), 0o700))
			must(w, os.WriteFile(filepath.Join(w.dir, "blobs", "ab", "ab"+strings.Repeat("0", 30)), []byte("x"), 0o600))
		}, "blob-orphan"},
		{"a blob that no sweep takes", sql(`UPDATE blobs SET pending = 0 WHERE key = (SELECT key FROM blobs WHERE pending = 1)`), "blob-unnamed"},
		{"a blob that a sweep will take", sql(`UPDATE blobs SET pending = 1 WHERE key = (SELECT blob_key FROM file_parts)`), "blob-pending"},
		{"a blob that goes", sql(`UPDATE blobs SET deleted_at = 1 WHERE key = (SELECT blob_key FROM file_parts)`), "blob-deleted"},
		{"a blob without a row", sql(`DELETE FROM blobs WHERE key = (SELECT blob_key FROM file_parts)`), "blob-unknown database"},
		{"a file lacks a part", sql(`DELETE FROM file_parts WHERE n = 0 AND file_id = (SELECT output_file_id FROM batches WHERE status = 'completed')`), "file-bytes file-parts"},

		{"a result of another request", edit("completed", "output", `"custom_id":"r-1"`, `"custom_id":"r-0"`), "none twice id"},
		{"a result that nobody asked for", edit("completed", "output", `"custom_id":"r-1"`, `"custom_id":"q-1"`), "none unasked"},
		{"another request", edit("completed", "input", `"custom_id":"r-1"`, `"custom_id":"q-1"`), "none unasked"},
		{"two requests of one name", edit("completed", "input", `"custom_id":"r-1"`, `"custom_id":"r-0"`), "input none"},
		{"a request that is none", edit("completed", "input", `{"custom_id":"r-1"`, `["custom_id":"r-1"`), "input total unasked"},
		{"another id", edit("completed", "output", `"id":"batch_req_`, `"id":"batch_reQ_`), "id"},
		{"an answer that failed", edit("completed", "output", `"status_code":200`, `"status_code":500`), "wrong-file"},
		{"an answer that is none", edit("completed", "output", `"body":{`, `"body":[`), "line"},
		{"a line of two", edit("completed", "output", "}\n{", "},{"), "line"},
		{"a line without an end", func(w *ward) {
			path := w.path("completed", "output")
			fi, err := os.Stat(path)
			must(w, err)
			must(w, os.Truncate(path, fi.Size()-1))
			w.sql(`UPDATE file_parts SET bytes = bytes - 1 WHERE blob_key = $1`, filepath.Base(path))
		}, "line file-bytes"},
		{"another member", edit("completed", "output", `"error":null`, `"errors":nul`), "line"},
		{"tokens", edit("completed", "output", `"prompt_tokens":`, `"pr0mpt_tokens":`), "counts"},
		{"lines in another order", func(w *ward) {
			path := w.path("completed", "output")
			text, err := os.ReadFile(path)
			must(w, err)
			lines := bytes.SplitAfter(text, []byte("\n"))
			lines[0], lines[1] = lines[1], lines[0]
			must(w, os.WriteFile(path, bytes.Join(lines, nil), 0o600))
		}, "order"},
		{"an expired batch that is cancelled", edit("expired", "error", `batch_expired","message":"Th`, `batch_cancelled","message":"`), "never"},

		{"a count", sql(`UPDATE batches SET completed = completed + 1 WHERE status = 'completed'`), "counts"},
		{"a count of failures", sql(`UPDATE batches SET failed = failed + 1 WHERE status = 'completed'`), "counts"},
		{"the total", sql(`UPDATE batches SET total = total - 1 WHERE status = 'completed'`), "total"},
		{"usage", sql(`UPDATE batches SET cached_tokens = cached_tokens + 1 WHERE status = 'completed'`), "counts"},
		{"a count of a running batch", sql(`UPDATE batches SET completed = completed + 1 WHERE id = ` + running), "counts"},
		{"a count of a sealed segment", sql(`UPDATE segments SET completed = completed - 1 WHERE id = ` + sealed), "counts"},
		{"a count of an open segment", sql(`UPDATE segments SET completed = completed - 1 WHERE id = ` + journalled), "segment-counts"},
		{"the model", sql(`UPDATE batches SET model = 'm' WHERE id = ` + running), "model"},

		{"a group of another form", sql(`UPDATE journal SET data = x'09' || substr(data, 2) WHERE segment_id = ` + journalled), "journal"},
		{"a group with other bytes", sql(`UPDATE journal SET data = substr(data, 1, 20) || x'00ff00' || substr(data, 24) WHERE segment_id = ` + journalled), "journal"},
		{"half a group", sql(`UPDATE journal SET data = substr(data, 1, length(data) / 2) WHERE segment_id = ` + journalled), "journal"},
		{"an empty group", sql(`UPDATE journal SET data = x'' WHERE segment_id = ` + journalled), "journal"},
		{"a group is gone", sql(`DELETE FROM journal WHERE segment_id = ` + journalled), "segment-counts"},
		{"a group of another segment", sql(`UPDATE journal SET segment_id = (SELECT id FROM segments WHERE batch_id = ` + running +
			` AND id NOT IN (SELECT segment_id FROM journal) AND sealed_at IS NULL LIMIT 1) WHERE segment_id = ` + journalled), "mixed-up segment-counts"},
		{"a group twice", sql(`INSERT INTO journal (segment_id, seq, data) SELECT segment_id, -seq, data FROM journal WHERE segment_id = ` + journalled), "twice segment-counts"},
		{"a group after the last write", sql(`UPDATE journal SET seq = seq + 1000 WHERE segment_id = ` + journalled), "journal"},
		{"a journal of a sealed segment", sql(`UPDATE journal SET segment_id = ` + sealed + ` WHERE segment_id = ` + journalled), "sealed-journal"},

		{"a segment is gone", sql(`DELETE FROM segments WHERE id = ` + sealed), "segments total counts"},
		{"a shorter segment", sql(`UPDATE segments SET byte_length = byte_length - 10 WHERE id = ` + sealed), "segments"},
		{"a longer segment", sql(`UPDATE segments SET byte_length = byte_length + 10 WHERE id = ` + sealed), "segments"},
		{"a segment at another line", sql(`UPDATE segments SET first_line = first_line + 1 WHERE batch_id = ` + running), "segments"},
		{"a segment of another model", sql(`UPDATE segments SET model = 'o' WHERE id = ` + sealed), "segments segment-total"},
		{"a segment with fewer requests", sql(`UPDATE segments SET total = total - 1 WHERE id = ` + sealed), "segment-total total"},
		{"open segments", sql(`UPDATE batches SET open_segments = 0 WHERE id = ` + running), "open"},
		{"open segments of a lane", sql(`UPDATE batch_lanes SET open = open + 1 WHERE batch_id = ` + running), "open"},
		{"a lane is gone", sql(`DELETE FROM batch_lanes WHERE batch_id = ` + running), "lanes"},
		{"segments of a batch that has ended", sql(`UPDATE segments SET batch_id = (SELECT id FROM batches WHERE status = 'completed') WHERE id = ` + sealed), "left-segments segments"},
		{"segments of a batch in validation", sql(`UPDATE segments SET batch_id = (SELECT id FROM batches WHERE status = 'validating') WHERE id = ` + sealed), "validating"},

		{"another status", sql(`UPDATE batches SET status = 'cancelled' WHERE status = 'completed'`), "times ending"},
		{"no such status", sql(`UPDATE batches SET status = 'done' WHERE status = 'failed'`), "status"},
		{"another ending", sql(`UPDATE batches SET ending = 'completed' WHERE status = 'cancelling'`), "ending"},
		{"a timestamp is gone", sql(`UPDATE batches SET in_progress_at = NULL WHERE status = 'finalizing' OR status = 'in_progress'`), "times"},
		{"a timestamp too many", sql(`UPDATE batches SET completed_at = created_at + 100000 WHERE status = 'in_progress'`), "times"},
		{"timestamps that run backwards", sql(`UPDATE batches SET completed_at = created_at WHERE status = 'completed'`), "times"},
		{"expired before the deadline", sql(`UPDATE batches SET expires_at = expires_at + 3600000 WHERE status = 'expired'`), "times"},
		{"failed without errors", sql(`UPDATE batches SET errors = NULL WHERE status = 'failed'`), "errors"},
		{"errors that are none", sql(`UPDATE batches SET errors = '[' WHERE status = 'failed'`), "garbled"},
		{"files of a batch that never ran", sql(`UPDATE batches SET output_file_id = 'file-x' WHERE status = 'failed'`), "never-ran"},
		{"a result file is gone", sql(`UPDATE batches SET output_file_id = 'file-x' WHERE status = 'completed'`), "no-result"},
		{"a result file of another project", sql(`UPDATE files SET project_id = (SELECT id FROM projects WHERE name = 'other')
			WHERE id = (SELECT output_file_id FROM batches WHERE status = 'completed')`), "result-file"},
		{"results of a running batch", sql(`UPDATE batches SET output_file_id = input_file_id WHERE id = ` + running), "early-file"},
		{"the input of a running batch is gone", sql(`UPDATE batches SET input_file_id = 'file-x' WHERE id = ` + running), "no-input"},

		{"a token without a node", sql(`UPDATE segments SET node_id = NULL WHERE node_id IS NOT NULL AND sealed_at IS NULL`), "lease"},
		{"held by a process that has ended", func(w *ward) {
			w.sql(`UPDATE nodes SET dead_at = 1`)
			w.sql(`INSERT INTO nodes (id, name, started_at, heartbeat_at) VALUES ('next', 'next', 2, 2)`)
		}, "held-by-the-dead"},
		{"two processes", sql(`INSERT INTO nodes (id, name, started_at, heartbeat_at) VALUES ('next', 'next', 2, 2)`), "nodes"},

		{"a key in clear", sql(`UPDATE keys SET hash = 'sk-offpeak-' || hex(hash)`), "key key-in-clear"},
		{"a key for a name", sql(`UPDATE keys SET name = 'sk-offpeak-' || hex(hash)`), "key-in-clear"},
		{"an idempotency key of nothing", sql(`UPDATE idempotency_keys SET batch_id = 'batch_x'`), "idempotency-key"},
		{"an idempotency key of another project", sql(`UPDATE idempotency_keys SET project_id = (SELECT id FROM projects WHERE name = 'other')`), "idempotency-key"},
		{"an upload without its file", sql(`UPDATE uploads SET file_id = NULL WHERE status = 'completed'`), "upload"},
		{"an upload of another size", sql(`UPDATE uploads SET bytes = 1 WHERE status = 'completed'`), "upload"},
		{"an upload that is pending again", sql(`UPDATE uploads SET status = 'pending' WHERE status = 'completed'`), "upload"},
		{"no default project", sql(`UPDATE projects SET id = 'x' WHERE id = 'proj_default'`), "project database"},
		{"an index lacks a row", func(w *ward) {
			w.sql(`PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = replace(sql, 'blobs_pending ON blobs (created_at) WHERE pending = 1', 'blobs_pending ON blobs (created_at) WHERE pending = 0') WHERE name = 'blobs_pending'`)
		}, "database"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWard(t)
			test.harm(w)
			r := w.examine()
			kinds := map[string]bool{}
			for _, f := range r.Findings {
				t.Log(f)
				kinds[f.Kind] = true
			}
			for _, kind := range strings.Fields(test.want) {
				if !kinds[kind] {
					t.Errorf("no finding %q", kind)
				}
			}
		})
	}
}

func must(w *ward, err error) {
	if err != nil {
		w.Helper()
		w.Fatal(err)
	}
}

// TestSchema reads the schema that the newest migration makes, and no other.
func TestSchema(t *testing.T) {
	for _, test := range []struct{ change, want string }{
		{`INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)`, "version 99999"},
		{`DELETE FROM goose_db_version WHERE version_id > 0`, "start the server once"},
		{`ALTER TABLE goose_db_version RENAME TO other`, "no offpeak database"},
	} {
		w := newWard(t)
		if strings.HasPrefix(test.change, "ALTER") {
			w.sql(`UPDATE nodes SET name = 'x'; ` + test.change)
		} else {
			w.sql(test.change)
		}
		_, err := doctor.Open(w.dir, doctor.Options{}).Examine(t.Context())
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("after %s: %v, want %q", test.change, err, test.want)
		}
	}
	_, err := doctor.Open(t.TempDir(), doctor.Options{}).Examine(t.Context())
	if !errors.Is(err, doctor.ErrNoDatabase) {
		t.Errorf("in an empty folder: %v", err)
	}
}
