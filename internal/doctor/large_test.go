package doctor_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/doctor"
	"offpeak/internal/journal"
	"offpeak/internal/store"
)

// TestLarge examines two batches of many lines of 2 KB, one that has ended and one that is half
// done, in little memory. OFFPEAK_TEST_LINES says how many lines, and OFFPEAK_TEST_LARGE where to
// leave the folder, for the command to be measured with.
func TestLarge(t *testing.T) {
	lines, err := strconv.Atoi(os.Getenv("OFFPEAK_TEST_LINES"))
	if err != nil {
		lines = 20_000
	}
	dir := os.Getenv("OFFPEAK_TEST_LARGE")
	if dir == "" {
		dir = t.TempDir()
	}
	l := newLarge(t, dir)
	input := l.input(lines)
	l.batch(input, lines, lines)
	l.batch(input, lines, lines/2)
	if err := l.store.Close(); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	peak := make(chan uint64)
	go func() {
		most := uint64(0)
		for {
			select {
			case <-time.After(10 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse)
			case <-stop:
				peak <- most
				return
			}
		}
	}()
	start := time.Now()
	r, err := doctor.Open(dir, doctor.Options{}).Examine(t.Context())
	took := time.Since(start)
	close(stop)
	most := <-peak
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Error(f)
	}
	if r.Examined.Requests != int64(2*lines) || r.Examined.Results != int64(lines+lines/2) {
		t.Errorf("examined %+v", r.Examined)
	}
	t.Logf("%d lines: %d MiB in %v, heap of %d MiB at most", lines, r.Examined.Bytes>>20, took, most>>20)
	if want := uint64(24<<20 + 80*lines); most > want {
		t.Errorf("the heap had %d MiB, want %d at most", most>>20, want>>20)
	}
}

// A large makes large batches without an engine.
type large struct {
	*testing.T
	store *store.Store
	blobs *blob.Dir
	node  string
}

func newLarge(t *testing.T, dir string) *large {
	t.Helper()
	return newLargeAt(t, dir, nil)
}

// newLargeAt is newLarge with a clock for the store.
func newLargeAt(t *testing.T, dir string, now func() time.Time) *large {
	t.Helper()
	l := &large{T: t}
	var err error
	l.store, err = store.Open(t.Context(), dir, store.Options{Now: now})
	l.must(err)
	t.Cleanup(func() { l.store.Close() })
	l.blobs, err = blob.Open(filepath.Join(dir, "blobs"))
	l.must(err)
	l.node, err = l.store.Join(t.Context(), "n")
	l.must(err)
	return l
}

func (l *large) must(err error) {
	if err != nil {
		l.Helper()
		l.Fatal(err)
	}
}

func (l *large) write(f func(io.Writer)) batch.Part {
	l.Helper()
	key := blob.NewKey()
	l.must(l.store.ReserveBlob(l.Context(), key))
	w, err := l.blobs.Create(l.Context(), key)
	l.must(err)
	f(w)
	n, err := w.Commit()
	l.must(err)
	return batch.Part{Key: key, Bytes: n}
}

const lineBytes = 2000

func largeLine(i int) string {
	head := fmt.Sprintf(`{"custom_id":"request-%08d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"`, i)
	const tail = `"}]}}` + "\n"
	return head + strings.Repeat("x", lineBytes-len(head)-len(tail)) + tail
}

func (l *large) input(lines int) batch.File {
	l.Helper()
	f := batch.File{ID: batch.NewFileID(), Project: batch.DefaultProject, Purpose: batch.PurposeBatch, Filename: "in.jsonl", CreatedAt: time.Now()}
	f.Parts = []batch.Part{l.write(func(w io.Writer) {
		for i := range lines {
			io.WriteString(w, largeLine(i))
		}
	})}
	f.Bytes = f.Parts[0].Bytes
	l.must(l.store.CreateFile(l.Context(), f))
	return f
}

// batch makes a batch of the input of which so many requests are done.
func (l *large) batch(input batch.File, lines, done int) {
	l.Helper()
	const size = 1000
	ctx := l.Context()
	b, err := batch.New(batch.CreateParams{
		Project: batch.DefaultProject, InputFileID: input.ID, Endpoint: "/v1/chat/completions", CompletionWindow: "24h",
	}, batch.Policy{}, time.Now())
	l.must(err)
	l.must(l.store.CreateBatch(ctx, b))
	a, err := l.store.ClaimValidating(ctx, l.node)
	l.must(err)
	lane := batch.Lane{Model: "m", Endpoint: b.Endpoint}
	var segments []batch.Segment
	for i := 0; i < lines; i += size {
		n := int64(min(size, lines-i))
		segments = append(segments, batch.Segment{Lane: lane, Offset: int64(i * lineBytes), Length: n * lineBytes, FirstLine: int64(i + 1), Total: n})
	}
	l.must(l.store.Admit(ctx, *a, "m", segments))
	packer := journal.NewPacker(256 << 10)
	defer packer.Close()
	answer := []byte(`{"id":"chatcmpl-1","choices":[{"index":0,"message":{"role":"assistant","content":"` + strings.Repeat("y", lineBytes-400) +
		`"}}],"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}`)
	for i := 0; i < done; i += size {
		lease, err := l.store.Claim(ctx, l.node, batch.Work{BatchID: b.ID, Lane: lane})
		l.must(err)
		var results [][]byte
		for k := range int(lease.Total) {
			id := fmt.Sprintf(`"request-%08d"`, i+k)
			results = append(results, batch.Result{Status: 200, RequestID: "r", Body: answer}.AppendLine(nil, b.ID, batch.Request{Line: int64(i + k + 1), CustomID: []byte(id)}))
		}
		// The last segment of a batch that is half done stays open, with its journal.
		for k := 0; k < len(results); k += 100 {
			var data []byte
			n := 0
			for j := k; j < min(k+100, len(results)); j++ {
				data = journal.AppendEntry(data, j, true, results[j])
				n++
			}
			lease.Tally.Add(batch.Tally{Completed: int64(n), Usage: batch.Usage{Input: int64(10 * n), Output: int64(20 * n), Total: int64(30 * n)}})
			lost, err := l.store.Record(ctx, []batch.Group{{Lease: *lease, Tally: lease.Tally, Data: packer.Pack(data)}})
			l.must(err)
			if len(lost) > 0 {
				l.Fatal("lost")
			}
			lease.Seq++
		}
		if done < lines && i+size >= done {
			break
		}
		part := l.write(func(w io.Writer) { w.Write(bytes.Join(results, nil)) })
		_, err = l.store.Seal(ctx, *lease, part, batch.Part{})
		l.must(err)
	}
	if done == lines {
		if _, ok, err := l.store.Finalize(ctx, b.ID); !ok || err != nil {
			l.Fatalf("Finalize() = %v, %v", ok, err)
		}
	}
}
