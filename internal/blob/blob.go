// Package blob keeps immutable bytes by key.
//
// It holds what files are made of: inputs as they were uploaded, outputs part by part. Which blobs
// make up a file, whose it is and when it goes is the store's affair; here are only keys and bytes.
//
//	w, err := blobs.Create(ctx, blob.NewKey())
//	if err != nil {
//		return err
//	}
//	defer w.Abort() // does nothing once committed
//	if _, err := io.Copy(w, body); err != nil {
//		return err
//	}
//	size, err := w.Commit()
//
// [Dir] keeps blobs in a folder, package bucket in S3. Every implementation passes the tests in
// blobtest, and promises:
//
//   - Whole or absent. A blob becomes visible under its key at Commit, all of it at once. After a
//     crash, a full disk or a failed write there is no part of one.
//   - Durable. What Commit acknowledged survives a crash of the process and of the machine.
//   - Immutable. A key is written once; to commit it again fails with [ErrExists].
//   - Ready. Whoever starts to read after Commit returned finds the blob, on any node that shares
//     the storage.
//   - Concurrent. Methods may be called from any goroutine; a [Writer] or a reader belongs to one.
//   - Bounded. Memory does not grow with the size of a blob.
//
// It leaves out checksums, compression and encryption, and does not know who still needs a blob. A
// failed Commit is not repeated but written anew under a new key: now and then the blob of the
// failed one is there nevertheless, whole, and stays until somebody sweeps it up.
package blob

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
)

var (
	// ErrNotFound is returned for a key that has no blob. It is also an fs.ErrNotExist.
	ErrNotFound error = sentinel{"no such blob", fs.ErrNotExist}

	// ErrExists is returned by Commit if the key has a blob already, which stays as it is. It is
	// also an fs.ErrExist.
	ErrExists error = sentinel{"blob exists already", fs.ErrExist}
)

var errBadKey = errors.New("not a blob key")

// A Writer takes the bytes of one blob. It holds memory and disk space until Commit or Abort.
//
// The context it was created with governs it: once that is cancelled, Write and Commit fail.
type Writer interface {
	// Write appends to the blob. It may buffer: only Commit tells whether the bytes arrived. After
	// an error every further Write and Commit fails.
	io.Writer

	// Commit makes the blob durable, then visible, and returns its size. Whether it succeeds or
	// fails, the Writer is done.
	Commit() (size int64, err error)

	// Abort drops an uncommitted blob. It does nothing after Commit or another Abort, so that it
	// may always be deferred.
	Abort()
}

// Info describes a blob.
type Info struct {
	Key  string
	Size int64
}

// keySize is the length of a key: 128 random bits as hexadecimal digits.
const keySize = 32

// NewKey draws a key. No two are ever the same, on any node.
func NewKey() string {
	var b [keySize / 2]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// CheckKey refuses what NewKey cannot have drawn. Keys become names of files and objects: with neither
// dots nor slashes, nor two spellings of one name, none leads out of the folder or to another's blob.
func CheckKey(key string) error {
	if !isHex(key) || len(key) != keySize {
		return errBadKey
	}
	return nil
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// A sentinel is an error to compare with that is also another, more general one.
type sentinel struct {
	msg string
	is  error
}

func (s sentinel) Error() string { return s.msg }
func (s sentinel) Unwrap() error { return s.is }
