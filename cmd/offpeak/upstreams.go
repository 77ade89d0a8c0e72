package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

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
// fills the struct takes 5 for 5 ns, and 0.5 for 0. The error goes on from what m is.
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
		v := m[name]
		_, text := v.(string)
		_, whole := v.(int)
		switch {
		case field == reflect.TypeFor[time.Duration]():
			if !text && v != 0 {
				return fmt.Errorf(": %s is %v; write it with its unit, like 30s", name, v)
			}
		case field.Kind() == reflect.Int && !whole, name == "max_in_flight" && !whole && v != "auto":
			return fmt.Errorf(": %s is %v, want a whole number%s", name, v, orAuto(name))
		case field.Kind() == reflect.Struct:
			below, ok := v.(map[string]any)
			if !ok {
				return fmt.Errorf(": %s has no settings below it", name)
			}
			if err := checkShape(below, field); err != nil {
				return fmt.Errorf(": %s%w", name, err)
			}
		}
	}
	return nil
}

func orAuto(name string) string {
	if name == "max_in_flight" {
		return " or auto"
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
	_, err := upstream.New(u.config()) // its errors name the setting
	return err
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
	if f.Timeout <= 0 {
		return nil, fmt.Errorf("--timeout is %s, want more than 0", f.Timeout)
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
