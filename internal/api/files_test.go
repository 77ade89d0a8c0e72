package api

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

func TestFileLife(t *testing.T) {
	x := newTester(t, nil)
	f := x.uploadFile("{\"a\":1}\n")
	if got := decode[openai.File](x, x.get("/v1/files/"+f.ID)); !sameJSON(t, got, f) {
		t.Errorf("read back %+v, want %+v", got, f)
	}
	got := decode[openai.FileDeleted](x, x.send("DELETE", "/v1/files/"+f.ID, nil))
	if want := (openai.FileDeleted{ID: f.ID, Object: "file", Deleted: true}); got != want {
		t.Errorf("deleted: %+v", got)
	}
	for _, req := range [][2]string{{"GET", ""}, {"DELETE", ""}, {"GET", "/content"}} {
		x.wantError(x.send(req[0], "/v1/files/"+f.ID+req[1], nil), 404, "", "id", "No such File object: "+f.ID)
	}
	f = x.uploadFile("{}\n")
	x.now.Store(*f.ExpiresAt)
	x.wantError(x.get("/v1/files/"+f.ID), 404, "", "id", "No such File object: "+f.ID)
}

func TestListFiles(t *testing.T) {
	x := newTester(t, nil)
	var ids []string // oldest first
	for i := range 4 {
		purpose := forBatch
		if i%2 == 1 {
			purpose.value = "user_data"
		}
		ids = append(ids, decode[openai.File](x, x.upload(purpose, fileField("{}\n"))).ID)
	}
	newest := slices.Clone(ids)
	slices.Reverse(newest)
	for _, tt := range []struct {
		query string
		want  []string
		more  bool
	}{
		{"", newest, false},
		{"?order=desc", newest, false},
		{"?order=asc", ids, false},
		{"?order=asc&limit=3", ids[:3], true},
		{"?order=asc&limit=3&after=" + ids[2], ids[3:], false},
		{"?limit=4", newest, false},
		{"?limit=10000", newest, false},
		{"?purpose=user_data&order=asc", []string{ids[1], ids[3]}, false},
		{"?purpose=user_data&order=asc&limit=1", []string{ids[1]}, true},
		{"?purpose=nothing", nil, false},
		{"?after=" + ids[0], nil, false},
		{"?purpose=&limit=&order=&after=", newest, false},
	} {
		l := decode[openai.List[openai.File]](x, x.get("/v1/files"+tt.query))
		var got []string
		for _, f := range l.Data {
			got = append(got, f.ID)
		}
		if !slices.Equal(got, tt.want) || l.HasMore != tt.more {
			t.Errorf("%s: got %v, more %v; want %v, more %v", tt.query, got, l.HasMore, tt.want, tt.more)
		}
	}
}

// partedFile is a file of project a whose content stands in several blobs.
func (x *tester) partedFile(parts ...string) batch.File {
	f := batch.File{ID: batch.NewFileID(), Project: "proj_a", Purpose: "batch_output", Filename: "out.jsonl", CreatedAt: x.store.now()}
	x.blobs.mu.Lock()
	defer x.blobs.mu.Unlock()
	for i, p := range parts {
		key := fmt.Sprintf("%s-%d", f.ID, i)
		x.blobs.blobs[key] = []byte(p)
		f.Parts = append(f.Parts, batch.Part{Key: key, Bytes: int64(len(p))})
		f.Bytes += int64(len(p))
	}
	x.store.mu.Lock()
	defer x.store.mu.Unlock()
	x.store.files = append(x.store.files, f)
	return f
}

func TestContent(t *testing.T) {
	x := newTester(t, nil)
	f := x.partedFile("0123", "", "4567", "89")
	const all = "0123456789"
	for _, tt := range []struct {
		header       string // Range
		status       int
		want         string
		contentRange string
	}{
		{"", 200, all, ""},
		{"bytes=0-", 206, all, "bytes 0-9/10"},
		{"bytes=0-0", 206, "0", "bytes 0-0/10"},
		{"bytes=3-4", 206, "34", "bytes 3-4/10"},
		{"bytes=2-8", 206, "2345678", "bytes 2-8/10"},
		{"bytes=9-", 206, "9", "bytes 9-9/10"},
		{"bytes=9-99999999999", 206, "9", "bytes 9-9/10"},
		{"bytes=-3", 206, "789", "bytes 7-9/10"},
		{"bytes=-99", 206, all, "bytes 0-9/10"},
		{"bytes=10-", 416, "", "bytes */10"},
		{"bytes=10-11", 416, "", "bytes */10"},
		{"bytes=-0", 416, "", "bytes */10"},
		{"bytes=5-3", 200, all, ""},
		{"bytes=0-1,3-4", 200, all, ""},
		{"bytes=-", 200, all, ""},
		{"bytes=a-b", 200, all, ""},
		{"bytes=+1-2", 200, all, ""},
		{"bytes=-9223372036854775808", 200, all, ""},
		{"bytes=9223372036854775807-", 416, "", "bytes */10"},
		{"bytes=0-9223372036854775807", 206, all, "bytes 0-9/10"},
		{"lines=0-1", 200, all, ""},
		{"0-1", 200, all, ""},
	} {
		a := x.get("/v1/files/"+f.ID+"/content", "Range", tt.header, "Accept", "application/binary")
		if a.StatusCode != tt.status || a.Header.Get("Content-Range") != tt.contentRange {
			t.Errorf("%q: status %d, Content-Range %q", tt.header, a.StatusCode, a.Header.Get("Content-Range"))
		}
		if tt.status == 416 {
			x.wantError(a, 416, "", "", "The requested range is outside the file, which has 10 bytes.")
			if a.Header.Get("Content-Disposition") != "" {
				t.Errorf("%q: an error as an attachment", tt.header)
			}
			continue
		}
		if string(a.body) != tt.want || a.ContentLength != int64(len(tt.want)) {
			t.Errorf("%q: got %q with Content-Length %d, want %q", tt.header, a.body, a.ContentLength, tt.want)
		}
		for name, want := range map[string]string{
			"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes",
			"Content-Disposition": `attachment; filename="out.jsonl"`, "ETag": `"` + f.ID + `"`,
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%q: %s %q, want %q", tt.header, name, got, want)
			}
		}
	}
	for ifRange, want := range map[string]string{`"` + f.ID + `"`: "12", `"other"`: all, "Thu, 05 Nov 2026 12:00:00 GMT": all} {
		if a := x.get("/v1/files/"+f.ID+"/content", "Range", "bytes=1-2", "If-Range", ifRange); string(a.body) != want {
			t.Errorf("If-Range %s: got %q, want %q", ifRange, a.body, want)
		}
	}
}

func TestContentOfNothing(t *testing.T) {
	x := newTester(t, nil)
	f := x.partedFile("")
	if a := x.get("/v1/files/" + f.ID + "/content"); a.StatusCode != 200 || len(a.body) != 0 || a.ContentLength != 0 {
		t.Errorf("status %d, body %q, length %d", a.StatusCode, a.body, a.ContentLength)
	}
	x.wantStatus(x.get("/v1/files/"+f.ID+"/content", "Range", "bytes=0-"), 416)
}

// TestContentLost: a file whose bytes are gone is an error while that can still be said, and a
// broken connection afterwards; never a short answer that looks whole.
func TestContentLost(t *testing.T) {
	x := newTester(t, nil)
	f := x.partedFile("first", "second")
	delete(x.blobs.blobs, f.Parts[0].Key)
	x.wantError(x.get("/v1/files/"+f.ID+"/content"), 500, "", "", serverErrorText)

	f = x.partedFile(strings.Repeat("x", 1<<20), "second")
	delete(x.blobs.blobs, f.Parts[1].Key)
	if a := x.get("/v1/files/" + f.ID + "/content"); a.err == nil {
		t.Errorf("status %d and %d of %d bytes, without an error", a.StatusCode, len(a.body), f.Bytes)
	}
	x.eventually("both failures are logged, once each", func() bool { return x.log.count("level=ERROR") == 2 })
}

// TestStalledReader: who takes nothing of a download is given up.
func TestStalledReader(t *testing.T) {
	observed := make(chan string, 1)
	x := newTester(t, func(c *Config) {
		c.Stall = 100 * time.Millisecond
		c.Observe = func(route, class string, _ time.Duration) { observed <- route + " " + class }
	})
	f := x.partedFile(slices.Repeat([]string{strings.Repeat("x", 1<<20)}, 64)...)
	conn := x.dial()
	fmt.Fprintf(conn, "GET /v1/files/%s/content HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", f.ID, keyA)
	select {
	case got := <-observed:
		if got != "GET /v1/files/{id}/content 2xx" {
			t.Errorf("observed %s", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the download still runs")
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Errorf("%d of %d bytes, without an error", n, f.Bytes)
	}
	if strings.Contains(x.log.String(), "level=ERROR") {
		t.Error("that is no error of ours")
	}
}

// TestSlowReader: a download may take longer than a client may stall, and a connection that has
// seen one serves on.
func TestSlowReader(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Stall = 300 * time.Millisecond })
	f := x.partedFile(slices.Repeat([]string{strings.Repeat("x", 1<<20)}, 16)...)
	req, _ := http.NewRequest("GET", x.url+"/v1/files/"+f.ID+"/content", nil)
	req.Header.Set("Authorization", "Bearer "+keyA)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var n int64
	for err == nil {
		var m int64
		m, err = io.CopyN(io.Discard, resp.Body, 2<<20)
		n += m
		time.Sleep(100 * time.Millisecond)
	}
	if err != io.EOF || n != f.Bytes {
		t.Errorf("%d of %d bytes: %v", n, f.Bytes, err)
	}
	time.Sleep(400 * time.Millisecond) // longer than the last deadline
	x.wantStatus(x.get("/v1/files/"+f.ID), 200)
}
