package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
)

// openPrepared is sql.Open of SQLite whose connections keep the statements that they have prepared:
// to prepare one takes longer than to run it.
func openPrepared(dsn string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", dsn) // opens nothing yet; it knows the driver
	if err != nil {
		return nil, err
	}
	d := db.Driver()
	if err := db.Close(); err != nil {
		return nil, err
	}
	return sql.OpenDB(preparing{d, dsn}), nil
}

// preparing makes connections that keep their statements.
type preparing struct {
	d   driver.Driver
	dsn string
}

func (p preparing) Driver() driver.Driver { return p.d }

func (p preparing) Connect(context.Context) (driver.Conn, error) {
	c, err := p.d.Open(p.dsn)
	if err != nil {
		return nil, err
	}
	got, ok := c.(connection)
	if !ok {
		return nil, errors.Join(errors.New("the SQLite driver is not the one that this was written for"), c.Close())
	}
	return &preparedConn{connection: got, kept: map[string]statement{}}, nil
}

// connection is what database/sql makes use of in a connection to SQLite.
type connection interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// statement is the same of a statement.
type statement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// A preparedConn keeps statements by their text, those that nobody is using. Like any connection of
// database/sql it is used by one goroutine at a time.
type preparedConn struct {
	connection
	kept map[string]statement
}

// mostKept bounds what is kept. There are some hundred texts; lists make more of them.
const mostKept = 300

// take returns a statement for the caller alone.
func (c *preparedConn) take(ctx context.Context, query string) (statement, error) {
	if s, ok := c.kept[query]; ok {
		delete(c.kept, query)
		return s, nil
	}
	s, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.(statement), nil
}

// keep takes a statement back.
func (c *preparedConn) keep(query string, s statement) error {
	if _, ok := c.kept[query]; ok { // it was prepared once more while this one was in use
		return s.Close()
	}
	if len(c.kept) >= mostKept {
		if err := c.forget(); err != nil {
			return err
		}
	}
	c.kept[query] = s
	return nil
}

func (c *preparedConn) forget() error {
	var errs []error
	for _, s := range c.kept {
		errs = append(errs, s.Close())
	}
	clear(c.kept)
	return errors.Join(errs...)
}

// ExecContext implements driver.ExecerContext.
func (c *preparedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	r, err := s.ExecContext(ctx, args)
	return r, errors.Join(err, c.keep(query, s))
}

// QueryContext implements driver.QueryerContext.
func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	r, err := s.QueryContext(ctx, args)
	if err != nil {
		return nil, errors.Join(err, c.keep(query, s))
	}
	return &preparedRows{r, c, query, s}, nil
}

// preparedRows give their statement back when they are closed.
type preparedRows struct {
	driver.Rows
	c     *preparedConn
	query string
	s     statement
}

func (r *preparedRows) Close() error {
	if r.s == nil {
		return nil
	}
	err := errors.Join(r.Rows.Close(), r.c.keep(r.query, r.s))
	r.s = nil
	return err
}

// Close closes the connection with its statements.
func (c *preparedConn) Close() error {
	return errors.Join(c.forget(), c.connection.Close())
}
