package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
)

const modelList = `{"object":"list","data":[{"id":"b","object":"model","created":1700000000,"owned_by":"vllm"},{"id":"meta/a:free","created":5}]}`

func TestModelList(t *testing.T) {
	const trouble = "its /models is no list of models: "
	for _, c := range []struct {
		name   string
		status int
		body   string
		state  listState
		models string // ids, in order
		err    string
	}{
		{"OpenAI's", 200, modelList, listRead, "b meta/a:free", ""},
		{"empty", 200, `{"object":"list","data":[]}`, listRead, "", ""},
		{"Ollama without models", 200, `{"object":"list","data":null}`, listRead, "", ""},
		{"without object", 200, `{"data":[{"id":"a"}]}`, listRead, "a", ""},
		{"bare array", 200, ` [{"id":"a","created":1},{"id":"b"}]`, listRead, "a b", ""},
		{"odd extras", 200, `{"data":[{"id":"a","created":"2024-01-01","owned_by":null,"permission":[{}]},{"id":"b","created":1.7e9,"owned_by":7}]}`, listRead, "a b", ""},
		{"without id", 200, `{"data":[{"name":"a"},{"id":""},{"id":"b"}]}`, listRead, "b", ""},
		{"twice", 200, `{"data":[{"id":"a"},{"id":"a"}]}`, listRead, "a", ""},

		{"none", 404, `{"detail":"Not Found"}`, listNone, "", ""},
		{"not allowed", 405, "", listNone, "", ""},
		{"not implemented", 501, "", listNone, "", ""},

		{"wrong key", 401, `{"error":"who are you, ` + testKey + `?"}`, listUnread, "", `HTTP 401 from its /models: {"error":"who are you, (key)?"}`},
		{"loading", 503, `{"error":{"message":"Loading model"}}`, listUnread, "", "HTTP 503 from its /models: "},
		{"redirect", 302, "", listUnread, "", "HTTP 302 from its /models: (empty)"},
		{"no content", 204, "", listUnread, "", "HTTP 204 from its /models"},
		{"HTML", 200, "<html>hello", listUnread, "", trouble + "<html>hello"},
		{"null", 200, "null", listUnread, "", trouble},
		{"another object", 200, `{"status":"ok"}`, listUnread, "", trouble},
		{"an error", 200, `{"error":{"message":"no"}}`, listUnread, "", trouble},
		{"data no array", 200, `{"object":"list","data":{"id":"a"}}`, listUnread, "", trouble},
		{"cut off", 200, modelList[:len(modelList)-1], listUnread, "", trouble},
		{"array of strings", 200, `["a"]`, listUnread, "", trouble},
		{"empty body", 200, "", listUnread, "", trouble + "(empty)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != "GET" || r.URL.Path != "/v1/models" || r.Header.Get("Authorization") != "Bearer "+testKey || r.Header.Get("Content-Type") != "" {
					t.Errorf("got %s %s with %v", r.Method, r.URL, r.Header)
				}
				w.WriteHeader(c.status)
				io.WriteString(w, c.body)
			})
			if serves, certain := u.Serves("a"); serves || certain {
				t.Errorf("before it is asked: serves a: %v, certain: %v", serves, certain)
			}
			if !u.refresh(t.Context()) {
				t.Error("the first look changed nothing")
			}
			if got := strings.Join(slices.Sorted(maps.Keys(u.models)), " "); u.state != c.state || got != c.models {
				t.Errorf("%s\n got state %d, models %q\nwant state %d, models %q", c.body, u.state, got, c.state, c.models)
			}
			if err := u.Trouble(); (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("trouble %v, want %q", err, c.err)
			}
			if u.refresh(t.Context()) {
				t.Error("the second look, at the same, changed something")
			}
			serves, certain := u.Serves("no-such-model")
			if wantServes, wantCertain := c.state == listNone, c.state != listUnread; serves != wantServes || certain != wantCertain {
				t.Errorf("serves no-such-model: %v, certain: %v; want %v, %v", serves, certain, wantServes, wantCertain)
			}
		})
	}
}

// When a model was made is what its upstream says, or since when it is known.
func TestModelCreated(t *testing.T) {
	now := time.Unix(1_789_000_000, 5)
	for created, want := range map[string]time.Time{
		`1700000000`: time.Unix(1_700_000_000, 0), `1.7e9`: time.Unix(1_700_000_000, 0), `5`: time.Unix(5, 0),
		`null`: now, `0`: now, `-1`: now, `"2024-01-01"`: now, `1e300`: now, `1700000000000`: now,
	} {
		models, ok := parseModels([]byte(`{"data":[{"id":"a","created":`+created+`,"owned_by":"me"}]}`), now)
		if wantModel := (batch.ModelInfo{ID: "a", Created: want, OwnedBy: "me"}); !ok || models["a"] != wantModel {
			t.Errorf("created %s: got %+v, want %+v", created, models["a"], wantModel)
		}
	}
}

func TestModelListUnreachable(t *testing.T) {
	u := newUpstream(t, "http://"+nobody(t))
	if !u.refresh(t.Context()) {
		t.Error("that nobody is there is news")
	}
	if err := u.Trouble(); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("trouble %v, want connection refused", err)
	}
	ctx, stop := context.WithCancelCause(t.Context())
	stop(errors.New("shutting down"))
	u.err = nil
	if u.refresh(ctx) || u.Trouble() != nil {
		t.Errorf("a look that was given up says %v", u.Trouble())
	}
	// What was read once stays good, and that it cannot be read now is told.
	u.state, u.models = listRead, map[string]batch.ModelInfo{"a": {ID: "a"}}
	changed := u.refresh(t.Context())
	serves, certain := u.Serves("a")
	if s := u.State(); changed || !serves || !certain || !s.Healthy || !strings.Contains(s.Why, "connection refused") || u.Trouble() != nil {
		t.Errorf("away after it was read: changed %v, serves %v, certain %v, %+v", changed, serves, certain, s)
	}
}

func TestConfiguredModels(t *testing.T) {
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		t.Error("asked for its models although they are configured")
	},
		func(c *Config) { c.Models = []string{"a", "b"} })
	if u.refresh(t.Context()) {
		t.Error("something changed")
	}
	for model, want := range map[string]bool{"a": true, "b": true, "c": false} {
		if serves, certain := u.Serves(model); serves != want || !certain {
			t.Errorf("serves %s: %v, certain: %v; want %v, true", model, serves, certain, want)
		}
	}
	none := newUpstream(t, "http://host", func(c *Config) { c.Models = []string{} })
	if serves, certain := none.Serves("a"); serves || !certain {
		t.Errorf("configured to serve nothing: serves %v, certain %v", serves, certain)
	}
}

// A roundTripper answers without a network.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A fake is an upstream whose list of models a test sets. It needs no network, so that time can be
// made up.
type fake struct {
	mu     sync.Mutex
	status int // 0: it is away
	body   string
	asked  []time.Duration // when, since the start
}

// says sets what the upstream answers from now on.
func (f *fake) says(status int, body string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status, f.body = status, body
}

func (f *fake) timesAsked() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

func (f *fake) upstream(t testing.TB, name string) *Upstream {
	start := time.Now()
	return newUpstream(t, "http://"+name, func(c *Config) {
		c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.asked = append(f.asked, time.Since(start))
			if f.status == 0 {
				return nil, fmt.Errorf("away since %s", start.Format(time.DateOnly))
			}
			return &http.Response{StatusCode: f.status, Body: io.NopCloser(strings.NewReader(f.body))}, nil
		})
	})
}

func list(ids ...string) string {
	for i, id := range ids {
		ids[i] = fmt.Sprintf(`{"id":%q,"created":%d}`, id, time.Now().Unix()) // made just now, as vLLM says
	}
	return `{"data":[` + strings.Join(ids, ",") + `]}`
}

// runPool runs a pool of the fakes in a bubble of its own time.
func runPool(t *testing.T, test func(t *testing.T, p *Pool, a, b *fake)) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &fake{}, &fake{}
		p := NewPool(a.upstream(t, "a"), b.upstream(t, "b"))
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { p.Run(ctx); close(done) }()
		synctest.Wait()
		test(t, p, a, b)
		stop()
		<-done // Run ends when its context does
	})
}

// after lets time pass, and reports whether the pool said in it that something changed.
func after(d time.Duration, changed <-chan struct{}) bool {
	time.Sleep(d)
	synctest.Wait()
	select {
	case <-changed:
		return true
	default:
		return false
	}
}

func (p *Pool) ids() string {
	var ids []string
	for _, m := range p.Models(context.Background()) {
		ids = append(ids, m.ID)
	}
	return strings.Join(ids, " ")
}

func TestPoolFollowsItsUpstreams(t *testing.T) {
	runPool(t, func(t *testing.T, p *Pool, a, b *fake) {
		lane := func(model string) batch.Lane { return batch.Lane{Model: model, Endpoint: chat} }
		check := func(when, ids, model string, serves, certain bool) {
			t.Helper()
			if got := p.ids(); got != ids {
				t.Errorf("%s: models %q, want %q", when, got, ids)
			}
			if s, c := p.Serves(lane(model)); s != serves || c != certain {
				t.Errorf("%s: serves %s: %v, certain: %v; want %v, %v", when, model, s, c, serves, certain)
			}
		}
		check("both away", "", "x", false, false)
		if got, want := p.Trouble(), "upstream http://a/v1: away since 2000-01-01; upstream http://b/v1: away since 2000-01-01"; got != want {
			t.Errorf("trouble %q, want %q", got, want)
		}
		if after(time.Hour, p.Changed()) {
			t.Error("nothing happens, and yet something changed")
		}

		changed := p.Changed()
		a.says(200, list("x", "y"))
		if !after(2*time.Second, changed) {
			t.Error("a came up, and nothing changed")
		}
		check("a is up", "x y", "x", true, true)
		check("a is up", "x y", "z", false, false) // b may have it
		if got, want := p.Trouble(), "upstream http://b/v1: away since 2000-01-01"; got != want {
			t.Errorf("trouble %q, want %q", got, want)
		}

		b.says(200, list("z", "x"))
		after(2*time.Second, nil)
		check("both are up", "x y z", "z", true, true)
		check("both are up", "x y z", "no", false, true)
		if got := p.Trouble(); got != "" {
			t.Errorf("trouble %q, want none", got)
		}

		created := p.Models(t.Context())[0].Created
		a.says(200, list("y", "x")) // the same in another order, made just now
		if after(2*time.Minute, p.Changed()) {
			t.Error("the same models, and yet something changed")
		}
		if got := p.Models(t.Context())[0].Created; !got.Equal(created) {
			t.Errorf("x was created at %v, now at %v", created, got)
		}

		changed = p.Changed()
		a.says(200, list("x", "new"))
		if !after(time.Minute, changed) {
			t.Error("a model came and one went, and nothing changed")
		}
		check("another list", "new x z", "new", true, true)
		check("another list", "new x z", "y", false, true)

		for _, status := range []int{0, 404, 503} { // away; a proxy in front of nothing; starting
			a.says(status, "")
			if after(5*time.Minute, p.Changed()) {
				t.Errorf("status %d: a list that was read once is not forgotten", status)
			}
			check(fmt.Sprint("status ", status), "new x z", "new", true, true)
			check(fmt.Sprint("status ", status), "new x z", "no", false, true)
		}

		changed = p.Changed()
		a.says(200, list("back"))
		if !after(time.Minute, changed) {
			t.Error("a is back with another list, and nothing changed")
		}
		check("back", "back x z", "back", true, true)
	})
}

// An upstream without a list serves what it is asked for, until it has one.
func TestPoolWithoutList(t *testing.T) {
	runPool(t, func(t *testing.T, p *Pool, a, b *fake) {
		a.says(404, "")
		after(2*time.Second, nil)
		if s, c := p.Serves(batch.Lane{Model: "anything"}); !s || !c {
			t.Errorf("serves anything: %v, certain: %v; want true, true", s, c)
		}
		a.says(200, list("x"))
		b.says(200, list("y"))
		after(time.Minute, nil)
		if s, c := p.Serves(batch.Lane{Model: "anything"}); s || !c {
			t.Errorf("with lists: serves anything: %v, certain: %v; want false, true", s, c)
		}
	})
}

func TestPoolPace(t *testing.T) {
	runPool(t, func(t *testing.T, p *Pool, a, b *fake) {
		after(10*time.Second, nil)
		var want []time.Duration
		for at, wait := time.Duration(0), 200*time.Millisecond; at <= 10*time.Second; wait = min(2*wait, 2*time.Second) {
			want = append(want, at)
			at += wait
		}
		if got := a.timesAsked(); !slices.Equal(got, want) {
			t.Errorf("asked while unread at %v, want %v", got, want)
		}
		a.says(200, list("x"))
		after(2*time.Second, nil)
		n := len(a.timesAsked())
		after(time.Hour, nil)
		if got := len(a.timesAsked()) - n; got != 240 {
			t.Errorf("asked %d times in the hour after, want four times a minute", got)
		}
	})
}

func TestPoolAll(t *testing.T) {
	a, b := newUpstream(t, "http://a"), newUpstream(t, "http://b")
	if got := NewPool(a, b).All(); !slices.Equal(got, []*Upstream{a, b}) {
		t.Errorf("got %v, want those given in their order", got)
	}
	known := newUpstream(t, "http://known", func(c *Config) { c.Models = []string{"x"} })
	for _, p := range []*Pool{NewPool(a, known), NewPool(known, a)} { // a's list is unread
		if s, c := p.Serves(batch.Lane{Model: "x"}); !s || !c {
			t.Errorf("serves x: %v, certain %v; want true, true", s, c)
		}
		if s, c := p.Serves(batch.Lane{Model: "y"}); s || c {
			t.Errorf("serves y: %v, certain %v; want false, false", s, c)
		}
	}
	if s, c := NewPool().Serves(batch.Lane{Model: "x"}); s || !c {
		t.Errorf("no upstream at all: serves %v, certain %v; want false, true", s, c)
	}
}

func TestDiscover(t *testing.T) {
	serveModels := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/v1/models" {
				w.WriteHeader(404)
				return
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		}))
		t.Cleanup(s.Close)
		return s.URL + "/v1"
	}
	good, empty := serveModels(200, modelList), serveModels(200, `{"object":"list","data":null}`)
	urls := []string{
		"http://" + nobody(t) + "/v1",
		empty,
		serveModels(404, "no"),
		serveModels(200, "<html>some other program</html>"),
		serveModels(200, `{"status":"some other program"}`),
		good,
		serveModels(401, "no"),
		"http://" + listen(t, hang) + "/v1",
		"not a URL",
	}
	start := time.Now()
	if got, want := Discover(t.Context(), urls), []string{empty, good}; !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if got := Discover(t.Context(), nil); got != nil {
		t.Errorf("found %v among nothing", got)
	}
	for _, u := range WellKnown {
		newUpstream(t, u)
	}
}
