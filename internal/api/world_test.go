package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/engine"
	"offpeak/internal/openai"
	"offpeak/internal/sim"
	"offpeak/internal/store"
	"offpeak/internal/upstream"
)

// A world is a whole server in one process: the API on a real store and a real folder, the engine
// behind it, and a simulated upstream. It has two projects, a and b, and a key for each.
type world struct {
	*tester
	server *server
	keys   map[string]string // by project
	rules  batch.Rules

	outcomes map[string]int // of inputs that were tried
}

// The models of a world. One answers at once, one never does.
const quickModel, stuckModel = "quick", "stuck"

// newWorld starts a world in which inputs are held to the rules.
func newWorld(t *testing.T, profile batch.Profile, rules batch.Rules) *world {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir, store.Options{})
	must(err)
	t.Cleanup(func() { s.Close() })
	blobs, err := blob.Open(filepath.Join(dir, "blobs"))
	must(err)
	up, err := sim.Start(sim.Config{
		Models: []sim.Model{{ID: quickModel}, {ID: stuckModel, Timing: &sim.Timing{Latency: time.Hour}}},
	}, "127.0.0.1:0")
	must(err)
	t.Cleanup(func() { up.Close() })
	u, err := upstream.New(upstream.Config{URL: up.URL()})
	must(err)
	pool := upstream.NewPool(u)
	e := engine.New(engine.Config{Store: s, Blobs: blobs, Upstreams: pool, Rules: rules, Drain: time.Millisecond})

	w := &world{keys: map[string]string{}, rules: rules, outcomes: map[string]int{}}
	for _, name := range []string{"a", "b"} {
		_, err := s.CreateProject(t.Context(), name, 1)
		must(err)
		_, secret, err := s.CreateKey(t.Context(), name, "")
		must(err)
		w.keys[name] = secret
	}
	h := New(Config{
		Store: s, Blobs: blobs, Models: pool, Keys: s.Keys(true), Policy: batch.Policy{Profile: profile},
		Wake: e.Wake, Activity: e.Activity, Upstreams: e, Metrics: fakeMetrics("up 1\n"),
	})
	w.server = h.(*server)
	srv := httptest.NewServer(described(t, h))
	t.Cleanup(srv.Close)
	w.tester = &tester{TB: t, url: srv.URL, key: w.keys["a"]}

	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx, ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("engine: %v", err)
		}
	})
	return w
}

// createFrom makes a batch of the file.
func (w *world) createFrom(file, endpoint string) openai.Batch {
	w.Helper()
	return decode[openai.Batch](w.tester, w.post("/v1/batches",
		fmt.Sprintf(`{"input_file_id":%q,"endpoint":%q,"completion_window":"24h"}`, file, endpoint)))
}

// await waits until the batch has the status, or has ended.
func (w *world) await(id, status string) openai.Batch {
	w.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		b := decode[openai.Batch](w.tester, w.get("/v1/batches/"+id))
		if b.Status == status || batch.Status(b.Status).Terminal() {
			return b
		}
		if time.Now().After(end) {
			w.Fatalf("batch %s is still %s: %+v", id, b.Status, b)
		}
	}
}

// A resultLine is a line of an output or error file.
type resultLine struct {
	CustomID string `json:"custom_id"`
	Response *struct {
		StatusCode int `json:"status_code"`
	}
}

// results reads a result file, all of whose lines must be as described; none if there is no file.
func (w *world) results(id *string) (lines []resultLine) {
	w.Helper()
	if id == nil {
		return nil
	}
	a := w.get("/v1/files/" + *id + "/content")
	w.wantStatus(a, 200)
	for text := range bytes.Lines(a.body) {
		if err := ours().validateJSON("#/components/schemas/Result", text); err != nil {
			w.Errorf("line %s: %v", text, err)
		}
		var l resultLine
		if err := json.Unmarshal(text, &l); err != nil {
			w.Fatalf("line %s: %v", text, err)
		}
		lines = append(lines, l)
	}
	return lines
}

// chatLine is a good line of an input.
func chatLine(customID, model string) string {
	return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":{"model":%q,"messages":[{"role":"user","content":"hi"}]}}`+"\n", customID, model)
}

// TestRecordedIsTheFile: once a batch has ended, what is recorded of it is its files, ranges and
// all.
func TestRecordedIsTheFile(t *testing.T) {
	w := newWorld(t, batch.ProfileExtended, batch.Rules{})
	input := w.uploadFile(chatLine("good", quickModel) + strings.Replace(chatLine("bad", quickModel), "messages\":[", "messages\":[1,", 1))
	b := w.await(w.createFrom(input.ID, "/v1/chat/completions").ID, "completed")
	for which, file := range map[string]*string{"output": b.OutputFileID, "errors": b.ErrorFileID} {
		if len(w.results(file)) != 1 {
			t.Fatalf("%s of %+v", which, b)
		}
		for _, span := range []string{"", "bytes=2-9", "bytes=-5", "bytes=99999-"} {
			got := w.get("/v1/batches/"+b.ID+"/"+which, "Range", span)
			want := w.get("/v1/files/"+*file+"/content", "Range", span)
			if got.StatusCode != want.StatusCode || got.StatusCode < 400 && !bytes.Equal(got.body, want.body) {
				t.Errorf("%s, %q: status %d, %q\nwant %d, %q", which, span, got.StatusCode, got.body, want.StatusCode, want.body)
			}
		}
	}
}
