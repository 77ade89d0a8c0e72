package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	var out bytes.Buffer
	e := &env{out: &out, row: "upload"}
	e.report(figure{Case: "a", Unit: "MB/s", Measured: 604, Reference: 1346, Against: "write", Ratio: 604. / 1346}, ratioOf(0.7, "slow"))
	e.report(figure{Case: "b", Unit: "ms", Measured: 20}, atMost(20, "slow"))
	e.report(figure{Case: "c", Unit: "µs", Measured: 12, Reference: 10, Against: "d", Ratio: 1.2}, ratioUpTo(1.1, "slow"))
	e.report(figure{Case: "d", Unit: "MB/s", Measured: 1234.5678}, goal{})
	for i, want := range []struct {
		goal, reason string
		met          bool
	}{{"≥ 0.7", "slow", false}, {"≤ 20 ms", "", true}, {"≤ 1.1", "slow", false}, {"", "", false}} {
		f := e.figures[i]
		if f.Row != "upload" || f.Goal != want.goal || f.Reason != want.reason || f.Met != nil && *f.Met != want.met || (f.Met == nil) != (want.goal == "") {
			t.Errorf("%s: got %+v, want %+v", f.Case, f, want)
		}
	}
	if text := out.String(); strings.Count(text, "MISSED") != 2 || strings.Count(text, "slow") != 2 || !strings.Contains(text, "1,346 write") {
		t.Errorf("the table is\n%s", text)
	}
	path := filepath.Join(t.TempDir(), "figures")
	for range 2 {
		if err := e.record(path, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var kept struct{ Figures []figure }
		if err := json.Unmarshal(line, &kept); err != nil || len(kept.Figures) != 4 || kept.Figures[3].Measured != 1234.6 {
			t.Errorf("%s: %v", line, err)
		}
	}
	if n := bytes.Count(text, []byte("\n")); n != 2 {
		t.Errorf("two runs are %d lines", n)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0731: "0.073", 0.7: "0.7", 3.14159: "3.142", 64: "64", 12.34: "12.3", 999.6: "1000", 1346: "1,346", 1234567: "1,234,567"} {
		if got := number(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}

func TestQuantile(t *testing.T) {
	v := make([]float64, 100)
	for i := range v {
		v[(i*37)%100] = float64(i)
	}
	if m, p99 := median(v), quantile(v, 0.99); m != 50 || p99 != 99 {
		t.Errorf("got %v and %v", m, p99)
	}
}

// A stub answers a round of any clients, and knows when it is over.
func TestStub(t *testing.T) {
	up, err := newStub(0, completions(2, 90)...)
	if err != nil {
		t.Fatal(err)
	}
	defer up.close()
	r := up.expect(10)
	for i := range 10 {
		answer, err := post(http.DefaultClient, up.url()+"/chat/completions", []byte(strings.Repeat("x", i*3000)))
		if err != nil || !json.Valid(answer) {
			t.Fatalf("%s, %v", answer, err)
		}
	}
	if err := r.wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.came.Load() != 10 || r.last.Before(r.first) {
		t.Errorf("%d came, from %v to %v", r.came.Load(), r.first, r.last)
	}
	resp, err := http.Get(up.url() + "/models")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 404 || r.came.Load() != 10 {
		t.Errorf("a list of models: HTTP %d", resp.StatusCode)
	}
}

// Inputs are of the size that is asked for, and bodies are those of their lines.
func TestInput(t *testing.T) {
	e := &env{scratch: t.TempDir()}
	in, err := e.chats(50, 335)
	if err == nil {
		in, err = in.withBodies()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines, err := os.ReadFile(in.path)
	if err != nil {
		t.Fatal(err)
	}
	bodies, err := os.ReadFile(in.bodies)
	if err != nil {
		t.Fatal(err)
	}
	if in.bytes != 50*335 || len(lines) != 50*335 {
		t.Errorf("%d bytes, said to be %d", len(lines), in.bytes)
	}
	body := bytes.Split(bodies, []byte("\n"))
	for i, line := range bytes.Split(bytes.TrimSpace(lines), []byte("\n")) {
		var l struct{ Body json.RawMessage }
		if err := json.Unmarshal(line, &l); err != nil || !bytes.Equal(l.Body, body[i]) {
			t.Errorf("%s: %v; its body is %s", line, err, body[i])
		}
	}
}
