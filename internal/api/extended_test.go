package api

import (
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/journal"
	"offpeak/internal/openai"
	"offpeak/internal/store"
)

// onStore serves the API on a real store and a real folder.
func onStore(t *testing.T, c Config) (*tester, *store.Store, *blob.Dir) {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(t.Context(), dir, store.Options{Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	blobs, err := blob.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	c.Store, c.Blobs = s, blobs
	srv := httptest.NewServer(described(t, New(c)))
	t.Cleanup(srv.Close)
	return &tester{TB: t, url: srv.URL, key: "any"}, s, blobs
}

// TestRecordedSoFar reads the results of a batch at every step of its life: whole lines, each of
// them once, and at the end those of its files.
func TestRecordedSoFar(t *testing.T) {
	x, s, blobs := onStore(t, Config{})
	ctx := t.Context()
	file := x.uploadFile(`{"custom_id":"x"}` + "\n")
	b := decode[openai.Batch](x, x.post("/v1/batches",
		fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions","completion_window":"24h"}`, file.ID)))
	want := func(when, output, errs string) {
		t.Helper()
		for path, want := range map[string]string{"output": output, "errors": errs} {
			a := x.get("/v1/batches/" + b.ID + "/" + path)
			if a.StatusCode != 200 || string(a.body) != want {
				t.Errorf("%s: %s is %d %.100q, want %.100q", when, path, a.StatusCode, a.body, want)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want("validating", "", "")

	node, err := s.Join(ctx, "test")
	must(err)
	a, err := s.ClaimValidating(ctx, node)
	must(err)
	lane := batch.Lane{Model: "m", Endpoint: "/v1/chat/completions"}
	must(s.Admit(ctx, *a, "m", []batch.Segment{
		{Lane: lane, Length: 9, FirstLine: 1, Total: 3}, {Lane: lane, Offset: 9, Length: 9, FirstLine: 4, Total: 1},
	}))
	want("in progress", "", "")

	packer := journal.NewPacker(1 << 10)
	defer packer.Close()
	work, err := s.Unclaimed(ctx)
	must(err)
	first, err := s.Claim(ctx, node, work[0])
	must(err)
	second, err := s.Claim(ctx, node, work[0])
	must(err)
	record := func(l *batch.Lease, index int, ok bool, line string) {
		t.Helper()
		if ok {
			l.Tally.Completed++
		} else {
			l.Tally.Failed++
		}
		lost, err := s.Record(ctx, []batch.Group{{Lease: *l, Tally: l.Tally, Data: packer.Pack(journal.AppendEntry(nil, index, ok, []byte(line)))}})
		if err != nil || len(lost) > 0 {
			t.Fatal(lost, err)
		}
		l.Seq++
	}
	four := strings.Repeat("four ", 1<<20) + "\n" // is recorded in two pieces
	for group, last := range packer.Groups(0, true, []byte(four)) {
		if last {
			want("a piece of a line", "", "")
			second.Tally.Completed++
		}
		lost, err := s.Record(ctx, []batch.Group{{Lease: *second, Tally: second.Tally, Data: group}})
		if err != nil || len(lost) > 0 {
			t.Fatal(lost, err)
		}
		second.Seq++
	}
	record(first, 2, true, "three\n")
	record(first, 0, false, "one\n")
	want("two open segments", "three\n"+four, "one\n")

	part := func(text string) batch.Part {
		t.Helper()
		key := blob.NewKey()
		must(s.ReserveBlob(ctx, key))
		w, err := blobs.Create(ctx, key)
		must(err)
		defer w.Abort()
		w.Write([]byte(text))
		n, err := w.Commit()
		must(err)
		return batch.Part{Key: key, Bytes: n}
	}
	record(first, 1, true, "two\n")
	_, err = s.Seal(ctx, *first, part("two\nthree\n"), part("one\n"))
	must(err)
	want("one sealed", "two\nthree\n"+four, "one\n")

	_, err = s.Seal(ctx, *second, part(four), batch.Part{})
	must(err)
	want("finalizing", "two\nthree\n"+four, "one\n")
	if _, done, err := s.Finalize(ctx, b.ID); err != nil || !done {
		t.Fatal(done, err)
	}
	want("completed", "two\nthree\n"+four, "one\n")
	x.wantError(x.get("/v1/batches/batch_x/output"), 404, "", "", "No batch found with id 'batch_x'.")
}

// TestIdempotencyKey: the same key and request give the same batch for a day, another request a
// conflict, another project does not notice.
func TestIdempotencyKey(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	x, _, _ := onStore(t, Config{Now: clock})
	create := func(body, key string) answer {
		return x.post("/v1/batches", body, "Idempotency-Key", key)
	}
	body := `{"input_file_id":"file-x","endpoint":"/v1/embeddings","completion_window":"24h","metadata":{"a":"1","b":"2"}}`
	same := ` {"metadata":{"b":"2","a":"1"},"completion_window":"24h","endpoint":"/v1/embeddings","input_file_id":"file-x"}`
	other := strings.Replace(body, "file-x", "file-y", 1)
	first := decode[openai.Batch](x, create(body, "k"))
	for _, again := range []string{body, same} {
		if got := decode[openai.Batch](x, create(again, "k")); got.ID != first.ID {
			t.Errorf("%s: made %s, not the %s of before", again, got.ID, first.ID)
		}
	}
	a := create(other, "k")
	x.wantError(a, 409, "idempotency_key_reused", "Idempotency-Key", "This Idempotency-Key was used for another request within the last 24 hours.")
	if got := a.Header.Get("x-should-retry"); got != "false" {
		t.Errorf("x-should-retry %q", got)
	}
	if got := decode[openai.Batch](x, create(body, "other")); got.ID == first.ID {
		t.Error("another key gave the same batch")
	}
	if got := decode[openai.Batch](x, x.post("/v1/batches", body)); got.ID == first.ID {
		t.Error("no key gave the same batch")
	}
	now = now.Add(store.IdempotencyTime)
	if got := decode[openai.Batch](x, create(other, "k")); got.ID == first.ID {
		t.Error("after a day the key still gives the first batch")
	}
	if list := decode[openai.List[openai.Batch]](x, x.get("/v1/batches")); len(list.Data) != 4 {
		t.Errorf("%d batches were made, want 4", len(list.Data))
	}
}

func TestOffpeakObject(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	running := batch.Batch{
		ID: "batch_1", Status: batch.InProgress, ExpiresAt: now.Add(time.Minute),
		Counts: batch.Counts{Total: 1000, Completed: 390, Failed: 10},
	}
	validating, ended := running, running
	validating.Status, ended.Status = batch.Validating, batch.Completed
	busy := func(batch.Batch) batch.Activity {
		return batch.Activity{InFlight: 7, Rate: 5, ETA: now.Add(2 * time.Minute), AtRisk: true}
	}
	stuck := func(batch.Batch) batch.Activity { return batch.Activity{WaitingFor: "upstream x down"} }
	for name, c := range map[string]struct {
		b        batch.Batch
		activity func(batch.Batch) batch.Activity
		profile  batch.Profile
		want     string
	}{
		"running":    {running, busy, "", `{"eta":1800000120,"deadline_at_risk":true,"waiting_for":null,"requests_per_second":5,"in_flight":7}`},
		"stuck":      {running, stuck, "", `{"eta":null,"deadline_at_risk":null,"waiting_for":"upstream x down","requests_per_second":0,"in_flight":0}`},
		"validating": {validating, stuck, "", `{"eta":null,"deadline_at_risk":null,"waiting_for":"upstream x down","requests_per_second":null,"in_flight":0}`},
		"ended":      {ended, busy, "", `{"eta":null,"deadline_at_risk":null,"waiting_for":null,"requests_per_second":null,"in_flight":null}`},
		"no engine":  {running, nil, "", `{"eta":null,"deadline_at_risk":null,"waiting_for":null,"requests_per_second":null,"in_flight":null}`},
		"openai":     {running, busy, batch.ProfileOpenAI, ``},
	} {
		s := &server{Config: Config{Activity: c.activity, Policy: batch.Policy{Profile: c.profile}, Now: func() time.Time { return now }}}
		text, err := openai.Marshal(s.batchObject(c.b))
		if err != nil {
			t.Fatal(err)
		}
		_, got, _ := strings.Cut(string(text), `"offpeak":`)
		if got = strings.TrimSuffix(got, "}"); c.want == "" && strings.Contains(string(text), "offpeak") || c.want != "" && got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
