// Package sim is a simulated upstream: an HTTP handler that behaves like a vLLM server without a
// model behind it. Tests, demos and capacity planning run against it.
//
//	up, err := sim.Start(sim.Config{Slots: 32, Timing: sim.Timing{Decode: 20 * time.Millisecond}}, "127.0.0.1:0")
//	if err != nil { … }
//	defer up.Close()
//	// send requests to up.URL() + "/chat/completions"
//
// A call takes one of a fixed number of slots, or waits for one in a first-in, first-out queue.
// In its slot it spends the time that its prompt and its answer would cost, then it is answered:
//
//	call ─► key ─► count ─► fault? ─► check ─► queue ─► slot: latency + prefill + decode ─► answer
//
// What it promises:
//
//   - An answer depends on the seed, the endpoint and the body alone: the same request gets the
//     same bytes, ids and timestamps included, whenever and however often it is sent.
//   - A fault depends on the seed, the body and which attempt at that body it is, so a run with
//     faults can be repeated however its calls interleave.
//   - A client that leaves frees its slot or its place in the queue at once.
//   - Time comes from package time alone and nothing runs in the background, so a Server works
//     in a testing/synctest bubble.
//   - Nothing grows with the number of calls, except the counters of [Config.CountCalls]: some
//     fifty bytes for each distinct body.
//
// What it leaves out: streaming (refused with 400), tools, structured output, and the slowing
// down of a real engine as its slots fill: here a token costs the same in company as alone.
//
// A token is four bytes of text. That is near enough for English and costs nothing to count.
package sim

import (
	"bytes"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/go-json-experiment/json/jsontext"
)

// anyModelLabel names, in metrics, the one model of a server that serves any model: a label
// that took the clients' names would grow without bound.
const anyModelLabel = "sim"

// A Server is a simulated upstream. It is an http.Handler, safe for concurrent use.
//
// It cuts a connection by panicking with http.ErrAbortHandler, as net/http asks. A test that
// calls ServeHTTP without an http.Server around it meets that panic itself.
type Server struct {
	cfg    Config
	mux    *http.ServeMux
	models map[string]*model
	any    *model // serves every name when no models are configured, else nil
	slots  *slots
	cache  *prefixCache // nil if off
	tally  *tally       // nil if off
	words  []string     // the vocabulary of the answers

	inFlight atomic.Int64 // calls whose body is read and whose answer is not
	scratch  sync.Pool    // of *call

	logMu sync.Mutex // one line at a time to cfg.BodyLog

	upMu sync.Mutex             // one change of up at a time
	up   atomic.Pointer[period] // the time between two outages
}

// A model is a configured model with its numbers for /metrics.
type model struct {
	id     string
	timing Timing

	running, waiting             atomic.Int64
	promptTokens, outputTokens   atomic.Uint64
	cacheQueries, cacheHitTokens atomic.Uint64 // in tokens, as vLLM counts them
}

// A period is a time of being up. It ends with an outage, which cuts every call that began in it.
type period struct{ over chan struct{} }

func (p *period) ended() bool { return isClosed(p.over) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// New returns a server as cfg describes it. It panics if cfg is not valid: check settings that
// came from a user with [Config.Validate] before.
func New(cfg Config) *Server {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	cfg = cfg.withDefaults()
	s := &Server{
		cfg:    cfg,
		models: make(map[string]*model, len(cfg.Models)),
		slots:  &slots{limit: cfg.Slots, queueLimit: cfg.QueueLimit},
		words:  strings.Fields(vocabulary),
	}
	for _, m := range cfg.Models {
		timing := cfg.Timing
		if m.Timing != nil {
			timing = *m.Timing
		}
		s.models[m.ID] = &model{id: m.ID, timing: timing}
	}
	if len(cfg.Models) == 0 {
		s.any = &model{id: anyModelLabel, timing: cfg.Timing}
	}
	if cfg.PrefixCache > 0 {
		s.cache = newPrefixCache(cfg.PrefixCache)
	}
	if cfg.CountCalls || cfg.Faults.total() > 0 { // a fault needs to know which attempt it strikes
		s.tally = newTally()
	}
	s.scratch.New = func() any { return &call{dec: jsontext.NewDecoder(&bytes.Buffer{})} }
	s.up.Store(&period{over: make(chan struct{})})
	s.mux = s.routes()
	return s
}

func (s *Server) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", s.serve(chat))
	mux.HandleFunc("POST /v1/completions", s.serve(completions))
	mux.HandleFunc("POST /v1/responses", s.serve(responses))
	mux.HandleFunc("POST /v1/embeddings", s.serve(embeddings))
	mux.HandleFunc("POST /v1/moderations", s.serve(moderations))
	mux.HandleFunc("GET /v1/models", s.listModels)
	mux.HandleFunc("GET /v1/models/{id...}", s.getModel)
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /metrics", s.writeMetrics)
	mux.HandleFunc("GET /sim/calls", s.getCalls)
	mux.HandleFunc("DELETE /sim/calls", s.deleteCalls)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, &refusal{status: http.StatusNotFound, msg: "there is no " + r.Method + " " + r.URL.Path})
	})
	return mux
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.up.Load().ended() && !strings.HasPrefix(r.URL.Path, "/sim/") {
		if s.cfg.DownStatus == 0 {
			panic(http.ErrAbortHandler)
		}
		s.refuse(w, &refusal{status: s.cfg.DownStatus, msg: "the server is down"})
		return
	}
	s.mux.ServeHTTP(w, r)
}

// SetDown begins an outage, or ends it. An outage cuts every call in flight; while it lasts each
// new call, /health and /metrics included, is cut or answered with [Config.DownStatus] before its
// body is read, and is not counted. Only /sim/calls stays reachable. For refused connections,
// close a [Running] server and start another at its address.
func (s *Server) SetDown(down bool) {
	s.upMu.Lock()
	defer s.upMu.Unlock()
	p := s.up.Load()
	switch {
	case down && !p.ended():
		close(p.over)
	case !down && p.ended():
		s.up.Store(&period{over: make(chan struct{})})
	}
}

// crash cuts every call in flight. The server is up again at once, unless it was down.
func (s *Server) crash() {
	s.upMu.Lock()
	defer s.upMu.Unlock()
	if p := s.up.Load(); !p.ended() {
		close(p.over)
		s.up.Store(&period{over: make(chan struct{})})
	}
}

// authorized reports whether r carries the key, and answers it if it does not.
func (s *Server) authorized(w http.ResponseWriter, r *http.Request) bool {
	if s.cfg.APIKey == "" || r.Header.Get("Authorization") == "Bearer "+s.cfg.APIKey {
		return true
	}
	s.refuse(w, &refusal{status: http.StatusUnauthorized, msg: "Incorrect API key provided."})
	return false
}

// listModels answers 404 when any model is served: an upstream without a list of models is one
// that clients may ask for any.
func (s *Server) listModels(w http.ResponseWriter, r *http.Request) {
	if !s.authorized(w, r) {
		return
	}
	if s.any != nil {
		s.refuse(w, &refusal{status: http.StatusNotFound, msg: "this server has no list of models: it serves any"})
		return
	}
	b := []byte(`{"object":"list","data":[`)
	for i, m := range s.cfg.Models {
		if i > 0 {
			b = append(b, ',')
		}
		b = s.appendModel(b, m.ID)
	}
	s.writeJSON(w, http.StatusOK, append(b, "]}"...))
}

func (s *Server) getModel(w http.ResponseWriter, r *http.Request) {
	if !s.authorized(w, r) {
		return
	}
	id := r.PathValue("id")
	if s.models[id] == nil {
		s.refuse(w, unknownModel(id))
		return
	}
	s.writeJSON(w, http.StatusOK, s.appendModel(nil, id))
}

// logBody appends body to the log, in one write so that a killed process leaves whole lines.
func (s *Server) logBody(body []byte) error {
	if s.cfg.BodyLog == nil {
		return nil
	}
	s.logMu.Lock()
	defer s.logMu.Unlock()
	if _, err := s.cfg.BodyLog.Write(append(body, '\n')); err != nil {
		return &refusal{status: http.StatusInternalServerError, msg: "body log: " + err.Error()}
	}
	return nil
}
