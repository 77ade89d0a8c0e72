package upstream

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
)

// What is configured as before stays, with all that is known of it; everything else comes or goes.
func TestReplace(t *testing.T) {
	keep := Config{URL: "http://keep", Models: []string{"a"}, Headers: map[string]string{"X-Team": "me"}, Aliases: map[string]string{"x": "a"}}
	for _, c := range []struct {
		name   string
		change func(*Config)
		same   bool
	}{
		{"nothing", func(*Config) {}, true},
		{"the way the URL is written", func(c *Config) { c.URL = "http://keep/v1/" }, true},
		{"defaults spelled out", func(c *Config) { c.Weight, c.Timeout, c.Connect = 1, time.Hour, 10*time.Second }, true},
		{"equal maps", func(c *Config) {
			c.Headers, c.Aliases = map[string]string{"X-Team": "me"}, map[string]string{"x": "a"}
		}, true},
		{"URL", func(c *Config) { c.URL = "http://other" }, false},
		{"name", func(c *Config) { c.Name = "other" }, false},
		{"key", func(c *Config) { c.Key = "other" }, false},
		{"header", func(c *Config) { c.Headers = map[string]string{"X-Team": "you"} }, false},
		{"models", func(c *Config) { c.Models = []string{"a", "b"} }, false},
		{"models found out", func(c *Config) { c.Models = nil }, false},
		{"alias", func(c *Config) { c.Aliases = map[string]string{"y": "a"} }, false},
		{"weight", func(c *Config) { c.Weight = 2 }, false},
		{"in flight", func(c *Config) { c.MaxInFlight = 2 }, false},
		{"rate", func(c *Config) { c.TokensPerMinute = 2 }, false},
		{"shared", func(c *Config) { c.Shared = true }, false},
		{"timeout", func(c *Config) { c.FirstByte = time.Second }, false},
		{"metrics", func(c *Config) { c.MetricsURL = NoMetrics }, false},
	} {
		made := func(c Config) *Upstream {
			u, err := New(c)
			if err != nil {
				t.Fatal(err)
			}
			return u
		}
		first, other := made(keep), made(Config{URL: "http://away"})
		p := NewPool(first, other)
		changed := p.Changed()
		config := keep
		c.change(&config)
		came, went := p.Replace(made(Config{URL: "http://new"}), made(config))
		now := p.All()
		if len(now) != 2 || now[0].Name() != "http://new/v1" || (now[1] == first) != c.same {
			t.Errorf("%s: the upstream of before is kept: %v, want %v", c.name, !c.same, c.same)
		}
		wantCame, wantWent := now[:1], []*Upstream{other}
		if !c.same {
			wantCame, wantWent = now, []*Upstream{first, other}
		}
		if !slices.Equal(came, wantCame) || !slices.Equal(went, wantWent) {
			t.Errorf("%s: came %v, went %v; want %v, %v", c.name, came, went, wantCame, wantWent)
		}
		select {
		case <-changed:
		default:
			t.Errorf("%s: nobody is told", c.name)
		}
	}
}

// A certificate that is renewed is a change, though its file is called the same.
func TestReplaceRenewedCertificate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.pem")
	made := func() *Upstream {
		return newUpstream(t, "https://host", func(c *Config) { c.TLS.CA = file })
	}
	write := func(a *authority) {
		text, err := os.ReadFile(a.file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(newAuthority(t, "one"))
	p := NewPool(made())
	if came, went := p.Replace(made()); len(came)+len(went) != 0 {
		t.Errorf("the same certificate: came %v, went %v", came, went)
	}
	write(newAuthority(t, "two"))
	if came, went := p.Replace(made()); len(came) != 1 || len(went) != 1 {
		t.Errorf("another certificate: came %v, went %v", came, went)
	}
}

// A pool that runs follows the upstreams it has, and no others. An upstream that is configured anew
// at the same URL is known to serve what it did.
func TestReplaceWhileRunning(t *testing.T) {
	runPool(t, func(t *testing.T, p *Pool, a, b *fake) {
		a.says(200, list("x"))
		b.says(200, list("y"))
		after(5*time.Second, nil)
		kept, c := p.All()[1], &fake{}
		c.says(200, list("z"))
		asked := len(a.timesAsked())
		changed := p.Changed()
		p.Replace(kept, c.upstream(t, "c"))
		if !after(0, changed) {
			t.Error("nobody is told")
		}
		if got, want := p.ids(), "y z"; got != want {
			t.Errorf("models %q, want %q", got, want)
		}
		after(time.Hour, nil)
		if n := len(a.timesAsked()); n != asked {
			t.Errorf("an upstream that is gone was asked %d times", n-asked)
		}
		if n := len(c.timesAsked()); n < 59 {
			t.Errorf("a new upstream was asked %d times in an hour", n)
		}

		c.says(0, "") // it is away when it is configured anew
		anew := c.upstream(t, "c")
		anew.cfg.MaxInFlight = 7
		p.Replace(kept, anew)
		after(time.Minute, nil)
		if s, certain := p.Serves(batch.Lane{Model: "z"}); !s || !certain {
			t.Errorf("what it served is forgotten: %v, %v", s, certain)
		}
		moved := c.upstream(t, "d") // another place is another matter
		p.Replace(kept, moved)
		after(time.Minute, nil)
		if s, certain := p.Serves(batch.Lane{Model: "z"}); s || certain {
			t.Errorf("another upstream serves what the one before did: %v, %v", s, certain)
		}
		p.Replace()
		if got := p.ids(); got != "" || len(p.All()) != 0 {
			t.Errorf("an empty pool has models %q", got)
		}
	})
}

// Calls in flight at an upstream that is removed go on.
func TestReplaceSparesCallsInFlight(t *testing.T) {
	arrived, answer := make(chan struct{}), make(chan struct{})
	u := serve(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-answer
		io.WriteString(w, `{}`)
	})
	p := NewPool(u)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { p.Run(ctx) })
	done := make(chan Answer, 1)
	go func() { done <- u.NewCaller().Call(t.Context(), chat, []byte(`{}`)) }()
	<-arrived
	p.Replace()
	close(answer)
	want{class: OK, status: 200}.check(t, <-done)
	stop()
	running.Wait()
}

// However a pool is used at once, it does not break.
func TestReplaceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.says(200, list("x"))
		a, b := f.upstream(t, "a"), f.upstream(t, "b")
		p := NewPool(a)
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { p.Run(ctx) })
		for i := range 4 {
			all.Go(func() {
				for ctx.Err() == nil {
					if i%2 == 0 {
						p.Replace(a, b)
					} else {
						p.Replace(b)
					}
					p.Models(ctx)
					p.Serves(batch.Lane{Model: "x"})
					p.Trouble()
					time.Sleep(time.Duration(i+1) * time.Millisecond)
				}
			})
		}
		time.Sleep(time.Second)
		stop()
		all.Wait()
	})
}
