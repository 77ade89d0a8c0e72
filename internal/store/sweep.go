package store

import (
	"context"
	"time"
)

// PendingFor is how long a blob may be under way before it is taken for abandoned.
const PendingFor = 24 * time.Hour

// Sweep takes what is not needed any more: files that are deleted or expired and that no batch
// reads, parts of uploads that have ended, blobs that nothing names, and nodes that ended long ago. The
// bytes of blobs stay: see Deleted. It does a bounded amount of
// work and reports whether there may be more.
func (s *Store) Sweep(ctx context.Context) (more bool, err error) {
	const most = 500
	now := s.now()
	var files, blobs []string
	var moreUploads bool
	err = s.tx(ctx, func(q querier) error {
		if _, err := exec(ctx, q, `UPDATE files SET deleted_at = $1 WHERE deleted_at IS NULL AND expires_at <= $1`, ms(now)); err != nil {
			return err
		}
		files, err = all(ctx, q, scalar[string], `SELECT id FROM files f WHERE deleted_at IS NOT NULL AND NOT EXISTS (
				SELECT 1 FROM batches b WHERE b.input_file_id = f.id
				AND b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling'))
			LIMIT $1`+s.free("f"), most)
		if err != nil {
			return err
		}
		for _, id := range files {
			keys, err := all(ctx, q, scalar[string], `SELECT blob_key FROM file_parts WHERE file_id = $1`, id)
			if err != nil {
				return err
			}
			if _, err := exec(ctx, q, `DELETE FROM file_parts WHERE file_id = $1`, id); err != nil {
				return err
			}
			if _, err := exec(ctx, q, `DELETE FROM files WHERE id = $1`, id); err != nil {
				return err
			}
			for _, key := range keys {
				if err := s.unnameBlob(ctx, q, key); err != nil {
					return err
				}
			}
		}
		nodes, err := all(ctx, q, scalar[any], `SELECT id FROM nodes n WHERE dead_at <= $1
				AND NOT EXISTS (SELECT 1 FROM segments WHERE node_id = n.id)
				AND NOT EXISTS (SELECT 1 FROM batches WHERE node_id = n.id) LIMIT $2`+s.free("n"), ms(now.Add(-nodesKept)), most)
		if err != nil {
			return err
		}
		if len(nodes) > 0 {
			if _, err := exec(ctx, q, `DELETE FROM nodes WHERE id IN (`+in(1, len(nodes))+`)`, nodes...); err != nil {
				return err
			}
		}
		if moreUploads, err = s.sweepUploads(ctx, q, now, most); err != nil {
			return err
		}
		blobs, err = all(ctx, q, scalar[string], `SELECT key FROM blobs
			WHERE pending = 1 AND created_at <= $1 AND deleted_at IS NULL LIMIT $2`+s.free("blobs"), ms(now.Add(-PendingFor)), most)
		if err != nil {
			return err
		}
		for _, key := range blobs {
			if _, err := exec(ctx, q, `UPDATE blobs SET deleted_at = $2, pending = 0 WHERE key = $1`, key, ms(now)); err != nil {
				return err
			}
		}
		return nil
	})
	return len(files) == most || len(blobs) == most || moreUploads, err
}

// unnameBlob marks a blob pending, as one that nothing names any more, unless another file has it.
// Sweep finds it then.
func (s *Store) unnameBlob(ctx context.Context, q querier, key string) error {
	// Locked before it is asked: of two that take a name away at once, the second sees what the first did.
	if _, err := all(ctx, q, scalar[string], `SELECT key FROM blobs WHERE key = $1`+s.d.forUpdate, key); err != nil {
		return err
	}
	_, err := exec(ctx, q, `UPDATE blobs SET pending = 1 WHERE key = $1 AND NOT EXISTS (
		SELECT 1 FROM file_parts WHERE blob_key = $1)`, key)
	return err
}

// DropBatches drops batches that ended longer than keep ago, and the keys under which they could be
// asked for again. Their files go by their own expiry. It drops some at a time: others wait meanwhile.
func (s *Store) DropBatches(ctx context.Context, keep time.Duration) error {
	const most = 500
	ended := s.now().Add(-keep)
	for {
		var old []string
		err := s.tx(ctx, func(q querier) (err error) {
			old, err = all(ctx, q, scalar[string], `SELECT id FROM batches WHERE status IN ('completed', 'failed', 'expired', 'cancelled')
				AND coalesce(completed_at, failed_at, expired_at, cancelled_at) <= $1 LIMIT $2`+s.free("batches"), ms(ended), most)
			if err != nil || len(old) == 0 {
				return err
			}
			if _, err := exec(ctx, q, `DELETE FROM batches WHERE id IN (`+in(1, len(old))+`)`, list(old)...); err != nil {
				return err
			}
			if err := forgetKeys(ctx, q, s.now()); err != nil {
				return err
			}
			// A key is as old as its batch, or came a moment later.
			_, err = exec(ctx, q, `DELETE FROM idempotency_keys WHERE created_at <= $1 AND batch_id IN (`+in(2, len(old))+`)`,
				append([]any{ms(ended.Add(time.Hour))}, list(old)...)...)
			return err
		})
		if err != nil || len(old) < most {
			return err
		}
	}
}

// Deleted lists blobs that were swept longer than keep ago, whose bytes may go now. keep is to be
// longer than the oldest backup of the database that anybody would restore.
func (s *Store) Deleted(ctx context.Context, keep time.Duration) ([]string, error) {
	return all(ctx, s.read, scalar[string], `SELECT key FROM blobs WHERE deleted_at <= $1 LIMIT 500`, ms(s.now().Add(-keep)))
}

// Forget drops the rows of blobs whose bytes are gone.
func (s *Store) Forget(ctx context.Context, keys []string) error {
	return s.tx(ctx, func(q querier) error {
		for _, key := range keys {
			if _, err := exec(ctx, q, `DELETE FROM blobs WHERE key = $1 AND deleted_at IS NOT NULL`, key); err != nil {
				return err
			}
		}
		return nil
	})
}
