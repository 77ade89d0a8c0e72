// Package api serves the public HTTP API: OpenAI's files, uploads, batches and models, as contract
// §1 to §15 describe them and as unmodified SDKs expect them.
//
// A handler turns a request into an intent, hands it to the store, and turns what comes back into
// a wire object. Every write is one store call that is durable when it returns, so that there is
// nothing to undo: an upload that breaks off leaves a blob that nothing names, which the sweeper
// removes. What all routes have in common (keys, decoding, errors, headers, limits on slow
// clients, logs and metrics) is done in one place each; [server.routes] lists the routes.
//
// What the package leaves out: TLS, limits on connections and the time to read a request's header
// are the http.Server's. That must have neither ReadTimeout nor WriteTimeout, which would cut long
// uploads and downloads; here a client is cut off when it stalls (see Config.Stall).
package api

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/outage"
)

// Config says what a server serves and what it is made of. Store and Blobs are required; of every
// other field the zero value will do.
type Config struct {
	Store Store
	Blobs Blobs
	// Models lists what GET /v1/models shows. Nil: nothing.
	Models Models
	// Upstreams tells how the upstreams stand. Nil: there are none here.
	Upstreams Upstreams
	// Keys tells who is calling. Nil: AnyKey.
	Keys Keys
	// Policy is what users may create.
	Policy batch.Policy

	// Activity returns what goes on for a batch. Nil: nobody here knows.
	Activity func(b batch.Batch) batch.Activity
	// Wake is called after a batch was created or cancelled, and must not block. Nil: nobody is told.
	Wake func()
	// Ready returns why this process cannot serve now, ErrStopping if it was told to stop. Nil: it
	// always can.
	Ready func(context.Context) error
	// Away reports whether an error of Store, Blobs or Keys tells only that what they need cannot be
	// reached or cannot serve now. Nil: none does.
	Away func(error) bool
	// Metrics answers GET /metrics. Nil: there is no such page.
	Metrics http.Handler
	// Observe is told of every request: its route, such as "GET /v1/batches/{id}" or "other", the
	// class of its status, such as "2xx", or "503", and how long it took. Nil: nobody is told.
	Observe func(route, class string, took time.Duration)
	// Log gets a debug line for every request and an error line for every failure of ours. Nil:
	// nothing is logged.
	Log *slog.Logger

	// Stall is how long a client may neither send nor take a byte before its request is given up,
	// and how long a request that brings no file may take to arrive. Zero: 2 minutes.
	Stall time.Duration
	// MaxTransfers is how many files may be uploaded, and as many downloaded, at a time. One project
	// gets half of them; what is beyond waits its turn, and after a while is told to come again.
	// Zero: 128.
	MaxTransfers int
	// Now is the clock that objects are dated by. Nil: time.Now.
	Now func() time.Time
}

// A Store keeps what the API creates. Every write is one transaction, durable and visible to the
// next read when it returns. Objects of another project behave as if they did not exist.
type Store interface {
	// ReserveBlob notes that a blob is about to be written. If no file comes to name it, it will
	// be swept.
	ReserveBlob(ctx context.Context, key string) error
	// CreateFile makes f of blobs that were reserved and are written.
	CreateFile(ctx context.Context, f batch.File) error
	// File returns a file with its parts, or batch.NoFile if it is unknown, deleted or expired.
	File(ctx context.Context, project, id string) (batch.File, error)
	// ListFiles returns a page and whether more follow, or batch.NoFile for an unknown q.After.
	ListFiles(ctx context.Context, project string, q batch.FileQuery) (files []batch.File, more bool, err error)
	// DeleteFile deletes a file, or returns batch.NoFile like File.
	DeleteFile(ctx context.Context, project, id string) error
	uploads

	// CreateBatch makes b; from then on it will be run.
	CreateBatch(ctx context.Context, b batch.Batch) error
	// CreateBatchOnce is CreateBatch for a request that can be repeated under a key: it returns the
	// batch that was made the first time, or a Conflict if that request was another.
	CreateBatchOnce(ctx context.Context, b batch.Batch, key string, request [32]byte) (batch.Batch, error)
	// Batch returns a batch, or batch.NoBatch if it is unknown.
	Batch(ctx context.Context, project, id string) (batch.Batch, error)
	// ListBatches returns a page and whether more follow, or batch.NoBatch for an unknown q.After.
	ListBatches(ctx context.Context, project string, q batch.BatchQuery) (batches []batch.Batch, more bool, err error)
	results
	// CancelBatch does what Batch.Cancel says and returns the batch as it is then.
	CancelBatch(ctx context.Context, project, id string) (batch.Batch, error)
}

// Blobs keeps the bytes of files, as package blob promises.
type Blobs interface {
	blob.Opener
	Create(ctx context.Context, key string) (blob.Writer, error)
}

// Models knows which models the upstreams serve.
type Models interface {
	// Models lists them, always in the same order.
	Models(ctx context.Context) []batch.ModelInfo
}

// Upstreams knows how the upstreams stand.
type Upstreams interface {
	// Upstreams tells of each of them, in the order in which they are configured.
	Upstreams() []batch.UpstreamState
}

// New returns a server. It is safe for concurrent use.
func New(c Config) http.Handler {
	s := newServer(c)
	s.mux = s.newMux(s.routes())
	return s
}

// NewProbes returns a server of what is said to whoever runs this process, and to nobody else: whether
// it is alive and ready, and its metrics. That is what a node has that serves no API.
func NewProbes(c Config) http.Handler {
	s := newServer(c)
	s.mux = s.newMux(s.probes())
	return s
}

func newServer(c Config) *server {
	if c.Keys == nil {
		c.Keys = AnyKey{}
	}
	if c.Models == nil {
		c.Models = noModels{}
	}
	if c.Upstreams == nil {
		c.Upstreams = noUpstreams{}
	}
	if c.Wake == nil {
		c.Wake = func() {}
	}
	if c.Ready == nil {
		c.Ready = func(context.Context) error { return nil }
	}
	if c.Away == nil {
		c.Away = func(error) bool { return false }
	}
	if c.Observe == nil {
		c.Observe = func(string, string, time.Duration) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Stall == 0 {
		c.Stall = 2 * time.Minute
	}
	if c.MaxTransfers == 0 {
		c.MaxTransfers = defaultTransfers
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &server{
		Config: c, limits: newLimits(c.MaxTransfers), keys: keyring{projects: map[[32]byte]string{}},
		away: outage.New(c.Log, slog.LevelWarn, "answer requests; clients are told to come again, since the database or the blobs are away"),
	}
}

// A server is what New and NewProbes return.
type server struct {
	Config
	limits
	mux    *http.ServeMux
	origin http.CrossOriginProtection
	keys   keyring
	away   *outage.Log
	warned atomic.Int64 // when warnSurplus did, as unix seconds
}

// routes lists every route there is.
func (s *server) routes() map[string]handler {
	routes := map[string]handler{
		"POST /v1/files":             s.authenticated(holding(s.uploads, s.upload)),
		"GET /v1/files":              s.authenticated(holding(s.large, answerJSON(s, s.reads, decodeFileQuery, s.listFiles))),
		"GET /v1/files/{id}":         serveJSON(s, s.reads, decodeID, s.file),
		"DELETE /v1/files/{id}":      serveJSON(s, s.writes, decodeID, s.deleteFile),
		"GET /v1/files/{id}/content": s.authenticated(holding(s.downloads, s.content)),

		"POST /v1/uploads":            serveJSON(s, s.writes, decodeCreateUpload, s.createUpload),
		"POST /v1/uploads/{id}/parts": s.authenticated(holding(s.uploads, s.addPart)),
		// It may read all that was uploaded, which takes long: no slot of those that do not.
		"POST /v1/uploads/{id}/complete": serveJSON(s, s.uploads, decodeCompletion, s.completeUpload),
		"POST /v1/uploads/{id}/cancel":   serveJSON(s, s.writes, decodeID, s.cancelUpload),

		"POST /v1/batches":             serveJSON(s, s.writes, decodeCreateBatch, s.createBatch),
		"GET /v1/batches":              serveJSON(s, s.reads, decodeBatchQuery, s.listBatches),
		"GET /v1/batches/{id}":         serveJSON(s, s.reads, decodeID, s.batch),
		"POST /v1/batches/{id}/cancel": serveJSON(s, s.writes, decodeID, s.cancelBatch),

		"GET /v1/models":         serveJSON(s, s.reads, decodeNothing, s.listModels),
		"GET /v1/models/{id...}": serveJSON(s, s.reads, decodeID, s.model),

		"GET /openapi.yaml": s.openapi,
	}
	if s.Policy.Profile != batch.ProfileOpenAI {
		routes["GET /v1/batches/{id}/output"] = s.authenticated(holding(s.downloads, s.recordedOutput))
		routes["GET /v1/batches/{id}/errors"] = s.authenticated(holding(s.downloads, s.recordedErrors))
		routes["GET /v1/offpeak/upstreams"] = serveJSON(s, s.reads, decodeNothing, s.listUpstreams)
	}
	maps.Copy(routes, s.probes())
	return routes
}

// probes lists the routes that need no key.
func (s *server) probes() map[string]handler {
	routes := map[string]handler{
		"GET /healthz": s.healthz,
		"GET /readyz":  s.readyz,
	}
	if s.Metrics != nil {
		routes["GET /metrics"] = s.metrics
	}
	return routes
}

// A handler answers one request, or returns why it cannot.
type handler func(w *response, r *http.Request) error

// A projectHandler answers one request of a project.
type projectHandler func(w *response, r *http.Request, p batch.Project) error

// newMux makes a mux of routes that answers in our words where none of them matches: a path that
// is known, but not with this method, and a path that is not.
func (s *server) newMux(routes map[string]handler) *http.ServeMux {
	mux := http.NewServeMux()
	handle := func(pattern string, h handler) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w.(*response), r); err != nil {
				s.fail(w.(*response), r, err)
			}
		})
	}
	allowed := make(map[string][]string) // path :: methods
	for pattern, h := range routes {
		handle(pattern, h)
		method, path, _ := strings.Cut(pattern, " ")
		allowed[path] = append(allowed[path], method)
	}
	for path, methods := range allowed {
		slices.Sort(methods)
		handle(path, wrongMethod(strings.Join(methods, ", ")))
	}
	handle("/", noRoute)
	return mux
}

// ServeHTTP implements http.Handler.
func (s *server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	surplus := answering(r)
	w, r := newResponse(rw, r, s.Stall)
	if surplus {
		w.Header().Set("Connection", "close")
	}
	if surplus && strings.HasPrefix(r.URL.Path, "/v1/") {
		s.warnSurplus()
		s.fail(w, r, errUnavailable)
	} else {
		s.serve(w, r)
	}
	s.observe(w, r)
	if w.cut {
		panic(http.ErrAbortHandler) // the client must not take what it got for the whole answer
	}
}

// serve answers r, come what may.
func (s *server) serve(w *response, r *http.Request) {
	defer func() {
		switch v := recover(); v {
		case nil:
		case http.ErrAbortHandler:
			w.cut = true
		default:
			s.fail(w, r, newPanicError(v))
		}
	}()
	// The mux would redirect a path that is not clean, and one with a slash too many at its end.
	// Clients lose the body of a POST on the way (contract H-01).
	if p := r.URL.EscapedPath(); !strings.HasPrefix(p, "/") || p != path.Clean(p) {
		s.fail(w, r, noRoute(w, r))
		return
	}
	s.mux.ServeHTTP(w, r)
}

// warnSurplus tells the operator once a minute that connections are refused.
func (s *server) warnSurplus() {
	now := time.Now().Unix()
	if last := s.warned.Load(); now-last >= 60 && s.warned.CompareAndSwap(last, now) {
		s.Log.Warn("requests are refused: there are too many connections (--max-connections), and none is idle")
	}
}

// healthz says that the process is alive.
func (s *server) healthz(w *response, _ *http.Request) error {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err := w.Write([]byte("ok\n"))
	return err
}

// ErrStopping is why a process is not ready that has been told to stop.
var ErrStopping = errors.New("the server is stopping")

// readyz says whether the process can serve.
func (s *server) readyz(w *response, r *http.Request) error {
	if err := s.Ready(r.Context()); err != nil {
		level := slog.LevelWarn
		if errors.Is(err, ErrStopping) { // it was asked to, and is going to be probed again and again
			level = slog.LevelDebug
		}
		s.Log.Log(r.Context(), level, "not ready", "err", err)
		return errUnavailable
	}
	return s.healthz(w, r)
}

func (s *server) metrics(w *response, r *http.Request) error {
	s.Metrics.ServeHTTP(w, r)
	return nil
}
