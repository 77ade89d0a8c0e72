package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"offpeak/internal/batch"
)

// UploadMemory is how long an upload is known after it had to be complete: for that time its owner
// is told what became of it, and can repeat what completed it.
const UploadMemory = 30 * 24 * time.Hour

// CreateUpload makes u.
func (s *Store) CreateUpload(ctx context.Context, u batch.Upload) error {
	_, err := s.change(ctx, `INSERT INTO uploads (id, project_id, purpose, filename, bytes, keep, status, created_at, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		u.ID, u.Project, u.Purpose, u.Filename, u.Bytes, u.Keep.Milliseconds(), u.Status, ms(u.CreatedAt), ms(u.ExpiresAt))
	return err
}

// Upload returns an upload of the project, or batch.NoUpload.
func (s *Store) Upload(ctx context.Context, project, id string) (batch.Upload, error) {
	return upload(ctx, s.read, "", project, id)
}

// upload reads an upload, and locks it if forUpdate is the dialect's.
func upload(ctx context.Context, q querier, forUpdate, project, id string) (u batch.Upload, err error) {
	var keep int64
	var file sql.NullString
	var with []byte
	err = q.QueryRowContext(ctx, `SELECT id, project_id, purpose, filename, bytes, keep, status, created_at, expires_at,
			completed_at, file_id, completed_with FROM uploads WHERE project_id = $1 AND id = $2`+forUpdate, project, id).
		Scan(&u.ID, &u.Project, &u.Purpose, &u.Filename, &u.Bytes, &keep, &u.Status, at(&u.CreatedAt), at(&u.ExpiresAt),
			at(&u.CompletedAt), &file, &with)
	if errors.Is(err, sql.ErrNoRows) {
		return batch.Upload{}, batch.NoUpload(id)
	}
	u.Keep = time.Duration(keep) * time.Millisecond
	u.FileID = file.String
	copy(u.CompletedWith[:], with)
	return u, err
}

// AddPart adds to an upload of the project a part that is written and reserved. It fails with what
// batch.Upload.CheckPending says.
//
// Everything that depends on an upload's being pending, or ends that, locks its row first. So a
// part comes either before the end, and can be named, or not at all.
func (s *Store) AddPart(ctx context.Context, project string, p batch.UploadPart) error {
	return s.tx(ctx, func(q querier) error {
		u, err := upload(ctx, q, s.d.forUpdate, project, p.UploadID)
		if err != nil {
			return err
		}
		if err := u.CheckPending(s.now()); err != nil {
			return err
		}
		if err := nameBlobs(ctx, q, p.Key); err != nil {
			return err
		}
		_, err = exec(ctx, q, `INSERT INTO upload_parts (id, upload_id, blob_key, bytes, created_at) VALUES ($1, $2, $3, $4, $5)`,
			p.ID, p.UploadID, p.Key, p.Bytes, ms(p.CreatedAt))
		return err
	})
}

// UploadParts returns the parts with the given ids, in their order, of an upload of the project, or
// batch.NoUploadPart for an id that it has no part of. A completed upload has none any more.
func (s *Store) UploadParts(ctx context.Context, project, id string, ids []string) ([]batch.Part, error) {
	return uploadParts(ctx, s.read, project, id, ids)
}

func uploadParts(ctx context.Context, q querier, project, id string, ids []string) ([]batch.Part, error) {
	known := make(map[string]batch.Part, len(ids))
	for some := range slices.Chunk(ids, 500) {
		parts, err := all(ctx, q, func(r row) (p batch.UploadPart, err error) {
			err = r.Scan(&p.ID, &p.Key, &p.Bytes)
			return p, err
		}, `SELECT p.id, p.blob_key, p.bytes FROM upload_parts p JOIN uploads u ON u.id = p.upload_id
			WHERE u.project_id = $1 AND u.id = $2 AND p.id IN (`+in(3, len(some))+`)`, list(some, project, id)...)
		if err != nil {
			return nil, err
		}
		for _, p := range parts {
			known[p.ID] = p.Part
		}
	}
	var parts []batch.Part
	for _, part := range ids {
		p, ok := known[part]
		if !ok {
			return nil, batch.NoUploadPart(id, part)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// list returns the arguments of a statement with a list behind its other arguments.
func list(values []string, others ...any) []any {
	for _, v := range values {
		others = append(others, v)
	}
	return others
}

// CompleteUpload does what batch.Upload.Complete says, and returns the upload as it is then: its
// file has the blobs of the parts for its own, and not a byte is copied. If c has completed the
// upload before, that is all there is to do. Parts that c does not name go with the next sweep.
func (s *Store) CompleteUpload(ctx context.Context, project, id string, c batch.Completion) (u batch.Upload, err error) {
	err = s.tx(ctx, func(q querier) error {
		u, err = upload(ctx, q, s.d.forUpdate, project, id)
		if err != nil || u.CompletedBy(c) {
			return err
		}
		// Parts may have gone with an upload that has ended, which is what the caller wants to hear then.
		if err := u.CheckPending(s.now()); err != nil {
			return err
		}
		parts, err := uploadParts(ctx, q, project, id, c.PartIDs)
		if err != nil {
			return err
		}
		f, err := u.Complete(c, parts, s.now())
		if err != nil {
			return err
		}
		if err := insertFile(ctx, q, f); err != nil {
			return err
		}
		if err := insertParts(ctx, q, f); err != nil {
			return err
		}
		for some := range slices.Chunk(c.PartIDs, 500) { // the blobs are the file's now
			if _, err := exec(ctx, q, `DELETE FROM upload_parts WHERE upload_id = $1 AND id IN (`+in(2, len(some))+`)`,
				list(some, id)...); err != nil {
				return err
			}
		}
		_, err = exec(ctx, q, `UPDATE uploads SET status = $2, completed_at = $3, file_id = $4, completed_with = $5 WHERE id = $1`,
			id, u.Status, ms(u.CompletedAt), u.FileID, u.CompletedWith[:])
		return err
	})
	return u, err
}

// CancelUpload does what batch.Upload.Cancel says, and returns the upload as it is then. Its parts
// go with the next sweep.
func (s *Store) CancelUpload(ctx context.Context, project, id string) (u batch.Upload, err error) {
	err = s.tx(ctx, func(q querier) error {
		u, err = upload(ctx, q, s.d.forUpdate, project, id)
		if err != nil {
			return err
		}
		changed, err := u.Cancel(s.now())
		if err != nil || !changed {
			return err
		}
		_, err = exec(ctx, q, `UPDATE uploads SET status = $2 WHERE id = $1`, id, u.Status)
		return err
	})
	return u, err
}

// sweepUploads notes which uploads have expired, drops parts that ended ones have left, most of
// them at a time, and forgets what is long past. It reports whether there may be more.
func (s *Store) sweepUploads(ctx context.Context, q querier, now time.Time, most int) (more bool, err error) {
	if _, err := exec(ctx, q, `UPDATE uploads SET status = $2 WHERE status = 'pending' AND expires_at <= $1`,
		ms(now), batch.UploadExpired); err != nil {
		return false, err
	}
	left, err := all(ctx, q, func(r row) (p batch.UploadPart, err error) {
		err = r.Scan(&p.ID, &p.Key)
		return p, err
	}, `SELECT p.id, p.blob_key FROM upload_parts p
		WHERE (SELECT u.status FROM uploads u WHERE u.id = p.upload_id) <> 'pending' LIMIT $1`+s.free("p"), most)
	if err != nil {
		return false, err
	}
	for _, p := range left {
		if _, err := exec(ctx, q, `DELETE FROM upload_parts WHERE id = $1`, p.ID); err != nil {
			return false, err
		}
		if err := s.unnameBlob(ctx, q, p.Key); err != nil {
			return false, err
		}
	}
	_, err = exec(ctx, q, `DELETE FROM uploads WHERE status <> 'pending' AND expires_at <= $1
		AND NOT EXISTS (SELECT 1 FROM upload_parts WHERE upload_id = uploads.id)`, ms(now.Add(-UploadMemory)))
	return len(left) == most, err
}
