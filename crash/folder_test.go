package crash

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"offpeak/internal/journal"
	_ "offpeak/internal/store" // the driver
)

// A folder is what lies in a data folder while nobody works on it.
type folder struct {
	// recorded are the custom ids of the requests that have an answer, by batch.
	recorded map[string]bool
	open     int // requests that a process which starts now has to send
	deaths   int // segments that count the death of an owner
}

// readFolder reads a folder as it lies there. It leaves even the write-ahead log as it is, which
// whoever opens the database would fold in: the next process is to do that.
func readFolder(t *testing.T, dir string) folder {
	t.Helper()
	copied := t.TempDir()
	for _, name := range []string{"offpeak.db", "offpeak.db-wal"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			if err := os.WriteFile(filepath.Join(copied, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	defer os.RemoveAll(copied)
	f := folder{recorded: map[string]bool{}}
	if st, err := os.Stat(filepath.Join(copied, "offpeak.db")); err != nil || st.Size() == 0 {
		return f // killed before there was a database
	}
	db, err := sql.Open("sqlite", filepath.Join(copied, "offpeak.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if health := column[string](t, db, "PRAGMA integrity_check"); len(health) != 1 || health[0] != "ok" {
		t.Errorf("the database is damaged: %v", health)
	}
	if len(column[string](t, db, `SELECT name FROM sqlite_master WHERE name = 'idempotency_keys'`)) == 0 {
		return f // killed before the schema was there
	}
	note := func(lines []byte) {
		for line := range bytes.Lines(lines) {
			var r struct {
				CustomID string `json:"custom_id"`
				Error    *struct{ Code string }
			}
			if err := json.Unmarshal(line, &r); err != nil {
				t.Fatalf("recorded line %q: %v", line, err)
			}
			if r.Error != nil && (r.Error.Code == "batch_cancelled" || r.Error.Code == "batch_expired") {
				continue // never sent
			}
			if f.recorded[r.CustomID] {
				t.Errorf("%s is recorded twice", r.CustomID)
			}
			f.recorded[r.CustomID] = true
		}
	}
	unpacker := journal.NewUnpacker()
	defer unpacker.Close()
	for _, group := range column[[]byte](t, db, "SELECT data FROM journal") {
		data, err := unpacker.Unpack(group)
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range journal.Entries(data) {
			if err != nil {
				t.Fatal(err)
			}
			note(e.Line)
		}
	}
	for _, key := range column[string](t, db, `SELECT blob_key FROM file_parts JOIN files ON id = file_id WHERE purpose = 'batch_output'
			UNION SELECT output_key FROM segments WHERE output_key IS NOT NULL
			UNION SELECT error_key FROM segments WHERE error_key IS NOT NULL`) {
		text, err := os.ReadFile(filepath.Join(dir, "blobs", key[:2], key))
		if err != nil {
			t.Fatal(err)
		}
		note(text)
	}
	f.open = column[int](t, db, `SELECT coalesce(sum(total - completed - failed), 0) FROM segments
		WHERE sealed_at IS NULL AND batch_id IN (SELECT id FROM batches WHERE status = 'in_progress')`)[0]
	f.deaths = column[int](t, db, "SELECT count(*) FROM segments WHERE deaths > 0")[0]
	return f
}

// column returns the one column of a query.
func column[T any](t *testing.T, db *sql.DB, query string) (list []T) {
	t.Helper()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	defer rows.Close()
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		list = append(list, v)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

// copyFolder copies a folder as cp -a does.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
}

// examine has a folder examined by offpeak doctor, in the state that it is in. Of the kinds that are
// named there may be findings.
func examine(t *testing.T, dir string, but ...string) {
	t.Helper()
	if st, err := os.Stat(filepath.Join(dir, "offpeak.db")); err != nil || st.Size() == 0 {
		return // killed before there was a database
	}
	var out, errs bytes.Buffer
	c := exec.Command(offpeak, "doctor", "--json", "--data", dir)
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if strings.Contains(errs.String(), "start the server once, which brings the database up to date") {
		return // killed between two steps of making the database: the next start takes the next one
	}
	if code := c.ProcessState.ExitCode(); code != 0 && code != 2 {
		t.Errorf("offpeak doctor: %v\n%s", err, errs.String())
	}
	summary := false
	for line := range bytes.Lines(out.Bytes()) {
		var l struct{ Event, Kind string }
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatalf("offpeak doctor: %q: %v", line, err)
		}
		summary = summary || l.Event == "summary"
		if l.Event == "finding" && !slices.Contains(but, l.Kind) {
			t.Errorf("offpeak doctor: %s", line)
		}
	}
	if !summary {
		t.Errorf("offpeak doctor examined nothing:\n%s", errs.String())
	}
}
