package engine_test

import (
	"context"
	"database/sql"
	"flag"
	"io"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"offpeak/internal/blob"
	"offpeak/internal/blob/bucket"
	"offpeak/internal/blob/s3test"
	"offpeak/internal/doctor"
	"offpeak/internal/engine"
	"offpeak/internal/store"
	"offpeak/internal/store/storetest"
)

// The same tests run on SQLite and a folder, and, if they are asked to, on PostgreSQL and S3:
//
//	go test ./internal/engine -cluster
var clustered = flag.Bool("cluster", false, "have the benches keep everything in PostgreSQL and S3")

// A storage is where a bench keeps what it keeps.
type storage interface {
	open(ctx context.Context, o store.Options) (*store.Store, blobs, error)
	doctor(o doctor.Options) *doctor.Doctor
	// read opens the database for somebody who looks at it past the store.
	read() (*sql.DB, error)
}

type blobs interface {
	engine.Blobs
	doctor.Blobs
}

// aboutFolders skips a test that has to do with a folder as such.
func aboutFolders(t *testing.T) {
	t.Helper()
	if *clustered {
		t.Skip("this is about a data folder, and has run without -cluster")
	}
}

// A folder is what one process has for itself.
type folder string

func newFolder(t *testing.T) folder {
	t.Helper()
	f := folder(t.TempDir())
	if err := os.CopyFS(string(f), os.DirFS(template)); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f folder) open(ctx context.Context, o store.Options) (*store.Store, blobs, error) {
	s, err := store.Open(ctx, string(f), o)
	if err != nil {
		return nil, nil, err
	}
	d, err := blob.Open(filepath.Join(string(f), "blobs"))
	return s, d, err
}

func (f folder) doctor(o doctor.Options) *doctor.Doctor { return doctor.Open(string(f), o) }

func (f folder) read() (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+filepath.Join(string(f), "offpeak.db")+"?mode=ro&_pragma=query_only(1)&_pragma=busy_timeout(10000)")
}

// A database is one that several nodes share, as they do the folder with the blobs.
type database struct {
	folder
	dsn string
}

func (d database) open(ctx context.Context, o store.Options) (*store.Store, blobs, error) {
	s, err := store.Connect(ctx, d.dsn, o)
	if err != nil {
		return nil, nil, err
	}
	dir, err := blob.Open(filepath.Join(string(d.folder), "blobs"), blob.Shared())
	return s, dir, err
}

func (d database) doctor(o doctor.Options) *doctor.Doctor {
	return doctor.Connect(d.dsn, blob.NewView(filepath.Join(string(d.folder), "blobs")), o)
}

func (d database) read() (*sql.DB, error) { return readPostgres(d.dsn) }

// shared is what several nodes share, on no machine of theirs.
type shared struct {
	dsn    string
	bucket *elsewhere
}

// servers starts, once, what all tests with -cluster need, outside of any bubble.
var servers struct {
	once sync.Once
	s3   *s3test.Server
	ends []func()
}

// prepare starts the servers. t is in no bubble.
func prepare(t *testing.T) {
	t.Helper()
	servers.once.Do(func() {
		storetest.Postgres(t) // starts one that ends with this process
		servers.s3 = s3test.Start(lasting{t})
		assist()
	})
	if servers.s3 == nil {
		t.Fatal("without the S3 server, see above")
	}
}

// lasting is a test whose clean-up is the whole process's.
type lasting struct{ testing.TB }

func (l lasting) Cleanup(f func()) { servers.ends = append(servers.ends, f) }

func (l lasting) TempDir() string {
	l.Helper()
	dir, err := os.MkdirTemp("", "offpeak")
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newShared(t *testing.T) *shared {
	t.Helper()
	s := &shared{dsn: storetest.Postgres(t), bucket: &elsewhere{}}
	url := servers.s3.Bucket(t)
	var err error
	outside(func() { s.bucket.to, err = bucket.Open(context.Background(), url) })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// open has what a former process held be free, as it is once the others have noticed that it is gone.
func (s *shared) open(ctx context.Context, o store.Options) (*store.Store, blobs, error) {
	db, err := store.Connect(ctx, s.dsn, o)
	if err != nil {
		return nil, nil, err
	}
	return db, s.bucket, s.bury(ctx, db)
}

// bury takes everything away from everybody.
func (s *shared) bury(ctx context.Context, db *store.Store) error {
	judge, err := db.Join(ctx, "judge")
	if err != nil {
		return err
	}
	if _, err = db.Bury(ctx, judge, time.Time{}, -time.Hour); err != nil {
		return err
	}
	return db.Leave(ctx, judge)
}

func (s *shared) doctor(o doctor.Options) *doctor.Doctor { return doctor.Connect(s.dsn, s.bucket, o) }

func (s *shared) read() (*sql.DB, error) { return readPostgres(s.dsn) }

func readPostgres(dsn string) (*sql.DB, error) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	c.DefaultQueryExecMode = pgx.QueryExecModeExec
	return stdlib.OpenDB(*c), nil
}

// Time in a bubble passes once everybody in it waits for it, which somebody who waits for a network
// does not. So an idle connection, at which a goroutine listens, would stop the clock. PostgreSQL's have
// none; HTTP's have, and live outside.

// An assistant does things outside of every bubble, one at a time.
type assistant struct {
	tasks chan func()
	done  chan struct{}
}

var assistants = make(chan *assistant, 64)

// assist gets the assistants to work, before there is any bubble.
func assist() {
	for range cap(assistants) {
		a := &assistant{make(chan func()), make(chan struct{})}
		go func() {
			for task := range a.tasks {
				task()
				a.done <- struct{}{}
			}
		}()
		assistants <- a
	}
}

// outside runs f outside of every bubble, while time stands still in all that wait for it.
func outside(f func()) {
	a := <-assistants
	a.tasks <- f
	<-a.done
	assistants <- a
}

// elsewhere has all that is done to a bucket be done outside.
type elsewhere struct{ to *bucket.Bucket }

func (e *elsewhere) Create(ctx context.Context, key string) (w blob.Writer, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	outside(func() { w, err = e.to.Create(context.Background(), key) })
	if err != nil {
		return nil, err
	}
	return farWriter{ctx, w}, nil
}

func (e *elsewhere) Open(ctx context.Context, key string, off, n int64) (r io.ReadCloser, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	outside(func() { r, err = e.to.Open(context.Background(), key, off, n) })
	if err != nil {
		return nil, err
	}
	return farReader{r}, nil
}

func (e *elsewhere) Size(ctx context.Context, key string) (n int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	outside(func() { n, err = e.to.Size(context.Background(), key) })
	return n, err
}

func (e *elsewhere) Delete(ctx context.Context, key string) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	outside(func() { err = e.to.Delete(context.Background(), key) })
	return err
}

func (e *elsewhere) List(ctx context.Context) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		var list []blob.Info
		var err error
		outside(func() {
			for info, e := range e.to.List(context.Background()) {
				if err = e; err != nil {
					return
				}
				list = append(list, info)
			}
		})
		for _, info := range list {
			if !yield(info, nil) {
				return
			}
		}
		if err != nil {
			yield(blob.Info{}, err)
		}
	}
}

type farWriter struct {
	ctx context.Context
	w   blob.Writer
}

func (f farWriter) Write(p []byte) (n int, err error) {
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	outside(func() { n, err = f.w.Write(p) })
	return n, err
}

func (f farWriter) Commit() (n int64, err error) {
	if err := f.ctx.Err(); err != nil {
		f.Abort()
		return 0, err
	}
	outside(func() { n, err = f.w.Commit() })
	return n, err
}

func (f farWriter) Abort() { outside(f.w.Abort) }

type farReader struct{ r io.ReadCloser }

func (f farReader) Read(p []byte) (n int, err error) {
	outside(func() { n, err = f.r.Read(p) })
	return n, err
}

func (f farReader) Close() (err error) {
	outside(func() { err = f.r.Close() })
	return err
}
