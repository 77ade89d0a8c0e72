package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"offpeak/internal/batch"
	"offpeak/internal/store"
	"offpeak/internal/upstream"
)

// Commands of scripts that make inputs and judge results.

// bytes FILE TEXT writes TEXT, in which %XX stands for the byte with that number.
func writeBytes(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "bytes FILE TEXT")
	text, err := url.PathUnescape(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// gen N FILE [TEXT…] writes an input of N chat requests, every one different. The first of them say
// what the TEXTs say, one each.
func generate(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2, "gen N FILE [TEXT…]")
	n, texts := number(ts, args[0]), args[2:]
	var b bytes.Buffer
	for i := 1; i <= n; i++ {
		content := "question"
		if i <= len(texts) {
			content = texts[i-1]
		}
		fmt.Fprintf(&b, `{"custom_id":"r%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"%s %d"}]}}`+"\n", i, content, i)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b.Bytes(), 0o600))
}

// answers INPUT N OUTPUT [M ERRORS] checks promise 1: every request of the input is in exactly one
// of the two files, once; and that they have so many lines, in the order of the input, with
// answers in the one and none in the other.
func answers(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 3 || len(args) == 5, "answers INPUT N OUTPUT [M ERRORS]")
	place := map[string]int{} // custom_id → line
	for i, l := range readLines(ts, args[0]) {
		place[l.CustomID] = i
	}
	seen := map[string]bool{}
	for i := 1; i < len(args); i += 2 {
		file, lines := args[i+1], readLines(ts, args[i+1])
		if want := number(ts, args[i]); len(lines) != want {
			ts.Fatalf("%s has %d lines, want %d", file, len(lines), want)
		}
		last := -1
		for n, l := range lines {
			at, known := place[l.CustomID]
			ok := l.Response != nil && l.Response.Status == 200
			switch {
			case !known:
				ts.Fatalf("%s:%d: %q is not in the input", file, n+1, l.CustomID)
			case seen[l.CustomID]:
				ts.Fatalf("%s:%d: %q is there twice", file, n+1, l.CustomID)
			case at <= last:
				ts.Fatalf("%s:%d: %q is not in the order of the input", file, n+1, l.CustomID)
			case ok != (i == 1):
				ts.Fatalf("%s:%d: %q does not belong here", file, n+1, l.CustomID)
			}
			seen[l.CustomID], last = true, at
		}
	}
	if len(seen) != len(place) {
		ts.Fatalf("%d of %d requests have no answer", len(place)-len(seen), len(place))
	}
}

type resultLine struct {
	CustomID string `json:"custom_id"`
	Response *struct {
		Status int `json:"status_code"`
	}
}

func readLines(ts *testscript.TestScript, path string) (lines []resultLine) {
	f, err := os.Open(ts.MkAbs(path))
	ts.Check(err)
	defer f.Close()
	for dec := json.NewDecoder(f); ; {
		var l resultLine
		err := dec.Decode(&l)
		if err == io.EOF {
			return lines
		}
		if err != nil {
			ts.Fatalf("%s: line %d: %v", path, len(lines)+1, err)
		}
		lines = append(lines, l)
	}
}

// samelines FILE1 FILE2 checks that two files have the same lines, whatever their order.
func sameLines(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "samelines FILE1 FILE2")
	sorted := func(path string) []string {
		lines := strings.Split(ts.ReadFile(path), "\n")
		slices.Sort(lines)
		return lines
	}
	a, b := sorted(args[0]), sorted(args[1])
	if !slices.Equal(a, b) {
		ts.Fatalf("%s, sorted:\n%s\n%s, sorted:\n%s", args[0], strings.Join(a, "\n"), args[1], strings.Join(b, "\n"))
	}
}

// resent LOG N MOST checks a log of bodies: there are N different ones, and at most MOST of them
// were sent more than once, or any number if MOST is *.
func resent(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 3, "resent LOG N MOST")
	times := map[string]int{}
	for _, line := range strings.Split(strings.TrimSuffix(ts.ReadFile(args[0]), "\n"), "\n") {
		times[line]++
	}
	again := 0
	for _, n := range times {
		if n > 1 {
			again++
		}
	}
	if len(times) != number(ts, args[1]) || args[2] != "*" && again > number(ts, args[2]) {
		ts.Fatalf("%d different bodies were sent, %d of them more than once", len(times), again)
	}
}

// recorded DIR N waits until so many answers are recorded in a data folder.
func recorded(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "recorded DIR N")
	ctx, want := context.Background(), int64(number(ts, args[1]))
	db, err := store.Open(ctx, ts.MkAbs(args[0]), store.Options{Guest: true})
	ts.Check(err)
	defer db.Close()
	var got int64
	poll(ts, func() string { return fmt.Sprintf("%d recorded", got) }, func() bool {
		bs, _, err := db.ListBatches(ctx, batch.DefaultProject, batch.BatchQuery{Limit: 1})
		ts.Check(err)
		if len(bs) > 0 {
			got = bs[0].Counts.Completed + bs[0].Counts.Failed
		}
		return got >= want
	})
}

// sql DIR STATEMENT changes the database in a data folder by hand, which must change something.
func changeDatabase(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "sql DIR STATEMENT")
	db, err := sql.Open("sqlite", "file:"+filepath.Join(ts.MkAbs(args[0]), "offpeak.db"))
	ts.Check(err)
	defer db.Close()
	r, err := db.Exec(args[1])
	ts.Check(err)
	if n, err := r.RowsAffected(); err != nil || n == 0 {
		ts.Fatalf("it changes %d rows, %v", n, err)
	}
}

// tmpfs DIR SIZE makes a folder with a file system of its own, which can be filled.
func tmpfs(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "tmpfs DIR SIZE")
	dir := ts.MkAbs(args[0])
	ts.Check(mountTmpfs(dir, args[1]))
	s := scriptOf(ts)
	s.atEnd = append(s.atEnd, func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
}

func mountTmpfs(dir, size string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syscall.Mount("none", dir, "tmpfs", 0, "size="+size)
}

func canMount(dir string) bool {
	if mountTmpfs(dir, "64k") != nil {
		return false
	}
	return syscall.Unmount(dir, 0) == nil
}

// fill FILE LEAVE makes a file that takes all the room of its file system but LEAVE bytes.
func fill(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "fill FILE LEAVE")
	path := ts.MkAbs(args[0])
	var st syscall.Statfs_t
	ts.Check(syscall.Statfs(filepath.Dir(path), &st))
	size := int64(st.Bavail)*int64(st.Bsize) - int64(number(ts, args[1]))
	f, err := os.Create(path)
	ts.Check(err)
	w := bufio.NewWriter(f)
	_, err = io.CopyN(w, zeros{}, max(0, size))
	err = errors.Join(err, w.Flush(), f.Close())
	if !errors.Is(err, syscall.ENOSPC) { // somebody else may have been quicker
		ts.Check(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// quiet reports whether no upstream is to be found on this machine.
func quiet(t *testing.T) bool { return len(upstream.Discover(t.Context(), upstream.WellKnown)) == 0 }
