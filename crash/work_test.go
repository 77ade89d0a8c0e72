package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"offpeak/internal/client"
	"offpeak/internal/openai"
)

// work is what a server is asked to do, and what it has acknowledged of that.
type work struct {
	mu      sync.Mutex
	bodies  map[string]string // of all requests, by custom id: no two are the same
	inputs  map[string][]byte // by the name of the file
	files   map[string]string // acknowledged: id → name
	batches map[string]string // acknowledged: id → name of the input
	cancels map[string]bool   // ids of batches that were to be cancelled: whether it was acknowledged
	gone    map[string]bool   // likewise of files that were to be deleted
}

func newWork() *work {
	return &work{
		bodies: map[string]string{}, inputs: map[string][]byte{}, files: map[string]string{},
		batches: map[string]string{}, cancels: map[string]bool{}, gone: map[string]bool{},
	}
}

// refused is text in a body that the upstream answers with 400.
const refused = "refuse-me"

// input makes an input of n requests, each different from every other one. Their bodies are
// written as nobody would who writes them anew: any byte changed is seen.
func (w *work) input(n int) (name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name = fmt.Sprintf("in-%d.jsonl", len(w.inputs))
	var b bytes.Buffer
	for i := range n {
		id := fmt.Sprintf("%s/%d", strings.TrimSuffix(name, ".jsonl"), i)
		text := "question"
		if i%50 == 49 {
			text = refused
		}
		body := fmt.Sprintf(`{"model": "m" ,"max_tokens":8,"messages":[ {"content":"%s \u00e4ä\/ %s","role":"user"}], "seed" : %d}`, text, id, i)
		fmt.Fprintf(&b, `{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":%s}`+"\n", id, body)
		w.bodies[id] = body
	}
	w.inputs[name] = b.Bytes()
	return name
}

// upload uploads an input, and returns the id of the file if it was acknowledged.
func (w *work) upload(ctx context.Context, api *client.Client, name string) (string, error) {
	return w.uploadFrom(ctx, api, name, bytes.NewReader(w.inputNamed(name)))
}

func (w *work) inputNamed(name string) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.inputs[name]
}

// uploadFrom is upload of an input that comes from elsewhere.
func (w *work) uploadFrom(ctx context.Context, api *client.Client, name string, from io.Reader) (string, error) {
	f, err := api.Upload(ctx, client.Upload{Name: name, Body: from, Size: int64(len(w.inputNamed(name)))})
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[f.ID] = name
	return f.ID, nil
}

// create creates a batch of an uploaded input, and returns its id if it was acknowledged.
func (w *work) create(ctx context.Context, api *client.Client, file string) (string, error) {
	b, err := api.CreateBatch(ctx, openai.CreateBatch{InputFileID: file, Endpoint: "/v1/chat/completions", CompletionWindow: "24h"})
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.batches[b.ID] = w.files[file]
	return b.ID, nil
}

// submit has n new requests run, on a server that nobody breaks meanwhile.
func (w *work) submit(t *testing.T, api *client.Client, n int) (batch string) {
	t.Helper()
	file, err := w.upload(t.Context(), api, w.input(n))
	if err != nil {
		t.Fatal(err)
	}
	batch, err = w.create(t.Context(), api, file)
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

// keepBusy creates, cancels and deletes things until the server is killed, or there were so many batches
// and enough requests, which nobody cancels, for so many answers. It returns what went wrong.
func (w *work) keepBusy(ctx context.Context, api *client.Client, r *rand.Rand, most, answers int) (err error) {
	for n, sure := 0, 0; n < most || sure < answers; n++ {
		var file, batch string
		lines := 1 + r.IntN(250)
		if file, err = w.upload(ctx, api, w.input(lines)); err != nil {
			return err
		}
		if batch, err = w.create(ctx, api, file); err != nil {
			return err
		}
		switch r.IntN(8) {
		case 0:
			w.note(w.cancels, batch, false)
			if _, err = api.CancelBatch(ctx, batch); err != nil {
				return err
			}
			w.note(w.cancels, batch, true)
			lines = 0
		case 1: // a batch that has started reads it all the same
			b, err := api.Batch(ctx, batch)
			if err != nil {
				return err
			}
			if b.InProgressAt == nil {
				break
			}
			w.note(w.gone, file, false)
			if _, err = api.DeleteFile(ctx, file); err != nil {
				return err
			}
			w.note(w.gone, file, true)
		}
		sure += lines
	}
	return nil
}

// finish waits until every batch there is has ended, and holds everything against what was
// acknowledged and what the upstream knows. It returns the batches.
func (w *work) finish(t *testing.T, api *client.Client, u *upstream) map[string]client.Batch {
	t.Helper()
	ctx := t.Context()
	found := map[string]client.Batch{}
	poll(t, "the end of all batches", func() bool {
		for b, err := range api.Batches(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if !ended(b) {
				return false
			}
			found[b.ID] = b
		}
		return true
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, name := range w.batches {
		b, ok := found[id]
		if !ok {
			t.Errorf("batch %s of %s was acknowledged and is gone", id, name)
			continue
		}
		want := "completed"
		if acknowledged, asked := w.cancels[id]; acknowledged || asked && b.Status == "cancelled" {
			want = "cancelled"
		}
		if b.Status != want {
			t.Errorf("batch %s is %s, want %s", id, b.Status, want)
		}
	}
	files := map[string]bool{}
	for f, err := range api.Files(ctx, "batch") {
		if err != nil {
			t.Fatal(err)
		}
		files[f.ID] = true
		if got := content(t, api, f.ID); !bytes.Equal(got, w.inputs[f.Filename]) {
			t.Errorf("file %s (%s) has %d bytes that are not those of its input", f.ID, f.Filename, len(got))
		}
		w.files[f.ID] = f.Filename // perhaps nobody had acknowledged it
	}
	for id, name := range w.files {
		if acknowledged, asked := w.gone[id]; files[id] && acknowledged || !files[id] && !asked {
			t.Errorf("file %s (%s) was acknowledged; deleted: %v, found: %v", id, name, acknowledged, files[id])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(found)) {
		w.check(t, api, u, found[id])
	}
	return found
}

func (w *work) note(in map[string]bool, id string, acknowledged bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	in[id] = acknowledged
}

func ended(b client.Batch) bool {
	return slices.Contains([]string{"completed", "failed", "expired", "cancelled"}, b.Status)
}

// check looks whether every request of a batch is in one of its files, once, with the answer that
// the upstream gave. w.mu is held.
func (w *work) check(t *testing.T, api *client.Client, u *upstream, b client.Batch) {
	t.Helper()
	var output, errs []byte
	if b.OutputFileID != nil {
		output = content(t, api, *b.OutputFileID)
	}
	if b.ErrorFileID != nil {
		errs = content(t, api, *b.ErrorFileID)
	}
	if b.RequestCounts.Total == 0 {
		if b.Status != "cancelled" || len(output)+len(errs) > 0 {
			t.Errorf("batch %s is %s without having started", b.ID, b.Status)
		}
		return
	}
	completed, failed := checkAnswers(t, u, w.bodies, w.inputs[w.files[b.InputFileID]], output, errs, b.Status)
	if got := b.RequestCounts; int(got.Completed) != completed || int(got.Failed) != failed {
		t.Errorf("batch %s counts %+v, its files have %d and %d", b.ID, got, completed, failed)
	}
}

// checkAnswers looks whether every request of an input is in one of two files, once, with the
// answer that the upstream gave. It returns how many succeeded and failed.
func checkAnswers(t *testing.T, u *upstream, bodies map[string]string, input, output, errs []byte, status string) (completed, failed int) {
	t.Helper()
	left := map[string]bool{}
	for line := range bytes.Lines(input) {
		left[parseLine(t, line).CustomID] = true
	}
	for _, file := range [][]byte{output, errs} {
		for line := range bytes.Lines(file) {
			r := parseLine(t, line)
			if !left[r.CustomID] {
				t.Errorf("%s is answered twice, or was not asked", r.CustomID)
			}
			delete(left, r.CustomID)
			if r.Response == nil {
				if status == "completed" || r.Error == nil || r.Error.Code != "batch_"+status {
					t.Errorf("%s in a batch that is %s: %s", r.CustomID, status, line)
				}
				continue
			}
			code, answer := u.answer(bodies[r.CustomID])
			if code != r.Response.Status || !bytes.Equal(answer, r.Response.Body) {
				t.Errorf("%s was answered %d %s, and has %d %s", r.CustomID, code, answer, r.Response.Status, r.Response.Body)
			}
			if ok := code == 200; ok {
				completed++
			} else {
				failed++
			}
		}
	}
	if len(left) > 0 {
		t.Errorf("%d requests have no answer, such as %v", len(left), slices.Sorted(maps.Keys(left))[0])
	}
	return completed, failed
}

// checkBodies looks whether whatever the upstream got was asked, byte for byte.
func (w *work) checkBodies(t *testing.T, u *upstream) {
	t.Helper()
	asked := map[string]bool{}
	for _, body := range w.bodies {
		asked[body] = true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for body := range u.byBody {
		if !asked[body] {
			t.Errorf("nobody asked %q", body)
		}
	}
}

type line struct {
	CustomID string `json:"custom_id"`
	Response *struct {
		Status int             `json:"status_code"`
		Body   json.RawMessage `json:"body"`
	} `json:"response"`
	Error *struct{ Code string } `json:"error"`
}

func parseLine(t *testing.T, text []byte) (l line) {
	t.Helper()
	if err := json.Unmarshal(text, &l); err != nil {
		t.Fatalf("line %q: %v", text, err)
	}
	return l
}
