// Package blobtest holds the tests that every implementation of blob storage passes.
//
// Keys are random, so that the storage under test may hold other blobs and serve other tests.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
)

// A Store is blob storage under test. Package blob says what each method promises.
type Store interface {
	Create(ctx context.Context, key string) (blob.Writer, error)
	Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error)
	Size(ctx context.Context, key string) (int64, error)
	Delete(ctx context.Context, key string) error
	List(ctx context.Context) iter.Seq2[blob.Info, error]
}

var _ Store = (*blob.Dir)(nil)

// Run runs all tests, each on a store that open returns.
func Run(t *testing.T, open func(t *testing.T) Store) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Store)
	}{
		{"WriteAndRead", testWriteAndRead},
		{"Ranges", testRanges},
		{"AnyRange", testAnyRange},
		{"Uncommitted", testUncommitted},
		{"Aborted", testAborted},
		{"Committed", testCommitted},
		{"Immutable", testImmutable},
		{"OneWinner", testOneWinner},
		{"Concurrent", testConcurrent},
		{"UnknownKey", testUnknownKey},
		{"BadKey", testBadKey},
		{"Delete", testDelete},
		{"List", testList},
		{"Cancelled", testCancelled},
		{"AnyHistory", testAnyHistory},
		{"Concat", testConcat},
		{"ConcatOpensOne", testConcatOpensOne},
		{"ConcatFails", testConcatFails},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

func testWriteAndRead(t *testing.T, s Store) {
	for _, size := range []int{0, 1, 4095, 128<<10 - 1, 128 << 10, 128<<10 + 1, 8<<20 + 3} {
		data := random(size)
		for _, step := range []int{1000, 1 << 20} { // below and above what anybody buffers
			t.Run(fmt.Sprintf("%d bytes by %d", size, step), func(t *testing.T) {
				key := blob.NewKey()
				w := create(t, s, key)
				for rest := data; len(rest) > 0; {
					n, err := w.Write(rest[:min(step, len(rest))])
					if err != nil {
						t.Fatal(err)
					}
					rest = rest[n:]
				}
				if got, err := w.Commit(); err != nil || got != int64(size) {
					t.Fatalf("Commit() = %d, %v; want %d", got, err, size)
				}
				if got, err := s.Size(t.Context(), key); err != nil || got != int64(size) {
					t.Errorf("Size() = %d, %v; want %d", got, err, size)
				}
				if got := read(t, s, key, 0, -1); !bytes.Equal(got, data) {
					t.Errorf("read %d bytes that differ from the %d written", len(got), size)
				}
			})
		}
	}
}

func testRanges(t *testing.T, s Store) {
	key := put(t, s, []byte("0123456789"))
	for _, test := range []struct {
		off, n int64
		want   string
	}{
		{0, -1, "0123456789"},
		{0, 10, "0123456789"},
		{0, 11, "0123456789"},
		{0, 1<<63 - 1, "0123456789"},
		{0, 1, "0"},
		{0, 0, ""},
		{3, 4, "3456"},
		{3, -1, "3456789"},
		{3, -9, "3456789"},
		{9, 1, "9"},
		{9, 5, "9"},
		{10, -1, ""},
		{10, 1, ""},
		{10, 0, ""},
		{11, -1, ""},
		{1<<63 - 1, 1<<63 - 1, ""},
	} {
		if got := read(t, s, key, test.off, test.n); string(got) != test.want {
			t.Errorf("Open(%d, %d) reads %q, want %q", test.off, test.n, got, test.want)
		}
	}
	if r, err := s.Open(t.Context(), key, -1, 1); err == nil {
		r.Close()
		t.Error("Open with a negative offset succeeds")
	}
	if got := read(t, s, put(t, s, nil), 0, -1); len(got) > 0 {
		t.Errorf("an empty blob reads %q", got)
	}
}

func testAnyRange(t *testing.T, s Store) {
	data := random(300 << 10)
	key := put(t, s, data)
	rapid.Check(t, func(rt *rapid.T) {
		off, n := drawRange(rt, len(data))
		r, err := s.Open(t.Context(), key, off, n)
		if err != nil {
			rt.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		if want := cut(data, off, n); err != nil || !bytes.Equal(got, want) {
			rt.Fatalf("Open(%d, %d) reads %d bytes, error %v; want %d bytes", off, n, len(got), err, len(want))
		}
	})
}

func testUncommitted(t *testing.T, s Store) {
	key := blob.NewKey()
	w := create(t, s, key)
	for range 3 {
		wantAbsent(t, s, key)
		if _, err := w.Write(random(1 << 20)); err != nil {
			t.Fatal(err)
		}
	}
	wantAbsent(t, s, key)
}

func testAborted(t *testing.T, s Store) {
	key := blob.NewKey()
	w := create(t, s, key)
	if _, err := w.Write(random(1 << 20)); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	w.Abort()
	wantAbsent(t, s, key)
	wantDone(t, w)
	wantAbsent(t, s, key)

	// The key was never written, so it is still good.
	w = create(t, s, key)
	commit(t, w)
	wantBlob(t, s, key, nil)
}

func testCommitted(t *testing.T, s Store) {
	key := blob.NewKey()
	w := create(t, s, key)
	io.WriteString(w, "kept")
	commit(t, w)
	w.Abort()
	wantDone(t, w)
	w.Abort()
	wantBlob(t, s, key, []byte("kept"))
}

func testImmutable(t *testing.T, s Store) {
	key := blob.NewKey()
	late := create(t, s, key) // begun before there was a blob
	first := create(t, s, key)
	io.WriteString(late, "other bytes")
	io.WriteString(first, "bytes")
	commit(t, first)
	wantExists(t, late)

	if w, err := s.Create(t.Context(), key); err == nil { // may be refused here already
		defer w.Abort()
		wantExists(t, w)
	} else if !errors.Is(err, blob.ErrExists) {
		t.Errorf("Create of a key that exists: %v, want ErrExists", err)
	}
	wantBlob(t, s, key, []byte("bytes"))
}

func testOneWinner(t *testing.T, s Store) {
	for range 10 {
		key := blob.NewKey()
		var mu sync.Mutex
		var won []byte
		var wins int
		var wg sync.WaitGroup
		for i := range 8 {
			w := create(t, s, key)
			wg.Go(func() {
				data := bytes.Repeat([]byte{byte(i)}, 1000*i)
				w.Write(data)
				_, err := w.Commit()
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won = data
					wins++
				} else if !errors.Is(err, blob.ErrExists) {
					t.Errorf("Commit: %v, want nil or ErrExists", err)
				}
			})
		}
		wg.Wait()
		if wins != 1 {
			t.Fatalf("%d of 8 writers of one key committed, want 1", wins)
		}
		wantBlob(t, s, key, won)
	}
}

func testConcurrent(t *testing.T, s Store) {
	shared := random(1 << 20)
	sharedKey := put(t, s, shared)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 8 {
				data := random(i * j * 1000)
				key := blob.NewKey()
				w, err := s.Create(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				w.Write(data)
				if j%4 == 3 {
					w.Abort()
				} else if _, err := w.Commit(); err != nil {
					t.Error(err)
				} else if got, err := readAll(t.Context(), s, key, 0, -1); err != nil || !bytes.Equal(got, data) {
					t.Errorf("read %d bytes, error %v; want %d bytes", len(got), err, len(data))
				}
				off := int64(i * j * 1000)
				if got, err := readAll(t.Context(), s, sharedKey, off, 5000); err != nil || !bytes.Equal(got, cut(shared, off, 5000)) {
					t.Errorf("read %d bytes of the shared blob, error %v", len(got), err)
				}
				if j%4 == 2 {
					if err := s.Delete(t.Context(), key); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func testUnknownKey(t *testing.T, s Store) {
	wantAbsent(t, s, blob.NewKey())
	for _, n := range []int64{-1, 0, 1} {
		for _, off := range []int64{0, 5} {
			r, err := s.Open(t.Context(), blob.NewKey(), off, n)
			if err == nil {
				r.Close()
			}
			if !errors.Is(err, blob.ErrNotFound) {
				t.Errorf("Open(%d, %d) of an unknown key: %v, want ErrNotFound", off, n, err)
			}
		}
	}
}

func testBadKey(t *testing.T, s Store) {
	good := put(t, s, []byte("here"))
	for _, key := range []string{
		"", ".", "..", "/", "/etc/passwd", "tmp", good[:2], good[:31], good + "0", good[:31] + "g",
		strings.Repeat("A", 32), good[:31] + "\x00", good[:31] + "\n", good[:2] + "/" + good[:29],
		"../" + good[:29], good[:2] + "/" + good, good[:28] + "/../", "é" + good[:30], good + "/",
	} {
		if w, err := s.Create(t.Context(), key); err == nil {
			w.Abort()
			t.Errorf("Create(%q) succeeds", key)
		}
		if r, err := s.Open(t.Context(), key, 0, -1); err == nil {
			r.Close()
			t.Errorf("Open(%q) succeeds", key)
		}
		if _, err := s.Size(t.Context(), key); err == nil {
			t.Errorf("Size(%q) succeeds", key)
		}
		if err := s.Delete(t.Context(), key); err == nil {
			t.Errorf("Delete(%q) succeeds", key)
		}
	}
	wantBlob(t, s, good, []byte("here"))
}

func testDelete(t *testing.T, s Store) {
	gone, kept := put(t, s, []byte("gone")), put(t, s, []byte("kept"))
	for range 2 {
		if err := s.Delete(t.Context(), gone); err != nil {
			t.Fatalf("Delete: %v", err)
		}
		wantAbsent(t, s, gone)
	}
	if err := s.Delete(t.Context(), blob.NewKey()); err != nil {
		t.Errorf("Delete of an unknown key: %v", err)
	}
	wantBlob(t, s, kept, []byte("kept"))
}

func testList(t *testing.T, s Store) {
	want := make(map[string]int64)
	for i := range 40 {
		want[put(t, s, random(i*100))] = int64(i * 100)
	}
	deleted := put(t, s, nil)
	if err := s.Delete(t.Context(), deleted); err != nil {
		t.Fatal(err)
	}
	open := blob.NewKey()
	create(t, s, open)

	got := list(t, s)
	for key, size := range want {
		if listed, ok := got[key]; !ok || listed != size {
			t.Errorf("List has %s: %t, with size %d; want %d", key, ok, listed, size)
		}
	}
	for _, key := range []string{deleted, open} {
		if _, ok := got[key]; ok {
			t.Errorf("List has %s, which is no blob", key)
		}
	}
	for range s.List(t.Context()) {
		break // a caller may stop early
	}
}

func testCancelled(t *testing.T, s Store) {
	data := random(8 << 20)
	key := put(t, s, data)
	ctx, cancel := context.WithCancel(t.Context())

	fresh := blob.NewKey()
	w, err := s.Create(ctx, fresh)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	r, err := s.Open(ctx, key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	cancel()

	check := func(op string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s after cancel: %v, want context.Canceled", op, err)
		}
	}
	_, err = io.Copy(io.Discard, r)
	check("Read", err)
	_, err = w.Commit()
	check("Commit", err)
	_, err = s.Create(ctx, blob.NewKey())
	check("Create", err)
	_, err = s.Open(ctx, key, 0, -1)
	check("Open", err)
	_, err = s.Size(ctx, key)
	check("Size", err)
	check("Delete", s.Delete(ctx, key))
	err = nil
	for _, err = range s.List(ctx) {
		if err != nil {
			break
		}
	}
	check("List", err)

	wantAbsent(t, s, fresh)
	wantBlob(t, s, key, data)
}

// testAnyHistory compares a store with a map through any order of operations on a few keys.
func testAnyHistory(t *testing.T, s Store) {
	rapid.Check(t, func(rt *rapid.T) {
		ctx := t.Context()
		keys := []string{blob.NewKey(), blob.NewKey(), blob.NewKey()}
		blobs := make(map[string][]byte)
		type open struct {
			blob.Writer
			key  string
			data []byte
		}
		var writers []*open
		defer func() {
			for _, w := range writers {
				w.Abort()
			}
			for _, key := range keys {
				s.Delete(ctx, key)
			}
		}()
		key := func(rt *rapid.T) string { return rapid.SampledFrom(keys).Draw(rt, "key") }
		take := func(rt *rapid.T) *open {
			if len(writers) == 0 {
				rt.Skip("no writer")
			}
			i := rapid.IntRange(0, len(writers)-1).Draw(rt, "writer")
			w := writers[i]
			writers = append(writers[:i], writers[i+1:]...)
			return w
		}
		rt.Repeat(map[string]func(*rapid.T){
			"create": func(rt *rapid.T) {
				k := key(rt)
				if _, exists := blobs[k]; exists {
					return // Create may refuse it, or leave that to Commit
				}
				w, err := s.Create(ctx, k)
				if err != nil {
					rt.Fatal(err)
				}
				writers = append(writers, &open{Writer: w, key: k})
			},
			"write": func(rt *rapid.T) {
				w := take(rt)
				writers = append(writers, w)
				p := random(rapid.SampledFrom([]int{0, 1, 1000, 200 << 10}).Draw(rt, "size"))
				if n, err := w.Write(p); err != nil || n != len(p) {
					rt.Fatalf("Write(%d bytes) = %d, %v", len(p), n, err)
				}
				w.data = append(w.data, p...)
			},
			"commit": func(rt *rapid.T) {
				w := take(rt)
				_, exists := blobs[w.key]
				switch _, err := w.Commit(); {
				case err == nil && !exists:
					blobs[w.key] = w.data
				case !errors.Is(err, blob.ErrExists) || !exists:
					rt.Fatalf("Commit where exists=%t: %v", exists, err)
				}
			},
			"abort": func(rt *rapid.T) { take(rt).Abort() },
			"delete": func(rt *rapid.T) {
				k := key(rt)
				if err := s.Delete(ctx, k); err != nil {
					rt.Fatal(err)
				}
				delete(blobs, k)
			},
			"": func(rt *rapid.T) {
				for _, k := range keys {
					want, exists := blobs[k]
					got, err := readAll(ctx, s, k, 0, -1)
					if exists && (err != nil || !bytes.Equal(got, want)) {
						rt.Fatalf("blob has %d bytes, error %v; want %d", len(got), err, len(want))
					}
					if !exists && !errors.Is(err, blob.ErrNotFound) {
						rt.Fatalf("Open of an absent blob: %v, want ErrNotFound", err)
					}
				}
			},
		})
	})
}

// split stores data in parts of random sizes, none and all included.
func split(t *testing.T, rt *rapid.T, s Store, data []byte) []batch.Part {
	cuts := rapid.SliceOfN(rapid.IntRange(0, len(data)), 0, 6).Draw(rt, "cuts")
	var parts []batch.Part
	for len(data) > 0 || len(cuts) > 0 {
		n := len(data)
		if len(cuts) > 0 {
			n = min(n, cuts[0])
			cuts = cuts[1:]
		}
		parts = append(parts, batch.Part{Key: put(t, s, data[:n]), Bytes: int64(n)})
		data = data[n:]
	}
	return parts
}

func testConcat(t *testing.T, s Store) {
	rapid.Check(t, func(rt *rapid.T) {
		data := random(rapid.IntRange(0, 2000).Draw(rt, "size"))
		parts := split(t, rt, s, data)
		for range 5 {
			off, n := drawRange(rt, len(data))
			r := blob.Concat(t.Context(), s, parts, off, n)
			if err := iotest.TestReader(r, cut(data, off, n)); err != nil {
				rt.Fatalf("Concat(%d, %d): %v", off, n, err)
			}
			if err := r.Close(); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// counted counts the readers that are open, and that were opened.
type counted struct {
	Store
	now, most, total int
}

func (c *counted) Open(ctx context.Context, key string, off, n int64) (io.ReadCloser, error) {
	r, err := c.Store.Open(ctx, key, off, n)
	if err == nil {
		c.now++
		c.total++
		c.most = max(c.most, c.now)
		r = &countedReader{r, c}
	}
	return r, err
}

type countedReader struct {
	io.ReadCloser
	c *counted
}

func (r *countedReader) Close() error {
	r.c.now--
	return r.ReadCloser.Close()
}

func testConcatOpensOne(t *testing.T, s Store) {
	c := &counted{Store: s}
	var parts []batch.Part
	for i := range 10 {
		parts = append(parts, batch.Part{Key: put(t, s, random(i*10)), Bytes: int64(i * 10)})
	}
	for _, test := range []struct {
		off, n, read int64
		opened       int
	}{
		{0, -1, 0, 0},  // none before the first Read
		{0, -1, 5, 1},  // closed in the middle of a part
		{0, -1, 10, 1}, // at the end of one
		{0, -1, 450, 9},
		{10, 20, 20, 1},
		{9, 22, 22, 3},
		{450, -1, 0, 0},
		{5000, 1, 0, 0},
	} {
		*c = counted{Store: s}
		r := blob.Concat(t.Context(), c, parts, test.off, test.n)
		if n, err := io.CopyN(io.Discard, r, test.read); err != nil {
			t.Fatalf("read %d of %d bytes: %v", n, test.read, err)
		}
		for range 2 {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		if c.now != 0 || c.most > 1 || c.total != test.opened {
			t.Errorf("%+v: opened %d blobs, at most %d at once, %d still are; want %d, 1, 0", test, c.total, c.most, c.now, test.opened)
		}
		if n, err := r.Read(make([]byte, 1)); n > 0 || !errors.Is(err, fs.ErrClosed) {
			t.Errorf("Read after Close = %d, %v; want fs.ErrClosed", n, err)
		}
	}
}

func testConcatFails(t *testing.T, s Store) {
	good := batch.Part{Key: put(t, s, []byte("good")), Bytes: 4}
	short := batch.Part{Key: good.Key, Bytes: 5}
	gone := batch.Part{Key: blob.NewKey(), Bytes: 4}
	for _, test := range []struct {
		name  string
		parts []batch.Part
		off   int64
		want  string
		err   error
	}{
		{"missing part", []batch.Part{good, gone, good}, 0, "good", blob.ErrNotFound},
		{"missing part before the range", []batch.Part{gone, good}, 4, "good", nil},
		{"short part", []batch.Part{good, short, good}, 0, "goodgood", io.ErrUnexpectedEOF},
		{"range behind a short part's end", []batch.Part{short, good}, 4, "", io.ErrUnexpectedEOF},
		{"no parts", nil, 0, "", nil},
	} {
		r := blob.Concat(t.Context(), s, test.parts, test.off, -1)
		got, err := io.ReadAll(r)
		if string(got) != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: read %q, %v; want %q, %v", test.name, got, err, test.want, test.err)
		}
		if _, again := r.Read(make([]byte, 1)); test.err != nil && again != err {
			t.Errorf("%s: the next Read: %v, want %v again", test.name, again, err)
		}
		r.Close()
	}

	r := blob.Concat(t.Context(), s, []batch.Part{good}, -1, -1)
	defer r.Close()
	if got, err := io.ReadAll(r); err == nil {
		t.Errorf("a negative offset reads %q", got)
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// drawRange draws an offset and a length around a file of the given size.
func drawRange(rt *rapid.T, size int) (off, n int64) {
	off = int64(rapid.IntRange(0, size+10).Draw(rt, "off"))
	n = int64(rapid.IntRange(-1, size+10).Draw(rt, "n"))
	return off, n
}

// cut returns the range of data that Open should read.
func cut(data []byte, off, n int64) []byte {
	data = data[min(off, int64(len(data))):]
	if n < 0 {
		return data
	}
	return data[:min(n, int64(len(data)))]
}

// create begins a blob, which ends with the test if not before.
func create(t *testing.T, s Store, key string) blob.Writer {
	t.Helper()
	w, err := s.Create(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Abort)
	return w
}

func commit(t *testing.T, w blob.Writer) {
	t.Helper()
	if _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// put stores data under a new key.
func put(t *testing.T, s Store, data []byte) string {
	t.Helper()
	key := blob.NewKey()
	w, err := s.Create(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	commit(t, w)
	return key
}

func readAll(ctx context.Context, s Store, key string, off, n int64) ([]byte, error) {
	r, err := s.Open(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func read(t *testing.T, s Store, key string, off, n int64) []byte {
	t.Helper()
	data, err := readAll(t.Context(), s, key, off, n)
	if err != nil {
		t.Fatalf("read (%d, %d): %v", off, n, err)
	}
	return data
}

func list(t *testing.T, s Store) map[string]int64 {
	t.Helper()
	got := make(map[string]int64)
	for info, err := range s.List(t.Context()) {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		if _, twice := got[info.Key]; twice {
			t.Errorf("List has %s twice", info.Key)
		}
		got[info.Key] = info.Size
	}
	return got
}

func wantBlob(t *testing.T, s Store, key string, want []byte) {
	t.Helper()
	if got := read(t, s, key, 0, -1); !bytes.Equal(got, want) {
		t.Errorf("blob has %d bytes, want %d, or other ones", len(got), len(want))
	}
}

func wantAbsent(t *testing.T, s Store, key string) {
	t.Helper()
	r, err := s.Open(t.Context(), key, 0, -1)
	if err == nil {
		r.Close()
	}
	if !errors.Is(err, blob.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open: %v, want ErrNotFound", err)
	}
	if _, err := s.Size(t.Context(), key); !errors.Is(err, blob.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Size: %v, want ErrNotFound", err)
	}
	if _, ok := list(t, s)[key]; ok {
		t.Error("List has it")
	}
}

func wantExists(t *testing.T, w blob.Writer) {
	t.Helper()
	if _, err := w.Commit(); !errors.Is(err, blob.ErrExists) || !errors.Is(err, fs.ErrExist) {
		t.Errorf("Commit of a key that exists: %v, want ErrExists", err)
	}
}

// wantDone checks that w can do nothing any more.
func wantDone(t *testing.T, w blob.Writer) {
	t.Helper()
	if _, err := w.Write([]byte("more")); err == nil {
		t.Error("Write succeeds on a writer that is done")
	}
	if _, err := w.Commit(); err == nil {
		t.Error("Commit succeeds on a writer that is done")
	}
}
