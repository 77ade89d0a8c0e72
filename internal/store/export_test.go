package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"
)

// ConnectGated connects to PostgreSQL by connections that ask gate before every statement, before
// every commit ("COMMIT") and when one is done ("COMMITTED"). What gate returns takes the place of
// what it was asked about, of a commit that is done its answer.
func ConnectGated(ctx context.Context, dsn string, o Options, gate func(query string) error) (*Store, error) {
	d := postgresDialect
	d.open = func(dsn string) (pools, error) {
		// A transaction that is stopped is not to be ended by the server.
		l := limits{statement: 15 * time.Second, idle: time.Minute, connect: time.Minute}
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

// ErrSilent is how a statement ends that was not answered in time.
var ErrSilent = errSilent

func connect(ctx context.Context, d dialect, dsn string, o Options) (*Store, error) {
	s := newStore(d, o)
	if err := s.open(ctx, dsn); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
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
