package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/blob"
	"offpeak/internal/blob/bucket"
	"offpeak/internal/blob/s3test"
)

// small fits into one call, large takes three parts.
const (
	small = 1000
	large = 11 << 20
)

type spoiler = func(w http.ResponseWriter, r *http.Request, pass http.Handler)

// behind returns a bucket behind a relay.
func behind(t *testing.T, opts ...bucket.Option) (*bucket.Bucket, *relay) {
	t.Helper()
	server := s3test.Start(t)
	r := newRelay(t, server)
	name, _, _ := strings.Cut(strings.TrimPrefix(server.Bucket(t), "s3://"), "?")
	return open(t, s3test.URL(r.addr, name), append([]bucket.Option{bucket.Impatient}, opts...)...), r
}

func random(n int) []byte {
	data := make([]byte, n)
	c := rand.NewChaCha8([32]byte{byte(n)})
	c.Read(data)
	return data
}

// TestPassingTrouble lets the first calls of every kind fail, up to as many as are repeated. Nobody
// notices.
func TestPassingTrouble(t *testing.T) {
	b, r := behind(t)
	for _, trouble := range []struct {
		name  string
		spoil spoiler
	}{
		{"500", func(w http.ResponseWriter, r *http.Request, _ http.Handler) { refuse(w, r, 500, "InternalError") }},
		{"503", func(w http.ResponseWriter, r *http.Request, _ http.Handler) { refuse(w, r, 503, "SlowDown") }},
		{"429", func(w http.ResponseWriter, r *http.Request, _ http.Handler) { refuse(w, r, 429, "TooManyRequests") }},
		{"400 RequestTimeout", func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			if r.Method != http.MethodPut { // it is about the body that did not come
				pass.ServeHTTP(w, r)
				return
			}
			refuse(w, r, 400, "RequestTimeout")
		}},
		{"409", func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			refuse(w, r, 409, "ConditionalRequestConflict")
		}},
		{"no answer", func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { hold(r) }},
		{"cut before the request is read", func(http.ResponseWriter, *http.Request, http.Handler) { cut() }},
		{"cut within the request", func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.CopyN(io.Discard, r.Body, 1<<20)
			cut()
		}},
		{"took effect, 500", func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			land(r, pass)
			refuse(w, r, 500, "InternalError")
		}},
		{"took effect, cut", func(_ http.ResponseWriter, r *http.Request, pass http.Handler) {
			land(r, pass)
			cut()
		}},
	} {
		for _, times := range []int{1, 3} {
			for _, size := range []int{small, large} {
				if times > 1 && size > small || trouble.name == "no answer" && times*size > small {
					continue // it takes its time
				}
				t.Run(fmt.Sprintf("%s, %d times, %d bytes", trouble.name, times, size), func(t *testing.T) {
					r.set(first(times, "", trouble.spoil))
					data := random(size)
					key := put(t, b, data)
					if got, err := read(t, b, key); err != nil || !bytes.Equal(got, data) {
						t.Errorf("read %d bytes, error %v; want the %d written", len(got), err, size)
					}
					if n, err := b.Size(t.Context(), key); err != nil || n != int64(size) {
						t.Errorf("Size = %d, %v; want %d", n, err, size)
					}
					found := false
					for info, err := range b.List(t.Context()) {
						if err != nil {
							t.Fatal(err)
						}
						found = found || info == blob.Info{Key: key, Size: int64(size)}
					}
					if !found {
						t.Error("List does not have it")
					}
					if err := b.Delete(t.Context(), key); err != nil {
						t.Error(err)
					}
					r.set(nil)
					if _, err := b.Size(t.Context(), key); !errors.Is(err, blob.ErrNotFound) {
						t.Errorf("Size after Delete: %v, want ErrNotFound", err)
					}
				})
			}
		}
	}
}

// TestLastingTrouble has calls of one kind fail for good, whether they take effect or not. What fails
// says so in bounded time, the key of a failed commit is not used again, and a new one is as good as
// ever when the trouble is over.
func TestLastingTrouble(t *testing.T) {
	b, r := behind(t)
	for _, size := range []int{small, large} {
		kinds := []string{"put"}
		if size == large {
			kinds = []string{"begin", "part", "complete"}
		}
		for _, kind := range append(kinds, "get", "head", "delete") {
			for _, effect := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s of %d bytes, in effect: %t", kind, size, effect), func(t *testing.T) {
					data := random(size)
					key := blob.NewKey()
					reads := kind == "get" || kind == "head" || kind == "delete"
					if reads {
						if err := write(t, b, key, data); err != nil {
							t.Fatal(err)
						}
					}
					r.set(first(1000, kind, func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
						if effect {
							land(r, pass)
						}
						refuse(w, r, 503, "SlowDown")
					}))
					start := time.Now()
					var err error
					switch kind {
					case "get":
						_, err = read(t, b, key)
					case "head":
						_, err = b.Size(t.Context(), key)
					case "delete":
						err = b.Delete(t.Context(), key)
					default:
						err = write(t, b, key, data)
					}
					lost := effect && (kind == "put" || kind == "complete")
					switch {
					case lost && err != nil:
						// Each later try found the object and was told so; the answer to that was 503 as well.
					case err == nil:
						t.Error("it succeeds")
					}
					if errors.Is(err, blob.ErrExists) || errors.Is(err, blob.ErrNotFound) {
						t.Errorf("%v: there is no telling that", err)
					}
					if err != nil && !bucket.Away(err) {
						t.Errorf("%v: Away says no", err)
					}
					if took := time.Since(start); took > 20*time.Second {
						t.Errorf("it took %v", took)
					}
					if n := r.count(kind); n != 4 {
						t.Errorf("%d calls, want 4", n)
					}

					r.set(nil)
					got, err := read(t, b, key)
					switch {
					case err == nil && !bytes.Equal(got, data):
						t.Errorf("there is a part of a blob: %d bytes of %d", len(got), size)
					case err == nil && !reads && !lost, err != nil && reads && !(kind == "delete" && effect), err != nil && lost:
						t.Errorf("read: %v", err)
					}
					again := put(t, b, data)
					if got, err := read(t, b, again); err != nil || !bytes.Equal(got, data) {
						t.Errorf("the next one: read %d bytes, error %v", len(got), err)
					}
				})
			}
		}
	}
	if all, free := bucket.PartBuffers(b); free != all {
		t.Errorf("%d of %d buffers are free after all of it", free, all)
	}
}

// TestDownloadGoesOn cuts every connection after a while. The reader gets every byte once.
func TestDownloadGoesOn(t *testing.T) {
	b, r := behind(t)
	data := random(large)
	key := put(t, b, data)
	for _, test := range []struct {
		off, n int64
		after  int // bytes until the connection breaks
	}{
		{0, -1, 3 << 20},
		{0, large, 1<<20 + 1},
		{5, -1, 4 << 20},
		{100, 6 << 20, 1 << 20},
		{large - 5<<20, -1, 2 << 20},
		{large - 5<<20, 100 << 20, 64 << 10},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			r.set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
				pass.ServeHTTP(&limited{w, test.after}, r)
			})
			body, err := b.Open(t.Context(), key, test.off, test.n)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			want := data[test.off:]
			if test.n >= 0 && test.n < int64(len(want)) {
				want = want[:test.n]
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("read %d bytes, error %v; want %d bytes", len(got), err, len(want))
			}
			if n, most := r.count("get"), len(want)/test.after+1; n > most {
				t.Errorf("%d connections where %d would do", n, most)
			}
		})
	}

	t.Run("never", func(t *testing.T) { // it breaks before it brings anything
		r.set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			pass.ServeHTTP(&limited{w, 1}, r)
		})
		got, err := read(t, b, key)
		if err == nil || !bytes.HasPrefix(data, got) {
			t.Errorf("read %d bytes, error %v; want an error after the first of them", len(got), err)
		}
	})
	t.Run("deleted meanwhile", func(t *testing.T) {
		r.set(nil)
		gone := put(t, b, data)
		r.set(first(1, "get", func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			pass.ServeHTTP(&limited{w, 1 << 20}, r)
		}))
		body, err := b.Open(t.Context(), gone, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		if err := b.Delete(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(body); !errors.Is(err, blob.ErrNotFound) || !bytes.HasPrefix(data, got) {
			t.Errorf("read %d bytes, error %v; want ErrNotFound", len(got), err)
		}
	})
	t.Run("ignores Range", func(t *testing.T) {
		r.set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			r.Header.Del("Range") // it is not signed
			pass.ServeHTTP(w, r)
		})
		if body, err := b.Open(t.Context(), key, 100, 100); err == nil {
			got, err := io.ReadAll(body)
			body.Close()
			t.Errorf("read %d bytes, error %v; they are others", len(got), err)
		}
	})
}

// TestSlow has storage that answers late, which is well, and storage that all but stops, which is not.
func TestSlow(t *testing.T) {
	b, r := behind(t)
	data := random(large)

	t.Run("late", func(t *testing.T) {
		r.set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			select {
			case <-time.After(300 * time.Millisecond): // of a second
			case <-r.Context().Done():
			}
			pass.ServeHTTP(w, r)
		})
		key := put(t, b, data)
		if got, err := read(t, b, key); err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, error %v", len(got), err)
		}
		if n := r.count("part"); n != 3 {
			t.Errorf("%d parts were sent, want 3: none again", n)
		}
	})
	t.Run("trickles", func(t *testing.T) {
		r.set(nil)
		key := put(t, b, data)
		r.set(first(1000, "get", func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			pass.ServeHTTP(&trickle{w, r.Context()}, r)
		}))
		start := time.Now()
		got, err := read(t, b, key)
		if !bucket.Away(err) || !bytes.HasPrefix(data, got) {
			t.Errorf("read %d bytes, error %v; want an error", len(got), err)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
		r.set(first(1, "get", func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			pass.ServeHTTP(&trickle{w, r.Context()}, r)
		}))
		if got, err := read(t, b, key); err != nil || !bytes.Equal(got, data) {
			t.Errorf("with the second connection as it should be: read %d bytes, error %v", len(got), err)
		}
	})
	t.Run("slow reader", func(t *testing.T) { // who takes its time itself has nobody to blame
		r.set(nil)
		key := put(t, b, data)
		body, err := b.Open(t.Context(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		var got []byte
		for chunk := make([]byte, 1<<20); ; {
			n, err := body.Read(chunk)
			got = append(got, chunk[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(got) < 1000 {
				time.Sleep(600 * time.Millisecond) // longer than a stall may last
			}
		}
		if !bytes.Equal(got, data) || r.count("get") != 1 {
			t.Errorf("read %d bytes over %d connections; want %d over 1", len(got), r.count("get"), len(data))
		}
	})
}

// TestHung has storage that takes connections and says nothing. Writers give up, those of large blobs
// too who wait for a buffer that others have; storage that takes a part slowly is waited for.
func TestHung(t *testing.T) {
	b, r := behind(t, bucket.Hurried)
	key := put(t, b, random(small))
	t.Run("slow", func(t *testing.T) {
		r.set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
			if op(r) == "part" {
				r.Body = io.NopCloser(&slowly{r.Body})
			}
			pass.ServeHTTP(w, r)
		})
		data := random(large)
		start := time.Now()
		key := put(t, b, data)
		if took := time.Since(start); took < 1500*time.Millisecond { // longer than tries are made
			t.Errorf("it took %v, which is not slow", took)
		}
		if n := r.count("part"); n != 3 {
			t.Errorf("%d parts were sent, want 3: none again", n)
		}
		r.set(nil)
		if got, err := read(t, b, key); err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, error %v", len(got), err)
		}
	})
	r.set(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		if op(r) == "begin" {
			time.Sleep(10 * time.Millisecond)
		}
		hold(r)
	})
	all, _ := bucket.PartBuffers(b)
	var writers sync.WaitGroup
	for i := range 3 * all {
		size := large
		if i%4 == 0 {
			size = small
		}
		writers.Go(func() {
			start := time.Now()
			err := write(t, b, blob.NewKey(), random(size))
			if took := time.Since(start); !bucket.Away(err) || took > 15*time.Second {
				t.Errorf("a write of %d bytes ended after %v with %v", size, took, err)
			}
		})
	}
	writers.Go(func() {
		start := time.Now()
		if _, err := read(t, b, key); !bucket.Away(err) || time.Since(start) > 15*time.Second {
			t.Errorf("a download ended after %v with %v", time.Since(start), err)
		}
	})
	writers.Wait()
	r.set(nil)
	put(t, b, random(large))
	if _, free := bucket.PartBuffers(b); free != all {
		t.Errorf("%d of %d buffers are free after all of it", free, all)
	}
}

// slowly is read at a few MiB a second.
type slowly struct{ io.Reader }

func (s *slowly) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return s.Reader.Read(p)
}

// trickle passes an answer on at ten bytes a second.
type trickle struct {
	http.ResponseWriter
	ctx context.Context
}

func (s *trickle) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := s.ResponseWriter.Write(p[i : i+1]); err != nil {
			return i, err
		}
		http.NewResponseController(s.ResponseWriter).Flush()
		select {
		case <-time.After(100 * time.Millisecond):
		case <-s.ctx.Done():
			return i, s.ctx.Err()
		}
	}
	return len(p), nil
}

// TestNotSeenYet has storage that needs a moment until it knows of what was written.
func TestNotSeenYet(t *testing.T) {
	b, r := behind(t, bucket.Expectant)
	key := put(t, b, []byte("here"))
	r.set(first(3, "get head", func(w http.ResponseWriter, r *http.Request, _ http.Handler) { refuse(w, r, 404, "NoSuchKey") }))
	if got, err := read(t, b, key); err != nil || string(got) != "here" {
		t.Errorf("read %q, %v", got, err)
	}
	if n, err := b.Size(t.Context(), key); err != nil || n != 4 {
		t.Errorf("Size = %d, %v", n, err)
	}
	r.set(first(1000, "get head", func(w http.ResponseWriter, r *http.Request, _ http.Handler) { refuse(w, r, 404, "NoSuchKey") }))
	start := time.Now()
	if _, err := read(t, b, key); !errors.Is(err, blob.ErrNotFound) || bucket.Away(err) {
		t.Errorf("read: %v, want ErrNotFound", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("it took %v to say that there is none", took)
	}
}

// TestWhoseItIs has a write that never arrived be repeated, when somebody else has written under the key
// meanwhile: that the object is there, as long as ours even, does not make it ours.
func TestWhoseItIs(t *testing.T) {
	server := s3test.Start(t)
	relay := newRelay(t, server)
	where := server.Bucket(t)
	name, _, _ := strings.Cut(strings.TrimPrefix(where, "s3://"), "?")
	b, other := open(t, s3test.URL(relay.addr, name), bucket.Impatient), open(t, where, bucket.Impatient)
	for _, theirs := range []int{small, small + 1} {
		key := blob.NewKey()
		relay.set(first(1, "put", func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
			if err := write(t, other, key, random(theirs)); err != nil {
				t.Error(err)
			}
			cut()
		}))
		if err := write(t, b, key, bytes.Repeat([]byte("ours"), small/4)); !errors.Is(err, blob.ErrExists) {
			t.Errorf("where somebody else has written %d bytes: %v, want %v", theirs, err, blob.ErrExists)
		}
	}
}

// TestUploadGone: storage that forgets an upload once it is completed says that there is none, to whom the first
// answer did not reach. The blob is there.
func TestUploadGone(t *testing.T) {
	b, r := behind(t)
	var completed atomic.Bool
	r.set(func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		switch {
		case op(r) != "complete":
			pass.ServeHTTP(w, r)
		case completed.CompareAndSwap(false, true):
			land(r, pass)
			cut()
		default:
			refuse(w, r, 404, "NoSuchUpload")
		}
	})
	data := random(large)
	key := put(t, b, data)
	if got, err := read(t, b, key); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, error %v; want the %d written", len(got), err, len(data))
	}
}

// TestDead has an address that refuses connections, and one that takes them and says nothing.
func TestDead(t *testing.T) {
	b, r := behind(t)
	key := put(t, b, []byte("here"))
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing.Close()
	for _, addr := range []string{silent.Addr().String(), refusing.Addr().String()} {
		start := time.Now()
		_, err := bucket.Open(t.Context(), s3test.URL(addr, "any"), bucket.Impatient)
		if err == nil || !strings.Contains(err.Error(), "check endpoint and network") {
			t.Errorf("Open: %v", err)
		}
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
	}

	r.set(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { hold(r) })
	for name, call := range map[string]func() error{
		"read":   func() error { _, err := read(t, b, key); return err },
		"size":   func() error { _, err := b.Size(t.Context(), key); return err },
		"delete": func() error { return b.Delete(t.Context(), key) },
		"tidy":   func() error { return b.Tidy(t.Context(), 0) },
		"write":  func() error { return write(t, b, blob.NewKey(), random(small)) },
		"large":  func() error { return write(t, b, blob.NewKey(), random(large)) },
		"list": func() error {
			for _, err := range b.List(t.Context()) {
				return err
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			if err := call(); !bucket.Away(err) || errors.Is(err, blob.ErrNotFound) {
				t.Errorf("%v; want an error that tells of storage that is away", err)
			}
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestTidy leaves uploads behind as a crash does. They are removed once they are old, and what is
// still being written is left alone.
func TestTidy(t *testing.T) {
	b, r := behind(t)
	kept := put(t, b, random(large))
	r.set(first(1000, "drop", func(w http.ResponseWriter, r *http.Request, _ http.Handler) { refuse(w, r, 503, "SlowDown") }))
	for range 3 {
		w, err := b.Create(t.Context(), blob.NewKey())
		if err != nil {
			t.Fatal(err)
		}
		w.Write(random(large))
		w.Abort() // which fails, as if we were no more
	}
	r.set(nil)
	late, err := b.Create(t.Context(), blob.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	defer late.Abort()
	if _, err := late.Write(random(large)); err != nil {
		t.Fatal(err)
	}
	uploads := func() int {
		n, err := bucket.Uploads(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := uploads(); n != 4 {
		t.Fatalf("%d uploads to begin with, want 4", n)
	}
	if err := b.Tidy(t.Context(), 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	if n := uploads(); n != 4 {
		t.Errorf("%d uploads, want 4: none is a day old", n)
	}
	if _, err := late.Commit(); err != nil {
		t.Error(err)
	}
	for range 2 { // by two nodes at once
		if err := b.Tidy(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
	if n := uploads(); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
	if n, err := b.Size(t.Context(), kept); err != nil || n != large {
		t.Errorf("the blob beside them: %d bytes, %v", n, err)
	}
}

// TestAbortDrops has nothing left of a large blob that is aborted, nor of one that somebody else
// came before.
func TestAbortDrops(t *testing.T) {
	b, _ := behind(t)
	key := put(t, b, []byte("first"))
	if err := write(t, b, key, random(large)); !errors.Is(err, blob.ErrExists) {
		t.Errorf("write: %v, want ErrExists", err)
	}
	w, err := b.Create(t.Context(), blob.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	w.Write(random(large))
	w.Abort()
	if n, err := bucket.Uploads(t.Context(), b); n != 0 || err != nil {
		t.Errorf("%d uploads are left, %v", n, err)
	}
}

// TestBuffersAreFew writes more large blobs at once than there are buffers. Those that wait hold
// little, can be cancelled, and all come to their end.
func TestBuffersAreFew(t *testing.T) {
	b := open(t, s3test.Start(t).Bucket(t))
	all, _ := bucket.PartBuffers(b)
	var slow []blob.Writer
	for range all {
		w, err := b.Create(t.Context(), blob.NewKey())
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		if _, err := w.Write(random(1 << 20)); err != nil { // one buffer each
			t.Fatal(err)
		}
		slow = append(slow, w)
	}
	if _, free := bucket.PartBuffers(b); free != 0 {
		t.Fatalf("%d buffers are free", free)
	}

	ctx, cancel := context.WithCancel(t.Context())
	impatient, err := b.Create(ctx, blob.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	cancelled := make(chan error)
	go func() {
		_, err := impatient.Write(random(1 << 20))
		impatient.Abort()
		cancelled <- err
	}()
	cancel()
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Errorf("Write while no buffer is free, cancelled: %v", err)
	}

	put(t, b, random(200<<10)) // needs none
	put(t, b.Apart(), random(large))

	var waiting sync.WaitGroup
	for i := range 3 * all {
		waiting.Go(func() {
			data := random(large + i)
			key := blob.NewKey()
			if err := write(t, b, key, data); err != nil {
				t.Error(err)
			}
		})
	}
	for _, w := range slow {
		if _, err := w.Commit(); err != nil {
			t.Error(err)
		}
	}
	waiting.Wait()
	if _, free := bucket.PartBuffers(b); free != all {
		t.Errorf("%d of %d buffers are free in the end", free, all)
	}
}
