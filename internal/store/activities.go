package store

import (
	"context"
	"fmt"
	"math"
	"strings"

	"offpeak/internal/batch"
)

// Tell notes what goes on at a node: of each batch that it has to do with, what. What it said before
// does not count any more.
func (s *Store) Tell(ctx context.Context, node string, now map[string]batch.Activity) error {
	s = s.urgent()
	err := s.tx(ctx, func(q querier) error {
		if _, err := exec(ctx, q, `DELETE FROM activities WHERE node_id = $1`, node); err != nil || len(now) == 0 {
			return err
		}
		rows, args := make([]string, 0, len(now)), []any{node}
		for id, a := range now {
			n := len(args)
			rows = append(rows, fmt.Sprintf("(CAST($%d AS TEXT), CAST($1 AS TEXT), CAST($%d AS BIGINT), CAST($%d AS BIGINT), CAST($%d AS TEXT))", n+1, n+2, n+3, n+4))
			args = append(args, id, a.InFlight, int64(math.Round(a.Rate*1000)), a.WaitingFor)
		}
		// A batch may have been dropped meanwhile.
		_, err := exec(ctx, q, `INSERT INTO activities (batch_id, node_id, in_flight, rate, waiting_for)
			SELECT v.* FROM (VALUES `+strings.Join(rows, ", ")+`) v WHERE EXISTS (SELECT 1 FROM batches b WHERE b.id = v.column1)`, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("tell: %w", err)
	}
	return nil
}

// Elsewhere returns what goes on for batches at the nodes that live, except at one: as each of them
// said last.
func (s *Store) Elsewhere(ctx context.Context, except string) (map[string][]batch.Activity, error) {
	out := map[string][]batch.Activity{}
	now, args := s.clock(except, lease.Milliseconds())
	_, err := all(ctx, s.read, func(r row) (x struct{}, err error) {
		var id string
		var a batch.Activity
		var rate int64
		err = r.Scan(&id, &a.InFlight, &rate, &a.WaitingFor)
		a.Rate = float64(rate) / 1000
		out[id] = append(out[id], a)
		return x, err
	}, `SELECT a.batch_id, a.in_flight, a.rate, a.waiting_for FROM activities a JOIN nodes n ON n.id = a.node_id
		WHERE a.node_id <> $1 AND n.dead_at IS NULL AND n.heartbeat_at > `+now+` - $2`, args...)
	return out, err
}
