package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"
)

// start runs a server for the length of a test, with a client that follows no redirects.
func start(t *testing.T, cfg Config) (*Running, *http.Client) {
	t.Helper()
	up, err := Start(cfg, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := up.Close(); err != nil {
			t.Error(err)
		}
	})
	// A fresh connection for each call, or net/http would repeat a call that an idle one cut.
	transport := &http.Transport{DisableKeepAlives: true}
	t.Cleanup(transport.CloseIdleConnections)
	return up, &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Each fault, as a client on a real connection meets it.
func TestFaults(t *testing.T) {
	const body = chatBody
	_, whole := post(New(Config{}), "/v1/chat/completions", body)
	for _, c := range []struct {
		name   string
		cfg    Config
		status int // 0: no answer at all
		check  func(t *testing.T, res *http.Response, got string, err error)
	}{
		{"429", Config{RetryAfter: 1500 * time.Millisecond, Faults: Faults{Throttle: 1}}, 429,
			func(t *testing.T, res *http.Response, got string, err error) {
				if after := res.Header.Get("Retry-After"); after != "2" || !strings.Contains(got, "RateLimitError") {
					t.Errorf("Retry-After is %q, body %s", after, got)
				}
			}},
		{"429 without a hint", Config{Faults: Faults{Throttle: 1}}, 429,
			func(t *testing.T, res *http.Response, got string, err error) {
				if after, ok := res.Header["Retry-After"]; ok {
					t.Errorf("Retry-After is %q, want none", after)
				}
			}},
		{"5xx", Config{Faults: Faults{Error: 1, ErrorStatus: 502}}, 502, nil},
		{"always 500", Config{Always500: "careful annotator"}, 500, nil},
		{"always 400", Config{Always400: "careful annotator"}, 400, nil},
		{"poison", Config{Poison: "careful annotator"}, 0, nil},
		{"drop", Config{Faults: Faults{Drop: 1}}, 0, nil},
		{"cut", Config{Faults: Faults{Cut: 1}}, 200,
			func(t *testing.T, res *http.Response, got string, err error) {
				if !errors.Is(err, io.ErrUnexpectedEOF) || got != whole[:len(whole)/2] {
					t.Errorf("error %v after %q, want an unexpected EOF after half of %q", err, got, whole)
				}
			}},
		{"slow", Config{Faults: Faults{Slow: 1, SlowBy: time.Millisecond}}, 200,
			func(t *testing.T, res *http.Response, got string, err error) {
				if got != whole {
					t.Errorf("got %s, want %s", got, whole)
				}
			}},
		{"HTML", Config{Faults: Faults{HTML: 1}}, 200,
			func(t *testing.T, res *http.Response, got string, err error) {
				if !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") || !strings.HasPrefix(got, "<!doctype html>") {
					t.Errorf("%v %s", res.Header, got)
				}
			}},
		{"text", Config{Faults: Faults{Text: 1}}, 200,
			func(t *testing.T, res *http.Response, got string, err error) {
				if json.Valid([]byte(got)) {
					t.Errorf("%s is JSON", got)
				}
			}},
		{"redirect", Config{Faults: Faults{Redirect: 1}}, 302,
			func(t *testing.T, res *http.Response, got string, err error) {
				if res.Header.Get("Location") == "" {
					t.Error("no Location")
				}
			}},
		{"hang", Config{Faults: Faults{Hang: 1}}, 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.CountCalls = true
			up, client := start(t, c.cfg)
			ctx := t.Context()
			if c.name == "hang" {
				short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				ctx = short
			}
			r, err := http.NewRequestWithContext(ctx, "POST", up.URL()+"/chat/completions", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Do(r)
			if err != nil {
				if c.status != 0 {
					t.Fatalf("got %v, want status %d", err, c.status)
				}
				return
			}
			defer res.Body.Close()
			if res.StatusCode != c.status {
				t.Fatalf("status %d, want %d", res.StatusCode, c.status)
			}
			got, err := io.ReadAll(res.Body)
			if c.check != nil {
				c.check(t, res, string(got), err)
			} else if err != nil {
				t.Error(err)
			}
			answered := 0
			if string(got) == whole {
				answered = 1
			}
			if n, a := up.CallsOf([]byte(body)); n != 1 || a != answered {
				t.Errorf("counted %d calls and %d answers, want 1 and %d", n, a, answered)
			}
		})
	}
}

// Faults come in their shares, and the same ones however the calls interleave.
func TestFaultsAreDeterministic(t *testing.T) {
	cfg := Config{Seed: 3, Faults: Faults{Throttle: 0.2, Error: 0.1, Text: 0.05}}
	const bodies = 4000
	statuses := func(order func(i int) int) map[int][2]int {
		s := New(cfg)
		got := make(map[int][2]int, bodies)
		for attempt := range 2 {
			for i := range bodies {
				i = order(i)
				status, text := post(s, "/v1/chat/completions", prompt(i))
				if status == 200 && !json.Valid([]byte(text)) {
					status = -1
				}
				both := got[i]
				both[attempt] = status
				got[i] = both
			}
		}
		return got
	}
	up := statuses(func(i int) int { return i })
	down := statuses(func(i int) int { return bodies - 1 - i })
	count := make(map[int]int)
	again := 0
	for i, both := range up {
		if down[i] != both {
			t.Fatalf("body %d: %v in one order, %v in another", i, both, down[i])
		}
		count[both[0]]++
		if both[0] == 429 && both[1] == 429 {
			again++
		}
	}
	for status, share := range map[int]float64{429: 0.2, 500: 0.1, -1: 0.05, 200: 0.65} {
		if got := float64(count[status]) / bodies; math.Abs(got-share) > 0.025 {
			t.Errorf("a share of %.3f was %d, want %.3f", got, status, share)
		}
	}
	if got := float64(again) / float64(count[429]); math.Abs(got-0.2) > 0.05 {
		t.Errorf("%.3f of those struck once were struck again, want 0.2", got)
	}
}

func TestFaultsSpareLaterAttempts(t *testing.T) {
	s := New(Config{Faults: Faults{Error: 1, Attempts: 2}})
	for attempt, want := range []int{500, 500, 200, 200} {
		if status, text := post(s, "/v1/chat/completions", chatBody); status != want {
			t.Errorf("attempt %d: %d %s, want %d", attempt+1, status, text, want)
		}
	}
}

func TestCalls(t *testing.T) {
	s := New(Config{CountCalls: true, Always500: "question 2"})
	for _, i := range []int{0, 1, 2, 1, 2, 2} {
		post(s, "/v1/chat/completions", prompt(i))
	}
	of := func(i int) string {
		sum := sha256.Sum256([]byte(prompt(i)))
		return hex.EncodeToString(sum[:16])
	}
	status, text := get(s, "/sim/calls")
	want := `{"calls":6,"answered":3,"distinct":3,"max_per_request":3,"repeated":[` +
		`{"sha256":"` + of(2) + `","calls":3,"answered":0},{"sha256":"` + of(1) + `","calls":2,"answered":2}]}`
	if status != 200 || text != want {
		t.Errorf("%d %s, want %s", status, text, want)
	}
	if calls, answered := s.CallsOf([]byte(prompt(1))); calls != 2 || answered != 2 {
		t.Errorf("CallsOf: %d and %d, want 2 and 2", calls, answered)
	}

	r, _ := http.NewRequest("DELETE", "/sim/calls", nil)
	if status, text := do(s, r); status != 204 {
		t.Errorf("DELETE: %d %s", status, text)
	}
	if _, text := get(s, "/sim/calls"); text != `{"calls":0,"answered":0,"distinct":0,"max_per_request":0,"repeated":[]}` {
		t.Errorf("after DELETE: %s", text)
	}
	if status, _ := get(New(Config{}), "/sim/calls"); status != 404 {
		t.Errorf("a server that does not count: %d, want 404", status)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestBodyLog(t *testing.T) {
	var log bytes.Buffer
	s := New(Config{BodyLog: &log, Faults: Faults{Throttle: 1, Attempts: 1}})
	bodies := []string{chatBody, "not JSON", chatBody}
	for _, b := range bodies {
		post(s, "/v1/chat/completions", b)
	}
	if want := strings.Join(bodies, "\n") + "\n"; log.String() != want {
		t.Errorf("the log is\n%s\nwant\n%s", log.String(), want)
	}
	if status, text := post(New(Config{BodyLog: failing{}}), "/v1/chat/completions", chatBody); status != 500 || !strings.Contains(text, "disk full") {
		t.Errorf("%d %s, want 500", status, text)
	}
}
