package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"offpeak/internal/batch"
)

// Join makes this process a node called name and returns the node's id. Where the process has the
// database to itself, everything that a former one held is free afterwards, at once: the lock on
// the folder is the lease, and nothing is judged by age. Where others work on it, too, nothing is: see
// Bury.
func (s *Store) Join(ctx context.Context, name string) (id string, err error) {
	id = batch.NewToken()
	err = s.tx(ctx, func(q querier) error {
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
			now, args := s.clock()
			if _, err := exec(ctx, q, `UPDATE nodes SET dead_at = `+now+` WHERE dead_at IS NULL`, args...); err != nil {
				return err
			}
		}
		now, args := s.clock(id, name)
		_, err := exec(ctx, q, `INSERT INTO nodes (id, name, started_at, heartbeat_at) VALUES ($1, $2, `+now+`, `+now+`)`, args...)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("join: %w", err)
	}
	return id, nil
}

// Leave notes that the node has ended of its own will: it dies with its last heartbeat.
func (s *Store) Leave(ctx context.Context, node string) error {
	now, args := s.clock(node)
	_, err := s.change(ctx, `UPDATE nodes SET heartbeat_at = `+now+`, dead_at = `+now+` WHERE id = $1 AND dead_at IS NULL`, args...)
	return err
}

const (
	// lease is how long a heartbeat lasts. Work of a node that dies goes on within 20 s: in so much it
	// is found silent, by somebody who looks every second, and what it held is claimed.
	lease = 15 * time.Second
	// recent is how old a node's last heartbeat may be for the node to judge others by the same clock.
	recent = 10 * time.Second
	// ahead is how much later than now a heartbeat may be. Beyond, the clock was set back.
	ahead = time.Second
	// nodesKept is how long the rows of nodes stay that have ended.
	nodesKept = 7 * 24 * time.Hour
)

// Heartbeat tells that the node lives, and until when others take its word for it, by the database's
// clock. It fails with batch.ErrDeclaredDead if they have not, or if the node left. Where the process
// has the database to itself there is nobody to tell.
func (s *Store) Heartbeat(ctx context.Context, node string) (h batch.Heartbeat, err error) {
	if s.d.exclusive {
		return batch.Heartbeat{At: s.now(), Nodes: 1}, nil
	}
	s = s.urgent()
	err = s.tx(ctx, func(q querier) error {
		h = batch.Heartbeat{Lasts: lease}
		now, args := s.clock(node)
		err := q.QueryRowContext(ctx, `UPDATE nodes SET heartbeat_at = `+now+` WHERE id = $1 AND dead_at IS NULL
			RETURNING heartbeat_at, (SELECT count(*) FROM nodes WHERE dead_at IS NULL)`, args...).Scan(at(&h.At), &h.Nodes)
		if errors.Is(err, sql.ErrNoRows) {
			return batch.ErrDeclaredDead
		}
		return err
	})
	if err != nil {
		return batch.Heartbeat{}, fmt.Errorf("heartbeat: %w", err)
	}
	return h, nil
}

// urgent returns the store for a write that must not wait behind others.
func (s *Store) urgent() *Store {
	u := *s
	u.pools = pools{write: s.beat}
	return &u
}

// Bury declares dead, on their rows, the nodes that were silent for longer, so that their next heartbeat
// fails; and it frees what dead nodes hold, whenever they died: a claim that was under way when its
// node was declared dead may have been committed since. node is the one that judges. It judges nobody
// if its own last heartbeat is not a recent one by the database's clock, which may have been set, nor if
// that is not the one that it knows was heard (zero: any): of what a later one tells, such as that the
// clock was set, it has not taken notice.
//
// Two at once do no harm: each row changes once, and they leave to each other what is locked.
func (s *Store) Bury(ctx context.Context, node string, heard time.Time, silent time.Duration) (b batch.Burial, err error) {
	if s.d.exclusive {
		return b, nil
	}
	if b.Nodes, err = s.declare(ctx, node, heard, silent); err != nil {
		return b, fmt.Errorf("bury: %w", err)
	}
	b.Segments, err = s.freeAll(ctx, "segments", ", deaths = deaths + 1")
	if err != nil {
		return b, fmt.Errorf("bury: %w", err)
	}
	b.Batches, err = s.freeAll(ctx, "batches", "")
	if err != nil {
		return b, fmt.Errorf("bury: %w", err)
	}
	return b, nil
}

// declare declares dead who was silent for longer.
func (s *Store) declare(ctx context.Context, judge string, heard time.Time, silent time.Duration) (names []string, err error) {
	heardAt := int64(0)
	if !heard.IsZero() {
		heardAt = heard.UnixMilli()
	}
	now, args := s.clock(judge, silent.Milliseconds(), ahead.Milliseconds(), recent.Milliseconds(), heardAt)
	// In both statements, whose parameters it shares.
	mayJudge := `EXISTS (SELECT 1 FROM nodes WHERE id = $1 AND dead_at IS NULL AND heartbeat_at > ` + now + ` - $4
		AND (heartbeat_at = $5 OR $5 = 0))`
	// First without a transaction: there is rarely anybody.
	suspects, err := all(ctx, s.read, func(r row) (n Node, err error) {
		err = r.Scan(&n.ID, &n.Name)
		return n, err
	}, `SELECT id, name FROM nodes WHERE dead_at IS NULL AND id <> $1 AND (heartbeat_at < `+now+` - $2 OR heartbeat_at > `+now+` + $3)
		AND `+mayJudge+` ORDER BY id`, args...)
	if err != nil || len(suspects) == 0 {
		return nil, err
	}
	err = s.tx(ctx, func(q querier) error {
		names = nil
		for _, n := range suspects {
			// All is asked again: since the look a heartbeat may have come, or the judge have been suspended.
			now, args := s.clock(judge, silent.Milliseconds(), n.ID, recent.Milliseconds(), heardAt)
			died, err := exec(ctx, q, `UPDATE nodes SET dead_at = `+now+` WHERE id = $3 AND dead_at IS NULL
				AND heartbeat_at < `+now+` - $2 AND `+mayJudge, args...)
			if err != nil {
				return err
			}
			if died == 1 {
				names = append(names, n.Name)
				continue
			}
			// Else it would be believed for as long as the clock was set back.
			now, args = s.clock(n.ID, ahead.Milliseconds())
			if _, err := exec(ctx, q, `UPDATE nodes SET heartbeat_at = `+now+` WHERE id = $1 AND dead_at IS NULL
				AND heartbeat_at > `+now+` + $2`, args...); err != nil {
				return err
			}
		}
		return nil
	})
	return names, err
}

// freeAll frees the rows of table that are held by dead nodes, and returns how many there were. Who holds
// a row stands in it as long as that is held, and no longer.
func (s *Store) freeAll(ctx context.Context, table, set string) (n int, err error) {
	// Node by node, which no planner makes one walk through what all nodes hold.
	dead, err := all(ctx, s.read, scalar[string], `SELECT id FROM nodes WHERE dead_at IS NOT NULL
		AND (SELECT id FROM `+table+` WHERE node_id = nodes.id LIMIT 1) IS NOT NULL ORDER BY id`)
	if err != nil {
		return 0, err
	}
	for _, node := range dead {
		for {
			freed, err := s.freeSome(ctx, node, table, set)
			if n += freed; err != nil {
				return n, err
			}
			if freed == 0 {
				break
			}
		}
	}
	return n, nil
}

// freeSome frees some of what a dead node holds, and returns how many. What its owner is about to change
// is left to the next look.
func (s *Store) freeSome(ctx context.Context, node, table, set string) (n int, err error) {
	err = s.tx(ctx, func(q querier) error {
		ids, err := all(ctx, q, scalar[any], `SELECT id FROM `+table+` WHERE node_id = $1 LIMIT 500`+s.free(table), node)
		if n = len(ids); err != nil || n == 0 {
			return err
		}
		_, err = exec(ctx, q, `UPDATE `+table+` SET token = NULL, node_id = NULL`+set+` WHERE id IN (`+in(1, n)+`)`, ids...)
		return err
	})
	return n, err
}

// A Node is one start of a server that works, or worked, on this database.
type Node struct {
	ID          string
	Name        string
	State       string
	StartedAt   time.Time
	HeartbeatAt time.Time // its last one; zero where a process has the database to itself
	EndedAt     time.Time // zero: it has not
	Held        int64     // segments
}

// States of a node. Silent is one that has sent no heartbeat for too long, and is about to be declared
// dead.
const (
	Live   = "live"
	Silent = "silent"
	Left   = "left"
	Dead   = "dead"
)

// Nodes lists the nodes that have not ended, and those that have if they are asked for, the latest
// first.
func (s *Store) Nodes(ctx context.Context, ended bool) ([]Node, error) {
	var now int64
	clock, args := s.clock()
	if err := s.read.QueryRowContext(ctx, `SELECT `+clock, args...).Scan(&now); err != nil {
		return nil, err
	}
	which := `WHERE dead_at IS NULL`
	if ended {
		which = ``
	}
	return all(ctx, s.read, func(r row) (n Node, err error) {
		err = r.Scan(&n.ID, &n.Name, at(&n.StartedAt), at(&n.HeartbeatAt), at(&n.EndedAt), &n.Held)
		switch {
		case !n.EndedAt.IsZero() && n.EndedAt.Equal(n.HeartbeatAt):
			n.State = Left // see Leave
		case !n.EndedAt.IsZero():
			n.State = Dead
		case !s.d.exclusive && time.UnixMilli(now).Sub(n.HeartbeatAt) > lease:
			n.State = Silent
		default:
			n.State = Live
		}
		if s.d.exclusive {
			n.HeartbeatAt = time.Time{}
		}
		return n, err
	}, `SELECT id, name, started_at, heartbeat_at, dead_at, (SELECT count(*) FROM segments g
			WHERE g.node_id = n.id AND g.sealed_at IS NULL AND g.token IS NOT NULL)
		FROM nodes n `+which+` ORDER BY started_at DESC, id LIMIT 1000`)
}
