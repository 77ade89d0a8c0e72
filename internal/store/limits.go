package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"offpeak/internal/batch"
)

// lastMinute is for how long it counts what a node spent before its end, and a little more.
const lastMinute = 61 * time.Second

// limitOf names one limit of an upstream.
type limitOf struct {
	upstream string
	limit    batch.Limit
}

// Share grants the node its shares of limits that all nodes keep together, as divide decides, and
// records them: one node at a time for each upstream. What the node held of upstreams of which it
// claims nothing is given back. It fails with batch.ErrDeclaredDead once others have taken the node
// for dead: they count nothing of what it holds.
//
// What the node held before it asked, it holds until it gets an answer, since the question may have
// been answered and the answer lost: see batch.Claim.Keeps.
func (s *Store) Share(ctx context.Context, node string, claims []batch.Claim, divide func(batch.Division) (batch.Grant, batch.Search)) (grants []batch.Grant, err error) {
	names := map[string]bool{}
	for _, c := range claims {
		names[c.Upstream] = true
	}
	upstreams := slices.Sorted(maps.Keys(names))
	err = s.tx(ctx, func(q querier) error {
		grants = grants[:0]
		searches, err := s.lockUpstreams(ctx, q, upstreams)
		if err != nil {
			return err
		}
		now, err := s.aliveAt(ctx, q, node)
		if err != nil {
			return err
		}
		held, err := s.holdings(ctx, q, node, upstreams, now)
		if err != nil {
			return err
		}
		if err := s.giveBack(ctx, q, node, upstreams, held); err != nil {
			return err
		}
		var changed []any
		for _, c := range claims {
			d := batch.Division{Node: node, Now: now, Mine: c}
			for _, h := range held[limitOf{c.Upstream, c.Limit}] {
				if h.Node == node {
					d.Had = h
				} else {
					d.Others = append(d.Others, h)
				}
			}
			if c.Limit == batch.LimitCalls {
				d.Search = searches[c.Upstream]
			}
			g, search := divide(d)
			grants = append(grants, g)
			if err := s.noteSearch(ctx, q, c, d.Search, search); err != nil {
				return err
			}
			auto := 0
			if c.Auto {
				auto = 1
			}
			if h := (batch.Holding{
				Node: node, Stated: c.Stated, Auto: c.Auto, Granted: g.Holds, Uses: c.Uses, Wants: c.Wants, Least: c.Least,
				Since: g.Since.Truncate(time.Millisecond),
			}); !h.Since.Equal(d.Had.Since) || !sameBut(h, d.Had) {
				changed = append(changed, c.Upstream, node, c.Limit, c.Stated, auto, g.Holds, c.Uses, c.Wants, c.Least, ms(g.Since))
			}
		}
		return writeGrants(ctx, q, changed)
	})
	if err != nil {
		return nil, fmt.Errorf("share: %w", err)
	}
	return grants, nil
}

// sameBut reports whether two holdings are the same, but for their time.
func sameBut(a, b batch.Holding) bool {
	a.Since, b.Since = time.Time{}, time.Time{}
	return a == b
}

// lockUpstreams locks the rows of the upstreams, in order, so that two nodes never wait for each
// other, and returns what is known of their limits.
func (s *Store) lockUpstreams(ctx context.Context, q querier, names []string) (map[string]batch.Search, error) {
	if len(names) == 0 {
		return nil, nil
	}
	args := make([]any, len(names))
	for i, name := range names {
		args[i] = name
	}
	for range 2 {
		out := map[string]batch.Search{}
		_, err := all(ctx, q, func(r row) (x struct{}, err error) {
			var name string
			var finder sql.NullString
			var search batch.Search
			err = r.Scan(&name, &finder, &search.Found, at(&search.At))
			search.Node = finder.String
			out[name] = search
			return x, err
		}, `SELECT name, finder, found, found_at FROM upstreams WHERE name IN (`+in(1, len(names))+`) ORDER BY name`+s.d.forUpdate, args...)
		if err != nil || len(out) == len(names) {
			return out, err
		}
		for _, name := range names {
			if _, err := exec(ctx, q, `INSERT INTO upstreams (name) VALUES ($1) ON CONFLICT DO NOTHING`, name); err != nil {
				return nil, err
			}
		}
	}
	return nil, errors.New("a row of upstreams is gone as soon as it is made")
}

// aliveAt returns the time, by which nodes are judged, if the node is not taken for dead.
func (s *Store) aliveAt(ctx context.Context, q querier, node string) (now time.Time, err error) {
	var dead time.Time
	clock, args := s.clock(node)
	err = q.QueryRowContext(ctx, `SELECT `+clock+`, dead_at FROM nodes WHERE id = $1`, args...).Scan(at(&now), at(&dead))
	if errors.Is(err, sql.ErrNoRows) || err == nil && !dead.IsZero() {
		return time.Time{}, batch.ErrDeclaredDead
	}
	return now, err
}

// holdings returns what is held of the upstreams, by whoever counts, and what the node holds of any.
func (s *Store) holdings(ctx context.Context, q querier, node string, upstreams []string, now time.Time) (map[limitOf][]batch.Holding, error) {
	args := []any{node, ms(now.Add(-lastMinute)), ms(now.Add(ahead))}
	for _, name := range upstreams {
		args = append(args, name)
	}
	which := `g.node_id = $1`
	if len(upstreams) > 0 {
		which += ` OR g.upstream IN (` + in(4, len(upstreams)) + `)`
	}
	out := map[limitOf][]batch.Holding{}
	_, err := all(ctx, q, func(r row) (x struct{}, err error) {
		var of limitOf
		var h batch.Holding
		var auto int
		var dead time.Time
		err = r.Scan(&of.upstream, &of.limit, &h.Node, &h.Stated, &auto, &h.Granted, &h.Uses, &h.Wants, &h.Least, at(&h.Since), at(&dead))
		h.Auto, h.Ended = auto != 0, !dead.IsZero()
		out[of] = append(out[of], h)
		return x, err
	}, `SELECT g.upstream, g.kind, g.node_id, g.stated, g.auto, g.granted, g.used, g.wants, g.least, g.since, n.dead_at
		FROM grants g JOIN nodes n ON n.id = g.node_id
		WHERE (`+which+`) AND (n.dead_at IS NULL OR g.kind <> 'calls' AND n.dead_at > $2 AND n.dead_at <= $3)
		ORDER BY g.upstream, g.node_id, g.kind`, args...)
	return out, err
}

// giveBack deletes what the node holds of upstreams that are not among those given.
func (s *Store) giveBack(ctx context.Context, q querier, node string, upstreams []string, held map[limitOf][]batch.Holding) error {
	done := map[string]bool{}
	for of := range held {
		if slices.Contains(upstreams, of.upstream) || done[of.upstream] {
			continue
		}
		done[of.upstream] = true
		if _, err := exec(ctx, q, `DELETE FROM grants WHERE node_id = $1 AND upstream = $2`, node, of.upstream); err != nil {
			return err
		}
	}
	return nil
}

// noteSearch records how far it has come to be found what a limit is to be.
func (s *Store) noteSearch(ctx context.Context, q querier, c batch.Claim, was, is batch.Search) error {
	if c.Limit != batch.LimitCalls || is.Node == was.Node && is.Found == was.Found && is.At.Equal(was.At) {
		return nil
	}
	_, err := exec(ctx, q, `UPDATE upstreams SET finder = $2, found = $3, found_at = $4 WHERE name = $1`,
		c.Upstream, null(is.Node), is.Found, ms(is.At))
	return err
}

// writeGrants writes rows of grants, of which all columns are given one after the other.
func writeGrants(ctx context.Context, q querier, values []any) error {
	const columns = 10
	if len(values) == 0 {
		return nil
	}
	var rows []string
	for i := 0; i < len(values); i += columns {
		rows = append(rows, "("+in(i+1, columns)+")")
	}
	_, err := exec(ctx, q, `INSERT INTO grants (upstream, node_id, kind, stated, auto, granted, used, wants, least, since)
		VALUES `+strings.Join(rows, ", ")+`
		ON CONFLICT (upstream, node_id, kind) DO UPDATE SET stated = excluded.stated, auto = excluded.auto,
			granted = excluded.granted, used = excluded.used, wants = excluded.wants, least = excluded.least, since = excluded.since`, values...)
	return err
}
