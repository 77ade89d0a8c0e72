package upstream

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
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
	own, alias := u.cfg.Aliases[model]
	if alias {
		model = own
	}
	_, ok := u.models[model] // perhaps of an earlier list
	// Who lists models and aliases by hand need not list a model twice.
	return ok || u.state == listNone || alias && u.cfg.Models != nil, u.state != listUnread
}

// known returns what the upstream is known to serve, aliases among it. u.mu is held.
func (u *Upstream) known() map[string]batch.ModelInfo {
	all := make(map[string]batch.ModelInfo, len(u.models)+len(u.cfg.Aliases))
	maps.Copy(all, u.models)
	for alias, own := range u.cfg.Aliases {
		m, ok := u.models[own]
		if !ok && u.state != listNone && u.cfg.Models == nil {
			delete(all, alias) // it is sent under a name that the upstream does not list
			continue
		}
		if !ok {
			m.Created = u.since
		}
		m.ID = alias
		all[alias] = m
	}
	return all
}

// Look asks the upstream once what it serves and how much it has to do, for State to tell. It
// returns which of the models in its configuration the upstream does not list, and why it did not
// answer.
func (u *Upstream) Look(ctx context.Context) (unlisted []string, err error) {
	if u.metrics != nil {
		u.readLoad(ctx) // it need not have any
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	u.refresh(ctx)
	if err := u.Trouble(); err != nil {
		return nil, err
	}
	models, state, err := u.list(ctx) // again: it was not asked if models are configured
	if err != nil || state == listNone {
		return nil, err
	}
	for _, id := range slices.Concat(u.cfg.Models, slices.Sorted(maps.Values(u.cfg.Aliases))) {
		if _, ok := models[id]; !ok && !slices.Contains(unlisted, id) {
			unlisted = append(unlisted, id)
		}
	}
	return unlisted, nil
}

const listTimeout = 10 * time.Second

var errNoList = errors.New("it had one, and says now that there is none")

// State returns how the upstream is configured and what is found out about it. Its health, and what
// is in flight there, are for others to fill in.
func (u *Upstream) State() batch.UpstreamState {
	s := batch.UpstreamState{
		Name: u.Name(), URL: u.base.String(), Aliases: u.cfg.Aliases, Weight: u.cfg.Weight, Shared: u.cfg.Shared,
		Max: u.cfg.MaxInFlight, RequestsPerMinute: u.cfg.RequestsPerMinute, TokensPerMinute: u.cfg.TokensPerMinute,
		Healthy: true,
	}
	if l, ok := u.Load(); ok {
		s.Observed, s.Running, s.Waiting = true, l.Running, l.Waiting
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	s.Models, s.AnyModel, s.ModelsUnread = slices.Sorted(maps.Keys(u.known())), u.state == listNone, u.state == listUnread
	switch {
	case u.err == nil:
	case u.state == listUnread: // it gets no calls
		s.Healthy, s.Since, s.Why = false, u.away, u.err.Error()
	default: // it gets calls, which will tell
		s.Why = fmt.Sprintf("no list of models since %s: %v", u.away.Format("15:04:05"), u.err)
	}
	return s
}

// Listed reports whether the upstream has said itself what it serves.
func (u *Upstream) Listed() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.cfg.Models == nil && u.state == listRead
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
	listCtx, cancel := context.WithTimeout(ctx, listTimeout)
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
		if u.err == nil {
			u.away = time.Now()
		}
		u.err = cmp.Or(err, errNoList)
		return false
	case err != nil:
		changed = u.state == listUnread && (u.err == nil || u.err.Error() != err.Error())
		if u.err == nil {
			u.away = time.Now()
		}
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
	mu       sync.Mutex
	ups      []*Upstream   // never changed, only replaced
	changed  chan struct{} // closed when some list of models changes, or the set
	replaced chan struct{} // closed when the set changes
	observed chan struct{} // closed when some load is read
}

// NewPool returns a pool of the given upstreams.
func NewPool(ups ...*Upstream) *Pool {
	return &Pool{ups: ups, changed: make(chan struct{}), replaced: make(chan struct{}), observed: make(chan struct{})}
}

// All returns the upstreams in the order in which they were configured.
func (p *Pool) All() []*Upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ups
}

// Replace makes the given upstreams those of the pool. In place of one that is configured as one of
// before, that one stays, with all that is known of it. It returns which came and which went: the
// calls that those have in flight go on, but they are not to get new ones.
func (p *Pool) Replace(ups ...*Upstream) (came, went []*Upstream) {
	p.mu.Lock()
	old := p.ups
	now := make([]*Upstream, len(ups))
	for i, u := range ups {
		now[i] = u
		for _, o := range old {
			switch {
			case o.sameAs(u):
				now[i] = o
			case o.base.String() == u.base.String():
				u.adopt(o)
			}
		}
		if !slices.Contains(old, now[i]) {
			came = append(came, u)
		}
	}
	p.ups = now
	close(p.replaced)
	p.replaced = make(chan struct{})
	p.mu.Unlock()
	for _, o := range old {
		if !slices.Contains(now, o) {
			went = append(went, o)
			o.Close()
		}
	}
	p.notify()
	return came, went
}

// sameAs reports whether u is configured as o is.
func (u *Upstream) sameAs(o *Upstream) bool {
	return u.tls == o.tls && reflect.DeepEqual(u.cfg, o.cfg)
}

// adopt takes over the list of models that o, at the same URL, has read.
func (u *Upstream) adopt(o *Upstream) {
	o.mu.Lock()
	state, models := o.state, o.models
	o.mu.Unlock()
	if u.cfg.Models == nil && o.cfg.Models == nil && state != listUnread {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.state, u.models = state, models
	}
}

// Run keeps what is known of the upstreams fresh until ctx ends. Lists of models are read at once,
// tried again every other second while unread, then read again every quarter of a minute. Loads are read
// while anybody could want to know.
func (p *Pool) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	followed := map[*Upstream]context.CancelFunc{}
	for {
		p.mu.Lock()
		ups, replaced := p.ups, p.replaced
		p.mu.Unlock()
		for u, stop := range followed {
			if !slices.Contains(ups, u) {
				stop()
				delete(followed, u)
			}
		}
		for _, u := range ups {
			if followed[u] == nil {
				var follow context.Context
				follow, followed[u] = context.WithCancel(ctx)
				wg.Go(func() { u.followList(follow, p.notify) })
				wg.Go(func() { u.followLoad(follow, p.tellLoad) })
			}
		}
		select {
		case <-replaced:
		case <-ctx.Done():
			return
		}
	}
}

// followList reads the list of models again and again until ctx ends, and tells of each change.
func (u *Upstream) followList(ctx context.Context, tell func()) {
	wait := 100 * time.Millisecond // of a server that is just starting
	for {
		if u.refresh(ctx) {
			tell()
		}
		if u.Trouble() == nil {
			wait = 15 * time.Second
		} else {
			wait = min(2*wait, 2*time.Second)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (p *Pool) tellLoad() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.observed)
	p.observed = make(chan struct{})
}

// Observed returns a channel that is closed when the load of some upstream is read after this call.
func (p *Pool) Observed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.observed
}

func (p *Pool) notify() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}

// Changed returns a channel that is closed when the list of some upstream changes after this call,
// or the set of upstreams.
func (p *Pool) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Serves reports whether some upstream serves the lane, and whether a no is certain: while a list
// is unread it is not.
func (p *Pool) Serves(lane batch.Lane) (serves, certain bool) {
	certain = true
	for _, u := range p.All() {
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
	for _, u := range p.All() {
		u.mu.Lock()
		for id, m := range u.known() {
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
	for _, u := range p.All() {
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
