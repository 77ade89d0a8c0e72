package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
)

// A byteSize is a number of bytes, written like 64MiB.
type byteSize int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *byteSize) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n == 0 || n > 1<<50 {
		return fmt.Errorf("%q is no size; write it like 64MiB", text)
	}
	*b = byteSize(n)
	return nil
}

// A configFile is what --config was given: values of flags under their names, with dashes or
// underscores, and a list of upstreams. It counts where neither a flag nor the environment says
// otherwise.
//
//	listen: 0.0.0.0:8080
//	data: /var/lib/offpeak
//	upstreams:
//	  - url: http://gpu-1:8000/v1
//	  - url: https://api.example.com/v1
//	    key_env: EXAMPLE_KEY
//	    models: [large, small]
//	    requests_per_minute: 600
type configFile struct {
	path      string
	flags     map[string]any
	upstreams []upstreamSetting
}

// A configFlag names a config file. Giving it loads the file.
type configFlag string

// BeforeResolve implements kong's hook of that name, which is called for a flag that is given, and
// where the environment has it for the flags of all commands.
func (f configFlag) BeforeResolve(ctx *kong.Context, trace *kong.Path, c *configFile) error {
	if command := ctx.Selected(); command == nil || !slices.Contains(command.Flags, trace.Flag) {
		return nil
	}
	path := string(f) // what the environment says
	if given, _ := ctx.FlagValue(trace.Flag).(configFlag); given != "" {
		path = string(given)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("config file: %w", err)
	}
	if err := c.parse(text); err != nil {
		return fmt.Errorf("config file %s: %w", path, err)
	}
	c.path = path
	ctx.AddResolver(c)
	return nil
}

// parse reads the text of a config file.
func (c *configFile) parse(text []byte) error {
	values, err := yaml.Parser().Unmarshal(text)
	if err != nil {
		return err
	}
	k := koanf.New("/") // a delimiter that no setting has in its name
	if err := k.Load(confmap.Provider(values, ""), nil); err != nil {
		return err
	}
	c.flags = map[string]any{}
	for name, v := range values {
		if name == "upstreams" {
			continue
		}
		if _, nested := v.(map[string]any); nested {
			return fmt.Errorf("%s cannot have settings below it", name)
		}
		flag := strings.ReplaceAll(name, "_", "-")
		if _, twice := c.flags[flag]; twice {
			return fmt.Errorf("%s and %s are the same setting; keep one of them", flag, strings.ReplaceAll(flag, "-", "_"))
		}
		c.flags[flag] = v
	}
	if !k.Exists("upstreams") {
		return nil
	}
	list, ok := values["upstreams"].([]any)
	if !ok {
		return errors.New(`upstreams is no list; begin each of them with "- url"`)
	}
	for i, v := range list {
		m, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf(`upstream %d has no settings; write "- url: http://…"`, i+1)
		}
		if m["url"] == nil {
			return fmt.Errorf("upstream %d has no url", i+1)
		}
		if err := checkShape(m, reflect.TypeFor[upstreamSetting]()); err != nil {
			return fmt.Errorf("upstream %d%w", i+1, err)
		}
	}
	if err := k.Unmarshal("upstreams", &c.upstreams); err != nil {
		return fmt.Errorf("upstreams: %s", strings.Join(strings.Fields(err.Error()), " ")) // it has several lines
	}
	for i := range c.upstreams {
		if err := c.upstreams[i].check(); err != nil {
			return fmt.Errorf("upstream %d: %w", i+1, err)
		}
	}
	return nil
}

// isSetting reports whether a flag may be in a config file: those may that have a variable in the
// environment, too.
func isSetting(f *kong.Flag) bool { return len(f.Envs) > 0 && f.Name != "config" }

// Validate implements kong.Resolver: it finds settings that no command with --config has.
func (c *configFile) Validate(app *kong.Application) error {
	known := map[string]bool{}
	for _, command := range app.Leaves(false) {
		if !slices.ContainsFunc(command.Flags, func(f *kong.Flag) bool { return f.Name == "config" }) {
			continue
		}
		for _, f := range command.Flags {
			known[f.Name] = known[f.Name] || isSetting(f)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.flags)) {
		if !known[name] {
			return fmt.Errorf("config file %s: there is no setting %q; offpeak serve --help lists them", c.path, name)
		}
	}
	return nil
}

// Resolve implements kong.Resolver.
func (c *configFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	v, ok := c.flags[flag.Name]
	if !ok || !isSetting(flag) || slices.ContainsFunc(flag.Envs, func(name string) bool { _, set := os.LookupEnv(name); return set }) {
		return nil, nil
	}
	if list, ok := v.([]any); ok {
		parts := make([]string, len(list))
		for i, p := range list {
			parts[i] = fmt.Sprint(p)
		}
		v = strings.Join(parts, ",")
	}
	return fmt.Sprint(v), nil
}
