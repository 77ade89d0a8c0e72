package engine_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/store"
	"offpeak/internal/upstream"
)

// A bench is a data folder with what works on it.
type bench struct {
	t     testing.TB
	dir   string
	store *store.Store
	blobs *blob.Dir
}

func open(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, dir: t.TempDir()}
	var err error
	if b.store, err = store.Open(t.Context(), b.dir, store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.store.Close() })
	if b.blobs, err = blob.Open(filepath.Join(b.dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	return b
}

// upload makes an input file of the text.
func (b *bench) upload(text []byte) string {
	b.t.Helper()
	ctx := b.t.Context()
	key := blob.NewKey()
	if err := b.store.ReserveBlob(ctx, key); err != nil {
		b.t.Fatal(err)
	}
	w, err := b.blobs.Create(ctx, key)
	if err != nil {
		b.t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Write(text); err != nil {
		b.t.Fatal(err)
	}
	n, err := w.Commit()
	if err != nil {
		b.t.Fatal(err)
	}
	f := batch.File{
		ID: batch.NewFileID(), Project: batch.DefaultProject, Purpose: batch.PurposeBatch, Filename: "in.jsonl",
		Bytes: n, CreatedAt: time.Now(), Parts: []batch.Part{{Key: key, Bytes: n}},
	}
	if err := b.store.CreateFile(ctx, f); err != nil {
		b.t.Fatal(err)
	}
	return f.ID
}

func (b *bench) create(input string) string {
	b.t.Helper()
	now := time.Now()
	x := batch.Batch{
		ID: batch.NewBatchID(now), Project: batch.DefaultProject, Endpoint: "/v1/chat/completions", InputFileID: input,
		OutputFileID: batch.NewFileID(), ErrorFileID: batch.NewFileID(), OutputExpiresAfter: batch.DefaultRetention,
		CompletionWindow: "24h", Status: batch.Validating, CreatedAt: now, ExpiresAt: now.Add(24 * time.Hour),
	}
	if err := b.store.CreateBatch(b.t.Context(), x); err != nil {
		b.t.Fatal(err)
	}
	return x.ID
}

func (b *bench) batch(id string) batch.Batch {
	b.t.Helper()
	x, err := b.store.Batch(b.t.Context(), batch.DefaultProject, id)
	if err != nil {
		b.t.Fatal(err)
	}
	return x
}

func (b *bench) read(id string) []byte {
	b.t.Helper()
	if id == "" {
		return nil
	}
	f, err := b.store.File(b.t.Context(), batch.DefaultProject, id)
	if err != nil {
		b.t.Fatal(err)
	}
	r := blob.Concat(b.t.Context(), b.blobs, f.Parts, 0, f.Bytes)
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}

func chat(n int) []byte {
	var buf bytes.Buffer
	for i := range n {
		fmt.Fprintf(&buf, `{"custom_id":"r-%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"question %d"}]}}`+"\n", i, i)
	}
	return buf.Bytes()
}

func TestWholeWay(t *testing.T) {
	b := open(t)
	up, err := sim.Start(sim.Config{CountCalls: true}, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	u, err := upstream.New(upstream.Config{URL: up.URL()})
	if err != nil {
		t.Fatal(err)
	}
	e := engine.New(engine.Config{
		Store: b.store, Blobs: b.blobs, Upstreams: upstream.NewPool(u),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	id := b.create(b.upload(chat(2500)))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx, context.Background()) }()
	start := time.Now()
	for !b.batch(id).Status.Terminal() {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%+v", b.batch(id))
		}
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	x := b.batch(id)
	t.Logf("%+v", x)
	out := b.read(x.OutputFileID)
	if n := bytes.Count(out, []byte("\n")); n != 2500 {
		t.Errorf("%d lines", n)
	}
	t.Logf("%s", out[:400])
}
