package main

import (
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
	Listen          string        `default:"127.0.0.1:8080" placeholder:"ADDR" env:"OFFPEAK_LISTEN" help:"Address to listen on; port 0 takes a free one (default: ${default}). Any but a loopback address needs a key: offpeak keys create."`
	Data            string        `default:"offpeak-data" type:"path" placeholder:"DIR" env:"OFFPEAK_DATA" help:"Folder for everything that is kept (default: ${default})."`
	Compat          string        `default:"extended" enum:"openai,extended" env:"OFFPEAK_COMPAT" help:"What is allowed: exactly what OpenAI allows (openai), or more (extended, the default)."`
	Endpoint        []string      `sep:"," placeholder:"PATH" env:"OFFPEAK_ENDPOINT" help:"Endpoint to allow beside OpenAI's, such as /v1/rerank; repeatable."`
	APIKeysRequired bool          `name:"api-keys-required" env:"OFFPEAK_API_KEYS_REQUIRED" help:"Refuse calls without a valid key even before the first key is created."`
	MaxInput        byteSize      `placeholder:"SIZE" env:"OFFPEAK_MAX_INPUT" help:"How large the input of a batch may be; by default 8GiB, with --compat openai 200MiB."`
	MaxRequests     int64         `placeholder:"N" env:"OFFPEAK_MAX_REQUESTS" help:"How many requests a batch may have; by default 1000000, with --compat openai 50000."`
	KeepBatches     time.Duration `placeholder:"DURATION" env:"OFFPEAK_KEEP_BATCHES" help:"How long batches are kept after their end, such as 2160h; by default for good."`
	KeepDeleted     time.Duration `default:"168h" placeholder:"DURATION" env:"OFFPEAK_KEEP_DELETED" help:"How long the bytes of deleted and expired files stay on the disk, for the sake of backups (default: ${default})."`
	Drain           time.Duration `default:"30s" placeholder:"DURATION" env:"OFFPEAK_DRAIN" help:"How long requests in flight may go on when the server is asked to stop (default: ${default})."`
	LogLevel        string        `default:"info" enum:"debug,info,warn,error" env:"OFFPEAK_LOG_LEVEL" help:"What to log: debug, info, warn or error (default: ${default})."`
	LogFormat       string        `default:"text" enum:"text,json" env:"OFFPEAK_LOG_FORMAT" help:"How to log: text or json (default: ${default})."`
}

// Help implements kong.HelpProvider.
func (serveCmd) Help() string {
	return "Without any flag it serves on http://127.0.0.1:8080/v1, keeps its data in ./offpeak-data, and uses the upstreams " +
		"that answer on this machine. Point OpenAI's SDK at it with base_url. One interrupt lets the requests in flight end, a second stops at once; " +
		"either way nothing that was recorded is lost. SIGHUP has it read the config file again, for the upstreams in it.\n\nExit codes: 0 it was asked to stop and did; 1 an error."
}

// Run serves until ctx ends.
func (cmd *serveCmd) Run(ctx context.Context, s *streams, c *configFile, reread rereader) error {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	log := newLogger(s, cmd.LogLevel, cmd.LogFormat)
	profile, err := batch.ParseProfile(cmd.Compat)
	if err != nil {
		return err
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
	n, err := openNode(ctx, cmd.Data, &cmd.engineFlags, c, engine.Config{
		Rules: cmd.rules(profile, cmd.MaxRequests), KeepBatches: cmd.KeepBatches, KeepDeleted: cmd.KeepDeleted, Drain: cmd.Drain,
	}, s, log)
	if err != nil {
		return err
	}
	defer n.close()
	var following sync.WaitGroup
	defer following.Wait()

	keys := n.store.Keys(cmd.APIKeysRequired)
	if loopback := isLoopback(listener.Addr()); !loopback {
		switch any, err := n.store.HasKeys(ctx); {
		case err != nil:
			return err
		case !any:
			return fmt.Errorf("anybody could use --listen %s, since there is no API key yet; make one with: offpeak keys create --data %s", cmd.Listen, cmd.Data)
		}
		keys = n.store.Keys(true)
	}

	requests := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "offpeak_http_seconds", Help: "Duration of requests to the API.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
	}, []string{"route", "status"})
	n.metrics.MustRegister(requests)
	var stopping atomic.Bool
	server := &http.Server{
		Handler: api.New(api.Config{
			Store: n.store, Blobs: n.blobs, Models: n.pool, Upstreams: n.engine, Keys: keys, Wake: n.engine.Wake, Activity: n.engine.Activity, Log: log,
			Policy:  batch.Policy{Profile: profile, Endpoints: cmd.Endpoint, MaxInput: int64(cmd.MaxInput)},
			Metrics: promhttp.HandlerFor(n.metrics, promhttp.HandlerOpts{}),
			Ready: func(ctx context.Context) error {
				if stopping.Load() {
					return errors.New("stopping")
				}
				return n.store.Ping(ctx)
			},
			Observe: func(route, class string, took time.Duration) {
				requests.WithLabelValues(route, class).Observe(took.Seconds())
			},
		}),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { stopping.Store(true) })()

	// The engine outlives the API a little: what was accepted last is at least known to it.
	engineDone := make(chan error, 1)
	engineCtx, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEngine()
	go func() { engineDone <- n.engine.Run(engineCtx, s.Abort) }()
	serverDone := make(chan error, 1)
	go func() { serverDone <- server.Serve(api.Listen(server, listener)) }()
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
	log.Info("serving", "base_url", baseURL(listener.Addr()), "data", cmd.Data)

	select {
	case <-ctx.Done():
		log.Info("stopping; interrupt again to stop at once")
	case err = <-serverDone:
	case err = <-engineDone:
		engineDone <- nil // it is waited for below
	}
	stopping.Store(true)
	stopEngine()
	closing, cancel := context.WithTimeout(s.Abort, 30*time.Second)
	defer cancel()
	if server.Shutdown(closing) != nil {
		server.Close() // somebody is still up- or downloading
	}
	return errors.Join(err, <-engineDone)
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
