package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"golang.org/x/sys/unix"
)

var postgresDialect = dialect{
	name: "postgres", goose: goose.DialectPostgres,
	open: openPostgres, check: checkPostgres, retryable: conflict,
	forUpdate: " FOR UPDATE", skipLocked: " SKIP LOCKED",
	clock: "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
	// Another node may be at it. The end of the file is left where it is: cutting it off would lock
	// out who records, and it is filled again in a moment.
	vacuum: "VACUUM (SKIP_LOCKED, INDEX_CLEANUP ON, TRUNCATE OFF) journal",
	// A lock in a table, since one of a session does not hold behind a pooler of transactions.
	migrating: func() (goose.ProviderOption, error) {
		l, err := lock.NewPostgresTableLocker(lock.WithTableLockTimeout(500*time.Millisecond, 600))
		return goose.WithLocker(l), err
	},
	tables:  "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()",
	columns: "SELECT column_name::text FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1",
	refers: `SELECT DISTINCT o.relname::text FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid JOIN pg_class o ON o.oid = c.confrelid
		WHERE c.contype = 'f' AND r.relname = $1 AND r.relnamespace = current_schema()::regnamespace`,
	numbered: `SELECT column_name::text FROM information_schema.columns
		WHERE table_schema = current_schema() AND table_name = $1 AND is_identity = 'YES'`,
	overriding: " OVERRIDING SYSTEM VALUE",
	identity: func(ctx context.Context, q querier, t table) (int64, error) {
		sequence, err := all(ctx, q, scalar[string], "SELECT pg_get_serial_sequence($1, $2)", t.name, t.identity)
		if err != nil {
			return 0, err
		}
		return queryInt(ctx, q, "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM "+sequence[0])
	},
	setIdentity: func(ctx context.Context, q querier, t table, last int64) error {
		_, err := queryInt(ctx, q, "SELECT setval(pg_get_serial_sequence($1, $2), $3)", t.name, t.identity, last)
		return err
	},
}

// limits are how long things may take.
type limits struct {
	// statement is for one of them. A primary that has vanished says nothing at all, so this is how
	// soon it is noticed.
	statement time.Duration
	// idle is for a client between two statements of a transaction: the locks of one that has vanished
	// are given free before others lose their patience.
	idle time.Duration
	// connect is for each host of a DSN to let us in, if the DSN does not say.
	connect time.Duration
}

var patient = limits{statement: 8 * time.Second, idle: 4 * time.Second, connect: 3 * time.Second}

// begin begins a transaction that writes. Its limits are set here and not for the session, which
// behind a pooler is not ours; and they come back with the answer to BEGIN. A commit that waits for a
// synchronous standby has no limit at the server, which would say that it is done: it is the client
// that loses patience, and knows nothing.
func (l limits) begin() string {
	return fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL statement_timeout = %d; "+
		"SET LOCAL idle_in_transaction_session_timeout = %d", l.statement.Milliseconds(), l.idle.Milliseconds())
}

func openPostgres(dsn string) (pools, error) {
	return openLimited(dsn, patient, func(c driver.Connector) driver.Connector { return c })
}

// openLimited is openPostgres with what a test changes about it.
func openLimited(dsn string, l limits, wrap func(driver.Connector) driver.Connector) (p pools, err error) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return pools{}, err
	}
	// Or a part of the password would be looked up or asked for, and stand in what that says.
	if slices.ContainsFunc(hostsOf(c), func(h string) bool { return h[0] != '/' && strings.Contains(h, "@") }) {
		return pools{}, errors.New("a host has an @ in it: in a password that is written %40")
	}
	if strings.Contains(c.Database, "@") {
		return pools{}, errors.New("the database's name has an @ in it: a / in a password is written %2F")
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = l.connect
	}
	// Of several hosts the one that takes writes, and of one host none that has become a standby.
	if c.ValidateConnect == nil {
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	c.DialFunc = dial
	explicit, err := saysExecMode(dsn)
	if err != nil {
		return pools{}, err
	}
	pool := func(n int, l limits) *sql.DB {
		db := sql.OpenDB(wrap(connector{*c, explicit, l}))
		db.SetMaxOpenConns(n)
		db.SetMaxIdleConns(n)
		db.SetConnMaxIdleTime(5 * time.Minute)
		db.SetConnMaxLifetime(30 * time.Minute) // a pooler or a balancer may send us elsewhere
		return db
	}
	p = pools{write: pool(8, l), read: pool(4, l), slow: pool(3, limits{})}
	// A heartbeat is given up after a few seconds. However many hosts say nothing, the last is reached
	// before that.
	c.ConnectTimeout = min(c.ConnectTimeout, beatConnect/time.Duration(len(hostsOf(c))))
	p.beat = pool(1, l)
	p.slow.SetMaxIdleConns(1) // a migration takes three, and comes once
	return p, nil
}

// beatConnect is how long it may take a heartbeat to be let in by one of the hosts: less than is waited
// for its answer.
const beatConnect = 4 * time.Second

// hostsOf returns the hosts of a DSN, with their ports.
func hostsOf(c *pgx.ConnConfig) []string {
	hosts := []string{net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))}
	for _, f := range c.Fallbacks { // one host may be there twice, with and without TLS
		if h := net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port))); !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// dial connects so that a host which vanishes is noticed: while it owes an answer, and while it owes
// the acknowledgement of what was sent.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 3 * time.Second, Interval: time.Second, Count: 4,
	}}
	d.Control = func(network, _ string, c syscall.RawConn) error {
		if network == "unix" {
			return nil
		}
		var err error
		if e := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(patient.statement.Milliseconds()))
		}); e != nil {
			return e
		}
		return err
	}
	return d.DialContext(ctx, network, addr)
}

// A setting is one of the server's that decides if it can be trusted with what is committed.
type setting struct {
	name string
	good func(string) bool
	want string
}

var settings = []setting{
	{"server_version_num", func(v string) bool { n, err := strconv.Atoi(v); return err != nil || n >= 130000 },
		"PostgreSQL 13 or newer is needed"},
	{"server_encoding", func(v string) bool { return v == "UTF8" },
		"make the database with ENCODING 'UTF8'"},
	{"fsync", func(v string) bool { return v == "on" },
		"what is acknowledged would not survive a crash: set it to on"},
	{"synchronous_commit", func(v string) bool { return v != "off" },
		"what is acknowledged would not be on the disk: set it to on, or at least to local, also with ALTER ROLE and ALTER DATABASE"},
}

// checkPostgres refuses servers that do not keep what they acknowledge.
func checkPostgres(ctx context.Context, db *sql.DB) error {
	for _, s := range settings {
		var v string
		if err := db.QueryRowContext(ctx, "SHOW "+s.name).Scan(&v); err != nil {
			return err
		}
		if !s.good(v) {
			return fmt.Errorf("%s is %s on this server: %s", s.name, v, s.want)
		}
	}
	return nil
}

// conflict reports whether a transaction failed only because of others, or before anything was sent,
// and may run again.
func conflict(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "40001" || e.Code == "40P01" // serialization failure, deadlock
	}
	return pgconn.SafeToRetry(err)
}

// A connector makes connections that lose their patience. To prepare a statement takes PostgreSQL about
// as long as to run it, so connections keep what they have prepared; but behind a pooler of transactions
// the next one may come to a server that does not know of it, and nothing is prepared.
type connector struct {
	config   pgx.ConnConfig
	explicit bool // the DSN says itself whether statements are prepared
	limits   limits
}

func (c connector) Driver() driver.Driver { return stdlib.GetDefaultDriver() }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	got, err := stdlib.GetConnector(c.config).Connect(ctx)
	if err != nil {
		return nil, err
	}
	own := got.(*stdlib.Conn)
	if !c.explicit {
		pooled, err := isPooled(ctx, own.Conn())
		if err != nil {
			return nil, errors.Join(err, own.Close())
		}
		if pooled {
			plain := c
			plain.explicit, plain.config.DefaultQueryExecMode = true, pgx.QueryExecModeExec
			own.Close()
			return plain.Connect(ctx)
		}
	}
	return &conn{Conn: own, limits: c.limits}, nil
}

// isPooled reports whether a pooler stands between: then the process that answers is not the one whose
// number came with the connection, as poolers number their clients themselves.
func isPooled(ctx context.Context, c *pgx.Conn) (bool, error) {
	var pid uint32
	err := c.QueryRow(ctx, "SELECT pg_backend_pid()", pgx.QueryExecModeExec).Scan(&pid)
	return pid != c.PgConn().PID(), err
}

// saysExecMode reports whether the DSN says itself whether statements are prepared.
func saysExecMode(dsn string) (bool, error) {
	c, err := pgconn.ParseConfig(dsn) // to which that parameter is one of the server's
	if err != nil {
		return false, err
	}
	return c.RuntimeParams["default_query_exec_mode"] != "", nil
}

// A conn gives up a statement that takes too long: it closes, and the outcome of the statement is
// unknown.
type conn struct {
	*stdlib.Conn
	limits limits
	inTx   bool
}

func (c *conn) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.limits.statement == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, c.limits.statement, errSilent)
}

var (
	errSilent = errors.New("no answer from PostgreSQL in time")
	errCut    = errors.New("the connection to PostgreSQL broke")
)

// explain tells a silent server from a caller that has gone, and closes a connection to a server
// that takes no writes any more: it has become a standby, and the next connection finds the primary.
func (c *conn) explain(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == "25006" {
		c.Conn.Close()
	}
	switch {
	case err == nil:
		return nil
	case context.Cause(ctx) == errSilent:
		return fmt.Errorf("%w: %w", errSilent, err)
	case c.Conn.Conn().IsClosed():
		return fmt.Errorf("%w: %w", errCut, err)
	}
	return err
}

// again is explain for what changes nothing: where the server has closed the connection, which one
// that was idle often learns only now, it is tried on another.
func (c *conn) again(ctx context.Context, err error) error {
	err = c.explain(ctx, err)
	if err != nil && !c.inTx && c.limits != (limits{}) && c.Conn.Conn().IsClosed() && ctx.Err() == nil {
		return driver.ErrBadConn
	}
	return err
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	r, err := c.Conn.ExecContext(ctx, query, args)
	return r, c.explain(ctx, err)
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	ctx, cancel := c.bound(ctx)
	r, err := c.Conn.QueryContext(ctx, query, args)
	if err != nil {
		defer cancel()
		return nil, c.again(ctx, err)
	}
	return rows{r, c, ctx, cancel}, nil
}

// rows are read within the patience of their statement.
type rows struct {
	driver.Rows
	c      *conn
	ctx    context.Context // driver.Rows gives none to its methods
	cancel context.CancelFunc
}

func (r rows) Next(dest []driver.Value) error {
	err := r.Rows.Next(dest)
	if err == nil || err == io.EOF {
		return err
	}
	return r.c.explain(r.ctx, err)
}

func (r rows) Close() error {
	defer r.cancel()
	return r.Rows.Close()
}

// ResetSession looks whether a connection that was idle still answers.
func (c *conn) ResetSession(ctx context.Context) error {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	return c.Conn.ResetSession(ctx)
}

// BeginTx begins a transaction that writes, with its limits; where there are none, any.
func (c *conn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	if c.limits == (limits{}) {
		return c.Conn.BeginTx(ctx, o)
	}
	bounded, cancel := c.bound(ctx)
	defer cancel()
	t, err := c.Conn.Conn().BeginTx(bounded, pgx.TxOptions{BeginQuery: c.limits.begin()})
	if err != nil {
		if e, ok := errors.AsType[*pgconn.PgError](err); ok && e.Code == "0A000" {
			c.Conn.Close() // a standby has no READ WRITE: see explain
		}
		return nil, c.again(bounded, err)
	}
	c.inTx = true
	return tx{t, c, ctx}, nil
}

type tx struct {
	pgx.Tx
	c   *conn
	ctx context.Context // driver.Tx gives none to its methods
}

func (t tx) Commit() error {
	ctx, cancel := t.c.bound(t.ctx)
	defer cancel()
	t.c.inTx = false
	return t.c.explain(ctx, t.Tx.Commit(ctx))
}

func (t tx) Rollback() error {
	ctx, cancel := t.c.bound(context.WithoutCancel(t.ctx))
	defer cancel()
	t.c.inTx = false
	return t.c.explain(ctx, t.Tx.Rollback(ctx))
}

// Describe returns what people may see of a DSN: no password.
func Describe(dsn string) string {
	const unknown = "postgres://…"
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return unknown
	}
	where := strings.Join(hostsOf(c), ",") + "/" + c.Database
	if strings.Contains(where, "@") { // what follows an @ or a slash of a password that are not escaped
		return unknown
	}
	return fmt.Sprintf("postgres://%s@%s", c.User, where)
}
