package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"offpeak/internal/upstream"
)

// A reloader brings changes of the config file into a server that runs.
type reloader struct {
	node   *node
	reread rereader
	config *configFile // as it is in force
	getenv func(string) string
	log    *slog.Logger
}

// reloadable are the settings beside upstreams that count at once when they change.
var reloadable = []string{"upstream", "max-in-flight", "timeout", "max-answer"}

// run reads the settings again, as at the start: flags over the environment over the config file.
// First all is checked; if anything is wrong, nothing changes. Requests that are on their way stay
// on it, to an upstream that is removed, too.
func (r *reloader) run(ctx context.Context) {
	flags, config, err := r.reread()
	var ups []*upstream.Upstream
	if err == nil {
		ups, err = r.node.upstreams(ctx, flags, config, r.getenv, r.node.engine != nil, r.log)
	}
	if err != nil {
		r.log.Error("reload failed, everything stays as it was", "err", err)
		return
	}
	came, went := r.node.pool.Replace(ups...)
	for _, u := range came {
		i := slices.IndexFunc(went, func(o *upstream.Upstream) bool { return o.Name() == u.Name() })
		if i < 0 {
			logUpstream(r.log, "upstream added", u)
			continue
		}
		logUpstream(r.log, "upstream changed", u)
		went = slices.Delete(went, i, i+1)
	}
	for _, u := range went {
		r.log.Info("upstream removed", "upstream", u.Name())
	}
	if late := r.changedOtherwise(config); len(late) > 0 {
		r.log.Warn("some settings have changed that count only from the next start on", "settings", strings.Join(late, ","))
	}
	r.config = config
	r.log.Info("reloaded", "upstreams", len(ups))
}

// changedOtherwise returns the settings in which a config file differs that are not for us to
// change.
func (r *reloader) changedOtherwise(now *configFile) (names []string) {
	all := maps.Clone(r.config.flags)
	if all == nil {
		all = map[string]any{}
	}
	maps.Copy(all, now.flags)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if fmt.Sprint(r.config.flags[name]) != fmt.Sprint(now.flags[name]) && !slices.Contains(reloadable, name) {
			names = append(names, name)
		}
	}
	return names
}

// logUpstream logs how an upstream is configured.
func logUpstream(log *slog.Logger, what string, u *upstream.Upstream) {
	log.Info(what, "upstream", u.Name(), "max_in_flight", inFlight(u.MaxInFlight()).String())
}
