package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"offpeak/internal/batch"
)

// Unclaimed lists the work that nobody holds.
func (s *Store) Unclaimed(ctx context.Context) ([]batch.Work, error) {
	return all(ctx, s.read, func(r row) (w batch.Work, err error) {
		err = r.Scan(&w.BatchID, &w.Project, &w.Weight, &w.Lane.Model, &w.Lane.Endpoint, &w.Ending, at(&w.Deadline), &w.Age, &w.Open)
		return w, err
	}, `SELECT b.id, b.project_id, (SELECT p.weight FROM projects p WHERE p.id = b.project_id), l.model, l.endpoint,
			b.ending, b.expires_at, b.seq, l.open
		FROM batch_lanes l JOIN batches b ON b.id = l.batch_id
		WHERE l.open > 0 AND EXISTS (SELECT 1 FROM segments g
			WHERE g.batch_id = l.batch_id AND g.model = l.model AND g.endpoint = l.endpoint
			AND g.sealed_at IS NULL AND g.token IS NULL)`)
}

// Claim takes the lowest segment of w that nobody holds, or returns nil if there is none left.
func (s *Store) Claim(ctx context.Context, node string, w batch.Work) (l *batch.Lease, err error) {
	err = s.tx(ctx, func(q querier) error {
		l = nil
		c := batch.Lease{Token: batch.NewToken()}
		var input string
		g := &c.Segment
		err := q.QueryRowContext(ctx, `SELECT g.id, g.batch_id, b.project_id, g.model, g.endpoint, g.byte_offset, g.byte_length,
				g.first_line, g.total, g.completed, g.failed, g.input_tokens, g.cached_tokens, g.output_tokens,
				g.reasoning_tokens, g.total_tokens, g.deaths, g.seq, b.expires_at, b.ending, b.input_file_id
			FROM segments g JOIN batches b ON b.id = g.batch_id
			WHERE g.batch_id = $1 AND g.model = $2 AND g.endpoint = $3 AND g.sealed_at IS NULL AND g.token IS NULL
			ORDER BY g.id LIMIT 1`+s.free("g"), w.BatchID, w.Lane.Model, w.Lane.Endpoint).Scan(
			&g.ID, &g.BatchID, &g.Project, &g.Lane.Model, &g.Lane.Endpoint, &g.Offset, &g.Length,
			&g.FirstLine, &g.Total, &g.Tally.Completed, &g.Tally.Failed, &g.Tally.Usage.Input, &g.Tally.Usage.Cached,
			&g.Tally.Usage.Output, &g.Tally.Usage.Reasoning, &g.Tally.Usage.Total, &g.Deaths, &c.Seq,
			at(&c.Deadline), &c.Ending, &input)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		c.Seq++
		if _, err := exec(ctx, q, `UPDATE segments SET token = $2, node_id = $3, seq = $4 WHERE id = $1`,
			g.ID, c.Token, node, c.Seq); err != nil {
			return err
		}
		if c.Input, err = parts(ctx, q, input); err != nil {
			return err
		}
		l = &c
		return nil
	})
	return l, err
}

// Release gives a segment back. Its journal stays for the next owner.
func (s *Store) Release(ctx context.Context, l batch.Lease) error {
	deaths := 0
	if l.Died {
		deaths = 1
	}
	return s.tx(ctx, func(q querier) error {
		err := s.compareAndSet(ctx, q, l, false, `token = NULL, node_id = NULL, deaths = deaths + $5`, deaths)
		if errors.Is(err, errApplied) {
			// The owner's last group went through although it was told otherwise.
			l.Seq++
			err = s.compareAndSet(ctx, q, l, false, `token = NULL, node_id = NULL, deaths = deaths + $5`, deaths)
		}
		return err
	})
}

// ReleaseStrays gives back what the database says that the node holds, save under the known tokens:
// claims whose reply was lost. Whoever claims calls it, so that no claim is under way. By tokens and
// not by segments, since the stray may be of one that the node held before, and does not know it lost.
func (s *Store) ReleaseStrays(ctx context.Context, node string, known []string) error {
	_, err := s.change(ctx, `UPDATE segments SET token = NULL, node_id = NULL, seq = seq + 1
		WHERE node_id = $1 AND sealed_at IS NULL AND token IS NOT NULL`+but("token", 2, len(known)), list(known, node)...)
	return err
}

// Record records groups of different segments in one transaction. It returns the ids of segments
// whose lease is lost; nothing of those is recorded, everything of the others is. A Record whose
// reply was lost may be repeated as it was.
func (s *Store) Record(ctx context.Context, groups []batch.Group) (lost []int64, err error) {
	// One order for everybody, so that two nodes never wait for each other's rows.
	slices.SortFunc(groups, func(a, b batch.Group) int { return int(a.Lease.ID - b.Lease.ID) })
	err = s.tx(ctx, func(q querier) error {
		lost = nil
		for _, g := range groups {
			t := g.Tally
			// Whoever records something does not die of the segment's requests.
			err := s.compareAndSet(ctx, q, g.Lease, false, `deaths = 0, completed = $5, failed = $6, input_tokens = $7, cached_tokens = $8,
				output_tokens = $9, reasoning_tokens = $10, total_tokens = $11`,
				t.Completed, t.Failed, t.Usage.Input, t.Usage.Cached, t.Usage.Output, t.Usage.Reasoning, t.Usage.Total)
			switch {
			case errors.Is(err, errApplied):
				continue
			case errors.Is(err, batch.ErrLeaseLost):
				lost = append(lost, g.Lease.ID)
				continue
			case err != nil:
				return err
			}
			if _, err := exec(ctx, q, `INSERT INTO journal (segment_id, seq, data) VALUES ($1, $2, $3)`,
				g.Lease.ID, g.Lease.Seq+1, g.Data); err != nil {
				return err
			}
			if g.Blob == "" {
				continue
			}
			if _, err := exec(ctx, q, reserveBlob, g.Blob, ms(s.now())); err != nil {
				return err
			}
		}
		return nil
	})
	return lost, err
}

// errApplied is returned by compareAndSet for a write that took effect before, its reply lost.
var errApplied = errors.New("already applied")

// compareAndSet is the first statement of every write to a segment, and what makes the write
// belong to its newest owner alone: it changes the row only if token and seq are still those of l.
// seals tells whether the write is the segment's last; set uses placeholders from $5 on.
func (s *Store) compareAndSet(ctx context.Context, q querier, l batch.Lease, seals bool, set string, args ...any) error {
	n, err := exec(ctx, q, `UPDATE segments SET seq = $4, `+set+` WHERE id = $1 AND token = $2 AND seq = $3 AND sealed_at IS NULL`,
		append([]any{l.ID, l.Token, l.Seq, l.Seq + 1}, args...)...)
	if err != nil || n == 1 {
		return err
	}
	// Not changed: lost, unless this very write was applied and only its reply went astray. A seal
	// stays the last write, so the row tells it from a group that came too late. The row is locked,
	// which is a write to PostgreSQL: whoever loses patience with a commit that waits for a synchronous
	// standby has the primary show it before it is there, and only a later commit tells that it is.
	var applied int64
	err = q.QueryRowContext(ctx, `SELECT id FROM segments WHERE id = $1 AND token = $2 AND seq = $3
		AND (sealed_at IS NOT NULL) = $4`+s.d.forUpdate, l.ID, l.Token, l.Seq+1, seals).Scan(&applied)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return batch.ErrLeaseLost
	case err != nil:
		return err
	}
	return errApplied
}

// Seal replaces the journal of a segment by the parts it was written into; a part without key
// stands for no lines. What was recorded of the segment is added to the batch, and with the last
// open segment the batch is ready to be finalized, which Seal then reports. It fails with
// batch.ErrLeaseLost, and with batch.ErrSwept if the parts are to be written anew. A Seal whose
// reply was lost may be repeated as it was.
func (s *Store) Seal(ctx context.Context, l batch.Lease, output, errs batch.Part) (last bool, err error) {
	err = s.tx(ctx, func(q querier) error {
		last = false
		err := s.compareAndSet(ctx, q, l, true, `sealed_at = $5, node_id = NULL, output_key = $6, output_bytes = $7, error_key = $8, error_bytes = $9`,
			ms(s.now()), null(output.Key), output.Bytes, null(errs.Key), errs.Bytes)
		if errors.Is(err, errApplied) {
			last = true // perhaps: whoever finalizes looks again
			return nil
		}
		if err != nil {
			return err
		}
		for _, p := range []batch.Part{output, errs} {
			if p.Key != "" {
				if err := nameBlobs(ctx, q, p.Key); err != nil {
					return err
				}
			}
		}
		if _, err := exec(ctx, q, `DELETE FROM journal WHERE segment_id = $1`, l.ID); err != nil {
			return err
		}
		// From the row and not from the lease: what counts is what was recorded. And to the row that is
		// being changed, not to a copy that is joined to it: of two seals at once, the second waits for
		// the first and then has to see its sums.
		if _, err := exec(ctx, q, `UPDATE batches SET completed = batches.completed + g.completed, failed = batches.failed + g.failed,
				input_tokens = batches.input_tokens + g.input_tokens, cached_tokens = batches.cached_tokens + g.cached_tokens,
				output_tokens = batches.output_tokens + g.output_tokens, reasoning_tokens = batches.reasoning_tokens + g.reasoning_tokens,
				total_tokens = batches.total_tokens + g.total_tokens, open_segments = batches.open_segments - 1
			FROM segments g WHERE g.id = $1 AND batches.id = g.batch_id`, l.ID); err != nil {
			return err
		}
		if _, err := exec(ctx, q, `UPDATE batch_lanes SET open = open - 1 WHERE batch_id = $1 AND model = $2 AND endpoint = $3`,
			l.BatchID, l.Lane.Model, l.Lane.Endpoint); err != nil {
			return err
		}
		var open int64
		if err := q.QueryRowContext(ctx, `SELECT open_segments FROM batches WHERE id = $1`, l.BatchID).Scan(&open); err != nil || open > 0 {
			return err
		}
		last = true
		b, err := s.lockBatch(ctx, q, `id = $1`, l.BatchID)
		if err != nil {
			return err
		}
		if err := b.Seal(s.now()); err != nil {
			return err
		}
		return saveBatch(ctx, q, b)
	})
	if err != nil {
		return false, fmt.Errorf("seal segment %d: %w", l.ID, err)
	}
	return last, nil
}

// JournalSeqs lists the groups recorded of a segment, oldest first.
func (s *Store) JournalSeqs(ctx context.Context, segment int64) ([]int64, error) {
	return all(ctx, s.read, scalar[int64], `SELECT seq FROM journal WHERE segment_id = $1 ORDER BY seq`, segment)
}

// JournalGroup returns one group, or batch.ErrSealed if it is not there any more.
func (s *Store) JournalGroup(ctx context.Context, segment, seq int64) (data []byte, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT data FROM journal WHERE segment_id = $1 AND seq = $2`, segment, seq).Scan(&data)
	if errors.Is(err, sql.ErrNoRows) {
		err = batch.ErrSealed
	}
	return data, err
}

// Vacuum makes room in the journal for what comes next. Everything in it is deleted again within
// seconds, and PostgreSQL by itself cleans up far too late. It is to be called every few seconds by
// who records.
func (s *Store) Vacuum(ctx context.Context) error {
	if s.d.vacuum == "" {
		return nil
	}
	_, err := s.slow.ExecContext(ctx, s.d.vacuum)
	return err
}

// Segments lists the segments of a batch that is not terminal, in input order: of a sealed one the
// part with its successful or its failed lines, which may have no key for want of any.
func (s *Store) Segments(ctx context.Context, batchID string, failed bool) ([]batch.Sealed, error) {
	which := "output"
	if failed {
		which = "error"
	}
	return all(ctx, s.read, scanSealed, `SELECT id, sealed_at IS NOT NULL, coalesce(`+which+`_key, ''), coalesce(`+which+`_bytes, 0)
		FROM segments WHERE batch_id = $1 ORDER BY id`, batchID)
}

func scanSealed(r row) (g batch.Sealed, err error) {
	err = r.Scan(&g.Segment, &g.Sealed, &g.Part.Key, &g.Part.Bytes)
	return g, err
}

// Endings returns those of the given batches that are ending, and how.
func (s *Store) Endings(ctx context.Context, batches []string) (map[string]batch.Status, error) {
	endings := map[string]batch.Status{}
	args := make([]any, len(batches))
	for i, id := range batches {
		args[i] = id
	}
	if len(batches) == 0 {
		return endings, nil
	}
	rows, err := s.read.QueryContext(ctx, `SELECT id, ending FROM batches WHERE ending <> '' AND id IN (`+in(1, len(args))+`)`, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var ending batch.Status
		if err := rows.Scan(&id, &ending); err != nil {
			return nil, err
		}
		endings[id] = ending
	}
	return endings, rows.Err()
}
