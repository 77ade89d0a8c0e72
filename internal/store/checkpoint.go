package store

import (
	"context"
	"database/sql"
)

// What SQLite has committed stands in its log until a checkpoint brings it into the database file. Left
// alone it does that within the commit after which the log has become long: whoever commits waits for
// the copying and two fsyncs, and everybody behind. So a checkpointer does it beside them.
const (
	// checkpointAt is how many pages are in the log alone before they are copied.
	checkpointAt = 2000
	// fullLog is how many pages the log has before a commit waits all the same. Copying beside commits
	// never gets quite to the end of the log, and only from there it begins anew. What is left to copy
	// then is little.
	fullLog = 8000
)

// A checkpointer copies what is committed to the database file. Nil stands for a database that needs
// none.
type checkpointer struct {
	db      *sql.DB
	commits chan struct{} // of capacity 1
	stop    context.CancelFunc
	ended   chan struct{}
}

func newCheckpointer(db *sql.DB) *checkpointer {
	ctx, stop := context.WithCancel(context.Background())
	c := &checkpointer{db: db, commits: make(chan struct{}, 1), stop: stop, ended: make(chan struct{})}
	go c.run(ctx)
	return c
}

// committed tells that there may be more in the log.
func (c *checkpointer) committed() {
	if c == nil {
		return
	}
	select {
	case c.commits <- struct{}{}:
	default: // it is going to look anyway
	}
}

func (c *checkpointer) run(ctx context.Context) {
	defer close(c.ended)
	for {
		select {
		case <-c.commits:
		case <-ctx.Done():
			return
		}
		// An error is for the commits to meet: they do the same when it is not done here. The first asks
		// only how much there is; neither waits for anybody.
		if waiting, err := c.checkpoint(ctx, "NOOP"); err == nil && waiting >= checkpointAt {
			c.checkpoint(ctx, "PASSIVE")
		}
	}
}

// checkpoint makes a checkpoint of a kind, and returns how many pages are in the log alone after it.
func (c *checkpointer) checkpoint(ctx context.Context, kind string) (waiting int, err error) {
	var busy, pages, copied int
	err = c.db.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+kind+")").Scan(&busy, &pages, &copied)
	return pages - copied, err
}

func (c *checkpointer) close() error {
	if c == nil {
		return nil
	}
	c.stop()
	<-c.ended
	return c.db.Close()
}
