package store

import (
	"database/sql/driver"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
)

// Away reports whether err, of a method of Store, tells only that the database cannot be reached or
// cannot serve now: it is away, another one is about to take its place, it is starting or stopping, or
// has too much to do. What has failed so is asked for again with success once that is over. Whether it
// took effect is unknown.
func Away(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return awayCode(e.Code)
	}
	for _, e := range []error{errSilent, errCut, driver.ErrBadConn} {
		if errors.Is(err, e) {
			return true
		}
	}
	return conflict(err) || busy(err)
}

// awayCode is Away for what PostgreSQL says.
func awayCode(code string) bool {
	switch code {
	case "40001", "40P01", // others were in the way, again and again
		"25006",                            // it has become a standby
		"25P03",                            // it gave up a transaction of ours that did nothing for too long
		"55P03",                            // a lock does not come
		"57014",                            // it took longer than a statement may
		"57P01", "57P02", "57P03", "57P05": // it is stopping, has crashed, is starting
		return true
	}
	switch code[:min(len(code), 2)] {
	case "08", // of connections
		"53", // of connections, memory or disk there is not enough
		"58": // its disk fails
		return true
	}
	return false
}
