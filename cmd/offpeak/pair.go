package main

import (
	"context"
	"errors"
	"fmt"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/store"
)

// pair makes sure that these are the blobs of this database. A node that keeps the bytes of files
// where the others do not look would lose them. So the database knows one blob that everybody has to
// find, and whoever comes first writes it.
func pair(ctx context.Context, db *store.Store, blobs blobStore, where *storageFlags) error {
	known, err := db.Blobs(ctx)
	if err == nil && known.Key == "" {
		if err = writePair(ctx, db, blobs); err == nil {
			known, err = db.Blobs(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("see if --blobs belong to --database: %w", err)
	}
	size, err := blobs.Size(ctx, known.Key)
	if errors.Is(err, blob.ErrNotFound) || err == nil && size != known.Bytes {
		return fmt.Errorf("the files of this database are not in %s: every node has to have the same --blobs (there is no blob %s)",
			withoutSecrets(where.Blobs), known.Key)
	}
	if err != nil {
		return fmt.Errorf("see if --blobs belong to --database: %w", err)
	}
	return nil
}

func writePair(ctx context.Context, db *store.Store, blobs blobStore) error {
	key := blob.NewKey()
	if err := db.ReserveBlob(ctx, key); err != nil {
		return err
	}
	w, err := blobs.Create(ctx, key)
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte("By this the nodes of Offpeak see that they have the same blobs.\n")); err != nil {
		w.Abort()
		return err
	}
	n, err := w.Commit()
	if err != nil {
		return err
	}
	return db.Pair(ctx, batch.Part{Key: key, Bytes: n})
}
