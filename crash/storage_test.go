package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestStorages kills a single node in the middle of its work, on each database with each kind of
// blobs, and has the next one go on.
func TestStorages(t *testing.T) {
	slow(t)
	for _, test := range []struct {
		name string
		o    clusterOptions
	}{
		{"SQLite+S3", clusterOptions{sqlite: true}},
		{"PostgreSQL+folder", clusterOptions{folder: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.o.nodes, test.o.limit = 1, maxInFlight
			c := newCluster(t, newUpstream(t, killSim), test.o)
			c.startAll()
			n := c.nodes[0]
			c.w.submit(t, n.client(), 600)
			c.u.await(t, "answers", func() bool { return c.u.answers[0] > 200 })
			n.kill()
			c.examine()
			c.finish()
			n.stop()
			c.report()
			c.examineByCommand()
		})
	}
}

// TestPooler runs a cluster behind PgBouncer, which gives every transaction another connection: nodes
// and the pooler are killed, and PostgreSQL is restarted behind it.
func TestPooler(t *testing.T) {
	slow(t)
	t.Parallel()
	r := chance(t)
	c := newCluster(t, newUpstream(t, clusterSim), clusterOptions{nodes: 3, limit: clusterLimit, pooler: true})
	c.startAll()
	stop := c.load(r)
	for range 3 {
		n := c.nodes[r.IntN(len(c.nodes))]
		c.awaitCalls(200)
		c.front.Kill()
		time.Sleep(between(r, 0, time.Second)) // what is tried
		if err := c.front.Restart(); err != nil {
			t.Fatal(err)
		}
		c.awaitCalls(200)
		c.examine()
		if r.IntN(2) == 0 {
			n.kill()
		} else {
			n.stop()
		}
		n.start()
		c.awaitCalls(200)
		if err := c.pg.Restart(r.IntN(2) == 0); err != nil {
			t.Fatal(err)
		}
		c.awaitCalls(200)
		c.examine()
	}
	stop()
	c.finish()
	c.report()
}

// load keeps the cluster busy until stop is called.
func (c *cluster) load(r *rand.Rand) (stop func()) {
	ctx, cancel := context.WithCancel(c.t.Context())
	var load sync.WaitGroup
	random := rand.New(rand.NewPCG(r.Uint64(), 0))
	load.Go(func() { c.busy(ctx, random, 600) })
	return func() {
		cancel()
		load.Wait()
	}
}

// awaitCalls waits for some more calls.
func (c *cluster) awaitCalls(n int) {
	c.t.Helper()
	before := len(c.u.of(0))
	c.u.await(c.t, fmt.Sprintf("%d calls", n), func() bool { return len(c.u.calls) >= before+n })
}

// A bad day is what an S3 server may have: it refuses calls, or does what it is told and does not say
// so, or says that it does not know what it has just been given.
type badDay struct {
	http.Handler

	mu   sync.Mutex
	r    *rand.Rand
	on   bool
	told map[string]int // how often
}

func newBadDay(t *testing.T, r *rand.Rand, addr string) (*badDay, *httptest.Server) {
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(&url.URL{Scheme: "http", Host: addr})
		p.Out.Host = p.In.Host // which is signed
	}, ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) { panic(http.ErrAbortHandler) }}
	d := &badDay{Handler: proxy, r: r, told: map[string]int{}}
	s := httptest.NewServer(d)
	t.Cleanup(s.Close)
	return d, s
}

func (d *badDay) turn(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.on = on
}

// ServeHTTP implements http.Handler.
func (d *badDay) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	n := d.r.IntN(20)
	what := ""
	switch {
	case !d.on:
	case n < 2:
		what = "500"
	case n < 4:
		what = "503"
	case n < 5 && (r.Method == http.MethodGet || r.Method == http.MethodHead) && strings.Count(r.URL.Path, "/") > 1:
		what = "404"
	case n < 6:
		what = "refused"
	case n < 8:
		what = "done, and not told"
	}
	d.told[what]++
	d.mu.Unlock()
	switch what {
	case "":
		d.Handler.ServeHTTP(w, r)
	case "refused":
		panic(http.ErrAbortHandler)
	case "done, and not told":
		d.Handler.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	default:
		io.Copy(io.Discard, r.Body)
		var status int
		fmt.Sscan(what, &status)
		code := map[int]string{404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}[status]
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>It is one of those days.</Message></Error>", code)
	}
}

// TestBadDayOfS3 has one in three calls to S3 go wrong, and makes it slow, while a cluster works.
// Nothing fails, and nothing is asked for twice.
func TestBadDayOfS3(t *testing.T) {
	slow(t)
	t.Parallel()
	r := chance(t)
	c := newCluster(t, newUpstream(t, clusterSim), clusterOptions{nodes: 2, limit: clusterLimit})
	day, s := newBadDay(t, r, c.s3.Addr)
	for _, n := range c.nodes {
		n.blobs = newRelay(t, strings.TrimPrefix(s.URL, "http://"))
	}
	c.startAll()
	day.turn(true)
	stop := c.load(r)
	c.awaitCalls(600)
	for _, n := range c.nodes {
		n.blobs.Slow(512, 20*time.Millisecond) // 25 KB/s
	}
	c.awaitCalls(600)
	for _, n := range c.nodes {
		n.blobs.Slow(0, 0)
	}
	stop()
	day.turn(false)
	c.finish()
	c.report()
	if again := c.repeats(); again > 0 {
		t.Errorf("%d calls were made again", again)
	}
	t.Logf("calls to S3, by what came of them: %v", day.told)
}

// TestUploadLeftBehind kills a node in the middle of a large upload, which leaves a part of it in S3.
// It is in nobody's way; what is older than a day is taken away.
func TestUploadLeftBehind(t *testing.T) {
	slow(t)
	t.Parallel()
	c := newCluster(t, newUpstream(t, clusterSim), clusterOptions{nodes: 1, limit: clusterLimit})
	c.startAll()
	n := c.nodes[0]
	ctx, cancel := context.WithCancel(t.Context())
	var client sync.WaitGroup
	client.Go(func() {
		name := c.w.input(1)
		c.w.inputs[name] = append(c.w.inputs[name], strings.Repeat(" ", 64<<20)...)
		if _, err := c.w.uploadFrom(ctx, n.client(), name, slowly{bytes.NewReader(c.w.inputs[name])}); err == nil {
			t.Error("the upload succeeds")
		}
	})
	uploads := filepath.Join(c.s3.Dir, ".sgwtmp", "multipart")
	poll(t, "parts", func() bool { return parts(t, uploads) > 1 })
	n.kill()
	cancel()
	client.Wait()
	c.finish()
	if parts(t, uploads) == 0 {
		t.Error("nothing was left behind")
	}
	old := time.Now().Add(-25 * time.Hour)
	if err := filepath.WalkDir(uploads, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, old, old))
	}); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n.start()
	c.awaitAll()
	poll(t, "parts to be taken away", func() bool { return parts(t, uploads) == 0 })
	c.examine()
}

// slowly reads a megabyte in 50 ms.
type slowly struct{ io.Reader }

func (s slowly) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p[:min(len(p), 64<<10)])
	time.Sleep(3 * time.Millisecond)
	return n, err
}

// parts counts the files below a folder.
func parts(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return n
}
