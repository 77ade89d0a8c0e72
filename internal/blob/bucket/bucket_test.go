package bucket_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"offpeak/internal/blob"
	"offpeak/internal/blob/blobtest"
	"offpeak/internal/blob/bucket"
	"offpeak/internal/blob/s3test"
)

func TestBucket(t *testing.T) {
	server := s3test.Start(t)
	blobtest.Run(t, func(t *testing.T) blobtest.Store {
		return open(t, server.Bucket(t))
	})
}

// TestPrefix has two buckets in one, each with a prefix, and something that is not ours.
func TestPrefix(t *testing.T) {
	server := s3test.Start(t)
	url := server.Bucket(t)
	whole := open(t, url)
	key := put(t, whole, []byte("beside them"))
	a, b := open(t, url+"&prefix=a/"), open(t, strings.Replace(url, "?", "/deep/b?", 1))
	inA, inB := put(t, a, []byte("of a")), put(t, b, []byte("of b"))
	for _, test := range []struct {
		name string
		b    *bucket.Bucket
		want string
	}{{"whole", whole, key}, {"a", a, inA}, {"b", b, inB}} {
		var keys []string
		for info, err := range test.b.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, info.Key)
		}
		if !slices.Equal(keys, []string{test.want}) {
			t.Errorf("%s lists %v, want %s alone", test.name, keys, test.want)
		}
	}
	if _, err := a.Size(t.Context(), inB); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("Size of another prefix's blob: %v, want ErrNotFound", err)
	}
}

func open(t *testing.T, url string, opts ...bucket.Option) *bucket.Bucket {
	t.Helper()
	b, err := bucket.Open(t.Context(), url, append([]bucket.Option{bucket.Certain}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put stores data under a new key.
func put(t *testing.T, b *bucket.Bucket, data []byte) string {
	t.Helper()
	key := blob.NewKey()
	if err := write(t, b, key, data); err != nil {
		t.Fatal(err)
	}
	return key
}

func write(t *testing.T, b *bucket.Bucket, key string, data []byte) error {
	w, err := b.Create(t.Context(), key)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return err
	}
	_, err = w.Commit()
	return err
}

func read(t *testing.T, b *bucket.Bucket, key string) ([]byte, error) {
	r, err := b.Open(t.Context(), key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
