package store

import (
	"context"
	"fmt"

	"offpeak/internal/batch"
)

// Join makes this process a node called name and returns the node's id. Where the process has the
// database to itself, everything that a former one held is free afterwards, at once: the lock on
// the folder is the lease, and nothing is judged by age.
func (s *Store) Join(ctx context.Context, name string) (id string, err error) {
	id = batch.NewToken()
	err = s.tx(ctx, func(q querier) error {
		now := ms(s.now())
		if s.d.exclusive {
			// The owners of these segments died holding them: see batch.Segment.Deaths.
			if _, err := exec(ctx, q, `UPDATE segments SET token = NULL, node_id = NULL, deaths = deaths + 1
				WHERE sealed_at IS NULL AND token IS NOT NULL`); err != nil {
				return err
			}
			if _, err := exec(ctx, q, `UPDATE batches SET token = NULL, node_id = NULL WHERE status = $1`,
				batch.Validating); err != nil {
				return err
			}
			if _, err := exec(ctx, q, `UPDATE nodes SET dead_at = $1 WHERE dead_at IS NULL`, now); err != nil {
				return err
			}
		}
		_, err := exec(ctx, q, `INSERT INTO nodes (id, name, started_at, heartbeat_at) VALUES ($1, $2, $3, $3)`, id, name, now)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("join: %w", err)
	}
	return id, nil
}

// Leave notes that the node has ended of its own will.
func (s *Store) Leave(ctx context.Context, node string) error {
	_, err := s.change(ctx, `UPDATE nodes SET dead_at = $2 WHERE id = $1`, node, ms(s.now()))
	return err
}
