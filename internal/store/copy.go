package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A table is what has to be known of one to copy it.
type table struct {
	name     string
	columns  []string // in order of their names
	refers   []string // tables whose rows its own refer to
	identity string   // the column that the database numbers; empty if none
}

// bounds of a statement that copies rows, beyond one row.
const (
	copyRows  = 200
	copyBytes = 1 << 20
)

// ErrNotEmpty is returned for a database that is to receive what another one has, and has something
// itself.
var ErrNotEmpty = errors.New("the database is not empty: give one that nobody has used")

// Received reports whether the database holds what the node with this id was to copy into it. It
// fails with ErrNotEmpty if it holds anything else.
func (s *Store) Received(ctx context.Context, node string) (yes bool, err error) {
	tables, err := s.tables(ctx, s.read)
	if err != nil {
		return false, err
	}
	n, err := queryInt(ctx, s.read, `SELECT count(*) FROM nodes WHERE id = $1`, node)
	if err != nil || n > 0 {
		return n > 0, err
	}
	return false, refuseFull(ctx, s.read, tables)
}

// refuseFull fails if there is anything in the tables beside the project that comes with the schema.
func refuseFull(ctx context.Context, q querier, tables map[string]table) error {
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		query := `SELECT count(*) FROM (SELECT 1 FROM ` + quote(name) + ` LIMIT 1) t`
		if name == "projects" {
			query = `SELECT count(*) FROM projects WHERE id <> 'proj_default' OR created_at <> 0`
		}
		n, err := queryInt(ctx, q, query)
		if err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("%w (there is something in table %s)", ErrNotEmpty, name)
		}
	}
	return nil
}

// CopyTo copies every row of every table into an empty database with the same schema, in one
// transaction: all of it is there, or nothing. Which tables and columns there are it asks the
// databases, so that none is ever forgotten. progress gets the rows copied so far, of all; a
// transaction that is run again begins anew.
//
// The other database must be nobody else's as yet, and nobody may write to this one meanwhile.
func (s *Store) CopyTo(ctx context.Context, to *Store, progress func(rows, all int64)) error {
	from, err := s.slow.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead})
	if err != nil {
		return err
	}
	defer from.Rollback()
	tables, err := s.tables(ctx, from)
	if err != nil {
		return err
	}
	theirs, err := to.tables(ctx, to.read)
	if err != nil {
		return err
	}
	order, err := inOrder(tables, theirs)
	if err != nil {
		return err
	}
	counts, all := map[string]int64{}, int64(0)
	for name := range tables {
		if counts[name], err = queryInt(ctx, from, `SELECT count(*) FROM `+quote(name)); err != nil {
			return err
		}
		all += counts[name]
	}
	return to.tx(ctx, func(q querier) error {
		if err := refuseFull(ctx, q, theirs); err != nil {
			return err
		}
		if _, err := exec(ctx, q, `DELETE FROM projects`); err != nil { // it comes with the others
			return err
		}
		done := int64(0)
		for _, name := range order {
			c := copier{s: to, q: q, table: theirs[name], copied: func(n int) {
				done += int64(n)
				progress(done, all)
			}}
			if err := c.run(ctx, from); err != nil {
				return fmt.Errorf("copy table %s: %w", name, err)
			}
			n, err := queryInt(ctx, q, `SELECT count(*) FROM `+quote(name))
			if err == nil && n != counts[name] {
				err = fmt.Errorf("%d rows have come of %d", n, counts[name])
			}
			if err == nil && tables[name].identity != "" {
				err = s.copyIdentity(ctx, from, to, q, tables[name])
			}
			if err != nil {
				return fmt.Errorf("copy table %s: %w", name, err)
			}
		}
		return nil
	})
}

// copyIdentity has the numbering of a table go on where it stood, or its next row gets a number that
// is taken.
func (s *Store) copyIdentity(ctx context.Context, from querier, to *Store, q querier, t table) error {
	last, err := s.d.identity(ctx, from, t)
	if err != nil || last == 0 {
		return err
	}
	return to.d.setIdentity(ctx, q, t, last)
}

// inOrder returns the tables so that each comes after those its rows refer to. It fails unless both
// databases have the same ones.
func inOrder(a, b map[string]table) ([]string, error) {
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if !slices.Equal(a[name].columns, b[name].columns) {
			return nil, fmt.Errorf("table %s has the columns %v here and %v there", name, a[name].columns, b[name].columns)
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			return nil, fmt.Errorf("there is a table %s there and none here", name)
		}
	}
	var order []string
	seen := map[string]bool{}
	var add func(name string)
	add = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, r := range b[name].refers {
			add(r)
		}
		order = append(order, name)
	}
	for _, name := range slices.Sorted(maps.Keys(b)) {
		add(name)
	}
	return order, nil
}

// A copier copies the rows of one table, many by each statement.
type copier struct {
	s      *Store // the receiving one
	q      querier
	table  table
	copied func(rows int)

	values []any
	rows   int
	bytes  int
}

func (c *copier) run(ctx context.Context, from querier) error {
	columns := quote(c.table.columns...)
	rows, err := from.QueryContext(ctx, `SELECT `+columns+` FROM `+quote(c.table.name))
	if err != nil {
		return err
	}
	defer rows.Close()
	width := len(c.table.columns)
	for rows.Next() {
		row, to := make([]any, width), make([]any, width)
		for i := range row {
			to[i] = &row[i]
		}
		if err := rows.Scan(to...); err != nil {
			return err
		}
		for _, v := range row {
			switch v := v.(type) {
			case string:
				c.bytes += len(v)
			case []byte:
				c.bytes += len(v)
			}
		}
		c.values = append(c.values, row...)
		if c.rows++; c.rows == copyRows || c.bytes >= copyBytes {
			if err := c.flush(ctx); err != nil {
				return err
			}
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	return c.flush(ctx)
}

func (c *copier) flush(ctx context.Context) error {
	if c.rows == 0 {
		return nil
	}
	width := len(c.table.columns)
	places := make([]string, c.rows)
	for i := range places {
		places[i] = "(" + in(i*width+1, width) + ")"
	}
	query := `INSERT INTO ` + quote(c.table.name) + ` (` + quote(c.table.columns...) + `)` + c.s.d.overriding + ` VALUES ` + strings.Join(places, ",")
	n, err := exec(ctx, c.q, query, c.values...)
	if err == nil && n != int64(c.rows) {
		err = fmt.Errorf("%d rows were written of %d", n, c.rows)
	}
	if err != nil {
		return err
	}
	c.copied(c.rows)
	c.values, c.rows, c.bytes = c.values[:0], 0, 0
	return nil
}

// EachBlob calls f for every blob that something names, in order of the keys; those behind the key
// after, if that is not empty.
func (s *Store) EachBlob(ctx context.Context, after string, f func(key string) error) error {
	for {
		keys, err := all(ctx, s.read, scalar[string], `SELECT key FROM blobs WHERE pending = 0 AND deleted_at IS NULL AND key > $1
			ORDER BY key LIMIT 1000`, after)
		if err != nil || len(keys) == 0 {
			return err
		}
		for _, key := range keys {
			if err := f(key); err != nil {
				return err
			}
		}
		after = keys[len(keys)-1]
	}
}

// CountBlobs returns how many blobs something names.
func (s *Store) CountBlobs(ctx context.Context) (int64, error) {
	return queryInt(ctx, s.slow, `SELECT count(*) FROM blobs WHERE pending = 0 AND deleted_at IS NULL`)
}

// tables describes the tables of our schema, by name.
func (s *Store) tables(ctx context.Context, q querier) (map[string]table, error) {
	tables := map[string]table{}
	names, err := all(ctx, q, scalar[string], s.d.tables)
	for _, name := range names {
		if strings.HasPrefix(name, "goose") { // about the schema, not in it
			continue
		}
		t := table{name: name}
		if t.columns, err = all(ctx, q, scalar[string], s.d.columns, name); err != nil {
			return nil, err
		}
		slices.Sort(t.columns)
		if t.refers, err = all(ctx, q, scalar[string], s.d.refers, name); err != nil {
			return nil, err
		}
		identity, err := all(ctx, q, scalar[string], s.d.numbered, name)
		if err != nil {
			return nil, err
		}
		if len(identity) > 0 {
			t.identity = identity[0]
		}
		tables[name] = t
	}
	return tables, err
}

func queryInt(ctx context.Context, q querier, query string, args ...any) (n int64, err error) {
	err = q.QueryRowContext(ctx, query, args...).Scan(&n)
	return n, err
}

// quote returns names as SQL has them.
func quote(names ...string) string {
	return `"` + strings.Join(names, `", "`) + `"`
}
