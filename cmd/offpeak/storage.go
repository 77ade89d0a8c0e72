package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"

	"offpeak/internal/blob"
	"offpeak/internal/blob/bucket"
	"offpeak/internal/doctor"
	"offpeak/internal/store"
)

// storageFlags say where a server keeps what it keeps: in one folder, or in a database and blobs that
// several nodes share.
type storageFlags struct {
	Data     string `default:"offpeak-data" type:"path" placeholder:"DIR" env:"OFFPEAK_DATA" help:"Folder for everything that is kept (default: ${default})."`
	Database string `placeholder:"URL" env:"OFFPEAK_DATABASE" help:"PostgreSQL database, such as postgres://user@host/offpeak, instead of SQLite in --data. Several nodes may share it."`
	Blobs    string `placeholder:"URL" env:"OFFPEAK_BLOBS" help:"Where the bytes of files are: s3://bucket?region=…, or a folder, which every node has to see; by default in --data."`
}

// A blobStore is where the bytes are, for everybody who has to do with them.
type blobStore interface {
	Create(ctx context.Context, key string) (blob.Writer, error)
	Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)
	Size(ctx context.Context, key string) (int64, error)
	List(ctx context.Context) iter.Seq2[blob.Info, error]
	Delete(ctx context.Context, key string) error
}

// check finds settings that cannot be meant.
func (f *storageFlags) check() error {
	if err := f.checkDatabase(); err != nil {
		return err
	}
	if f.Database != "" && f.Blobs == "" {
		return errors.New("with --database, say with --blobs where the bytes of files are: s3://bucket?region=…, or a folder that every node sees")
	}
	if scheme, _, ok := strings.Cut(f.Blobs, "://"); ok && scheme != "s3" {
		return fmt.Errorf("--blobs is s3://bucket?region=… or a folder; there is no %s://", scheme)
	}
	return nil
}

// checkDatabase is check for who needs the database alone.
func (f *storageFlags) checkDatabase() error {
	if f.Database != "" && !strings.HasPrefix(f.Database, "postgres://") && !strings.HasPrefix(f.Database, "postgresql://") {
		return errors.New("--database begins with postgres://, such as postgres://user@host/offpeak; for SQLite leave it out and say --data")
	}
	return nil
}

// cluster reports whether several nodes may share the database.
func (f *storageFlags) cluster() bool { return f.Database != "" }

// usesData reports whether anything is in the data folder.
func (f *storageFlags) usesData() bool { return f.Database == "" || f.Blobs == "" }

// openStore opens the database.
func (f *storageFlags) openStore(ctx context.Context, o store.Options) (*store.Store, error) {
	if err := f.checkDatabase(); err != nil {
		return nil, err
	}
	if f.cluster() {
		return store.Connect(ctx, f.Database, o)
	}
	return store.Open(ctx, f.Data, o)
}

// openBlobs opens where the bytes are, and makes a folder for them if there is none.
func (f *storageFlags) openBlobs(ctx context.Context) (blobStore, error) {
	switch {
	case strings.Contains(f.Blobs, "://"):
		return bucket.Open(ctx, f.Blobs)
	case f.Blobs != "" && f.cluster():
		return blob.Open(f.Blobs, blob.Shared())
	case f.Blobs != "":
		return blob.Open(f.Blobs)
	}
	return blob.Open(filepath.Join(f.Data, "blobs"))
}

// viewBlobs is openBlobs for somebody who only looks.
func (f *storageFlags) viewBlobs(ctx context.Context) (doctor.Blobs, error) {
	if f.Blobs == "" || strings.Contains(f.Blobs, "://") {
		return f.openBlobs(ctx)
	}
	return blob.NewView(f.Blobs), nil
}

// apart returns the same blobs for another use, so that many slow uploads keep no segment from being
// sealed.
func apart(blobs blobStore) blobStore {
	if b, ok := blobs.(*bucket.Bucket); ok {
		return b.Apart()
	}
	return blobs
}

// away reports whether an error tells only that the database or the bucket cannot serve now.
func away(err error) bool { return store.Away(err) || bucket.Away(err) }

// make makes what is ours to make: folders.
func (f *storageFlags) make(log *slog.Logger) error {
	if err := f.check(); err != nil {
		return err
	}
	if !f.usesData() {
		return nil
	}
	if err := makeFolder(f.Data); err != nil {
		return err
	}
	warnOpenFolder(f.Data, log)
	return nil
}

// tellRoom adds to an error that a disk is full, if that may be why.
func (f *storageFlags) tellRoom(err error) error {
	if f.usesData() {
		return tellRoom(err, f.Data)
	}
	return err
}

// flags returns them as somebody would have to give them to a command, without what is secret.
func (f *storageFlags) flags() string {
	words := ""
	for _, a := range f.attrs() {
		words += " --" + a.Key + " " + a.Value.String()
	}
	return strings.TrimPrefix(words, " ")
}

// attrs returns them as they are logged.
func (f *storageFlags) attrs() (attrs []slog.Attr) {
	if f.usesData() {
		attrs = append(attrs, slog.String("data", f.Data))
	}
	if f.Database != "" {
		attrs = append(attrs, slog.String("database", store.Describe(f.Database)))
	}
	if f.Blobs != "" {
		attrs = append(attrs, slog.String("blobs", withoutSecrets(f.Blobs)))
	}
	return attrs
}

// whose names the server by what it works on.
func (f *storageFlags) whose() string {
	if f.cluster() {
		return "the nodes with the database " + store.Describe(f.Database)
	}
	return "the server with the data in " + f.Data
}

// withoutSecrets returns the URL of a bucket without its settings, or a folder.
func withoutSecrets(blobs string) string {
	u, err := url.Parse(blobs)
	if err != nil || u.Scheme == "" {
		return blobs
	}
	u.RawQuery, u.Fragment = "", ""
	return u.Redacted()
}
