package doctor

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// Connect returns a doctor for a PostgreSQL database, which several nodes may share, and their blobs.
func Connect(dsn string, blobs Blobs, o Options) *Doctor {
	return &Doctor{o: o, blobs: blobs, calls: map[[16]byte]int{}, connect: func(bool) (*connection, error) {
		return openPostgreSQL(dsn)
	}}
}

// openPostgreSQL opens a database for reading. Whether its pages are whole is PostgreSQL's own affair
// (data checksums, pg_amcheck).
func openPostgreSQL(dsn string) (*connection, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // as package store has it: there may be a pooler
	config.RuntimeParams["application_name"] = "offpeak doctor"
	db := stdlib.OpenDB(*config)
	return &connection{db: db, close: db.Close, alive: nodesAlive}, nil
}

// nodesAlive reports whether some node has been heard of within the last minute.
func nodesAlive(ctx context.Context, q querier) (bool, error) {
	n, err := count(ctx, q, `SELECT count(*) FROM nodes WHERE dead_at IS NULL
		AND heartbeat_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint - 60000`)
	return n > 0, err
}
