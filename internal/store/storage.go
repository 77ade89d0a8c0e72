package store

import (
	"context"
	"database/sql"
	"errors"

	"offpeak/internal/batch"
)

// Blobs returns the blob by which the database knows where its blobs are. Its key is empty if there
// was none yet.
func (s *Store) Blobs(ctx context.Context) (p batch.Part, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT blob_key, bytes FROM storage`).Scan(&p.Key, &p.Bytes)
	if errors.Is(err, sql.ErrNoRows) {
		return p, nil
	}
	return p, err
}

// Pair has the database know its blobs by p, which is reserved and written, unless another node was
// faster.
func (s *Store) Pair(ctx context.Context, p batch.Part) error {
	return s.tx(ctx, func(q querier) error {
		n, err := exec(ctx, q, `INSERT INTO storage (one, blob_key, bytes) VALUES (1, $1, $2) ON CONFLICT DO NOTHING`, p.Key, p.Bytes)
		if err != nil || n == 0 {
			return err
		}
		return nameBlobs(ctx, q, p.Key)
	})
}
