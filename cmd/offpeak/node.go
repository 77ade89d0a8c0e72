package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"offpeak/internal/batch"
	"offpeak/internal/engine"
	"offpeak/internal/sim"
	"offpeak/internal/store"
	"offpeak/internal/upstream"
)

// engineFlags are what `run` and `serve` share: the upstreams, and how they are used.
type engineFlags struct {
	Config      configFlag    `placeholder:"FILE" env:"OFFPEAK_CONFIG" help:"YAML file with settings: any flag by its name, and a list of upstreams (docs/configuration.md)."`
	Upstream    []string      `sep:"," placeholder:"URL" env:"OFFPEAK_UPSTREAM" help:"Inference server to use, such as http://localhost:8000/v1; repeatable. \"sim\" is a simulated one. By default those found on this machine at the usual ports. A key for it is taken from the environment, OFFPEAK_UPSTREAM_KEY."`
	MaxInFlight inFlight      `default:"auto" placeholder:"N" env:"OFFPEAK_MAX_IN_FLIGHT" help:"Requests that each upstream gets at a time, or auto: as many as it does well with (default: ${default})."`
	Timeout     time.Duration `default:"1h" placeholder:"DURATION" env:"OFFPEAK_TIMEOUT" help:"How long one request may take at the upstream (default: ${default})."`
	MaxAnswer   byteSize      `default:"64MiB" placeholder:"SIZE" env:"OFFPEAK_MAX_ANSWER" help:"How large an answer may be (default: ${default})."`
	MaxLine     byteSize      `default:"64MiB" placeholder:"SIZE" env:"OFFPEAK_MAX_LINE" help:"How long a line of the input may be (default: ${default})."`
}

// maxMaxAnswer is how large an answer can be recorded, with room to spare: SQLite keeps 1 GB in a row.
const maxMaxAnswer = 512 << 20

// rules are what inputs are checked against; requests bounds them, 0 leaves that to the profile.
func (f *engineFlags) rules(p batch.Profile, requests int64) batch.Rules {
	r := batch.Rules{MaxLine: int(f.MaxLine), MaxRequests: cmp.Or(requests, 1_000_000)}
	if p == batch.ProfileOpenAI {
		r.OneModel, r.MaxEmbeddingInputs = true, batch.MaxEmbeddingInputs
		r.MaxRequests = cmp.Or(requests, 50_000)
	}
	return r
}

// A node is what works on what is kept: the parts of a server, without its API.
type node struct {
	store   *store.Store
	blobs   blobStore
	pool    *upstream.Pool
	engine  *engine.Engine // nil: it executes nothing
	metrics *prometheus.Registry
	sim     *sim.Running // nil unless there is an upstream "sim"
}

// openNode opens what is kept and gets everything ready to run. Of ec the settings count; the parts
// are filled in. Without ec it is a node that executes nothing.
func openNode(ctx context.Context, where *storageFlags, f *engineFlags, c *configFile, ec *engine.Config, s *streams, log *slog.Logger) (_ *node, err error) {
	n := &node{metrics: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			n.close()
			err = where.tellRoom(err)
		}
	}()
	ups, err := n.upstreams(ctx, f, c, s.Getenv, ec != nil, log)
	if err != nil {
		return nil, err
	}
	n.pool = upstream.NewPool(ups...)

	if err := where.make(log); err != nil {
		return nil, err
	}
	if n.store, err = where.openStore(ctx, store.Options{}); err != nil {
		return nil, err
	}
	if n.blobs, err = where.openBlobs(ctx); err != nil {
		return nil, err
	}
	if where.Blobs != "" {
		if err := pair(ctx, n.store, n.blobs, where); err != nil {
			return nil, err
		}
	}
	n.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if ec == nil {
		return n, nil
	}
	if ec.Node == "" {
		ec.Node, _ = os.Hostname()
	}
	ec.Store, ec.Blobs, ec.Upstreams, ec.Log, ec.Metrics = n.store, n.blobs, n.pool, log, engine.NewMetrics()
	n.engine = engine.New(*ec)
	n.metrics.MustRegister(ec.Metrics)
	return n, nil
}

// run works until ctx ends, as engine.Run does.
func (n *node) run(ctx, abort context.Context) error {
	if n.engine != nil {
		return n.engine.Run(ctx, abort)
	}
	n.pool.Run(ctx) // for the list of models
	return nil
}

// upstreams makes the upstreams that the flags and the config file ask for, or else, if there have to
// be some, those that are found on this machine.
func (n *node) upstreams(ctx context.Context, f *engineFlags, c *configFile, getenv func(string) string, needed bool, log *slog.Logger) ([]*upstream.Upstream, error) {
	configs, err := f.upstreams(c, getenv)
	if err != nil {
		return nil, err
	}
	if len(configs) == 0 && needed {
		found := upstream.Discover(ctx, upstream.WellKnown)
		if len(found) == 0 {
			return nil, fmt.Errorf("no upstream given, and none answers on this machine (looked at %s); give one with --upstream URL, or --upstream sim to try things out",
				strings.Join(upstream.WellKnown, ", "))
		}
		for _, url := range found {
			configs = append(configs, f.upstream(upstreamSetting{URL: url}, getenv))
			log.Info("found an upstream", "upstream", url)
		}
	}
	ups := make([]*upstream.Upstream, len(configs))
	byName := map[string]bool{}
	for i, config := range configs {
		if config.URL == simulated {
			if n.sim == nil {
				if n.sim, err = sim.Start(sim.Config{Seed: 1, Timing: sim.Timing{Latency: 200 * time.Millisecond, Jitter: 0.5}}, "127.0.0.1:0"); err != nil {
					return nil, err
				}
			}
			config.URL = n.sim.URL()
		}
		if ups[i], err = upstream.New(config); err != nil {
			return nil, err
		}
		if name := ups[i].Name(); byName[name] {
			return nil, fmt.Errorf("upstream %s is there twice; to use one URL in two ways, give each a name of its own", name)
		}
		byName[ups[i].Name()] = true
	}
	return ups, nil
}

func (n *node) close() error {
	var errs []error
	if n.pool != nil {
		for _, u := range n.pool.All() {
			u.Close()
		}
	}
	if n.sim != nil {
		errs = append(errs, n.sim.Close())
	}
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	return errors.Join(errs...)
}

// makeFolder makes the data folder, for its owner alone, so that it survives a loss of power.
func makeFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	// A name is durable once the folder it stands in is.
	if err := syncFolder(filepath.Dir(filepath.Clean(dir))); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	return nil
}

// tellRoom adds to an error that there is next to no room in dir, if so: of a database's errors
// that is hard to guess.
func tellRoom(err error, dir string) error {
	var st syscall.Statfs_t
	if _, special := errors.AsType[exitError](err); err == nil || special || syscall.Statfs(dir, &st) != nil {
		return err
	}
	if room := uint64(st.Bavail) * uint64(st.Bsize); room < 1<<20 {
		return fmt.Errorf("%w; the disk of %s has only %s left", err, dir, humanize.IBytes(room))
	}
	return err
}
