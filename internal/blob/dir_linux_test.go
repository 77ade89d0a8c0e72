package blob_test

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"offpeak/internal/blob"
)

// mount mounts a file system of 1 MiB at path until the test ends. Only the test sees it: its
// thread gets a mount namespace of its own, and dies with the test's goroutine.
func mount(t *testing.T, path string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may mount")
	}
	runtime.LockOSThread() // for good
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		t.Skipf("unshare: %v", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		t.Skipf("make mounts private: %v", err)
	}
	if err := syscall.Mount("blobtest", path, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, 0); err != nil { // fails if a file is still open
			t.Errorf("unmount: %v", err)
		}
	})
}

func TestDiskFull(t *testing.T) {
	path := t.TempDir()
	mount(t, path)
	d := open(t, path)
	key, err := put(d, blob.NewKey(), []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		size, step int
		fails      string // the buffer hides it from Write
	}{
		{2 << 20, 2 << 20, "write"},
		{2 << 20, 1000, "write"},
		{1 << 20, 1024, "commit"},
	} {
		big := blob.NewKey()
		w, err := d.Create(t.Context(), big)
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < test.size && err == nil; n += test.step {
			_, err = w.Write(make([]byte, test.step))
		}
		if err == nil {
			_, err = w.Commit()
		}
		w.Abort()
		if !errors.Is(err, syscall.ENOSPC) || !strings.HasPrefix(err.Error(), test.fails) || !strings.Contains(err.Error(), path) {
			t.Errorf("%+v: %v, want ENOSPC from %s naming %s", test, err, test.fails, path)
		}
		if _, err := d.Size(t.Context(), big); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("%+v: Size: %v, want ErrNotFound", test, err)
		}
		wantNoTemp(t, path)
	}
	wantContent(t, d, key, []byte("kept"))
	if _, err := put(d, blob.NewKey(), make([]byte, 500<<10)); err != nil {
		t.Errorf("a blob that fits: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	path := t.TempDir()
	mount(t, path)
	d := open(t, path)
	key, err := put(d, blob.NewKey(), []byte("kept"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.Create(t.Context(), blob.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if err := syscall.Mount("", path, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	wantReadOnly := func(op string, err error) {
		t.Helper()
		if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want EROFS naming %s", op, err, path)
		}
	}
	_, err = d.Create(t.Context(), blob.NewKey())
	wantReadOnly("Create", err)
	wantReadOnly("Delete", d.Delete(t.Context(), key))
	wantContent(t, d, key, []byte("kept"))
}
