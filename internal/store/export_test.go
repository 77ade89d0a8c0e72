package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// ConnectGated connects to PostgreSQL by connections that ask gate before every statement, before
// every commit ("COMMIT") and when one is done ("COMMITTED"). What gate returns takes the place of
// what it was asked about, of a commit that is done its answer.
func ConnectGated(ctx context.Context, dsn string, o Options, gate func(query string) error) (*Store, error) {
	return ConnectGatedFor(ctx, dsn, o, time.Minute, gate) // a transaction that is stopped is not to be ended by the server
}

// ConnectGatedFor is ConnectGated, with a server that ends a transaction which is stopped for so long.
func ConnectGatedFor(ctx context.Context, dsn string, o Options, idle time.Duration, gate func(query string) error) (*Store, error) {
	d := postgresDialect
	d.open = func(dsn string) (pools, error) {
		l := limits{statement: 15 * time.Second, idle: idle, connect: time.Minute}
		return openLimited(dsn, l, func(c driver.Connector) driver.Connector { return gatedConnector{c, gate} })
	}
	return connect(ctx, d, dsn, o)
}

// ConnectImpatiently connects to a PostgreSQL that may be silent for so long.
func ConnectImpatiently(ctx context.Context, dsn string, silence time.Duration) (*Store, error) {
	d := postgresDialect
	d.open = func(dsn string) (pools, error) {
		return openLimited(dsn, limits{silence, silence, silence}, func(c driver.Connector) driver.Connector { return c })
	}
	return connect(ctx, d, dsn, Options{})
}

// ConnectAstray connects to a primary, but for the first connection that writes: it goes to a standby, as
// one does behind a pooler that has not noticed yet which of them is the primary.
func ConnectAstray(ctx context.Context, primary, standby string) (*Store, error) {
	d := postgresDialect
	d.open = func(primary string) (pools, error) {
		a := &astray{}
		other, err := openLimited(standby+"?target_session_attrs=standby", patient, func(c driver.Connector) driver.Connector {
			a.first = c
			return c
		})
		if err != nil {
			return pools{}, err
		}
		if err := other.close(); err != nil {
			return pools{}, err
		}
		return openLimited(primary, patient, func(c driver.Connector) driver.Connector {
			if a.Connector != nil {
				return c
			}
			a.Connector = c // of the first pool, which is for writes
			return a
		})
	}
	return connect(ctx, d, primary, Options{})
}

type astray struct {
	driver.Connector
	first driver.Connector
	went  atomic.Bool
}

func (a *astray) Connect(ctx context.Context) (driver.Conn, error) {
	if a.went.CompareAndSwap(false, true) {
		return a.first.Connect(ctx)
	}
	return a.Connector.Connect(ctx)
}

// Prepares reports whether a connection by the DSN keeps what it has prepared.
func Prepares(ctx context.Context, dsn string) (yes bool, err error) {
	p, err := openPostgres(dsn)
	if err != nil {
		return false, err
	}
	c, err := p.write.Conn(ctx)
	if err != nil {
		return false, errors.Join(err, p.close())
	}
	err = c.Raw(func(c any) error {
		yes = c.(*conn).Conn.Conn().Config().DefaultQueryExecMode == pgx.QueryExecModeCacheStatement
		return nil
	})
	return yes, errors.Join(err, c.Close(), p.close())
}

// Begin returns how a transaction begins, of which no statement may take longer.
func Begin(longest time.Duration) string {
	return limits{statement: longest, idle: time.Minute}.begin()
}

// ErrSilent is how a statement ends that was not answered in time.
var ErrSilent = errSilent

func connect(ctx context.Context, d dialect, dsn string, o Options) (*Store, error) {
	s := newStore(d, o)
	if err := s.open(ctx, dsn); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// ConnectLazily opens PostgreSQL without a look at it.
func ConnectLazily(dsn string) (*Store, error) {
	s := newStore(postgresDialect, Options{})
	var err error
	s.pools, err = s.d.open(dsn)
	return s, err
}

// ConnectExplained connects to PostgreSQL and has every statement explained before it is run, as it is
// about to be run and as it is once it has been prepared for whatever arguments; explain is given the
// text and the plan in JSON.
func ConnectExplained(ctx context.Context, dsn string, o Options, explain func(query string, plan []byte)) (*Store, error) {
	d := postgresDialect
	d.open = func(dsn string) (pools, error) {
		l := limits{statement: time.Minute, idle: time.Minute, connect: time.Minute}
		return openLimited(dsn, l, func(c driver.Connector) driver.Connector { return explainedConnector{c, explain} })
	}
	return connect(ctx, d, dsn, o)
}

type explainedConnector struct {
	driver.Connector
	explain func(string, []byte)
}

func (c explainedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	got, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return explainedConn{got.(*conn), c.explain}, nil
}

type explainedConn struct {
	*conn
	explain func(string, []byte)
}

func (c explainedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.plan(ctx, query, args); err != nil {
		return nil, err
	}
	return c.conn.ExecContext(ctx, query, args)
}

func (c explainedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.plan(ctx, query, args); err != nil {
		return nil, err
	}
	return c.conn.QueryContext(ctx, query, args)
}

// plan has the statement executed, with what it does undone if it does anything.
func (c explainedConn) plan(ctx context.Context, query string, named []driver.NamedValue) error {
	if strings.HasPrefix(query, "SHOW") {
		return nil
	}
	args := make([]any, len(named))
	literals := make([]string, len(named))
	for i, a := range named {
		args[i], literals[i] = a.Value, literal(a.Value)
	}
	pg := c.Conn.Conn()
	prepare := "PREPARE plan AS " + query
	execute := "EXECUTE plan"
	if len(args) > 0 {
		execute += " (" + strings.Join(literals, ", ") + ")"
	}
	for _, way := range []struct {
		before, query string
		args          []any
	}{
		{"SET plan_cache_mode = force_custom_plan", query, args},
		{"SET plan_cache_mode = force_generic_plan; " + prepare, execute, nil},
	} {
		if c.inTx {
			way.before = "SAVEPOINT plan; " + way.before
		}
		if _, err := pg.PgConn().Exec(ctx, way.before).ReadAll(); err != nil {
			return fmt.Errorf("prepare %s: %w", query, err)
		}
		var plan []byte
		if err := pg.QueryRow(ctx, "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+way.query, append([]any{pgx.QueryExecModeExec}, way.args...)...).Scan(&plan); err != nil {
			return fmt.Errorf("explain %s: %w", way.query, err)
		}
		c.explain(query, plan)
		if c.inTx {
			if _, err := pg.PgConn().Exec(ctx, "ROLLBACK TO SAVEPOINT plan").ReadAll(); err != nil {
				return err
			}
		}
	}
	_, err := pg.PgConn().Exec(ctx, "DEALLOCATE plan").ReadAll()
	return err
}

// literal writes an argument as SQL does.
func literal(v any) string {
	switch v := v.(type) {
	case nil:
		return "NULL"
	case []byte:
		return fmt.Sprintf(`'\x%x'`, v)
	}
	if r := reflect.ValueOf(v); r.Kind() != reflect.String {
		return fmt.Sprint(v) // a number
	}
	return "'" + strings.ReplaceAll(fmt.Sprint(v), "'", "''") + "'"
}

type gatedConnector struct {
	driver.Connector
	gate func(string) error
}

func (c gatedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	got, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return gatedConn{got.(*conn), c.gate}, nil
}

type gatedConn struct {
	*conn
	gate func(string) error
}

func (c gatedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.gate(query); err != nil {
		return nil, err
	}
	return c.conn.ExecContext(ctx, query, args)
}

func (c gatedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.gate(query); err != nil {
		return nil, err
	}
	return c.conn.QueryContext(ctx, query, args)
}

func (c gatedConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	t, err := c.conn.BeginTx(ctx, o)
	return gatedTx{t, c.gate}, err
}

type gatedTx struct {
	driver.Tx
	gate func(string) error
}

func (t gatedTx) Commit() error {
	if err := t.gate("COMMIT"); err != nil {
		return errors.Join(err, t.Rollback())
	}
	if err := t.Tx.Commit(); err != nil {
		return err
	}
	return t.gate("COMMITTED")
}

// Dump returns every row of every table as text, sorted, and the last number that was given in each.
func Dump(ctx context.Context, s *Store) (rows map[string][]string, numbers map[string]int64, err error) {
	rows, numbers = map[string][]string{}, map[string]int64{}
	tables, err := s.tables(ctx, s.read)
	if err != nil {
		return nil, nil, err
	}
	for name, t := range tables {
		rows[name], err = all(ctx, s.read, func(r row) (string, error) {
			values, to := make([]any, len(t.columns)), make([]any, len(t.columns))
			for i := range values {
				to[i] = &values[i]
			}
			err := r.Scan(to...)
			return fmt.Sprintf("%q", values), err
		}, `SELECT `+quote(t.columns...)+` FROM `+quote(name))
		if err != nil {
			return nil, nil, err
		}
		slices.Sort(rows[name])
		if t.identity != "" {
			if numbers[name], err = s.d.identity(ctx, s.read, t); err != nil {
				return nil, nil, err
			}
		}
	}
	return rows, numbers, nil
}
