package api

import (
	"context"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/openai"
	"offpeak/internal/store"
)

// TestAcknowledgedIsKept: what was answered with 200 is there after a restart, and what was not
// is not. Store and blobs are the real ones.
func TestAcknowledgedIsKept(t *testing.T) {
	dir := t.TempDir()
	var stop func()
	start := func() *tester {
		s, err := store.Open(context.Background(), dir, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		blobs, err := blob.Open(filepath.Join(dir, "blobs"))
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewServer(described(t, New(Config{Store: s, Blobs: blobs})))
		stop = func() { srv.Close(); s.Close() }
		return &tester{TB: t, url: srv.URL, key: "any"}
	}
	x := start()
	defer func() { stop() }()
	content := strings.Repeat(`{"custom_id":"x"}`+"\n", 50_000)
	kept, deleted := x.uploadFile(content), x.uploadFile("{}\n")
	first, second := x.createBatch(), decode[openai.Batch](x, x.post("/v1/batches", withField(`"metadata":{"a":"\u0000"}`)))
	second = decode[openai.Batch](x, x.post("/v1/batches/"+second.ID+"/cancel", ""))
	decode[openai.FileDeleted](x, x.send("DELETE", "/v1/files/"+deleted.ID, nil))
	x.wantStatus(x.upload(forBatch, fileField("no JSON")), 400)
	x.wantStatus(x.post("/v1/batches", "{}"), 400)

	for _, restart := range []bool{false, true} {
		if restart {
			stop()
			x = start()
		}
		if got := x.get("/v1/files/" + kept.ID + "/content"); string(got.body) != content {
			t.Errorf("%d of %d bytes", len(got.body), len(content))
		}
		if got := x.get("/v1/files/"+kept.ID+"/content", "Range", "bytes=-18"); string(got.body) != `{"custom_id":"x"}`+"\n" {
			t.Errorf("the last line is %q", got.body)
		}
		x.wantError(x.get("/v1/files/"+deleted.ID), 404, "", "id", batch.NoFile(deleted.ID).Error())
		files := decode[openai.List[openai.File]](x, x.get("/v1/files"))
		if len(files.Data) != 1 || !sameJSON(t, files.Data[0], kept) {
			t.Errorf("files %+v, want %+v", files.Data, kept)
		}
		batches := decode[openai.List[openai.Batch]](x, x.get("/v1/batches?limit=1"))
		if len(batches.Data) != 1 || !batches.HasMore || !sameJSON(t, batches.Data[0], second) {
			t.Errorf("batches %+v, want %+v", batches.Data, second)
		}
		batches = decode[openai.List[openai.Batch]](x, x.get("/v1/batches?limit=1&after="+second.ID))
		if len(batches.Data) != 1 || batches.HasMore || !sameJSON(t, batches.Data[0], first) {
			t.Errorf("batches %+v, want %+v", batches.Data, first)
		}
		if again := decode[openai.Batch](x, x.post("/v1/batches/"+second.ID+"/cancel", "")); !sameJSON(t, again, second) {
			t.Errorf("cancelled again: %+v, want %+v", again, second)
		}
	}
	for _, path := range []string{"/v1/batches/%00%ff", "/v1/files/%00%ff", "/v1/files/" + strings.Repeat("x", 10<<10), "/v1/batches?after=%00", "/v1/files?after=%ff"} {
		x.wantStatus(x.get(path), 404)
	}
}
