package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"offpeak/internal/api"
	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/upstream"
)

// serveCmd is `offpeak serve`: the API and the engine behind it.
type serveCmd struct {
	engineFlags
	storageFlags
	Role            string        `default:"all" enum:"all,api,worker" env:"OFFPEAK_ROLE" help:"What this node does: serve the API (api), execute batches (worker), or both (all, the default). Others than all need --database."`
	Node            string        `placeholder:"NAME" env:"OFFPEAK_NODE" help:"What this node is called in logs, metrics and \"offpeak nodes\"; by default the name of the machine."`
	Listen          string        `default:"127.0.0.1:8080" placeholder:"ADDR" env:"OFFPEAK_LISTEN" help:"Address to listen on; port 0 takes a free one (default: ${default}). Any but a loopback address needs a key (offpeak keys create), or --api-keys-required."`
	Compat          string        `default:"extended" enum:"openai,extended" env:"OFFPEAK_COMPAT" help:"What is allowed: exactly what OpenAI allows (openai), or more (extended, the default)."`
	Endpoint        []string      `sep:"," placeholder:"PATH" env:"OFFPEAK_ENDPOINT" help:"Endpoint to allow beside OpenAI's, such as /v1/rerank; repeatable."`
	APIKeysRequired bool          `name:"api-keys-required" env:"OFFPEAK_API_KEYS_REQUIRED" help:"Refuse calls without a valid key even before the first key is created."`
	MaxInput        byteSize      `placeholder:"SIZE" env:"OFFPEAK_MAX_INPUT" help:"How large the input of a batch may be; by default 8GiB, with --compat openai 200MiB."`
	MaxRequests     int64         `placeholder:"N" env:"OFFPEAK_MAX_REQUESTS" help:"How many requests a batch may have; by default 1000000, with --compat openai 50000."`
	KeepBatches     time.Duration `placeholder:"DURATION" env:"OFFPEAK_KEEP_BATCHES" help:"How long batches are kept after their end, such as 2160h; by default for good."`
	KeepDeleted     time.Duration `default:"168h" placeholder:"DURATION" env:"OFFPEAK_KEEP_DELETED" help:"How long the bytes of deleted and expired files stay on the disk, for the sake of backups (default: ${default})."`
	MaxConnections  int           `placeholder:"N" env:"OFFPEAK_MAX_CONNECTIONS" help:"How many connections clients may have; by default 12000, or less where this process may open few files. Beyond, idle ones are closed, and if none is idle, clients are told to come again."`
	MaxTransfers    int           `default:"128" placeholder:"N" env:"OFFPEAK_MAX_TRANSFERS" help:"How many files may be uploaded, and as many downloaded, at a time, half of them by one project (default: ${default})."`
	Drain           time.Duration `default:"30s" placeholder:"DURATION" env:"OFFPEAK_DRAIN" help:"How long requests in flight may go on when the server is asked to stop (default: ${default})."`
	LogLevel        string        `default:"info" enum:"debug,info,warn,error" env:"OFFPEAK_LOG_LEVEL" help:"What to log: debug, info, warn or error (default: ${default})."`
	LogFormat       string        `default:"text" enum:"text,json" env:"OFFPEAK_LOG_FORMAT" help:"How to log: text or json (default: ${default})."`
}

// Help implements kong.HelpProvider.
func (serveCmd) Help() string {
	return "Without any flag it serves on http://127.0.0.1:8080/v1, keeps its data in ./offpeak-data, and uses the upstreams " +
		"that answer on this machine. Point OpenAI's SDK at it with base_url. One interrupt (or SIGTERM) lets the requests in flight end, for --drain at most, " +
		"while the API goes on and /readyz says no; a second stops at once. Either way nothing that was recorded is lost. " +
		"SIGHUP has it read the config file again, for the upstreams in it.\n\nExit codes: 0 it was asked to stop and did; 1 an error; 3 it was asked to stop and did, but answers could not be recorded, " +
		"since the database was away: they are asked for again."
}

// Run serves until ctx ends.
func (cmd *serveCmd) Run(ctx context.Context, s *streams, c *configFile, reread rereader) (err error) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	defer func() {
		if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, errInterrupted)) {
			err = nil // it was asked to stop before it had begun, and did
		}
	}()
	log := newLogger(s, cmd.LogLevel, cmd.LogFormat)
	profile, err := batch.ParseProfile(cmd.Compat)
	if err != nil {
		return err
	}
	switch {
	case cmd.Role != roleAll && !cmd.cluster():
		return fmt.Errorf("--role %s needs --database: SQLite is for one process, which has to do everything", cmd.Role)
	case cmd.Drain < 0:
		return fmt.Errorf("--drain is %s, want 0 or more", cmd.Drain)
	case cmd.KeepDeleted < 0:
		return fmt.Errorf("--keep-deleted is %s, want 0 or more", cmd.KeepDeleted)
	case cmd.KeepBatches < 0:
		return fmt.Errorf("--keep-batches is %s, want 0 or more", cmd.KeepBatches)
	case cmd.MaxConnections < 0:
		return fmt.Errorf("--max-connections is %d, want at least 1", cmd.MaxConnections)
	case cmd.MaxTransfers < 2:
		return fmt.Errorf("--max-transfers is %d, want at least 2, since one project gets half of them", cmd.MaxTransfers)
	}
	// First the address: whoever has it in use should not find out after a minute of recovery.
	listener, err := net.Listen("tcp", cmd.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s is in use by another process; choose another address with --listen", cmd.Listen)
	}
	if err != nil {
		return fmt.Errorf("--listen %s: %w", cmd.Listen, err)
	}
	defer listener.Close()
	var ec *engine.Config
	if cmd.Role != roleAPI {
		ec = &engine.Config{
			Rules: cmd.rules(profile, cmd.MaxRequests), KeepBatches: cmd.KeepBatches,
			KeepDeleted: max(cmd.KeepDeleted, 1), Drain: max(cmd.Drain, 1), // to the engine 0 is its default
			Node: cmd.Node, AwaitStore: cmd.cluster(),
		}
	}
	n, err := openNode(ctx, &cmd.storageFlags, &cmd.engineFlags, c, ec, s, log)
	if err != nil {
		return err
	}
	defer n.close()
	var following sync.WaitGroup
	defer following.Wait()

	keys := n.store.Keys(cmd.APIKeysRequired)
	if cmd.Role != roleWorker && !isLoopback(listener.Addr()) {
		switch any, err := n.store.HasKeys(ctx); {
		case err != nil:
			return err
		case !any && !cmd.APIKeysRequired:
			return fmt.Errorf("anybody could use --listen %s, since there is no API key yet; make one with: offpeak keys create %s (or give --api-keys-required, and nobody can until there is one)", cmd.Listen, cmd.storageFlags.flags())
		case !any:
			log.Warn("there is no API key yet, so every call is refused; make one with: offpeak keys create")
		}
		keys = n.store.Keys(true)
	}

	requests := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "offpeak_http_seconds", Help: "Duration of requests to the API.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
	}, []string{"route", "status"})
	n.metrics.MustRegister(requests)
	var stopping atomic.Bool
	config := api.Config{
		Store: n.store, Blobs: apart(n.blobs), Models: n.pool, Keys: keys, Log: log,
		Away:         away,
		MaxTransfers: cmd.MaxTransfers,
		Policy:       batch.Policy{Profile: profile, Endpoints: cmd.Endpoint, MaxInput: int64(cmd.MaxInput)},
		Metrics:      promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{}),
		Ready: func(ctx context.Context) error {
			if stopping.Load() {
				return api.ErrStopping
			}
			return n.store.Ping(ctx)
		},
		Observe: func(route, class string, took time.Duration) {
			requests.WithLabelValues(route, class).Observe(took.Seconds())
		},
	}
	if n.engine != nil { // else other nodes look for themselves
		config.Upstreams, config.Wake, config.Activity = n.engine, n.engine.Wake, n.engine.Activity
	}
	if cmd.cluster() {
		config.Activity = (&activity{store: n.store, engine: n.engine, log: log}).of
	}
	handler := api.New(config)
	if cmd.Role == roleWorker {
		handler = api.NewProbes(config)
	}
	server := &http.Server{
		Handler:           farewell(&stopping, handler),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}

	engineDone := make(chan error, 1)
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEngine()
	go func() { engineDone <- n.run(engineCtx, s.Abort) }()
	serverDone := make(chan error, 1)
	go func() {
		serverDone <- server.Serve(api.Listen(server, listener, cmp.Or(cmd.MaxConnections, defaultConnections(cmd.MaxTransfers))))
	}()
	for _, u := range n.pool.All() {
		logUpstream(log, "upstream", u)
	}
	following.Go(func() { logModels(engineCtx, n.pool, log) })
	following.Go(func() {
		reload := reloader{node: n, reread: reread, config: c, getenv: s.Getenv, log: log}
		for {
			select {
			case <-hangups:
				reload.run(engineCtx)
			case <-engineCtx.Done():
				return
			}
		}
	})
	log.LogAttrs(ctx, slog.LevelInfo, "serving", append([]slog.Attr{slog.String("base_url", baseURL(listener.Addr()))}, cmd.attrs()...)...)

	select {
	case <-ctx.Done():
		stopping.Store(true)
		log.Info("stopping; interrupt again to stop at once")
	case err = <-serverDone:
	case err = <-engineDone:
		engineDone <- nil // it is waited for below
	}
	// In this order: whoever spreads load looks elsewhere before anything else changes, and the API
	// answers for as long as calls are in flight. What it is asked to run meanwhile is committed,
	// for the next process to find.
	asked := time.Now()
	stopping.Store(true)
	stopEngine()
	err = errors.Join(err, <-engineDone)
	closing, cancel := context.WithDeadline(s.Abort, asked.Add(max(cmd.Drain, time.Since(asked)+leastClosing)))
	defer cancel()
	if server.Shutdown(closing) != nil {
		server.Close() // somebody is still up- or downloading
	}
	if _, ok := errors.AsType[*engine.UnrecordedError](err); ok && ctx.Err() != nil {
		return exitError{code: exitUnfinished, err: err}
	}
	return cmd.tellRoom(err)
}

// Roles of a node.
const (
	roleAll    = "all"
	roleAPI    = "api"
	roleWorker = "worker"
)

// leastClosing is how long requests to the API may take that are under way when the engine has
// ended, even if nothing of the drain is left for them.
const leastClosing = time.Second

// farewell has clients open a new connection for what they ask next, once stopping is set: the one
// they have is about to be closed, perhaps just as they use it.
func farewell(stopping *atomic.Bool, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if stopping.Load() {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// logModels logs what is known of the upstreams' models, as long as ctx lives.
func logModels(ctx context.Context, pool *upstream.Pool, log *slog.Logger) {
	for last := ""; ; {
		changed := pool.Changed() // before the look, so that no change is missed
		trouble := pool.Trouble()
		switch {
		case trouble == last:
		case trouble == "":
			log.Info("every upstream has said which models it serves")
		default:
			log.Warn("batches may have to wait, since it is not known which models an upstream serves", "err", trouble)
		}
		last = trouble
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// defaultConnections is how many connections clients may have where nobody says: so many that there
// are files left to open for everything else.
func defaultConnections(transfers int) int {
	const most, others = 12_000, 512 // the database, upstreams
	var files syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files) != nil { // Go has raised it as far as it may
		return most
	}
	n := min(files.Cur, 1<<20)
	return min(most, max(int(n)/2, int(n)-2*transfers-others))
}

// baseURL returns where clients on this machine reach a server that listens on a.
func baseURL(a net.Addr) string {
	if tcp, ok := a.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("http://127.0.0.1:%d/v1", tcp.Port)
	}
	return fmt.Sprintf("http://%s/v1", a)
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
