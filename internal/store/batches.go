package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"offpeak/internal/batch"
)

// CreateBatch makes b. The row is the queue entry: once this returns, b will be run.
func (s *Store) CreateBatch(ctx context.Context, b batch.Batch) error {
	return s.tx(ctx, func(q querier) error { return insertBatch(ctx, q, b) })
}

// IdempotencyTime is how long a request can be repeated under its key.
const IdempotencyTime = 24 * time.Hour

// forgetKeys drops the idempotency keys that count no more at now.
func forgetKeys(ctx context.Context, q querier, now time.Time) error {
	_, err := exec(ctx, q, `DELETE FROM idempotency_keys WHERE created_at <= $1`, ms(now.Add(-IdempotencyTime)))
	return err
}

// CreateBatchOnce makes b, unless the project has used the key within the last day: for the same
// request, told by its hash, it returns the batch that was made then; for another it fails with a
// Conflict.
func (s *Store) CreateBatchOnce(ctx context.Context, b batch.Batch, key string, request [32]byte) (made batch.Batch, err error) {
	err = s.tx(ctx, func(q querier) error {
		now := s.now()
		if err := forgetKeys(ctx, q, now); err != nil {
			return err
		}
		// Inserted before it is asked for: of two at once the second waits here for the first.
		n, err := exec(ctx, q, `INSERT INTO idempotency_keys (project_id, key, request, batch_id, created_at)
			VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`, b.Project, key, request[:], b.ID, ms(now))
		if err != nil {
			return err
		}
		if n == 1 {
			made = b
			return insertBatch(ctx, q, b)
		}
		var known []byte
		var id string
		if err := q.QueryRowContext(ctx, `SELECT request, batch_id FROM idempotency_keys WHERE project_id = $1 AND key = $2`,
			b.Project, key).Scan(&known, &id); err != nil {
			return err
		}
		if !bytes.Equal(known, request[:]) {
			return &batch.Error{Kind: batch.Conflict, Param: "Idempotency-Key", Code: "idempotency_key_reused",
				Msg: "This Idempotency-Key was used for another request within the last 24 hours."}
		}
		made, err = scanBatch(q.QueryRowContext(ctx, `SELECT `+batchColumns+` FROM batches b WHERE id = $1`, id))
		return err
	})
	return made, err
}

func insertBatch(ctx context.Context, q querier, b batch.Batch) error {
	metadata, err := metadataJSON(b.Metadata)
	if err != nil {
		return err
	}
	_, err = exec(ctx, q, `INSERT INTO batches (id, project_id, endpoint, input_file_id, output_file_id,
			error_file_id, output_expires_after, completion_window, metadata, status, created_at, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		b.ID, b.Project, b.Endpoint, b.InputFileID, b.OutputFileID, b.ErrorFileID,
		b.OutputExpiresAfter.Milliseconds(), b.CompletionWindow, metadata, b.Status, ms(b.CreatedAt), ms(b.ExpiresAt))
	return err
}

func metadataJSON(m map[string]string) (any, error) {
	if m == nil {
		return nil, nil
	}
	raw, err := json.Marshal(m)
	return string(raw), err
}

// batchColumns are what scanBatch reads. Counts and usage are what sealed segments came to plus
// what open ones have recorded, in one statement and so at one instant.
var batchColumns = `id, project_id, endpoint, model, input_file_id, output_file_id, error_file_id,
	output_expires_after, completion_window, metadata, status, ending, errors, total, ` +
	withOpen("completed", "failed", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens") + `,
	created_at, expires_at, in_progress_at, finalizing_at, completed_at, failed_at, expired_at, cancelling_at, cancelled_at`

// withOpen adds to columns of a batch what its open segments have in the columns of the same name.
// Of those only the few that were ever claimed are looked at; most batches of a list have none at all.
func withOpen(columns ...string) string {
	for i, c := range columns {
		columns[i] = c + ` + CASE b.open_segments WHEN 0 THEN 0 ELSE (SELECT CAST(coalesce(sum(o.` + c + `), 0) AS BIGINT) FROM segments o
			WHERE o.batch_id = b.id AND o.sealed_at IS NULL AND o.seq > 0) END`
	}
	return strings.Join(columns, ", ")
}

func scanBatch(r row) (b batch.Batch, err error) {
	var keep int64
	var metadata, errs sql.NullString
	if err := r.Scan(&b.ID, &b.Project, &b.Endpoint, &b.Model, &b.InputFileID, &b.OutputFileID, &b.ErrorFileID,
		&keep, &b.CompletionWindow, &metadata, &b.Status, &b.Ending, &errs, &b.Counts.Total,
		&b.Counts.Completed, &b.Counts.Failed,
		&b.Usage.Input, &b.Usage.Cached, &b.Usage.Output, &b.Usage.Reasoning, &b.Usage.Total,
		at(&b.CreatedAt), at(&b.ExpiresAt), at(&b.InProgressAt), at(&b.FinalizingAt), at(&b.CompletedAt),
		at(&b.FailedAt), at(&b.ExpiredAt), at(&b.CancellingAt), at(&b.CancelledAt)); err != nil {
		return b, err
	}
	b.OutputExpiresAfter = time.Duration(keep) * time.Millisecond
	if metadata.Valid {
		if err := json.Unmarshal([]byte(metadata.String), &b.Metadata); err != nil {
			return b, fmt.Errorf("metadata of %s: %w", b.ID, err)
		}
	}
	if errs.Valid {
		if err := json.Unmarshal([]byte(errs.String), &b.Errors); err != nil {
			return b, fmt.Errorf("errors of %s: %w", b.ID, err)
		}
	}
	return b, nil
}

// Batch returns a batch of the project, or batch.NoBatch.
func (s *Store) Batch(ctx context.Context, project, id string) (batch.Batch, error) {
	b, err := scanBatch(s.read.QueryRowContext(ctx, `SELECT `+batchColumns+` FROM batches b
		WHERE project_id = $1 AND id = $2`, project, id))
	if errors.Is(err, sql.ErrNoRows) {
		return batch.Batch{}, batch.NoBatch(id)
	}
	return b, err
}

// ListBatches returns a page of the project's batches, newest first, and whether more follow.
func (s *Store) ListBatches(ctx context.Context, project string, page batch.BatchQuery) (batches []batch.Batch, more bool, err error) {
	where, args := `project_id = $1`, []any{project, page.Limit + 1}
	if page.After != "" {
		created, seq, err := s.cursor(ctx, "batches", project, page.After)
		if errors.Is(err, sql.ErrNoRows) {
			return nil, false, batch.NoBatch(page.After)
		}
		if err != nil {
			return nil, false, err
		}
		args = append(args, created, seq)
		where += ` AND (created_at, seq) < ($3, $4)`
	}
	batches, err = all(ctx, s.read, scanBatch, `SELECT `+batchColumns+` FROM batches b WHERE `+where+
		` ORDER BY created_at DESC, seq DESC LIMIT `+computed("$2"), args...)
	if err != nil {
		return nil, false, err
	}
	batches, more = cut(batches, page.Limit)
	return batches, more, nil
}

// CancelBatch records the wish to cancel a batch of the project and returns the batch as it is
// then. Whoever runs the batch sees to the rest.
func (s *Store) CancelBatch(ctx context.Context, project, id string) (b batch.Batch, err error) {
	err = s.tx(ctx, func(q querier) error {
		b, err = s.lockBatch(ctx, q, `project_id = $1 AND id = $2`, project, id)
		if errors.Is(err, sql.ErrNoRows) {
			return batch.NoBatch(id)
		}
		if err != nil {
			return err
		}
		changed, err := b.Cancel(s.now())
		if err != nil || !changed {
			return err
		}
		return saveBatch(ctx, q, b)
	})
	return b, err
}

// lockBatch reads the one batch for which the condition holds, for the transaction to change it.
func (s *Store) lockBatch(ctx context.Context, q querier, where string, args ...any) (batch.Batch, error) {
	return readLocked(ctx, q, s.d.forUpdate, where, args...)
}

func readLocked(ctx context.Context, q querier, forUpdate, where string, args ...any) (batch.Batch, error) {
	if forUpdate != "" {
		// Locked before it is read: a statement that had to wait for the lock would add what segments had
		// recorded before to what the batch has got from their seals meanwhile.
		var id string
		if err := q.QueryRowContext(ctx, `SELECT id FROM batches b WHERE `+where+forUpdate, args...).Scan(&id); err != nil {
			return batch.Batch{}, err
		}
		where, args = `id = $1`, []any{id}
	}
	return scanBatch(q.QueryRowContext(ctx, `SELECT `+batchColumns+` FROM batches b WHERE `+where, args...))
}

// saveBatch writes what moving along the status machine changes; b was read with lockBatch in the
// same transaction. Counts and usage are not among it: seals add to those. Each move ends validation, or
// comes after it, so there is nobody who validates it any more.
func saveBatch(ctx context.Context, q querier, b batch.Batch) error {
	var errs any
	if len(b.Errors) > 0 {
		raw, err := json.Marshal(b.Errors)
		if err != nil {
			return err
		}
		errs = string(raw)
	}
	_, err := exec(ctx, q, `UPDATE batches SET model = $2, output_file_id = $3, error_file_id = $4, status = $5,
			ending = $6, errors = $7, total = $8, in_progress_at = $9, finalizing_at = $10, completed_at = $11,
			failed_at = $12, expired_at = $13, cancelling_at = $14, cancelled_at = $15, node_id = NULL
		WHERE id = $1`,
		b.ID, b.Model, b.OutputFileID, b.ErrorFileID, b.Status, b.Ending, errs, b.Counts.Total,
		ms(b.InProgressAt), ms(b.FinalizingAt), ms(b.CompletedAt), ms(b.FailedAt), ms(b.ExpiredAt),
		ms(b.CancellingAt), ms(b.CancelledAt))
	return err
}

// ClaimValidating takes the oldest batch that waits for validation, or returns nil.
func (s *Store) ClaimValidating(ctx context.Context, node string) (a *batch.Admission, err error) {
	// Who asks four times a second for what is rarely there shall not keep writers waiting.
	var waiting int
	if err := s.read.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM batches
		WHERE status = 'validating' AND token IS NULL LIMIT 1) AS waiting`).Scan(&waiting); err != nil || waiting == 0 {
		return nil, err
	}
	err = s.tx(ctx, func(q querier) error {
		a = nil
		b, err := readLocked(ctx, q, s.free("b"), `status = 'validating' AND token IS NULL ORDER BY seq LIMIT 1`)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		next := &batch.Admission{Batch: b, Token: batch.NewToken()}
		if _, err := exec(ctx, q, `UPDATE batches SET token = $2, node_id = $3 WHERE id = $1`, b.ID, next.Token, node); err != nil {
			return err
		}
		f, err := file(ctx, q, s.now(), b.Project, b.InputFileID)
		if err == nil {
			next.Input = &f
		} else if batch.KindOf(err) != batch.NotFound {
			return err
		}
		a = next
		return nil
	})
	return a, err
}

// Admit starts a validated batch: its segments and its new status become true together. It fails
// with batch.ErrLeaseLost if the batch left validation or was claimed anew, and with
// batch.NoFile if the input was deleted meanwhile.
func (s *Store) Admit(ctx context.Context, a batch.Admission, model string, segments []batch.Segment) error {
	return s.endValidation(ctx, a, func(q querier, b *batch.Batch) error {
		if _, err := file(ctx, q, s.now(), b.Project, b.InputFileID); err != nil {
			return err
		}
		var total int64
		open := map[batch.Lane]int64{}
		for _, g := range segments {
			total += g.Total
			open[g.Lane]++
			if _, err := exec(ctx, q, `INSERT INTO segments (batch_id, model, endpoint, byte_offset, byte_length, first_line, total)
				VALUES ($1, $2, $3, $4, $5, $6, $7)`,
				b.ID, g.Lane.Model, g.Lane.Endpoint, g.Offset, g.Length, g.FirstLine, g.Total); err != nil {
				return err
			}
		}
		for lane, n := range open {
			if _, err := exec(ctx, q, `INSERT INTO batch_lanes (batch_id, model, endpoint, open) VALUES ($1, $2, $3, $4)`,
				b.ID, lane.Model, lane.Endpoint, n); err != nil {
				return err
			}
		}
		if _, err := exec(ctx, q, `UPDATE batches SET open_segments = $2 WHERE id = $1`, b.ID, len(segments)); err != nil {
			return err
		}
		return b.Admit(total, model, s.now())
	})
}

// Reject fails a batch for what validation found. It fails like Admit.
func (s *Store) Reject(ctx context.Context, a batch.Admission, errs []batch.LineError) error {
	return s.endValidation(ctx, a, func(_ querier, b *batch.Batch) error { return b.Reject(errs, s.now()) })
}

// ReleaseValidating gives a batch back unvalidated.
func (s *Store) ReleaseValidating(ctx context.Context, a batch.Admission) error {
	_, err := s.change(ctx, `UPDATE batches SET token = NULL, node_id = NULL WHERE id = $1 AND token = $2`, a.Batch.ID, a.Token)
	return err
}

// Validating reports whether a is still the right to validate its batch: the batch was neither
// cancelled, nor did it expire, nor was it claimed anew.
func (s *Store) Validating(ctx context.Context, a batch.Admission) (bool, error) {
	var n int
	err := s.read.QueryRowContext(ctx, `SELECT count(*) FROM batches WHERE id = $1 AND token = $2 AND status = 'validating'`,
		a.Batch.ID, a.Token).Scan(&n)
	return n == 1, err
}

// ReleaseStrayBatches is to validation what ReleaseStrays is to segments.
func (s *Store) ReleaseStrayBatches(ctx context.Context, node string, known []string) error {
	_, err := s.change(ctx, `UPDATE batches SET token = NULL, node_id = NULL
		WHERE status = 'validating' AND node_id = $1`+but("token", 2, len(known)), list(known, node)...)
	return err
}

func (s *Store) endValidation(ctx context.Context, a batch.Admission, end func(querier, *batch.Batch) error) error {
	return s.tx(ctx, func(q querier) error {
		b, err := s.lockBatch(ctx, q, `id = $1 AND token = $2 AND status = 'validating'`, a.Batch.ID, a.Token)
		if errors.Is(err, sql.ErrNoRows) {
			return batch.ErrLeaseLost
		}
		if err != nil {
			return err
		}
		if err := end(q, &b); err != nil {
			return err
		}
		return saveBatch(ctx, q, b)
	})
}

// Expire ends every batch whose deadline has passed and returns their ids.
func (s *Store) Expire(ctx context.Context) ([]string, error) {
	due, err := all(ctx, s.read, scalar[string], `SELECT id FROM batches
		WHERE status IN ('validating', 'in_progress') AND expires_at <= $1`, ms(s.now()))
	if err != nil {
		return nil, err
	}
	var expired []string
	for _, id := range due {
		changed := false
		err := s.tx(ctx, func(q querier) error {
			b, err := s.lockBatch(ctx, q, `id = $1`, id)
			if err != nil {
				return err
			}
			if changed, err = b.Expire(s.now()); err != nil || !changed {
				return err
			}
			return saveBatch(ctx, q, b)
		})
		if err != nil {
			return expired, fmt.Errorf("expire %s: %w", id, err)
		}
		if changed {
			expired = append(expired, id)
		}
	}
	return expired, nil
}

// Finalizable returns batches that are ending and have no open segment.
func (s *Store) Finalizable(ctx context.Context) ([]string, error) {
	return all(ctx, s.read, scalar[string], `SELECT id FROM batches
		WHERE status IN ('finalizing', 'cancelling') AND open_segments = 0`)
}

// Finalize makes an ending batch without open segments terminal: its result files appear, which
// list the sealed parts in input order, and nothing of its execution remains. It copies no bytes.
// It returns the batch, or false if somebody else was faster or it is not time yet.
func (s *Store) Finalize(ctx context.Context, id string) (b batch.Batch, done bool, err error) {
	err = s.tx(ctx, func(q querier) error {
		done = false
		b, err = s.lockBatch(ctx, q, `id = $1 AND status IN ('finalizing', 'cancelling') AND open_segments = 0`, id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		output, err := s.resultFile(ctx, q, b, b.OutputFileID, "output")
		if err != nil {
			return err
		}
		errs, err := s.resultFile(ctx, q, b, b.ErrorFileID, "error")
		if err != nil {
			return err
		}
		if err := b.Finish(output, errs, s.now()); err != nil {
			return err
		}
		for _, table := range []string{"segments", "batch_lanes"} {
			if _, err := exec(ctx, q, `DELETE FROM `+table+` WHERE batch_id = $1`, id); err != nil {
				return err
			}
		}
		done = true
		return saveBatch(ctx, q, b)
	})
	return b, done && err == nil, err
}

// resultFile makes the output or error file of b from the parts that its segments were sealed
// into. It reports whether there is anything in it; otherwise it makes none.
func (s *Store) resultFile(ctx context.Context, q querier, b batch.Batch, id, which string) (bool, error) {
	var bytes sql.NullInt64
	if err := q.QueryRowContext(ctx, `SELECT CAST(sum(`+which+`_bytes) AS BIGINT) FROM segments
		WHERE batch_id = $1 AND `+which+`_key IS NOT NULL`, b.ID).Scan(&bytes); err != nil || !bytes.Valid {
		return false, err
	}
	f := b.ResultFile(id, which, s.now())
	f.Bytes = bytes.Int64
	if err := insertFile(ctx, q, f); err != nil {
		return false, err
	}
	_, err := exec(ctx, q, `INSERT INTO file_parts (file_id, n, blob_key, bytes)
		SELECT CAST($2 AS TEXT), row_number() OVER (ORDER BY id) - 1, `+which+`_key, `+which+`_bytes FROM segments
		WHERE batch_id = $1 AND `+which+`_key IS NOT NULL`, b.ID, id)
	return true, err
}

// TotalBatches returns how many batches there are, of whatever status.
func (s *Store) TotalBatches(ctx context.Context) (int64, error) {
	return queryInt(ctx, s.read, `SELECT count(*) FROM batches`)
}

// CountBatches returns how many batches there are of each status that is not terminal.
func (s *Store) CountBatches(ctx context.Context) (map[batch.Status]int64, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT status, count(*) FROM batches
		WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling') GROUP BY status`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counts := map[batch.Status]int64{}
	for rows.Next() {
		var status batch.Status
		var n int64
		if err := rows.Scan(&status, &n); err != nil {
			return nil, err
		}
		counts[status] = n
	}
	return counts, rows.Err()
}
