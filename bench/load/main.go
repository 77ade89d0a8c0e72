// Command load measures what a server does when very many clients want something at once: how
// fast it answers them, what it costs a batch that runs meanwhile, whether another project notices,
// and how much memory it takes. Everything runs on this machine, for a bounded time.
//
//	go run ./bench/load                    # 10,000 pollers, 500 uploads, about a minute
//	go run ./bench/load -offpeak ./old     # another binary, to compare with
//
// The server is a child of this process, so its peak memory is the operating system's own figure.
// The clients run beside it and take their share of the machine.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	l := &load{}
	flag.StringVar(&l.offpeak, "offpeak", "", "binary to measure; by default this tree's is built")
	flag.IntVar(&l.pollers, "pollers", 10_000, "clients that ask for a batch again and again, each on a connection of its own")
	flag.DurationVar(&l.every, "every", 5*time.Second, "how often each of them asks, in the measured phase of that name")
	flag.IntVar(&l.uploads, "uploads", 500, "files uploaded at once")
	flag.IntVar(&l.size, "size", 2<<20, "bytes of each of them")
	flag.DurationVar(&l.phase, "phase", 10*time.Second, "how long each phase takes")
	flag.Parse()
	if err := l.run(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// A load is one measurement.
type load struct {
	offpeak                string
	pollers, uploads, size int
	every, phase           time.Duration

	server     *exec.Cmd
	addr       string // of the server, host and port
	keyA, keyB string // A is the project with the crowd
	batchA     string
	batchB     string
}

func (l *load) run() (err error) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	if most := int(files.Max) - 200; l.pollers > most { // Go has raised the soft limit already
		fmt.Printf("only %d pollers: this process may open %d files at most\n", most, files.Max)
		l.pollers = most
	}
	dir, err := os.MkdirTemp("", "offpeak-load-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if l.offpeak == "" {
		l.offpeak = filepath.Join(dir, "offpeak")
		if out, err := exec.Command("go", "build", "-o", l.offpeak, "./cmd/offpeak").CombinedOutput(); err != nil {
			return fmt.Errorf("build: %w: %s", err, out)
		}
	}
	up := httptest.NewServer(http.HandlerFunc(upstream))
	defer up.Close()
	if err := l.start(filepath.Join(dir, "data"), up.URL+"/v1"); err != nil {
		return err
	}
	defer l.stop()
	if err := l.createBatches(); err != nil {
		return err
	}
	fmt.Printf("%-34s %9s %9s %9s %9s %9s %9s %11s %9s\n", "phase", "A /s", "A p50", "A p99", "A max", "B p50", "B p99", "requests/s", "RSS")
	l.measure("a batch runs alone", 0, 0)
	l.measure(fmt.Sprintf("%d pollers, each every %v", l.pollers, l.every), l.pollers, l.every)
	l.measure(fmt.Sprintf("%d pollers without pause", l.pollers), l.pollers, 0)
	l.measure("100 pollers without pause", 100, 0)
	if err := l.uploadAtOnce(); err != nil {
		return err
	}
	fmt.Printf("peak memory of the server: %s\n", l.status("VmHWM"))
	return nil
}

// upstream answers every request after 50 ms.
func upstream(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodGet {
		io.WriteString(w, `{"object":"list","data":[{"id":"m","object":"model"}]}`)
		return
	}
	time.Sleep(50 * time.Millisecond)
	io.WriteString(w, `{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}`)
}

// start starts the server, with two projects and a key for each.
func (l *load) start(data, upstream string) error {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	output := func(args ...string) (string, error) {
		out, err := exec.Command(l.offpeak, append(args, "--data", data)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	var errA, errB, errP error
	l.keyA, errA = output("keys", "create")
	_, errP = output("projects", "create", "b")
	l.keyB, errB = output("keys", "create", "--project", "b")
	if err := errors.Join(errA, errP, errB); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	l.server = exec.Command(l.offpeak, "serve", "--listen", "127.0.0.1:0", "--data", data, "--upstream", upstream)
	stderr, err := l.server.StderrPipe()
	if err != nil {
		return err
	}
	if err := l.server.Start(); err != nil {
		return err
	}
	log := bufio.NewScanner(stderr)
	for log.Scan() {
		if _, url, ok := strings.Cut(log.Text(), "base_url=http://"); ok {
			l.addr, _, _ = strings.Cut(url, "/")
			break
		}
	}
	go func() {
		for log.Scan() {
			if strings.Contains(log.Text(), "level=ERROR") {
				fmt.Println(log.Text())
			}
		}
	}()
	if l.addr == "" {
		return errors.New("the server does not start")
	}
	return nil
}

func (l *load) stop() {
	l.server.Process.Kill()
	l.server.Wait()
}

// status reads a line of what the system says of the server.
func (l *load) status(name string) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.server.Process.Pid))
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			var kib int
			fmt.Sscan(v, &kib)
			return fmt.Sprintf("%d MiB", kib>>10)
		}
	}
	return "unknown"
}

// createBatches makes a batch for each project. That of B is small and done at once; A's runs for as long as
// anything is measured.
func (l *load) createBatches() (err error) {
	if l.batchB, err = l.createBatch(l.keyB, 1); err != nil {
		return err
	}
	l.batchA, err = l.createBatch(l.keyA, 500_000)
	return err
}

func (l *load) createBatch(key string, lines int) (id string, err error) {
	var input bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&input, `{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}`+"\n", i)
	}
	status, answer, err := l.send(key, "POST", "/v1/files", form, formOf(&input, int64(input.Len())))
	if err != nil || status != 200 {
		return "", fmt.Errorf("upload: status %d: %s: %w", status, answer, err)
	}
	var file, batch struct{ ID string }
	if err := json.Unmarshal(answer, &file); err != nil {
		return "", err
	}
	status, answer, err = l.send(key, "POST", "/v1/batches", "application/json", strings.NewReader(fmt.Sprintf(
		`{"input_file_id":%q,"endpoint":"/v1/chat/completions","completion_window":"24h"}`, file.ID)))
	if err != nil || status != 200 {
		return "", fmt.Errorf("create: status %d: %s: %w", status, answer, err)
	}
	return batch.ID, json.Unmarshal(answer, &batch)
}

const form = "multipart/form-data; boundary=B"

// formOf is an upload of size bytes.
func formOf(content io.Reader, size int64) io.Reader {
	const head = "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n" +
		"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n"
	return io.MultiReader(strings.NewReader(head), io.LimitReader(content, size), strings.NewReader("\r\n--B--\r\n"))
}

func (l *load) send(key, method, path, contentType string, body io.Reader) (status int, answer []byte, err error) {
	r, err := http.NewRequest(method, "http://"+l.addr+path, body)
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// measure lets n clients of project A poll their batch for a phase, each every so often, and one of
// project B ten times a second.
func (l *load) measure(name string, n int, every time.Duration) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	a, b := &figures{}, &figures{}
	conns := make(chan net.Conn, n)
	for range n { // connect first, one after the other
		c, err := net.Dial("tcp", l.addr)
		if err != nil {
			a.fail(err)
			continue
		}
		conns <- c
	}
	close(conns)
	begin, done := time.Now(), l.done()
	i := 0
	for c := range conns {
		phase := time.Duration(float64(every) * float64(i) / float64(n)) // spread them
		i++
		wg.Go(func() { poll(ctx, c, l.keyA, l.batchA, phase, every, a) })
	}
	if c, err := net.Dial("tcp", l.addr); err != nil {
		b.fail(err)
	} else {
		wg.Go(func() { poll(ctx, c, l.keyB, l.batchB, 0, 100*time.Millisecond, b) })
	}
	time.Sleep(l.phase)
	took, rss := time.Since(begin).Seconds(), l.status("VmRSS")
	a.close()
	b.close()
	stop()
	wg.Wait()
	rate := float64(l.done()-done) / time.Since(begin).Seconds()
	fmt.Printf("%-34s %9.0f %9v %9v %9v %9v %9v %11.0f %9s%s%s\n", name, float64(len(a.took))/took,
		a.at(0.5), a.at(0.99), a.at(1), b.at(0.5), b.at(0.99), rate, rss, a.errors("A"), b.errors("B"))
}

// done is how many requests of A's batch are answered.
func (l *load) done() int64 {
	_, answer, _ := l.send(l.keyA, "GET", "/v1/batches/"+l.batchA, "", nil)
	var b struct {
		Counts struct{ Completed int64 } `json:"request_counts"`
	}
	json.Unmarshal(answer, &b)
	return b.Counts.Completed
}

// poll asks for a batch over c until ctx ends.
func poll(ctx context.Context, c net.Conn, key, batch string, wait, every time.Duration, f *figures) {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	request := fmt.Appendf(nil, "GET /v1/batches/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n\r\n", batch, key)
	answers := bufio.NewReaderSize(c, 2048)
	for {
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		begin := time.Now()
		_, err := c.Write(request)
		var resp *http.Response
		if err == nil {
			resp, err = http.ReadResponse(answers, nil)
		}
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.fail(err)
			return
		}
		f.add(resp.StatusCode, time.Since(begin))
		if resp.Close {
			return
		}
		wait = every
	}
}

// uploadAtOnce uploads files of project A at the same time, and looks at how B fares.
func (l *load) uploadAtOnce() error {
	line := []byte(`{"custom_id":"1","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 900) + `"}]}}` + "\n")
	content := bytes.Repeat(line, l.size/len(line)+1)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	polls, files := &figures{}, &figures{}
	var other sync.WaitGroup
	c, err := net.Dial("tcp", l.addr)
	if err != nil {
		return err
	}
	other.Go(func() { poll(ctx, c, l.keyB, l.batchB, 0, 100*time.Millisecond, polls) })
	begin := time.Now()
	var uploads sync.WaitGroup
	var left atomic.Int32
	left.Store(int32(l.uploads))
	crowd := &figures{}
	upload := func(key string, f *figures) {
		begin := time.Now()
		status, _, err := l.send(key, "POST", "/v1/files", form, formOf(bytes.NewReader(content), int64(len(content))))
		if err != nil {
			f.fail(err)
			return
		}
		f.add(status, time.Since(begin))
	}
	for range l.uploads {
		uploads.Go(func() {
			upload(l.keyA, crowd)
			left.Add(-1)
		})
	}
	other.Go(func() {
		for left.Load() > 0 {
			upload(l.keyB, files)
		}
	})
	var most int
	other.Go(func() {
		for left.Load() > 0 {
			var mib int
			fmt.Sscan(l.status("VmRSS"), &mib)
			most = max(most, mib)
			time.Sleep(50 * time.Millisecond)
		}
	})
	uploads.Wait()
	took := time.Since(begin)
	stop()
	other.Wait()
	for _, f := range []*figures{crowd, polls, files} {
		f.close()
	}
	fmt.Printf("%d uploads of %.1f MB at once: %.1f s, p50 %v, max %v%s; B's polls p50 %v, p99 %v%s; B's own uploads %d, p50 %v, max %v%s; most RSS %d MiB\n",
		l.uploads, float64(len(content))/1e6, took.Seconds(), crowd.at(0.5), crowd.at(1), crowd.errors("A"),
		polls.at(0.5), polls.at(0.99), polls.errors("B"), len(files.took), files.at(0.5), files.at(1), files.errors("B"), most)
	return nil
}

// figures are what came of many requests.
type figures struct {
	mu     sync.Mutex
	closed bool
	took   []time.Duration
	failed map[string]int // by what is wrong
}

func (f *figures) add(status int, took time.Duration) {
	if status != 200 {
		f.fail(fmt.Errorf("HTTP %d", status))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.took = append(f.took, took)
	}
}

func (f *figures) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed = map[string]int{}
	}
	if !f.closed {
		f.failed[err.Error()]++
	}
}

// close ends the counting.
func (f *figures) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	slices.Sort(f.took)
}

// at is the quantile q of the times.
func (f *figures) at(q float64) time.Duration {
	if len(f.took) == 0 {
		return 0
	}
	return f.took[int(q*float64(len(f.took)-1))].Round(100 * time.Microsecond)
}

func (f *figures) errors(of string) string {
	var all []string
	for what, n := range f.failed {
		all = append(all, fmt.Sprintf("%d× %s", n, what))
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Compare(a, b) })
	if len(all) == 0 {
		return ""
	}
	return fmt.Sprintf("; %s failed: %s", of, strings.Join(all, ", "))
}
