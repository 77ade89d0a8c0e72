package doctor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"offpeak/internal/batch"
)

// loadFile returns a file with its parts, or nil if there is none.
func (x *examination) loadFile(ctx context.Context, id string) (*batch.File, error) {
	f := &batch.File{}
	err := x.q.QueryRowContext(ctx, `SELECT id, project_id, purpose, filename, bytes, created_at, expires_at FROM files WHERE id = $1`, id).
		Scan(&f.ID, &f.Project, &f.Purpose, &f.Filename, &f.Bytes, at(&f.CreatedAt), at(&f.ExpiresAt))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f.Parts, err = all(ctx, x.q, func(r row) (p batch.Part, err error) {
		err = r.Scan(&p.Key, &p.Bytes)
		return p, err
	}, `SELECT blob_key, bytes FROM file_parts WHERE file_id = $1 ORDER BY n`, id)
	return f, err
}

// examineFiles holds files against their parts, and reads result files whose batch is gone. Those of
// others are read with their batch.
func (x *examination) examineFiles(ctx context.Context) error {
	type described struct {
		id, purpose, name    string
		bytes, parts, sum    int64
		first, last          int64 // numbers of parts
		createdAt, expiresAt time.Time
	}
	return pages(ctx, x.q, int64(0), func(r row) (f described, seq int64, err error) {
		err = r.Scan(&seq, &f.id, &f.purpose, &f.name, &f.bytes, at(&f.createdAt), at(&f.expiresAt), &f.parts, &f.sum, &f.first, &f.last)
		return f, seq, err
	}, func(f described) error {
		x.report.Examined.Files++
		about := subject{File: f.id}
		if f.sum != f.bytes || f.purpose == batch.PurposeBatchOutput && f.sum == 0 {
			x.find(2, "file-bytes", about, doReport, "it has %d bytes, its parts have %d", f.bytes, f.sum)
		}
		if f.parts > 0 && (f.first != 0 || f.last != f.parts-1) {
			x.find(3, "file-parts", about, doRestore, "its %d parts are numbered from %d to %d", f.parts, f.first, f.last)
		}
		if !f.expiresAt.IsZero() && f.expiresAt.Before(f.createdAt) {
			x.find(6, "file-times", about, doReport, "it was created %s and expires before that, %s", f.createdAt, f.expiresAt)
		}
		if f.purpose != batch.PurposeBatchOutput {
			return nil
		}
		id := strings.TrimSuffix(strings.TrimSuffix(f.name, "_output.jsonl"), "_error.jsonl")
		known, err := count(ctx, x.q, `SELECT count(*) FROM batches WHERE id = $1`, id)
		if err != nil || known > 0 {
			return err
		}
		return x.examineLeftFile(ctx, f.id, !strings.HasSuffix(f.name, "_error.jsonl"))
	}, `SELECT f.seq, f.id, f.purpose, f.filename, f.bytes, f.created_at, f.expires_at,
			(SELECT count(*) FROM file_parts WHERE file_id = f.id), (SELECT coalesce(sum(bytes), 0) FROM file_parts WHERE file_id = f.id),
			(SELECT coalesce(min(n), 0) FROM file_parts WHERE file_id = f.id), (SELECT coalesce(max(n), 0) FROM file_parts WHERE file_id = f.id)
		FROM files f WHERE f.seq > $1`, "f.seq")
}

// examineLeftFile reads a result file whose batch is not known any more.
func (x *examination) examineLeftFile(ctx context.Context, id string, ok bool) error {
	f, err := x.loadFile(ctx, id)
	if err != nil || f == nil || !x.whole(f.Parts) {
		return err
	}
	t := x.requests.reset(f.Bytes / 200)
	err = x.eachLine(ctx, f.Parts, "file "+id, subject{File: id}, func(line []byte) error {
		x.report.Examined.Results++
		r, err := x.line.parse(line)
		switch {
		case err != nil:
			x.find(8, "line", subject{File: id}, doRestore, "a line is damaged: %v: %.80q", err, line)
		case r.ok() != ok:
			x.find(2, "wrong-file", subject{File: id}, doReport, "it has a line with the status %d", r.status)
		case t.add(request{id: hashID(r.customID)}) >= 0:
			x.find(1, "twice", subject{File: id}, doReport, "it has two results of %q", r.customID)
		}
		return nil
	})
	return unlessUnread(err)
}

// examineUploads holds uploads against what became of them.
func (x *examination) examineUploads(ctx context.Context) error {
	type described struct {
		u         batch.Upload
		completed sql.NullInt64
		file      sql.NullString
		with      []byte
		bytes     sql.NullInt64 // of the file, if it is there
		project   sql.NullString
		largest   int64 // of its parts
	}
	return pages(ctx, x.q, "", func(r row) (v described, id string, err error) {
		u := &v.u
		err = r.Scan(&u.ID, &u.Project, &u.Bytes, &u.Status, at(&u.CreatedAt), at(&u.ExpiresAt), &v.completed, &v.file, &v.with,
			&v.bytes, &v.project, &v.largest)
		return v, u.ID, err
	}, func(v described) error {
		u, about := v.u, subject{Upload: v.u.ID}
		done := v.completed.Valid && v.file.Valid && len(v.with) > 0
		none := !v.completed.Valid && !v.file.Valid && len(v.with) == 0
		switch u.Status {
		case batch.UploadCompleted:
			if !done {
				x.find(11, "upload", about, doReport, "it is completed, and does not say when, into which file and by what")
			} else if v.bytes.Valid && (v.bytes.Int64 != u.Bytes || v.project.String != u.Project) {
				x.find(11, "upload", about, doReport, "it has %d bytes for %s, its file %s has %d bytes for %s",
					u.Bytes, u.Project, v.file.String, v.bytes.Int64, v.project.String)
			}
		case batch.UploadPending, batch.UploadCancelled, batch.UploadExpired:
			if !none {
				x.find(6, "upload", about, doReport, "it is %s, and says that it was completed", u.Status)
			}
		default:
			x.find(6, "upload", about, doReport, "there is no status %q", u.Status)
		}
		if v.largest > batch.MaxUploadPart {
			x.find(9, "upload", about, doReport, "it has a part of %d bytes", v.largest)
		}
		return nil
	}, `SELECT u.id, u.project_id, u.bytes, u.status, u.created_at, u.expires_at, u.completed_at, u.file_id, u.completed_with,
			f.bytes, f.project_id, (SELECT coalesce(max(bytes), 0) FROM upload_parts WHERE upload_id = u.id)
		FROM uploads u LEFT JOIN files f ON f.id = u.file_id WHERE u.id > $1`, "u.id")
}

// secret is what a key looks like that opens a project.
var secret = regexp.MustCompile(`sk-offpeak-[\w-]{20,}`)

// examineProjects looks at projects, keys and idempotency keys.
func (x *examination) examineProjects(ctx context.Context) error {
	n, err := count(ctx, x.q, `SELECT count(*) FROM projects WHERE id = $1`, batch.DefaultProject)
	if err != nil {
		return fmt.Errorf("projects: %w", err)
	}
	if n == 0 {
		x.find(11, "project", subject{}, doRestore, "there is no project %s, which callers without a key have", batch.DefaultProject)
	}
	if err := each(ctx, x.q, func(r row) error {
		var id, name, prefix string
		var hash []byte
		if err := r.Scan(&id, &name, &prefix, &hash); err != nil {
			return err
		}
		about := subject{Key: id}
		if len(hash) != 32 {
			x.find(10, "key", about, doReport, "its hash has %d bytes and is no SHA-256", len(hash))
		}
		if len(prefix) > 17 || secret.MatchString(prefix) || secret.MatchString(name) || secret.Match(hash) {
			x.find(10, "key-in-clear", about, "revoke the key, for whoever can read the folder can use it, and make a new one; if its name does not hold it, report a bug",
				"the key itself seems to stand in the database, which is to have only its hash")
		}
		return nil
	}, `SELECT id, name, prefix, hash FROM keys ORDER BY id`); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	const day = 24 * time.Hour
	if err := each(ctx, x.q, func(r row) error {
		var batchID string
		var hash []byte
		var same sql.NullBool
		if err := r.Scan(&batchID, &hash, &same); err != nil {
			return err
		}
		switch about := (subject{Batch: batchID}); {
		case len(hash) != 32:
			x.find(11, "idempotency-key", about, doReport, "the hash of the request that created it has %d bytes and is no SHA-256", len(hash))
		case !same.Valid:
			x.find(11, "idempotency-key", about, doReport, "an idempotency key names it, and it is not there: repeating the request that created it fails")
		case !same.Bool:
			x.find(10, "idempotency-key", about, doReport, "an idempotency key of another project names it")
		}
		return nil
	}, `SELECT i.batch_id, i.request, b.project_id = i.project_id FROM idempotency_keys i LEFT JOIN batches b ON b.id = i.batch_id
		WHERE i.created_at > $1 ORDER BY i.batch_id`, x.now.Add(-day).UnixMilli()); err != nil {
		return fmt.Errorf("idempotency keys: %w", err)
	}
	return nil
}

// overdue is how long after its time a sweep may take something before we wonder.
const overdue = time.Hour

// burial is how long it may take nodes to free what another held.
const burial = 2 * time.Minute

// examineNodes looks whether whoever holds something is there to work on it, and whether sweeps
// come to pass.
func (x *examination) examineNodes(ctx context.Context) error {
	type node struct {
		id string
		at time.Time
	}
	living, err := all(ctx, x.q, func(r row) (n node, err error) {
		err = r.Scan(&n.id, at(&n.at))
		return n, err
	}, `SELECT id, started_at FROM nodes WHERE dead_at IS NULL ORDER BY started_at`)
	if err != nil {
		return fmt.Errorf("nodes: %w", err)
	}
	if x.c.alone && len(living) > 1 {
		x.find(5, "nodes", subject{}, doRestart, "%d processes count as alive where there is room for one", len(living))
	}
	// With nobody alive, what is held is free as soon as somebody comes. Of several nodes it takes one
	// that has been undisturbed for a while to free what another held: its death is told apart from that.
	dead := int64(math.MaxInt64)
	if !x.c.alone {
		dead = x.now.Add(-burial).UnixMilli()
	}
	if len(living) > 0 {
		if err := each(ctx, x.q, func(r row) error {
			var id, what string
			if err := r.Scan(&id, &what); err != nil {
				return err
			}
			x.find(5, "held-by-the-dead", subject{Batch: id}, doRestart, "%s is held by a process that has ended, so that nobody works on it", what)
			return nil
		}, `SELECT g.batch_id, 'segment ' || g.id FROM segments g JOIN nodes n ON n.id = g.node_id
				WHERE g.sealed_at IS NULL AND g.token IS NOT NULL AND n.dead_at <= $1
			UNION ALL SELECT b.id, 'its validation' FROM batches b JOIN nodes n ON n.id = b.node_id
				WHERE b.status = 'validating' AND b.token IS NOT NULL AND n.dead_at <= $1`, dead); err != nil {
			return fmt.Errorf("nodes: %w", err)
		}
	}
	if err := each(ctx, x.q, func(r row) error {
		var id string
		var segment int64
		if err := r.Scan(&id, &segment); err != nil {
			return err
		}
		x.find(5, "lease", subject{Batch: id}, doReport, "segment %d has only one of token and node, which come and go together", segment)
		return nil
	}, `SELECT batch_id, id FROM segments WHERE sealed_at IS NULL AND (token IS NULL) <> (node_id IS NULL)`); err != nil {
		return fmt.Errorf("leases: %w", err)
	}
	if !x.c.running || len(living) == 0 || x.now.Sub(living[len(living)-1].at) < overdue {
		return nil // a sweep is still to come
	}
	for _, late := range []struct{ what, query string }{
		{"blobs that nobody came to name", `SELECT count(*) FROM blobs WHERE pending = 1 AND deleted_at IS NULL AND created_at < $1`},
		{"files that are deleted or have expired", `SELECT count(*) FROM files f WHERE coalesce(deleted_at, expires_at) < $2 AND NOT EXISTS (
			SELECT 1 FROM batches b WHERE b.input_file_id = f.id AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))`},
		{"uploads that have expired", `SELECT count(*) FROM uploads WHERE status = 'pending' AND expires_at < $2`},
	} {
		query := late.query
		limit := x.now.Add(-overdue)
		if strings.Contains(query, "$1") {
			limit = limit.Add(-24 * time.Hour)
		}
		n, err := count(ctx, x.q, strings.ReplaceAll(query, "$2", "$1"), limit.UnixMilli())
		if err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
		if n > 0 {
			x.find(9, "not-swept", subject{}, "look for the word sweep in the server's log: it says what is in the way",
				"a server runs, and there are %d %s more than an hour ago: no sweep takes them", n, late.what)
		}
	}
	return nil
}
