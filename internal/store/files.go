package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"offpeak/internal/batch"
)

// ReserveBlob notes that a blob is about to be written, so that its bytes are found and removed
// should nobody come to name it. The blob's first byte is written after this returns.
func (s *Store) ReserveBlob(ctx context.Context, key string) error {
	_, err := s.change(ctx, reserveBlob, key, ms(s.now()))
	return err
}

const reserveBlob = `INSERT INTO blobs (key, created_at) VALUES ($1, $2)`

// nameBlobs clears the pending mark of blobs that the transaction names. It fails if one of them
// was swept meanwhile, because then its bytes are going.
func nameBlobs(ctx context.Context, q querier, keys ...string) error {
	for _, key := range keys {
		n, err := exec(ctx, q, `UPDATE blobs SET pending = 0 WHERE key = $1 AND deleted_at IS NULL`, key)
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("blob %s: %w", key, batch.ErrSwept)
		}
	}
	return nil
}

// CreateFile makes f, whose parts are written and reserved.
func (s *Store) CreateFile(ctx context.Context, f batch.File) error {
	return s.tx(ctx, func(q querier) error {
		for _, p := range f.Parts {
			if err := nameBlobs(ctx, q, p.Key); err != nil {
				return err
			}
		}
		if err := insertFile(ctx, q, f); err != nil {
			return err
		}
		return insertParts(ctx, q, f)
	})
}

func insertParts(ctx context.Context, q querier, f batch.File) error {
	for n, p := range f.Parts {
		if _, err := exec(ctx, q, `INSERT INTO file_parts (file_id, n, blob_key, bytes) VALUES ($1, $2, $3, $4)`,
			f.ID, n, p.Key, p.Bytes); err != nil {
			return err
		}
	}
	return nil
}

func insertFile(ctx context.Context, q querier, f batch.File) error {
	_, err := exec(ctx, q, `INSERT INTO files (id, project_id, purpose, filename, bytes, created_at, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		f.ID, f.Project, f.Purpose, f.Filename, f.Bytes, ms(f.CreatedAt), ms(f.ExpiresAt))
	return err
}

const fileColumns = `id, project_id, purpose, filename, bytes, created_at, expires_at`

func scanFile(r row) (f batch.File, err error) {
	err = r.Scan(&f.ID, &f.Project, &f.Purpose, &f.Filename, &f.Bytes, at(&f.CreatedAt), at(&f.ExpiresAt))
	return f, err
}

// visible is the condition for a file to exist for its project, $1 being the time: an expired
// file is gone whether or not it was swept already (contract FI-12).
const visible = `deleted_at IS NULL AND (expires_at IS NULL OR expires_at > $1)`

// File returns a file of the project with its parts, or batch.NoFile.
func (s *Store) File(ctx context.Context, project, id string) (batch.File, error) {
	return file(ctx, s.read, s.now(), project, id)
}

// file reads a file and its parts in one statement: between two, a sweep might take the parts.
func file(ctx context.Context, q querier, now time.Time, project, id string) (f batch.File, err error) {
	found, err := all(ctx, q, func(r row) (p batch.Part, err error) {
		var key sql.NullString
		var size sql.NullInt64
		err = r.Scan(&f.ID, &f.Project, &f.Purpose, &f.Filename, &f.Bytes, at(&f.CreatedAt), at(&f.ExpiresAt), &key, &size)
		return batch.Part{Key: key.String, Bytes: size.Int64}, err
	}, `SELECT `+fileColumns+`, blob_key, part_bytes FROM files
		LEFT JOIN (SELECT file_id, n, blob_key, bytes AS part_bytes FROM file_parts) AS p ON file_id = id
		WHERE `+visible+` AND project_id = $2 AND id = $3 ORDER BY n`, ms(now), project, id)
	switch {
	case err != nil:
		return batch.File{}, err
	case len(found) == 0:
		return batch.File{}, batch.NoFile(id)
	case found[0].Key != "":
		f.Parts = found
	}
	return f, nil
}

func parts(ctx context.Context, q querier, file string) ([]batch.Part, error) {
	return all(ctx, q, func(r row) (p batch.Part, err error) {
		err = r.Scan(&p.Key, &p.Bytes)
		return p, err
	}, `SELECT blob_key, bytes FROM file_parts WHERE file_id = $1 ORDER BY n`, file)
}

// ListFiles returns a page of the project's files without their parts, and whether more follow.
func (s *Store) ListFiles(ctx context.Context, project string, page batch.FileQuery) (files []batch.File, more bool, err error) {
	order, beyond := "DESC", "<"
	if page.Ascending {
		order, beyond = "ASC", ">"
	}
	args := []any{ms(s.now()), project, page.Limit + 1}
	where := visible + ` AND project_id = $2`
	if page.Purpose != "" {
		args = append(args, page.Purpose)
		where += fmt.Sprintf(` AND purpose = $%d`, len(args))
	}
	if page.After != "" {
		created, seq, err := s.cursor(ctx, "files", project, page.After)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, false, batch.NoFile(page.After)
		}
		if err != nil {
			return nil, false, err
		}
		args = append(args, created, seq)
		where += fmt.Sprintf(` AND (created_at, seq) %s ($%d, $%d)`, beyond, len(args)-1, len(args))
	}
	files, err = all(ctx, s.read, scanFile, `SELECT `+fileColumns+` FROM files WHERE `+where+
		` ORDER BY created_at `+order+`, seq `+order+` LIMIT `+computed("$3"), args...)
	if err != nil {
		return nil, false, err
	}
	files, more = cut(files, page.Limit)
	return files, more, nil
}

// cursor returns the place in a list of the object with the given id.
func (s *Store) cursor(ctx context.Context, table, project, id string) (created, seq int64, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT created_at, seq FROM `+table+` WHERE project_id = $1 AND id = $2`,
		project, id).Scan(&created, &seq)
	return created, seq, err
}

// cut cuts a page that was asked for with one object more than its limit.
func cut[T any](page []T, limit int) ([]T, bool) {
	if len(page) > limit {
		return page[:limit], true
	}
	return page, false
}

// DeleteFile deletes a file of the project. A running batch that reads it goes on: parts are kept
// until no batch needs them (contract FI-16).
func (s *Store) DeleteFile(ctx context.Context, project, id string) error {
	now := ms(s.now())
	n, err := s.change(ctx, `UPDATE files SET deleted_at = $1 WHERE `+visible+` AND project_id = $2 AND id = $3`,
		now, project, id)
	if err == nil && n == 0 {
		return batch.NoFile(id)
	}
	return err
}
