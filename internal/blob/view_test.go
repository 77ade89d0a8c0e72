package blob_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"offpeak/internal/blob"
)

// TestView reads beside the one who writes, and leaves the folder as it is.
func TestView(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blobs")
	v := blob.NewView(path)
	for _, err := range v.List(t.Context()) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without a folder: %v", err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the view made the folder")
	}
	d, err := blob.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	key, other := blob.NewKey(), blob.NewKey()
	under, err := d.Create(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.Create(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "0123456789")
	if _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if n, err := v.Size(t.Context(), key); n != 10 || err != nil {
		t.Errorf("Size() = %d, %v", n, err)
	}
	r, err := v.Open(t.Context(), key, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if text, err := io.ReadAll(r); string(text) != "234" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
	n := 0
	for info, err := range v.List(t.Context()) {
		if n++; err != nil || info.Key != key {
			t.Errorf("there is %+v, %v", info, err)
		}
	}
	if n != 1 {
		t.Errorf("there are %d blobs", n)
	}
	if _, err := v.Size(t.Context(), other); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("the size of a blob under way: %v", err)
	}
	if _, err := under.Commit(); err != nil { // a view removes nothing that is under way
		t.Error(err)
	}
}
