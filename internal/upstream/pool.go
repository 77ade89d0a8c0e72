package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"offpeak/internal/batch"
)

// A listState is what is known about the models of an upstream.
type listState int

const (
	listUnread listState = iota // not asked yet, or it did not answer
	listRead
	listNone // it has no list: it is taken to serve whatever it is asked for
)

// Serves reports whether the upstream serves the model, and whether that is certain: of an
// upstream whose list is unread nobody knows.
func (u *Upstream) Serves(model string) (serves, certain bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch u.state {
	case listNone:
		return true, true
	case listRead:
		_, ok := u.models[model]
		return ok, true
	}
	_, ok := u.models[model] // of an earlier list
	return ok, false
}

// Trouble returns why the list of models is unread, or nil.
func (u *Upstream) Trouble() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.state == listUnread {
		return u.err
	}
	return nil
}

// refresh reads the list of models. It reports whether anything changed: what is known, or why it
// is not.
func (u *Upstream) refresh(ctx context.Context) (changed bool) {
	if u.cfg.Models != nil {
		return false
	}
	listCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	models, state, err := u.list(listCtx)
	if ctx.Err() != nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.state == listRead && (err != nil || state == listNone):
		// What was read once stays good while the upstream is away. A proxy in front of it may say
		// 404 then.
		return false
	case err != nil:
		changed = u.state == listUnread && (u.err == nil || u.err.Error() != err.Error())
		u.err = err
		return changed
	}
	for id := range models {
		if known, ok := u.models[id]; ok {
			models[id] = known // some servers say that they made it just now, every time
		}
	}
	changed = u.state != state || !maps.Equal(u.models, models)
	u.state, u.models, u.err = state, models, nil
	return changed
}

// list asks the upstream for its models.
func (u *Upstream) list(ctx context.Context) (map[string]batch.ModelInfo, listState, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.base.JoinPath("models").String(), nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header = u.header.Clone()
	req.Header.Del("Content-Type")
	resp, err := u.rt.RoundTrip(req)
	if err != nil {
		return nil, 0, u.explain("%w", plain(err))
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return nil, listNone, nil
	case http.StatusSwitchingProtocols:
		return nil, 0, errors.New("HTTP 101 from its /models")
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, 0, u.explain("%w", plain(err))
	}
	if resp.StatusCode != http.StatusOK {
		return nil, 0, u.explain("HTTP %d from its /models: %s%s", resp.StatusCode, words(body), u.keyHint(resp.StatusCode))
	}
	models, ok := parseModels(body, time.Now())
	if !ok {
		return nil, 0, u.explain("its /models is no list of models: %s", excerpt(body))
	}
	return models, listRead, nil
}

// parseModels reads a list of models: OpenAI's, or a bare array as some servers send it. Only the
// ids matter; the rest is taken where it is as it should be.
func parseModels(body []byte, now time.Time) (models map[string]batch.ModelInfo, ok bool) {
	var list struct {
		Object string
		Data   []struct {
			ID      string
			Created any
			OwnedBy any `json:"owned_by"`
		}
	}
	var into any = &list
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte("[")) {
		into = &list.Data
	}
	if json.Unmarshal(body, into) != nil || list.Data == nil && list.Object != "list" {
		return nil, false
	}
	models = make(map[string]batch.ModelInfo, len(list.Data))
	for _, m := range list.Data {
		info := batch.ModelInfo{ID: m.ID, Created: now}
		if created, _ := m.Created.(float64); created >= 1 && created < 1e11 {
			info.Created = time.Unix(int64(created), 0)
		}
		info.OwnedBy, _ = m.OwnedBy.(string)
		if m.ID != "" {
			models[m.ID] = info
		}
	}
	return models, true
}

// A Pool is the set of configured upstreams. It is safe for concurrent use.
type Pool struct {
	ups []*Upstream

	mu      sync.Mutex
	changed chan struct{} // closed when some list of models changes
}

// NewPool returns a pool of the given upstreams.
func NewPool(ups ...*Upstream) *Pool {
	return &Pool{ups: ups, changed: make(chan struct{})}
}

// All returns the upstreams in the order in which they were configured.
func (p *Pool) All() []*Upstream { return p.ups }

// Run keeps the lists of models fresh until ctx ends: read at once, tried again every other second
// while unread, then read again every minute.
func (p *Pool) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, u := range p.ups {
		wg.Go(func() {
			wait := 100 * time.Millisecond // of a server that is just starting
			for {
				if u.refresh(ctx) {
					p.notify()
				}
				if u.Trouble() == nil {
					wait = time.Minute
				} else {
					wait = min(2*wait, 2*time.Second)
				}
				select {
				case <-time.After(wait):
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Wait()
}

func (p *Pool) notify() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}

// Changed returns a channel that is closed when the list of some upstream changes after this call.
func (p *Pool) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Serves reports whether some upstream serves the lane, and whether a no is certain: while a list
// is unread it is not.
func (p *Pool) Serves(lane batch.Lane) (serves, certain bool) {
	certain = true
	for _, u := range p.ups {
		s, c := u.Serves(lane.Model)
		if s {
			return true, true
		}
		certain = certain && c
	}
	return false, certain
}

// Models returns every model that some upstream lists, ordered by name.
func (p *Pool) Models(context.Context) []batch.ModelInfo {
	all := map[string]batch.ModelInfo{}
	for _, u := range p.ups {
		u.mu.Lock()
		for id, m := range u.models {
			if _, ok := all[id]; !ok {
				all[id] = m
			}
		}
		u.mu.Unlock()
	}
	return slices.SortedFunc(maps.Values(all), func(a, b batch.ModelInfo) int { return strings.Compare(a.ID, b.ID) })
}

// Trouble tells in one sentence which upstreams' lists of models are unread and why; empty if all
// are read.
func (p *Pool) Trouble() string {
	var lines []string
	for _, u := range p.ups {
		if err := u.Trouble(); err != nil {
			lines = append(lines, fmt.Sprintf("upstream %s: %v", u.Name(), err))
		}
	}
	return strings.Join(lines, "; ")
}

// WellKnown are where the usual inference servers listen on their own machine: Ollama, vLLM,
// llama.cpp, SGLang.
var WellKnown = []string{
	"http://127.0.0.1:11434/v1", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8081/v1", "http://127.0.0.1:30000/v1",
}

// Discover returns those of the given URLs behind which something answers like an inference server.
func Discover(ctx context.Context, urls []string) []string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	found := make([]bool, len(urls))
	var wg sync.WaitGroup
	for i, raw := range urls {
		wg.Go(func() {
			u, err := New(Config{URL: raw})
			if err != nil {
				return
			}
			defer u.Close()
			_, state, err := u.list(ctx)
			found[i] = err == nil && state == listRead
		})
	}
	wg.Wait()
	var out []string
	for i, ok := range found {
		if ok {
			out = append(out, urls[i])
		}
	}
	return out
}
