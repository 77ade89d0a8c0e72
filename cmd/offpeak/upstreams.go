package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"

	"offpeak/internal/openai"
	"offpeak/internal/upstream"
)

// An upstreamSetting is one upstream in the config file. docs/configuration.md says what each
// setting means.
type upstreamSetting struct {
	Name              string            `koanf:"name"`
	URL               string            `koanf:"url"`
	Key               string            `koanf:"key"`
	KeyEnv            string            `koanf:"key_env"` // name of an environment variable that holds the key
	Headers           map[string]string `koanf:"headers"`
	HeadersEnv        map[string]string `koanf:"headers_env"` // by header: likewise
	Models            []string          `koanf:"models"`
	Aliases           map[string]string `koanf:"aliases"`
	Weight            int               `koanf:"weight"`
	MaxInFlight       string            `koanf:"max_in_flight"`
	RequestsPerMinute int               `koanf:"requests_per_minute"`
	TokensPerMinute   int               `koanf:"tokens_per_minute"`
	Shared            bool              `koanf:"shared"`
	Timeouts          timeoutSetting    `koanf:"timeouts"`
	TLS               tlsSetting        `koanf:"tls"`
	MetricsURL        string            `koanf:"metrics_url"`
}

// A timeoutSetting bounds the parts of a call.
type timeoutSetting struct {
	Connect      time.Duration `koanf:"connect"`
	FirstByte    time.Duration `koanf:"first_byte"`
	BetweenBytes time.Duration `koanf:"between_bytes"`
	Total        time.Duration `koanf:"total"`
}

// A tlsSetting says whom to trust, and who we are.
type tlsSetting struct {
	CA                 string `koanf:"ca"`
	Cert               string `koanf:"cert"`
	Key                string `koanf:"key"`
	ServerName         string `koanf:"server_name"`
	InsecureSkipVerify bool   `koanf:"insecure_skip_verify"`
}

// checkShape finds what is in m and not in the struct, and what would be misread: the library that
// fills the struct takes 5 for 5 ns, 0.5 for 0, and a key of 0123 for 83. The error goes on from what m
// is. It tells no value of a text, which may be a secret.
func checkShape(m map[string]any, of reflect.Type) error {
	var names []string
	fields := map[string]reflect.Type{}
	for f := range of.Fields() {
		name := f.Tag.Get("koanf")
		names, fields[name] = append(names, name), f.Type
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		field, ok := fields[name]
		if !ok {
			return fmt.Errorf(" has no setting %q, only %s", name, strings.Join(names, ", "))
		}
		if m[name] == nil { // nothing stands behind it
			continue
		}
		if field.Kind() == reflect.Struct {
			below, ok := m[name].(map[string]any)
			if !ok {
				return fmt.Errorf(": %s has no settings below it", name)
			}
			if err := checkShape(below, field); err != nil {
				return fmt.Errorf(": %s%w", name, err)
			}
			continue
		}
		if wrong := misread(name, m[name], field); wrong != "" {
			return fmt.Errorf(": %s %s", name, wrong)
		}
	}
	return nil
}

// misread tells what is wrong with v as the value of a setting, if it is not what a field has to have.
func misread(name string, v any, field reflect.Type) string {
	text, isText := v.(string)
	n, whole := v.(int)
	switch {
	case field == reflect.TypeFor[time.Duration]():
		d, err := time.ParseDuration(text)
		if err != nil && v != 0 {
			return fmt.Sprintf("is %v; write it with its unit, like 30s", v)
		}
		if d == 0 {
			return "is 0, want more than 0; leave it out for the default"
		}
	case name == "max_in_flight":
		if !whole && text != "auto" {
			return fmt.Sprintf("is %v, want a whole number or auto", v)
		}
	case field.Kind() == reflect.Int && !whole:
		return fmt.Sprintf("is %v, want a whole number", v)
	case field.Kind() == reflect.Int && n == 0: // which would be as if it were not there
		return "is 0, want at least 1; leave it out for the default"
	case field.Kind() == reflect.Bool:
		if _, ok := v.(bool); !ok {
			return fmt.Sprintf("is %v, want true or false", v)
		}
	case field.Kind() == reflect.String && !isText:
		return "is not a text; put it in quotes"
	case field.Kind() == reflect.Slice:
		list, ok := v.([]any)
		if !ok || len(list) == 0 || slices.ContainsFunc(list, func(v any) bool { _, ok := v.(string); return !ok }) {
			return "is not a list of texts; write it like [a, b], numbers in quotes, or leave it out for the default"
		}
	case field.Kind() == reflect.Map:
		texts, ok := v.(map[string]any)
		for _, v := range texts {
			_, isText := v.(string)
			ok = ok && (isText || v == nil) // that it is empty is told better later
		}
		if !ok {
			return "is not texts by name; write it like {a: b}, numbers in quotes"
		}
	}
	return ""
}

// check finds what is wrong with u, as far as that can be said without the environment and files.
func (u *upstreamSetting) check() error {
	if u.Key != "" && u.KeyEnv != "" {
		return errors.New("it has a key and a key_env; keep one of them")
	}
	for name := range u.HeadersEnv {
		if _, both := u.Headers[name]; both {
			return fmt.Errorf("header %s is in headers and in headers_env; keep one of them", name)
		}
	}
	if u.MaxInFlight != "" {
		if err := new(inFlight).UnmarshalText([]byte(u.MaxInFlight)); err != nil {
			return fmt.Errorf("max_in_flight is %w", err)
		}
	}
	if u.URL == simulated {
		return nil
	}
	if _, err := upstream.New(u.config()); err != nil {
		text := strings.TrimPrefix(err.Error(), "upstream") // which is said already
		return errors.New(strings.TrimLeft(text, ": "))
	}
	return nil
}

// config returns u as the upstream package has it, without what the environment says.
func (u *upstreamSetting) config() upstream.Config {
	var most inFlight
	most.UnmarshalText([]byte(u.MaxInFlight)) // checked before; empty is auto
	return upstream.Config{
		Name: u.Name, URL: u.URL, Key: u.Key, Headers: maps.Clone(u.Headers), Models: u.Models, Aliases: u.Aliases,
		Weight: u.Weight, MaxInFlight: int(most), Shared: u.Shared,
		Limits:  upstream.Limits{RequestsPerMinute: u.RequestsPerMinute, TokensPerMinute: u.TokensPerMinute},
		Connect: u.Timeouts.Connect, FirstByte: u.Timeouts.FirstByte, BetweenBytes: u.Timeouts.BetweenBytes, Timeout: u.Timeouts.Total,
		TLS: upstream.TLS(u.TLS), MetricsURL: u.MetricsURL,
	}
}

// simulated is the URL of an upstream that is simulated in this process.
const simulated = "sim"

// An inFlight is how many requests an upstream may get at a time; 0: that is found out.
type inFlight int

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *inFlight) UnmarshalText(text []byte) error {
	if string(text) == "auto" {
		*n = 0
		return nil
	}
	v, err := strconv.Atoi(string(text))
	if err != nil || v < 1 {
		return fmt.Errorf("%s, want a number of at least 1, or auto", text)
	}
	*n = inFlight(v)
	return nil
}

// String writes n as it is read.
func (n inFlight) String() string {
	if n == 0 {
		return "auto"
	}
	return strconv.Itoa(int(n))
}

// upstreams returns the upstreams that the flags and the config file ask for. Flags win; what the
// file says about the URL of a flag, or about an upstream of that name, still counts.
func (f *engineFlags) upstreams(c *configFile, getenv func(string) string) ([]upstream.Config, error) {
	switch {
	case f.Timeout <= 0:
		return nil, fmt.Errorf("--timeout is %s, want more than 0", f.Timeout)
	case f.MaxAnswer > maxMaxAnswer:
		return nil, fmt.Errorf("--max-answer is %s, want at most %s", humanize.IBytes(uint64(f.MaxAnswer)), humanize.IBytes(maxMaxAnswer))
	}
	settings := c.upstreams
	if len(f.Upstream) > 0 {
		settings = nil
		for _, url := range f.Upstream {
			known := slices.DeleteFunc(slices.Clone(c.upstreams), func(u upstreamSetting) bool {
				return u.Name != url && strings.TrimRight(u.URL, "/") != strings.TrimRight(url, "/")
			})
			if len(known) == 0 {
				known = []upstreamSetting{{URL: url}}
			}
			settings = append(settings, known...)
		}
	}
	configs := make([]upstream.Config, len(settings))
	for i, u := range settings {
		missing := func(what, variable string) error {
			return fmt.Errorf("upstream %s: %s is to be in the environment variable %s, which is empty", cmp.Or(u.Name, u.URL), what, variable)
		}
		if u.KeyEnv != "" {
			if u.Key = getenv(u.KeyEnv); u.Key == "" {
				return nil, missing("its key", u.KeyEnv)
			}
		}
		headers := maps.Clone(u.Headers)
		for _, name := range slices.Sorted(maps.Keys(u.HeadersEnv)) {
			value := getenv(u.HeadersEnv[name])
			if value == "" {
				return nil, missing("its header "+name, u.HeadersEnv[name])
			}
			if headers == nil {
				headers = map[string]string{}
			}
			headers[name] = value
		}
		u.Headers = headers
		configs[i] = f.upstream(u, getenv)
	}
	return configs, nil
}

// upstream returns the upstream of a setting, with the flags' values where it has none of its own.
func (f *engineFlags) upstream(u upstreamSetting, getenv func(string) string) upstream.Config {
	if !u.authorizes() {
		u.Key = cmp.Or(u.Key, getenv("OFFPEAK_UPSTREAM_KEY"))
	}
	u.MaxInFlight = cmp.Or(u.MaxInFlight, f.MaxInFlight.String())
	u.Timeouts.Total = cmp.Or(u.Timeouts.Total, f.Timeout)
	config := u.config()
	config.MaxAnswer = int64(f.MaxAnswer)
	return config
}

// authorizes reports whether u has its key in a header.
func (u *upstreamSetting) authorizes() bool {
	for name := range u.Headers {
		if strings.EqualFold(name, "Authorization") {
			return true
		}
	}
	return false
}

// upstreamsCmd is `offpeak upstreams`: the inference servers behind a server.
type upstreamsCmd struct {
	List  upstreamsList  `cmd:"" default:"withargs" help:"Show how the upstreams of a server stand (the default)."`
	Check upstreamsCheck `cmd:"" help:"Ask the upstreams of a config file what they serve. No server is needed, and no request is sent."`
}

// upstreamsList is `offpeak upstreams list`.
type upstreamsList struct {
	apiFlags
	JSON bool `name:"json" help:"Print JSON, one upstream per line."`
}

// Run prints a table of upstreams.
func (cmd *upstreamsList) Run(ctx context.Context, s *streams) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	ups, err := c.Upstreams(ctx)
	if err != nil {
		return err
	}
	return printUpstreams(s.Out, ups, cmd.JSON)
}

// upstreamsCheck is `offpeak upstreams check`.
type upstreamsCheck struct {
	engineFlags
	JSON bool `name:"json" help:"Print JSON, one upstream per line."`
}

// Help implements kong.HelpProvider.
func (upstreamsCheck) Help() string {
	return "Exit codes: 0 every upstream has answered; 1 one of them has not, or the settings are wrong."
}

// Run asks every upstream, and prints a table.
func (cmd *upstreamsCheck) Run(ctx context.Context, s *streams, c *configFile) error {
	n := &node{}
	defer n.close()
	ups, err := n.upstreams(ctx, &cmd.engineFlags, c, s.Getenv, true, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	n.pool = upstream.NewPool(ups...)
	var asking sync.WaitGroup
	unlisted, errs := make([][]string, len(ups)), make([]error, len(ups))
	for i, u := range ups {
		asking.Go(func() { unlisted[i], errs[i] = u.Look(ctx) })
	}
	asking.Wait()
	found := make([]openai.Upstream, len(ups))
	var silent []string
	for i, u := range ups {
		st := u.State()
		found[i] = openai.Upstream{
			Object: "offpeak.upstream", Name: st.Name, URL: st.URL,
			Models: st.Models, ModelsKnown: !st.ModelsUnread, AnyModel: st.AnyModel, Aliases: st.Aliases,
			Healthy: errs[i] == nil, Limit: st.Max, MaxInFlight: notZero(st.Max),
			RequestsPerMinute: notZero(st.RequestsPerMinute), TokensPerMinute: notZero(st.TokensPerMinute),
			Shared: st.Shared, Weight: st.Weight,
		}
		if st.Observed {
			found[i].Running, found[i].Waiting = &st.Running, &st.Waiting
		}
		if errs[i] != nil {
			silent = append(silent, st.Name)
			found[i].Reason = notEmpty(errs[i].Error())
		} else if len(unlisted[i]) > 0 {
			found[i].Reason = notEmpty("it does not list " + strings.Join(unlisted[i], ", "))
		}
	}
	if err := printUpstreams(s.Out, found, cmd.JSON); err != nil {
		return err
	}
	if len(silent) > 0 {
		return fmt.Errorf("no answer of use from %s", strings.Join(silent, ", "))
	}
	return nil
}

func notEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func notZero(n int) *int {
	if n == 0 {
		return nil
	}
	return &n
}

// printUpstreams prints upstreams as JSON lines, or as a table with a line below it for each that
// has something to say.
func printUpstreams(w io.Writer, ups []openai.Upstream, json bool) error {
	all := func(yield func(openai.Upstream, error) bool) {
		for _, u := range ups {
			if !yield(u, nil) {
				return
			}
		}
	}
	err := printList(w, all, 0, json, "NAME\tSTATUS\tIN FLIGHT\tLIMIT\tRUNNING\tWAITING\tPER MINUTE\tMODELS", func(u openai.Upstream) string {
		limit := upstreamLimit(u)
		return fmt.Sprintf("%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s", u.Name, upstreamStatus(u), u.InFlight, limit,
			orNone(u.Running), orNone(u.Waiting), perMinute(u), upstreamModels(u))
	})
	if err != nil || json {
		return err
	}
	for _, u := range ups {
		if u.Reason != nil {
			if _, err := fmt.Fprintf(w, "%s: %s\n", u.Name, *u.Reason); err != nil {
				return err
			}
		}
	}
	return nil
}

// upstreamLimit says how many requests it may get at a time, of this node and of all.
func upstreamLimit(u openai.Upstream) string {
	limit := strconv.Itoa(u.Limit)
	auto := u.MaxInFlight == nil
	switch c := u.Cluster; {
	case auto && u.Limit == 0:
		return "auto"
	case c != nil && auto:
		return fmt.Sprintf("%d of %d (auto, nodes: %d)", c.Granted, c.Limit, c.Nodes)
	case c != nil:
		return fmt.Sprintf("%d of %d (nodes: %d)", c.Granted, c.Limit, c.Nodes)
	case auto:
		return limit + " (auto)"
	}
	return limit
}

// upstreamStatus says in a word or two how an upstream is.
func upstreamStatus(u openai.Upstream) string {
	until, limited := unixTime(deref(u.ThrottledUntil)), unixTime(deref(u.LimitedUntil))
	switch {
	case !u.Healthy && u.UnhealthySince != nil:
		return "down since " + unixTime(*u.UnhealthySince).Format("15:04:05")
	case !u.Healthy:
		return "down"
	case until.After(time.Now()):
		return "throttled until " + until.Format("15:04:05")
	case limited.After(time.Now()):
		return "limit used up until " + limited.Format("15:04:05")
	case u.Cluster != nil && u.Cluster.InFlight >= u.Cluster.Limit, u.Cluster == nil && u.Limit > 0 && u.InFlight >= u.Limit:
		return "full"
	}
	return "ok"
}

// upstreamModels says what an upstream serves, aliases with what they stand for.
func upstreamModels(u openai.Upstream) string {
	const most = 5
	models := slices.Clone(u.Models[:min(len(u.Models), most)])
	for i, m := range models {
		if own, ok := u.Aliases[m]; ok {
			models[i] = m + "→" + own
		}
	}
	switch {
	case len(u.Models) > most:
		models = append(models, fmt.Sprintf("and %d more", len(u.Models)-most))
	case u.AnyModel:
		models = append(models, "(any)")
	case !u.ModelsKnown:
		models = append(models, "(not known yet)")
	}
	return orDash(strings.Join(models, " "))
}

// perMinute says what an upstream may be asked for in a minute.
func perMinute(u openai.Upstream) string {
	var limits []string
	if n := u.RequestsPerMinute; n != nil {
		limits = append(limits, humanize.Comma(int64(*n))+" requests")
	}
	if n := u.TokensPerMinute; n != nil {
		limits = append(limits, humanize.Comma(int64(*n))+" tokens")
	}
	return orDash(strings.Join(limits, ", "))
}

func orNone(n *int) string {
	if n == nil {
		return "-"
	}
	return strconv.Itoa(*n)
}
