package store_test

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/store"
	"offpeak/internal/store/storetest"
)

// batchesEnv is how many batches TestPlans has on record, and a tenth of the segments.
// OFFPEAK_PLAN_BATCHES=1000000 is what a large installation has.
const batchesEnv = "OFFPEAK_PLAN_BATCHES"

// furnish fills an empty database with n batches in a thousand projects: all ended but one in 500,
// and those with so many segments that there are 10 n, of which the first half is sealed and a few
// are held. One in two batches has result files of two parts each. Text columns are as wide as real
// ones. References are not checked, which takes most of the time.
const furnish = `
SET session_replication_role = replica;
SET synchronous_commit = off;
INSERT INTO projects (id, name, created_at) SELECT 'proj_' || i, 'p' || i, i FROM generate_series(1, 999) i;
INSERT INTO nodes (id, name, started_at, heartbeat_at, dead_at) SELECT 'node_' || i, 'n', 0, 0, CASE WHEN i > 3 THEN 7999999999000 END FROM generate_series(1, 1000) i;
INSERT INTO batches (id, project_id, endpoint, model, input_file_id, output_file_id, error_file_id, output_expires_after,
		completion_window, status, ending, total, open_segments, node_id, token, created_at, expires_at, in_progress_at, completed_at)
	SELECT 'batch_' || lpad(i::text, 26, '0'), CASE WHEN i % 1000 = 0 THEN 'proj_default' ELSE 'proj_' || i % 1000 END,
		'/v1/chat/completions', 'm', 'file_in' || lpad(i::text, 22, '0'), 'file_out' || lpad(i::text, 22, '0'), 'file_err' || lpad(i::text, 22, '0'),
		2592000000, '24h', s, CASE s WHEN 'completed' THEN 'completed' WHEN 'finalizing' THEN 'completed' ELSE '' END,
		5000, CASE s WHEN 'in_progress' THEN 2500 ELSE 0 END, CASE s WHEN 'validating' THEN 'node_1' END, 'token', i, 9000000000000, i, CASE s WHEN 'completed' THEN i + 1000 END
	FROM (SELECT i, CASE WHEN i % 500 <> 0 THEN 'completed' WHEN i % 5000 = 0 THEN 'validating' ELSE 'in_progress' END AS s
		FROM generate_series(1, $N) i) AS b;
INSERT INTO segments (batch_id, model, endpoint, byte_offset, byte_length, first_line, total, completed, node_id, token, seq,
		output_key, output_bytes, sealed_at)
	SELECT b.id, 'm', '/v1/chat/completions', k, 1, k, 1000, CASE WHEN k <= 2500 THEN 1000 WHEN k <= 2510 THEN 100 ELSE 0 END,
		CASE WHEN k > 2500 AND k <= 2510 THEN 'node_' || 1 + k % 3 END, CASE WHEN k <= 2510 THEN 'token' || k END, CASE WHEN k <= 2510 THEN 3 ELSE 0 END,
		CASE WHEN k <= 2500 THEN 'out' || b.seq || '_' || k END, 100, CASE WHEN k <= 2500 THEN 1 END
	FROM batches b, generate_series(1, 5000) k WHERE b.seq % 500 = 0;
INSERT INTO batch_lanes (batch_id, model, endpoint, open) SELECT id, 'm', '/v1/chat/completions', open_segments FROM batches WHERE status = 'in_progress';
INSERT INTO journal (segment_id, seq, data) SELECT id, s, 'data' FROM segments, generate_series(1, 3) s WHERE sealed_at IS NULL AND token IS NOT NULL;
INSERT INTO files (id, project_id, purpose, filename, bytes, created_at, expires_at)
	SELECT 'file_out' || lpad(i::text, 22, '0'), CASE WHEN i % 1000 = 0 THEN 'proj_default' ELSE 'proj_' || i % 1000 END, 'batch_output', 'out.jsonl', 1, i, 9e12
	FROM generate_series(1, $N, 2) i;
INSERT INTO files (id, project_id, purpose, filename, bytes, created_at)
	SELECT 'file_in' || lpad(i::text, 22, '0'), CASE WHEN i % 1000 = 0 THEN 'proj_default' ELSE 'proj_' || i % 1000 END, 'batch', 'in.jsonl', 1, i
	FROM generate_series(1, $N) i;
INSERT INTO file_parts (file_id, n, blob_key, bytes) SELECT id, k, id || '_' || k, 1 FROM files, generate_series(0, 1) k;
INSERT INTO blobs (key, pending, created_at, deleted_at) SELECT blob_key, 0, 1, NULL FROM file_parts;
INSERT INTO blobs (key, pending, created_at, deleted_at) SELECT 'swept' || i, 0, 1, 8000000000000 + i FROM generate_series(1, $N) i;
INSERT INTO blobs (key, pending, created_at, deleted_at) SELECT 'pending' || i, 1, 8000000000000 + i, NULL FROM generate_series(1, 1000) i;
INSERT INTO idempotency_keys (project_id, key, request, batch_id, created_at)
	SELECT 'proj_' || i % 1000, 'key' || i, '\x00', 'batch_' || lpad(i::text, 26, '0'), 8000000000000 + i FROM generate_series(1, $N / 10) i;
INSERT INTO uploads (id, project_id, purpose, filename, bytes, keep, status, created_at, expires_at)
	SELECT 'upload_' || i, 'proj_default', 'batch', 'in.jsonl', 1, 0, CASE WHEN i % 100 = 0 THEN 'pending' ELSE 'completed' END, i, 9000000000000 FROM generate_series(1, $N / 10) i;
INSERT INTO upload_parts (id, upload_id, blob_key, bytes, created_at) SELECT 'part_' || i, 'upload_' || i, 'blob' || i, 1, 1 FROM generate_series(100, $N / 10, 100) i;
ANALYZE`

// TestPlans wants the statements of a large installation to find what they need by an index: none
// reads a large table, and none touches more rows and pages than it has use for.
func TestPlans(t *testing.T) {
	n := 20_000
	if v := os.Getenv(batchesEnv); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	dsn := storetest.Postgres(t)
	start := time.Now()
	db := raw(t, dsn)
	db.SetMaxOpenConns(1) // what is set is the session's
	for query := range strings.SplitSeq(strings.ReplaceAll(furnish, "$N", strconv.Itoa(n)), ";\n") {
		if _, err := db.Exec(query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	var size string
	if err := db.QueryRow(`SELECT pg_size_pretty(pg_database_size(current_database()))`).Scan(&size); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d batches and %d segments are %s, furnished in %v", n, 10*n, size, time.Since(start).Round(time.Second))

	p := &plans{T: t, dsn: dsn, texts: map[string]bool{}}
	// Between what has ended and what will: nothing is due.
	now := time.UnixMilli(8_000_000_000_000 - 1)
	var err error
	p.Store, err = store.ConnectExplained(t.Context(), dsn, store.Options{Now: func() time.Time { return now }}, p.add)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	clear(p.texts) // the schema's
	p.visit(n)
	if t.Failed() {
		return
	}
	p.onSQLite()
}

// plans collects the plans of what a store does.
type plans struct {
	*testing.T
	*store.Store
	dsn   string
	texts map[string]bool
	done  []statement
}

type statement struct {
	text string
	plan plan
}

// A plan is a node of what EXPLAIN says.
type plan struct {
	Node     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Index    string  `json:"Index Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Filtered float64 `json:"Rows Removed by Filter"`
	Hit      float64 `json:"Shared Hit Blocks"`
	Read     float64 `json:"Shared Read Blocks"`
	Plans    []plan
}

func (p *plans) add(text string, raw []byte) {
	var out []struct{ Plan plan }
	if err := json.Unmarshal(raw, &out); err != nil {
		p.Fatal(err)
	}
	p.done = append(p.done, statement{text, out[0].Plan})
	p.texts[text] = true
}

// large are tables that no statement reads from one end to the other. The parts of uploads are those
// of the last hour.
var large = []string{"batches", "segments", "journal", "files", "file_parts", "blobs", "idempotency_keys", "uploads"}

// check reports what is wrong with a plan that may touch so many rows.
func (s plan) check(rows float64) (wrong []string) {
	touched := (s.Rows + s.Filtered) * s.Loops
	if s.Node == "Seq Scan" && slices.Contains(large, s.Relation) {
		wrong = append(wrong, fmt.Sprintf("reads all of %s, %.0f rows", s.Relation, touched))
	} else if touched > max(rows, 200) { // of a small table, all of it may be the best
		wrong = append(wrong, fmt.Sprintf("%s of %s %s touches %.0f rows", s.Node, s.Relation, s.Index, touched))
	}
	for _, c := range s.Plans {
		wrong = append(wrong, c.check(rows)...)
	}
	return wrong
}

// want runs call, of whose statements none may touch more than rows rows or ten times the pages.
func (p *plans) want(name string, rows float64, call func() error) {
	p.Helper()
	p.done = nil
	if err := call(); err != nil {
		p.Errorf("%s: %v", name, err)
	}
	if len(p.done) == 0 {
		p.Errorf("%s ran no statement", name)
	}
	pages := 0.0
	for _, s := range p.done {
		wrong := s.plan.check(rows)
		n := s.plan.Hit + s.plan.Read
		if pages += n; n > 10*rows+50 {
			wrong = append(wrong, fmt.Sprintf("it touches %.0f pages", n))
		}
		for _, w := range wrong {
			p.Errorf("%s: %s\n\t%s", name, w, regexp.MustCompile(`\s+`).ReplaceAllString(s.text, " "))
		}
	}
	p.Logf("%-22s %2d statements, %5.0f pages", name, len(p.done), pages)
}

// visit calls what is called often, or when there is nothing to do.
func (p *plans) visit(n int) {
	ctx := p.Context()
	id := func(i int) string { return fmt.Sprintf("batch_%026d", i) }
	running := float64(n / 500) // batches
	held := running * 10 / 3    // segments of one node
	var node string
	p.want("Join", 5, func() (err error) { node, err = p.Join(ctx, "n"); return err })
	lane := batch.Lane{Model: "m", Endpoint: "/v1/chat/completions"}
	var l *batch.Lease
	p.want("Unclaimed", 3*running, func() error { _, err := p.Unclaimed(ctx); return err })
	p.want("Claim", 5, func() (err error) {
		l, err = p.Claim(ctx, node, batch.Work{BatchID: id(500), Lane: lane})
		if err == nil && l == nil {
			err = fmt.Errorf("nothing to claim")
		}
		return err
	})
	p.want("Claim, in vain", 5, func() error { _, err := p.Claim(ctx, node, batch.Work{BatchID: id(1), Lane: lane}); return err })
	p.want("Record", 5, func() error { _, err := p.Record(ctx, []batch.Group{{Lease: *l, Data: []byte("x")}}); return err })
	l.Seq++
	p.want("JournalSeqs", 5, func() error { _, err := p.JournalSeqs(ctx, l.ID); return err })
	p.want("JournalGroup", 5, func() error { _, err := p.JournalGroup(ctx, l.ID, l.Seq); return err })
	p.want("ReserveBlob", 5, func() error { return p.ReserveBlob(ctx, "blob") })
	p.want("Seal", 5, func() error { _, err := p.Seal(ctx, *l, batch.Part{Key: "blob", Bytes: 1}, batch.Part{}); return err })
	p.want("ReleaseStrays", 5, func() error { return p.ReleaseStrays(ctx, node, nil) })
	p.want("ReleaseStrays, many", 3*held, func() error { return p.ReleaseStrays(ctx, "node_2", []string{"token2501"}) })
	p.want("ReleaseStrayBatches", 3*running, func() error { return p.ReleaseStrayBatches(ctx, node, nil) })
	p.want("Heartbeat", 1100, func() error { _, err := p.Heartbeat(ctx, node); return err })
	p.want("Bury, in vain", 1100, func() error { _, err := p.Bury(ctx, node, time.Time{}, 2.5e6*time.Hour); return err })
	p.want("Endings", 500, func() error {
		var ids []string
		for i := range 50 {
			ids = append(ids, id(500*i))
		}
		_, err := p.Endings(ctx, ids)
		return err
	})
	p.want("Finalizable", 5, func() error { _, err := p.Finalizable(ctx); return err })
	p.want("Finalize, in vain", 5, func() error { _, _, err := p.Finalize(ctx, id(500)); return err })
	p.want("Expire", 5, func() error { _, err := p.Expire(ctx); return err })
	p.want("ClaimValidating", 3*running, func() error { _, err := p.ClaimValidating(ctx, node); return err })

	input := fmt.Sprintf("file_in%022d", 1000)
	newBatch := func(i int) batch.Batch {
		b, err := batch.New(batch.CreateParams{Project: batch.DefaultProject, InputFileID: input, Endpoint: lane.Endpoint, CompletionWindow: "24h"}, batch.Policy{}, time.UnixMilli(8e12))
		if err != nil {
			p.Fatal(err)
		}
		return b
	}
	made := newBatch(0)
	p.want("CreateBatch", 5, func() error { return p.CreateBatch(ctx, made) })
	var a *batch.Admission
	p.want("ClaimValidating, one", 3*running, func() (err error) { a, err = p.ClaimValidating(ctx, node); return err })
	p.want("Validating", 5, func() error { _, err := p.Validating(ctx, *a); return err })
	p.want("Admit", 5, func() error {
		return p.Admit(ctx, *a, "m", []batch.Segment{{Lane: lane, Length: 1, FirstLine: 1, Total: 1}})
	})
	p.want("CreateBatchOnce", 5, func() error { _, err := p.CreateBatchOnce(ctx, newBatch(1), "key", [32]byte{}); return err })
	p.want("CreateBatchOnce, again", 5, func() error { _, err := p.CreateBatchOnce(ctx, newBatch(2), "key", [32]byte{}); return err })
	p.want("Batch", 100, func() error { _, err := p.Batch(ctx, "proj_500", id(500)); return ignoreNotFound(err) })
	p.want("CancelBatch", 100, func() error { _, err := p.CancelBatch(ctx, batch.DefaultProject, made.ID); return err })
	deep := id(n / 2000 * 1000)
	p.want("ListBatches", 2000, func() error {
		_, _, err := p.ListBatches(ctx, batch.DefaultProject, batch.BatchQuery{Limit: 100})
		return err
	})
	p.want("ListBatches, deep", 2000, func() error {
		_, _, err := p.ListBatches(ctx, batch.DefaultProject, batch.BatchQuery{Limit: 100, After: deep})
		return err
	})
	for _, q := range []batch.FileQuery{{}, {Purpose: batch.PurposeBatch}, {Ascending: true}, {After: input}, {After: input, Purpose: batch.PurposeBatch, Ascending: true}} {
		q.Limit = 100
		p.want("ListFiles", 300, func() error { _, _, err := p.ListFiles(ctx, batch.DefaultProject, q); return err })
	}
	p.want("File", 10, func() error { _, err := p.File(ctx, batch.DefaultProject, input); return err })
	p.want("Upload", 5, func() error { _, err := p.Upload(ctx, batch.DefaultProject, "upload_100"); return err })
	p.want("UploadParts", 5, func() error {
		_, err := p.UploadParts(ctx, batch.DefaultProject, "upload_100", []string{"part_100"})
		return err
	})
	p.want("Segments", 6000, func() error { _, err := p.Segments(ctx, id(500), false); return err })

	p.want("Sweep", float64(n/1000+1000), func() error { _, err := p.Sweep(ctx); return err }) // all nodes of a week
	p.want("Deleted", 5, func() error { _, err := p.Deleted(ctx, 0); return err })
	p.want("DropBatches", 5, func() error { return p.DropBatches(ctx, 8e12*time.Millisecond) })
	p.want("CountBatches", 3*running, func() error { _, err := p.CountBatches(ctx); return err })
	p.want("Authenticate", 5, func() error { _, err := p.Keys(false).Authenticate(ctx, "x", true); return err })
	p.want("DeleteFile", 5, func() error { return p.DeleteFile(ctx, batch.DefaultProject, input) })
	p.want("Leave", 5, func() error { return p.Leave(ctx, node) })

	// What is done once per batch touches what the batch has.
	const all = 5000
	if _, err := raw(p.T, p.dsn).Exec(`UPDATE batches SET status = 'finalizing', ending = 'completed', finalizing_at = 1, open_segments = 0 WHERE id = $1`, id(500)); err != nil {
		p.Fatal(err)
	}
	if _, err := raw(p.T, p.dsn).Exec(`DELETE FROM journal WHERE segment_id IN (SELECT id FROM segments WHERE batch_id = $1)`, id(500)); err != nil {
		p.Fatal(err)
	}
	if _, err := raw(p.T, p.dsn).Exec(`INSERT INTO blobs (key, pending, created_at) SELECT output_key, 0, 1 FROM segments WHERE batch_id = $1 AND output_key LIKE 'out%'`, id(500)); err != nil {
		p.Fatal(err)
	}
	p.want("Finalize", 2*all, func() error { _, done, err := p.Finalize(ctx, id(500)); return errors.Join(err, wantTrue(done)) })
	p.want("DropBatches, some", 2000, func() error { return p.DropBatches(ctx, 8e12*time.Millisecond-2000*time.Millisecond) })
}

func ignoreNotFound(err error) error {
	if batch.KindOf(err) == batch.NotFound {
		return nil
	}
	return err
}

func wantTrue(b bool) error {
	if !b {
		return errors.New("it had nothing to do")
	}
	return nil
}

var locks = regexp.MustCompile(`( FOR UPDATE( OF \w+)?( SKIP LOCKED)?)+$`)

// onSQLite has the same statements explained by SQLite, which says of each table if it is scanned.
func (p *plans) onSQLite() {
	dir := p.TempDir()
	open(p.T, dir, store.Options{}).Close()
	db, err := sql.Open("sqlite", filepath.Join(dir, "offpeak.db"))
	if err != nil {
		p.Fatal(err)
	}
	defer db.Close()
	scan := regexp.MustCompile(`^SCAN (\w+)( USING .*INDEX (\w+))?`)
	alias := map[string]string{"b": "batches", "g": "segments", "o": "segments", "f": "files", "p": "upload_parts", "u": "uploads"}
	var partial []string
	rows, err := db.Query(`SELECT name FROM sqlite_schema WHERE type = 'index' AND sql LIKE '% WHERE %'`)
	if err != nil {
		p.Fatal(err)
	}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			p.Fatal(err)
		}
		partial = append(partial, name)
	}
	rows.Close()
	for text := range p.texts {
		rows, err := db.Query("EXPLAIN QUERY PLAN "+locks.ReplaceAllString(text, ""), make([]any, strings.Count(text, "$"))...)
		if err != nil {
			p.Errorf("%s: %v", text, err)
			continue
		}
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				p.Fatal(err)
			}
			m := scan.FindStringSubmatch(detail)
			if m == nil || slices.Contains(partial, m[3]) {
				continue
			}
			table := m[1]
			if t, ok := alias[table]; ok {
				table = t
			}
			if slices.Contains(large, table) {
				p.Errorf("SQLite: %s\n\t%s", detail, text)
			}
		}
		rows.Close()
	}
}
