// Command bench measures Offpeak beside the least that the same work can cost: a bare loop of
// net/http calls over the same bodies, in the same run on the same machine.
//
//	go run ./bench                  # every row, a few minutes
//	go run ./bench -rows executor   # some
//	go run ./bench -rows scheduling # how full upstreams are kept, in simulated time: ./scheduling
//
// Every process that is measured is a child of this one, so its CPU time and peak memory are the
// operating system's own figures. Numbers are medians over repetitions in turn.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "bare" {
		exitOn(bare(os.Args[2:]))
		return
	}
	rows := flag.String("rows", "executor,latency,memory,scheduling", "what to measure: executor, latency, memory, scheduling, auto")
	lines := flag.Int("lines", 50_000, "lines of the executor rows")
	reps := flag.Int("reps", 3, "repetitions of each row")
	million := flag.Int("million", 1_000_000, "lines of 2 KB of the memory row")
	requests := flag.Int("requests", 6000, "requests of each scenario of the scheduling row, and of the auto row")
	flag.Parse()
	dir, err := os.MkdirTemp("", "offpeak-bench-")
	exitOn(err)
	defer os.RemoveAll(dir)
	b := &bench{dir: dir, offpeak: filepath.Join(dir, "offpeak")}
	exitOn(command("go", "build", "-o", b.offpeak, "./cmd/offpeak").Run())
	b.self, err = os.Executable()
	exitOn(err)
	for _, row := range strings.Split(*rows, ",") {
		switch row {
		case "executor":
			exitOn(b.executor(*lines, *reps))
		case "latency":
			exitOn(b.latency(50))
		case "memory":
			exitOn(b.memory(*million))
		case "scheduling":
			exitOn(b.scheduling(*requests))
		case "auto":
			exitOn(b.auto(*requests))
		default:
			exitOn(fmt.Errorf("there is no row %q", row))
		}
	}
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct{ dir, offpeak, self string }

// command is exec.Command that shows what goes wrong.
func command(name string, args ...string) *exec.Cmd {
	c := exec.Command(name, args...)
	c.Stderr = os.Stderr
	return c
}

// input writes n lines with bodies that fill them up to size bytes.
func (b *bench) input(n, size int) (string, error) {
	path := filepath.Join(b.dir, fmt.Sprintf("in-%d-%d.jsonl", n, size))
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	var buf bytes.Buffer
	for i := range n {
		line := fmt.Sprintf(`{"custom_id":"request-%07d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"%07d `, i, i)
		end := `"}],"max_tokens":100}}` + "\n"
		buf.WriteString(line)
		buf.WriteString(strings.Repeat("x", max(0, size-len(line)-len(end))))
		buf.WriteString(end)
		if buf.Len() > 1<<20 {
			if _, err := buf.WriteTo(f); err != nil {
				return "", err
			}
		}
	}
	if _, err := buf.WriteTo(f); err != nil {
		return "", err
	}
	return path, f.Close()
}

// A sample is one run of one process against a stub.
type sample struct {
	rate   float64 // requests/s, from the first request that the stub saw to its last answer
	cpu    float64 // seconds per 10,000 requests
	memory float64 // peak, in MiB
	wall   float64 // seconds of the whole process
}

// run runs a process that sends n requests to s.
func (b *bench) run(s *stub, n int, name string, args ...string) (sample, error) {
	s.reset()
	c := command(name, args...)
	c.Stderr = nil
	start := time.Now()
	out, err := c.CombinedOutput()
	wall := time.Since(start).Seconds()
	if err != nil {
		return sample{}, fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	first, last, count := s.seen()
	if count < n {
		return sample{}, fmt.Errorf("%s sent %d requests, not %d", name, count, n)
	}
	u := c.ProcessState.SysUsage().(*syscall.Rusage)
	cpu := c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	return sample{
		rate: float64(count) / last.Sub(first).Seconds(), cpu: cpu.Seconds() / float64(n) * 10_000,
		memory: float64(u.Maxrss) / 1024, wall: wall,
	}, nil
}

// executor compares running a file with the bare loop.
func (b *bench) executor(lines, reps int) error {
	in, err := b.input(lines, 335)
	if err != nil {
		return err
	}
	s, err := newStub()
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Printf("executor: %d lines of 335 B, an upstream that answers at once; medians of %d runs in turn\n", lines, reps)
	fmt.Printf("%9s  %10s %10s %7s   %12s %12s %7s   %10s\n", "in flight", "bare r/s", "ours r/s", "ratio", "bare CPU/10k", "ours CPU/10k", "ratio", "ours peak")
	for _, c := range []int{64, 256, 1000} {
		var bares, ours []sample
		for i := range reps {
			out := filepath.Join(b.dir, fmt.Sprintf("out-%d-%d.jsonl", c, i))
			x, err := b.run(s, lines, b.self, "bare", "-in", in, "-out", out+".bare", "-url", s.url(), "-c", fmt.Sprint(c))
			if err != nil {
				return err
			}
			bares = append(bares, x)
			if x, err = b.run(s, lines, b.offpeak, "run", in, "-o", out, "--upstream", s.url(), "--max-in-flight", fmt.Sprint(c)); err != nil {
				return err
			}
			ours = append(ours, x)
		}
		rate := func(x sample) float64 { return x.rate }
		cpu := func(x sample) float64 { return x.cpu }
		br, or, bc, oc := median(bares, rate), median(ours, rate), median(bares, cpu), median(ours, cpu)
		fmt.Printf("%9d  %10.0f %10.0f %7.2f   %12.3f %12.3f %7.2f   %6.0f MiB\n", c, br, or, or/br, bc, oc, oc/bc,
			median(ours, func(x sample) float64 { return x.memory }))
	}
	fmt.Println("CPU of ours is that of the whole process: start, copying and checking the input, journal, sealing, output.")
	return nil
}

func median(s []sample, of func(sample) float64) float64 {
	v := make([]float64, len(s))
	for i, x := range s {
		v[i] = of(x)
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// memory runs a large file and reports the peak.
func (b *bench) memory(lines int) error {
	in, err := b.input(lines, 2048)
	if err != nil {
		return err
	}
	defer os.Remove(in)
	s, err := newStub()
	if err != nil {
		return err
	}
	defer s.Close()
	out := filepath.Join(b.dir, "million.jsonl")
	x, err := b.run(s, lines, b.offpeak, "run", in, "-o", out, "--upstream", s.url(), "--max-in-flight", "256")
	if err != nil {
		return err
	}
	fmt.Printf("memory: %d lines of 2 KB: peak %.0f MiB, %.0f requests/s, %.3f CPU-s per 10,000, %.0f s in all\n", lines, x.memory, x.rate, x.cpu, x.wall)
	return nil
}

// latency measures, on an idle server, how long it takes from the call that creates a batch to its
// first request at the upstream, and from the last answer until the batch is completed.
func (b *bench) latency(n int) error {
	s, err := newStub()
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	l.Close()
	c := command(b.offpeak, "serve", "--listen", addr, "--data", filepath.Join(b.dir, "data"), "--upstream", s.url(), "--log-level", "error")
	if err := c.Start(); err != nil {
		return err
	}
	defer func() { c.Process.Signal(os.Interrupt); c.Wait() }()
	api := client{"http://" + addr}
	for api.get("/readyz", nil) != nil {
		time.Sleep(10 * time.Millisecond)
	}
	in, err := b.input(100, 335)
	if err != nil {
		return err
	}
	file, err := api.upload(in)
	if err != nil {
		return err
	}
	var first, done []float64
	for range n {
		s.reset()
		start := time.Now()
		id, err := api.create(file)
		if err != nil {
			return err
		}
		var status struct{ Status string }
		for status.Status != "completed" {
			if err := api.get("/v1/batches/"+id, &status); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		end := time.Now()
		f, last, _ := s.seen()
		first = append(first, f.Sub(start).Seconds()*1000)
		done = append(done, end.Sub(last).Seconds()*1000)
	}
	slices.Sort(first)
	slices.Sort(done)
	fmt.Printf("latency: %d batches of 100 requests, one after another, on an idle server\n", n)
	fmt.Printf("  create call → first request: median %.1f ms, p99 %.1f ms\n", first[n/2], first[n*99/100])
	fmt.Printf("  last answer → completed:     median %.1f ms, p99 %.1f ms\n", done[n/2], done[n*99/100])
	return nil
}

// client is what latency needs of the API.
type client struct{ base string }

func (c client) do(req *http.Request, into any) error {
	req.Header.Set("Authorization", "Bearer bench")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("%s: HTTP %d: %s", req.URL, resp.StatusCode, body)
	}
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(body, into)
}

func (c client) get(path string, into any) error {
	req, err := http.NewRequest("GET", c.base+path, nil)
	if err != nil {
		return err
	}
	return c.do(req, into)
}

func (c client) upload(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	err = w.WriteField("purpose", "batch")
	part, err2 := w.CreateFormFile("file", "in.jsonl")
	if err = cmp.Or(err, err2); err != nil {
		return "", err
	}
	part.Write(data)
	w.Close()
	req, err := http.NewRequest("POST", c.base+"/v1/files", &body)
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", w.FormDataContentType())
	var f struct{ ID string }
	err = c.do(req, &f)
	return f.ID, err
}

func (c client) create(file string) (string, error) {
	req, err := http.NewRequest("POST", c.base+"/v1/batches", strings.NewReader(
		`{"input_file_id":"`+file+`","endpoint":"/v1/chat/completions","completion_window":"24h"}`))
	if err != nil {
		return "", err
	}
	var b struct{ ID string }
	err = c.do(req, &b)
	return b.ID, err
}
