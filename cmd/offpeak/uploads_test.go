package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"offpeak/internal/blob/s3test"
	"offpeak/internal/client"
	"offpeak/internal/openai"
)

// TestSlowUploads has clients hold every buffer that uploads to a bucket have, and send nothing more. Then
// a segment is sealed whose part needs such a buffer, too.
func TestSlowUploads(t *testing.T) {
	t.Parallel()
	const buffers = 8 // of a bucket
	s3 := s3test.Start(t)
	parts, wholes := make(chan struct{}, 100), make(chan int64, 100)
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: s3.Addr})
			r.Out.Host = r.In.Host // it is signed
		},
		ModifyResponse: func(resp *http.Response) error {
			switch r := resp.Request; {
			case r.Method != http.MethodPut || resp.StatusCode != http.StatusOK:
			case r.URL.Query().Has("partNumber"):
				parts <- struct{}{}
			default:
				wholes <- r.ContentLength
			}
			return nil
		},
	})
	t.Cleanup(proxy.Close)
	const large = 600 << 10
	model := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintf(w, `{"object":"chat.completion","choices":[{"index":0,"message":{"content":"%s"}}]}`, strings.Repeat("x", large))
	}))
	t.Cleanup(model.Close)

	bucket, err := url.Parse(s3.Bucket(t))
	if err != nil {
		t.Fatal(err)
	}
	c := serve(t, "--data", t.TempDir(), "--blobs", s3test.URL(proxy.Listener.Addr().String(), bucket.Host), "--upstream", model.URL+"/v1")
	upload := func(ctx context.Context, body io.Reader, size int64) (*openai.File, error) {
		return c.Upload(ctx, client.Upload{Name: "in.jsonl", Body: body, Size: size})
	}
	line := `{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}` + "\n"
	in, err := upload(t.Context(), strings.NewReader(line), int64(len(line)))
	if err != nil {
		t.Fatal(err)
	}

	var slow sync.WaitGroup
	defer slow.Wait()
	ctx, breakOff := context.WithCancel(t.Context())
	defer breakOff()
	for range buffers {
		// One that has begun with its second part holds the buffer for it.
		rest, end := io.Pipe()
		context.AfterFunc(ctx, func() { end.Close() })
		slow.Go(func() { upload(ctx, io.MultiReader(strings.NewReader(line+strings.Repeat(" ", 6<<20)), rest), 20<<20) })
		<-parts
	}
	for len(wholes) > 0 {
		<-wholes
	}
	if _, err := c.CreateBatch(t.Context(), openai.CreateBatch{InputFileID: in.ID, Endpoint: "/v1/chat/completions", CompletionWindow: "24h"}); err != nil {
		t.Fatal(err)
	}
	late, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for size := int64(0); size < large; {
		select {
		case size = <-wholes:
		case <-late.Done():
			t.Fatal("the segment is not sealed")
		}
	}
}

// serve runs `offpeak serve` until the test ends, and returns a client of it.
func serve(t *testing.T, args ...string) *client.Client {
	t.Helper()
	log := &servingLog{t: t, url: make(chan string, 1)}
	ctx, ended := t.Context(), make(chan error, 1)
	go func() {
		ended <- run(ctx, &streams{In: strings.NewReader(""), Out: io.Discard, Err: log, Getenv: os.Getenv, Abort: ctx},
			append([]string{"serve", "--listen", "127.0.0.1:0", "--drain", "1s"}, args...))
	}()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case base := <-log.url:
		c, err := client.New(base, "any", nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	return nil
}

// A servingLog is the log of a server, which says where it serves.
type servingLog struct {
	t   *testing.T
	url chan string
}

var serving = regexp.MustCompile(`base_url=(\S+)`)

// Write implements io.Writer.
func (l *servingLog) Write(line []byte) (int, error) {
	l.t.Logf("%s", line)
	if m := serving.FindSubmatch(line); m != nil {
		l.url <- string(m[1])
	}
	return len(line), nil
}
