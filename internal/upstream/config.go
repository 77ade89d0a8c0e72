package upstream

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"offpeak/internal/batch"
)

// Config describes an upstream.
type Config struct {
	// Name is what people call it: in logs, metrics and messages. Empty: its URL.
	Name string
	// URL is where its API begins, such as "http://localhost:8000/v1".
	URL string
	// Key goes to the upstream as a bearer token. It is never logged or stored. Empty: none.
	Key string
	// Headers go with every call beside our own. Their values are kept as secret as the key.
	Headers map[string]string
	// Models it serves. Nil: those that its /models lists.
	Models []string
	// Aliases are names under which it serves models, too: a request for an alias is sent with the
	// name that stands here instead.
	Aliases map[string]string

	// Weight says how much it can do relative to other upstreams of a model. Zero: 1.
	Weight int
	// MaxInFlight is how many calls it gets at a time. Zero: that is found out.
	MaxInFlight int
	// Limits are what it allows in a minute.
	Limits
	// Shared tells that it serves people, too: batches take what those leave.
	Shared bool

	// Connect bounds how long it may take to get a connection, and again to agree on TLS. Zero: 10 s.
	Connect time.Duration
	// FirstByte bounds how long an answer may take to begin. Zero: no bound, since for a model the
	// first byte may be the whole answer.
	FirstByte time.Duration
	// BetweenBytes bounds how long an answer that has begun may stand still. Zero: no bound.
	BetweenBytes time.Duration
	// Timeout bounds a call as a whole. Zero: an hour.
	Timeout time.Duration
	// TLS says whom to trust, and who we are.
	TLS TLS

	// MaxAnswer is how large an answer may be, in bytes. Zero: 64 MiB.
	MaxAnswer int64
	// MetricsURL is where it tells how many requests it works on. Empty: /metrics beside its API.
	// "none": nowhere.
	MetricsURL string
	// Dialer makes connections. Nil: one for TCP.
	Dialer Dialer
	// Transport carries all calls, and tells net/http/httptrace of its connections. Nil: what suits the
	// URL.
	Transport http.RoundTripper

	standard bool // calls go over net/http whatever the URL, for tests of both ways
}

// A Dialer makes connections, as net.Dialer does.
type Dialer interface {
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// Limits are how much an upstream may be asked for in a minute. Zero: no limit.
type Limits struct {
	RequestsPerMinute int
	TokensPerMinute   int
}

// TLS is how an upstream with https is trusted. Its files are read when the upstream is made.
type TLS struct {
	// CA names a file of certificates that are trusted instead of the system's.
	CA string
	// Cert and Key name the files of the certificate that we show, and of its key.
	Cert, Key string
	// ServerName is whose certificate is expected. Empty: that of the URL's host.
	ServerName string
	// InsecureSkipVerify trusts whoever answers.
	InsecureSkipVerify bool
}

// Defaults of Config.
const (
	DefaultConnect   = 10 * time.Second
	DefaultTimeout   = time.Hour
	DefaultMaxAnswer = 64 << 20
)

// NoMetrics is the MetricsURL of an upstream that is not to be asked.
const NoMetrics = "none"

// New returns the upstream that c describes. Its errors are for the user who wrote c: they name
// the upstream and the setting as the config file calls it, and show nothing that may be secret.
func New(c Config) (*Upstream, error) {
	base, err := parseURL(c.URL)
	if err != nil {
		return nil, fmt.Errorf("upstream%s: %w", before(" ", c.Name), err)
	}
	c.URL = base.String()
	c.Name = cmp.Or(strings.TrimSpace(c.Name), c.URL)
	up := &Upstream{base: base, small: make(chan struct{}, smallAtOnce), large: make(chan struct{}, 1), work: make(chan struct{}, 1), since: time.Now()}
	if err := up.configure(&c); err != nil {
		return nil, fmt.Errorf("upstream %s: %w", c.Name, err)
	}
	up.cfg = c
	if up.rt = c.Transport; up.rt == nil {
		config, sum, err := c.TLS.load()
		if err != nil {
			return nil, fmt.Errorf("upstream %s: tls: %w", c.Name, err)
		}
		up.tls, up.rt = sum, transport(c, config)
		if leanFor(base) && !c.standard {
			up.conns = newLeanConns(c, base)
		}
	}
	if c.Models != nil {
		up.state, up.models = listRead, map[string]batch.ModelInfo{}
		for _, id := range c.Models {
			up.models[id] = batch.ModelInfo{ID: id, Created: up.since}
		}
	}
	return up, nil
}

// configure checks c, fills in its defaults, and gets ready what depends on it.
func (u *Upstream) configure(c *Config) error {
	if strings.ContainsFunc(c.Name, isControl) {
		return errors.New("name has a control character in it")
	}
	// Keys come from files and secret stores, often with a line break at their end.
	if c.Key = strings.TrimSpace(c.Key); strings.ContainsFunc(c.Key, isControl) {
		return errors.New("its key has a control character in it")
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"weight", c.Weight}, {"max_in_flight", c.MaxInFlight},
		{"requests_per_minute", c.RequestsPerMinute}, {"tokens_per_minute", c.TokensPerMinute},
	} {
		if n.value < 0 {
			return fmt.Errorf("%s is %d, want at least 1", n.name, n.value)
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"connect", c.Connect}, {"first_byte", c.FirstByte}, {"between_bytes", c.BetweenBytes}, {"total", c.Timeout},
	} {
		if d.value < 0 {
			return fmt.Errorf("timeouts: %s is %s, want more than 0", d.name, d.value)
		}
	}
	c.Weight = cmp.Or(c.Weight, 1)
	c.Connect, c.Timeout = cmp.Or(c.Connect, DefaultConnect), cmp.Or(c.Timeout, DefaultTimeout)
	c.MaxAnswer = cmp.Or(c.MaxAnswer, DefaultMaxAnswer)
	if u.base.Scheme != "https" && c.TLS != (TLS{}) {
		return errors.New("it has settings for tls, but its url begins with http://")
	}
	for alias, model := range c.Aliases {
		if alias == "" || model == "" {
			return fmt.Errorf("aliases: %q stands for %q; neither may be empty", alias, model)
		}
	}
	if err := u.setHeader(c); err != nil {
		return err
	}
	var err error
	u.metrics, err = metricsURL(c.MetricsURL, u.base)
	return err
}

// ownHeaders are those that a call has anyway, or that belong to its connection.
var ownHeaders = []string{
	"Host", "Content-Length", "Content-Type", "Accept", "Accept-Encoding", "Transfer-Encoding", "Te", "Trailer",
	"Connection", "Keep-Alive", "Proxy-Connection", "Upgrade", "Expect",
}

// setHeader makes the header of calls.
func (u *Upstream) setHeader(c *Config) error {
	u.header = http.Header{
		"Content-Type": {"application/json"}, "Accept": {"application/json"}, "User-Agent": {"offpeak"},
	}
	if c.Key != "" {
		u.header.Set("Authorization", "Bearer "+c.Key)
		u.secrets = append(u.secrets, c.Key)
	}
	given := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		value := strings.TrimSpace(c.Headers[name])
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case name == "" || strings.ContainsFunc(name, notToken):
			return fmt.Errorf("headers: %q is no name of a header", name)
		case slices.Contains(ownHeaders, canonical):
			return fmt.Errorf("headers: %s cannot be set", canonical)
		case given[canonical]:
			return fmt.Errorf("headers: %s is set twice", canonical)
		case canonical == "Authorization" && c.Key != "":
			return errors.New("headers: Authorization is set, and so is its key; keep one of them")
		case strings.ContainsFunc(value, isControl):
			return fmt.Errorf("headers: %s has a control character in it", canonical)
		}
		given[canonical] = true
		u.header.Set(canonical, value)
		if canonical != "User-Agent" {
			u.secrets = append(u.secrets, value)
			if _, token, ok := strings.Cut(value, " "); ok && canonical == "Authorization" {
				u.secrets = append(u.secrets, token) // without the word for its scheme
			}
		}
	}
	u.secrets = slices.DeleteFunc(u.secrets, func(s string) bool { return len(s) < shortestKey })
	// The longest first: a secret may be part of another.
	slices.SortFunc(u.secrets, func(a, b string) int { return len(b) - len(a) })
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// notToken reports whether a character cannot be in the name of a header (RFC 9110, 5.6.2).
func notToken(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
}

// before returns sep and text, or nothing if there is no text.
func before(sep, text string) string {
	if text == "" {
		return ""
	}
	return sep + text
}

// parseURL reads where an upstream's API begins.
func parseURL(raw string) (*url.URL, error) {
	const example = "want a URL like http://localhost:8000/v1"
	u, err := url.Parse(strings.TrimRight(strings.TrimSpace(raw), "/"))
	switch {
	case strings.Contains(raw, "@"):
		return nil, errors.New("its URL has a user or password in it: put the key into the environment or the config file")
	case err != nil:
		return nil, fmt.Errorf("%w; %s", plain(err), example)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, fmt.Errorf("the URL of %s has a query or fragment in it; %s", u.Host, example)
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return nil, fmt.Errorf("the URL is %q; %s", raw, example)
	case u.Path == "":
		u.Path = "/v1"
	}
	return u, nil
}

// metricsURL reads where an upstream whose API begins at base has its metrics; nil if nowhere.
func metricsURL(raw string, base *url.URL) (*url.URL, error) {
	switch raw {
	case NoMetrics:
		return nil, nil
	case "":
		beside := &url.URL{Scheme: base.Scheme, Host: base.Host, Path: path.Dir(base.Path)}
		return beside.JoinPath("metrics"), nil
	}
	u, err := url.Parse(strings.TrimSpace(raw))
	switch {
	case strings.Contains(raw, "@"):
		return nil, errors.New("metrics_url has a user or password in it, and cannot have one")
	case err != nil:
		return nil, fmt.Errorf("metrics_url: %w", plain(err))
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return nil, fmt.Errorf("metrics_url is %q; want a URL like http://localhost:8000/metrics, or %s", raw, NoMetrics)
	}
	return u, nil
}

// load reads the files of t. The sum is of what is in them.
func (t TLS) load() (*tls.Config, [32]byte, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.InsecureSkipVerify}
	sum := sha256.New()
	read := func(name string) ([]byte, error) {
		text, err := os.ReadFile(name)
		fmt.Fprintln(sum, len(text))
		sum.Write(text)
		return text, err
	}
	if t.CA != "" {
		text, err := read(t.CA)
		if err != nil {
			return nil, [32]byte{}, fmt.Errorf("ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, [32]byte{}, fmt.Errorf("ca: there is no certificate in %s; it must be a PEM file", t.CA)
		}
	}
	if (t.Cert == "") != (t.Key == "") {
		return nil, [32]byte{}, errors.New("cert and key go together; one of them is missing")
	}
	if t.Cert != "" {
		cert, err := read(t.Cert)
		if err != nil {
			return nil, [32]byte{}, fmt.Errorf("cert: %w", err)
		}
		key, err := read(t.Key)
		if err != nil {
			return nil, [32]byte{}, fmt.Errorf("key: %w", err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, [32]byte{}, fmt.Errorf("cert %s and key %s: %w", t.Cert, t.Key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, [32]byte(sum.Sum(nil)), nil
}

// manyConnections is how many idle connections are kept where nobody said how many calls there may
// be at a time.
const manyConnections = 4096

// idleTimeout is how long a connection may be idle. Servers in Python and Node close one that was for
// 5 s. We must be faster: a request that meets the closing is lost, and nobody knows whether it was
// read.
const idleTimeout = 4 * time.Second

// maxHeader bounds the header of an answer. There may be as many as calls in flight.
const maxHeader = 256 << 10

// transport keeps as many connections as there may be calls: with net/http's default of two, most
// calls would open one.
func transport(c Config, t *tls.Config) *http.Transport {
	idle := cmp.Or(c.MaxInFlight, manyConnections)
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer(c.dialer()),
		TLSClientConfig:        t,
		TLSHandshakeTimeout:    c.Connect,
		MaxIdleConns:           idle,
		MaxIdleConnsPerHost:    idle,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
		ExpectContinueTimeout:  time.Second,
	}
}

// Name identifies the upstream in logs, metrics and messages. It holds no secret.
func (u *Upstream) Name() string { return u.cfg.Name }

// Same reports whether o has the same URL and is sent the same key, whatever it is called.
func (u *Upstream) Same(o *Upstream) bool {
	return u.cfg.URL == o.cfg.URL && u.header.Get("Authorization") == o.header.Get("Authorization")
}

// MaxInFlight is how many calls it gets at a time; 0: that is found out.
func (u *Upstream) MaxInFlight() int { return u.cfg.MaxInFlight }

// Limits are what it allows in a minute.
func (u *Upstream) Limits() Limits { return u.cfg.Limits }

// Shared reports whether it serves people, too.
func (u *Upstream) Shared() bool { return u.cfg.Shared }

// Weight says how much it can do relative to other upstreams.
func (u *Upstream) Weight() int { return u.cfg.Weight }
