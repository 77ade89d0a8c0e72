package doctor

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// A querier reads, all of it as of one moment if it is a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

type row interface{ Scan(dest ...any) error }

// each calls f with every row. f must not query: a transaction has one connection, and with some
// databases that can do one thing at a time.
func each(ctx context.Context, q querier, f func(row) error, query string, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// all scans every row.
func all[T any](ctx context.Context, q querier, scan func(row) (T, error), query string, args ...any) (out []T, err error) {
	err = each(ctx, q, func(r row) error {
		v, err := scan(r)
		out = append(out, v)
		return err
	}, query, args...)
	return out, err
}

func scalar[T any](r row) (v T, err error) {
	err = r.Scan(&v)
	return v, err
}

// count returns the number that a query yields.
func count(ctx context.Context, q querier, query string, args ...any) (n int64, err error) {
	err = q.QueryRowContext(ctx, query, args...).Scan(&n)
	return n, err
}

// pages calls f with every row of a table, some at a time, in the order of a column of which no two
// rows have the same value. query ends with a condition "column > $1"; scan also says what the column is.
func pages[T any, K any](ctx context.Context, q querier, first K, scan func(row) (T, K, error), f func(T) error, query, column string) error {
	const size = 200
	for last := first; ; {
		page, err := all(ctx, q, func(r row) (v T, err error) {
			v, last, err = scan(r)
			return v, err
		}, query+fmt.Sprintf(" ORDER BY %s LIMIT %d", column, size), last)
		if err != nil {
			return err
		}
		for _, v := range page {
			if err := f(v); err != nil {
				return err
			}
		}
		if len(page) < size {
			return nil
		}
	}
}

// at scans unix milliseconds; NULL is the zero time.
func at(t *time.Time) sql.Scanner { return scanTime{t} }

type scanTime struct{ to *time.Time }

func (s scanTime) Scan(v any) error {
	*s.to = time.Time{}
	switch v := v.(type) {
	case nil:
	case int64:
		*s.to = time.UnixMilli(v)
	default:
		return fmt.Errorf("time is a %T", v)
	}
	return nil
}
