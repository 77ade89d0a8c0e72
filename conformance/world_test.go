package conformance

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"offpeak/internal/batch"
	"offpeak/internal/store"
)

// A world is what the suites find: servers of the real binary, and things in them that only
// somebody else could have made.
type world struct {
	bin, data string
	store     *store.Store // of the server, beside it
	url       string       // of the server
	shared    []string     // environment of all suites
}

// Models of the world, and what becomes of requests to them.
const (
	chat = "sim-chat"          // answered at once
	free = "org/sim-chat:free" // likewise
	slow = "sim-slow"          // answered after 4 seconds
	busy = "sim-busy"          // never answered but with 429
	many = 120                 // files, and batches, of the project with many of them
)

func newWorld(t *testing.T, cache string) *world {
	w := &world{bin: filepath.Join(cache, "offpeak"), data: t.TempDir()}
	output(t, exec.Command("go", "build", "-o", w.bin, "../cmd/offpeak"), os.Environ())

	listening := regexp.MustCompile(`simulated upstream on (\S+)`)
	sim := w.start(t, listening, "sim", "--listen", "127.0.0.1:0", "--model", chat, "--model", free, "--always-400", "refuse-me")
	slowSim := w.start(t, listening, "sim", "--listen", "127.0.0.1:0", "--model", slow, "--latency", "4s")
	busySim := w.start(t, listening, "sim", "--listen", "127.0.0.1:0", "--model", busy, "--rate-429", "1", "--retry-after", "1s")

	foreign, pages := w.key(t, w.data, "foreign"), w.key(t, w.data, "pages")
	serving := regexp.MustCompile(`base_url=(\S+)`)
	w.url = w.start(t, serving, "serve", "--listen", "127.0.0.1:0", "--data", w.data,
		"--upstream", sim, "--upstream", slowSim, "--upstream", busySim)

	// With one upstream of which nobody knows yet what it serves, a model that nobody serves keeps
	// its batch validating.
	strictData := t.TempDir()
	strictKey := w.key(t, strictData, "strict")
	strict := w.start(t, serving, "serve", "--listen", "127.0.0.1:0", "--data", strictData, "--compat", "openai",
		"--upstream", sim, "--upstream", "http://127.0.0.1:9/v1")

	var err error
	if w.store, err = store.Open(t.Context(), w.data, store.Options{Guest: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.store.Close() })

	w.shared = append(os.Environ(), "NO_PROXY=127.0.0.1", "BASE_URL="+w.url, "SIM_URL="+sim, "STRICT_URL="+strict, "STRICT_KEY="+strictKey, "PAGES_KEY="+pages)
	w.fillPages(t, w.client(pages))
	w.shared = append(w.shared, w.foreignThings(t, w.client(foreign))...)
	return w
}

// start starts the binary and returns what it says it listens on. It is stopped when the test ends.
func (w *world) start(t *testing.T, listening *regexp.Regexp, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, w.bin, args...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 10 * time.Second
	r, out := io.Pipe()
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil && cap(said) > len(said) {
				said <- m[1]
			}
			if strings.Contains(lines.Text(), "level=ERROR") {
				t.Errorf("%s: %s", args[0], lines.Text())
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		c.Wait()
		out.Close()
		<-logged
	})
	select {
	case url := <-said:
		return url
	case <-time.After(20 * time.Second):
		t.Fatalf("offpeak %s does not say where it listens", strings.Join(args, " "))
		return ""
	}
}

// key makes a project and returns a key to it.
func (w *world) key(t *testing.T, data, project string) string {
	t.Helper()
	output(t, exec.Command(w.bin, "projects", "create", "--data", data, project), os.Environ())
	return strings.TrimSpace(string(output(t, exec.Command(w.bin, "keys", "create", "--data", data, "--project", project), os.Environ())))
}

func (w *world) client(key string) openai.Client {
	return openai.NewClient(option.WithBaseURL(w.url), option.WithAPIKey(key))
}

// fillPages makes files and batches numbered in the order of their creation.
func (w *world) fillPages(t *testing.T, c openai.Client) {
	var file string
	for n := range many {
		file = upload(t, c, fmt.Sprintf("%03d.jsonl", n), line("a", chat))
	}
	for n := range many {
		create(t, c, file, map[string]string{"n": strconv.Itoa(n)})
	}
}

// foreignThings returns the environment that names things of a project that is not the suite's.
func (w *world) foreignThings(t *testing.T, c openai.Client) []string {
	file := upload(t, c, "in.jsonl", line("a", chat))
	u, err := c.Uploads.New(t.Context(), openai.UploadNewParams{
		Bytes: 1, Filename: "in.jsonl", MimeType: "application/jsonl", Purpose: openai.FilePurposeBatch,
	})
	if err != nil {
		t.Fatal(err)
	}
	part, err := c.Uploads.Parts.New(t.Context(), u.ID, openai.UploadPartNewParams{Data: strings.NewReader("x")})
	if err != nil {
		t.Fatal(err)
	}
	return []string{
		"FOREIGN_FILE=" + file, "FOREIGN_BATCH=" + create(t, c, file, nil),
		"FOREIGN_UPLOAD=" + u.ID, "FOREIGN_PART=" + part.ID,
	}
}

// env returns the environment of one suite: a project of its own, with something in it that has
// expired.
func (w *world) env(t *testing.T, suite string) []string {
	key := w.key(t, w.data, suite)
	project, err := w.store.Keys(true).Authenticate(t.Context(), key, false)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	file, err := batch.NewFile(batch.UploadParams{Project: project.ID, Purpose: "user_data", Filename: "old.txt"}, batch.Policy{}, now.Add(-2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	file.ExpiresAt = now.Add(-time.Hour)
	if err := w.store.CreateFile(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	b, err := batch.New(batch.CreateParams{
		Project: project.ID, Endpoint: "/v1/chat/completions", CompletionWindow: "24h",
		InputFileID: upload(t, w.client(key), "in.jsonl", line("in-time", chat)+line("too-late", busy)),
	}, batch.Policy{}, now)
	if err != nil {
		t.Fatal(err)
	}
	b.ExpiresAt = now.Add(4 * time.Second)
	if err := w.store.CreateBatch(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return append(w.shared, "API_KEY="+key, "EXPIRED_FILE="+file.ID, "EXPIRED_BATCH="+b.ID, "SCRATCH="+t.TempDir())
}

func line(customID, model string) string {
	return fmt.Sprintf(`{"custom_id":%q,"method":"POST","url":"/v1/chat/completions","body":{"model":%q,"messages":[{"role":"user","content":"hello"}]}}`+"\n", customID, model)
}

func upload(t *testing.T, c openai.Client, name, content string) string {
	t.Helper()
	f, err := c.Files.New(t.Context(), openai.FileNewParams{
		File: openai.File(strings.NewReader(content), name, "application/jsonl"), Purpose: openai.FilePurposeBatch,
	})
	if err != nil {
		t.Fatal(err)
	}
	return f.ID
}

func create(t *testing.T, c openai.Client, file string, metadata map[string]string) string {
	t.Helper()
	b, err := c.Batches.New(t.Context(), openai.BatchNewParams{
		InputFileID: file, Endpoint: openai.BatchNewParamsEndpointV1ChatCompletions,
		CompletionWindow: openai.BatchNewParamsCompletionWindow24h, Metadata: metadata,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.ID
}
