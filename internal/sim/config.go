package sim

import (
	"fmt"
	"io"
	"time"
)

// A Config says how a [Server] behaves. The zero value is an upstream that serves any model,
// answers at once and never fails.
type Config struct {
	// Seed changes every answer, every length and every fault.
	Seed uint64

	// Models are the models served. With none, a request may name any model, and GET /v1/models
	// answers 404: an upstream without a list serves them all.
	Models []Model

	// APIKey is the key that calls under /v1 must carry as a bearer token; "": none is needed.
	APIKey string

	// Slots is how many calls are worked on at once, all models together; 0: 64.
	Slots int

	// QueueLimit is how many calls may wait for a slot; 0: no limit.
	QueueLimit int

	// QueueStatus is the answer to a call that finds the queue full, 429 or 503; 0: 429.
	QueueStatus int

	// MaxInFlight is how many calls may run and wait together before more are answered 429;
	// 0: no limit.
	MaxInFlight int

	// RetryAfter is what every 429 and 503 asks for in its Retry-After header, rounded up to
	// whole seconds; 0: they carry no such header.
	RetryAfter time.Duration

	// Timing is what calls cost, for the models that have no timing of their own; zero: no time.
	Timing Timing

	// MedianTokens and P99Tokens set the length of the answers: half of them have at most
	// MedianTokens (0: 32), 99 of 100 at most P99Tokens (0: eight times the median), and beyond
	// that the tail goes on as a log-normal's does. With both the same, all answers are as long.
	MedianTokens, P99Tokens int

	// Context is how many tokens prompt and answer may have together; 0: 32,768. A request that
	// asks for more is refused with 400.
	Context int

	// Dimensions is the length of embeddings for which the request names none; 0: 8.
	Dimensions int

	// PrefixCache is how many blocks of 16 tokens the prefix cache keeps. A prompt that begins
	// with cached blocks skips their prefill time. 0: there is no prefix cache.
	PrefixCache int

	// NoMetrics answers 404 to GET /metrics, as a server does that has none.
	NoMetrics bool

	// ReportCached puts cached_tokens into usage. Answers then depend on what was asked before.
	ReportCached bool

	// MaxBody is how many bytes a body may have before it is answered 413; 0: 64 MiB.
	MaxBody int64

	// Faults go wrong by chance; zero: none do.
	Faults Faults

	// Poison is text that, wherever it stands in a body, cuts the call without an answer, always;
	// "": none.
	Poison string

	// PoisonCrashes makes a poisoned call cut every other call in flight as well, as an engine
	// does that dies of it.
	PoisonCrashes bool

	// Always500 and Always400 are texts that get a body this answer, always; "": none.
	Always500, Always400 string

	// DownStatus is the answer to calls during an outage (see [Server.SetDown]); 0: their
	// connections are cut.
	DownStatus int

	// CountCalls counts the calls of each distinct body, for [Server.Calls]. It is implied by
	// Faults, which need to know which attempt they strike.
	CountCalls bool

	// BodyLog, if not nil, is given every body that arrives under POST, whole, one Write each,
	// followed by a line feed. If it fails, the call is answered 500.
	BodyLog io.Writer

	// IdleTimeout is after how long [Start] closes a connection that has no call; 0: never.
	IdleTimeout time.Duration
}

// A Model is one model that a [Server] serves.
type Model struct {
	ID     string
	Timing *Timing // what its calls cost; nil: Config.Timing
}

// A Timing is what a call costs while it holds a slot.
type Timing struct {
	Latency time.Duration // whatever the call
	Prefill time.Duration // for each 1,000 tokens of the prompt that are not in the prefix cache
	Decode  time.Duration // for each token of the answer
	Jitter  float64       // share, from 0 to 1, by which the sum may be more or less; drawn per body
}

// Faults are the shares of calls, each from 0 to 1 and together at most 1, that go wrong in one
// way or another. Which ones do is drawn from the seed, the body, and which attempt at the body
// the call is.
//
// All but Cut, Drop and Slow strike at once, as a fault of a proxy in front of the engine does:
// the call takes no slot.
type Faults struct {
	Throttle    float64       // answered 429
	Error       float64       // answered ErrorStatus
	ErrorStatus int           // a 5xx; 0: 500
	Hang        float64       // never answered; they end when the client leaves
	Cut         float64       // cut after half of the answer
	Drop        float64       // cut after the work is done, before a byte of the answer
	Slow        float64       // answered, SlowBy later
	SlowBy      time.Duration // must be set if Slow is
	HTML        float64       // answered 200 with a page, as by a captive portal
	Text        float64       // answered 200 with text that is not JSON
	Redirect    float64       // answered 302

	// Attempts is how many attempts at a body may go wrong: later ones are spared. 0: all may.
	Attempts int
}

func (f Faults) total() float64 {
	return f.Throttle + f.Error + f.Hang + f.Cut + f.Drop + f.Slow + f.HTML + f.Text + f.Redirect
}

const (
	maxDimensions = 4096
	maxInputs     = 2048 // as OpenAI has it for embeddings
	maxChoices    = 128  // as OpenAI has it for n
)

func (c Config) withDefaults() Config {
	setDefault(&c.Slots, 64)
	setDefault(&c.QueueStatus, 429)
	setDefault(&c.MedianTokens, 32)
	setDefault(&c.P99Tokens, 8*c.MedianTokens)
	setDefault(&c.Context, 32768)
	setDefault(&c.Dimensions, 8)
	setDefault(&c.MaxBody, 64<<20)
	setDefault(&c.Faults.ErrorStatus, 500)
	return c
}

func setDefault[T int | int64](v *T, to T) {
	if *v == 0 {
		*v = to
	}
}

// Validate returns an error that names the first field whose value makes no sense.
func (c Config) Validate() error {
	for _, n := range []struct {
		field string
		value int64
	}{
		{"Slots", int64(c.Slots)},
		{"QueueLimit", int64(c.QueueLimit)},
		{"MaxInFlight", int64(c.MaxInFlight)},
		{"RetryAfter", int64(c.RetryAfter)},
		{"MedianTokens", int64(c.MedianTokens)},
		{"P99Tokens", int64(c.P99Tokens)},
		{"Context", int64(c.Context)},
		{"Dimensions", int64(c.Dimensions)},
		{"PrefixCache", int64(c.PrefixCache)},
		{"MaxBody", c.MaxBody},
		{"IdleTimeout", int64(c.IdleTimeout)},
		{"Faults.SlowBy", int64(c.Faults.SlowBy)},
		{"Faults.Attempts", int64(c.Faults.Attempts)},
	} {
		if n.value < 0 {
			return invalid(n.field, "must not be negative")
		}
	}

	if err := c.Timing.validate("Timing"); err != nil {
		return err
	}
	seen := make(map[string]bool, len(c.Models))
	for i, m := range c.Models {
		field := fmt.Sprintf("Models[%d]", i)
		switch {
		case m.ID == "":
			return invalid(field, "has no ID")
		case seen[m.ID]:
			return invalid(field, fmt.Sprintf("has the ID %q of another model", m.ID))
		}
		seen[m.ID] = true
		if m.Timing != nil {
			if err := m.Timing.validate(field + ".Timing"); err != nil {
				return err
			}
		}
	}

	d := c.withDefaults()
	switch {
	case d.QueueStatus != 429 && d.QueueStatus != 503:
		return invalid("QueueStatus", "must be 429 or 503")
	case d.P99Tokens < d.MedianTokens:
		return invalid("P99Tokens", fmt.Sprintf("is %d, below the median of %d", d.P99Tokens, d.MedianTokens))
	case d.Dimensions > maxDimensions:
		return invalid("Dimensions", fmt.Sprintf("must not be above %d", maxDimensions))
	case d.DownStatus != 0 && (d.DownStatus < 400 || d.DownStatus > 599):
		return invalid("DownStatus", "must be from 400 to 599")
	}
	return d.Faults.validate()
}

func (t Timing) validate(field string) error {
	switch {
	case t.Latency < 0:
		return invalid(field+".Latency", "must not be negative")
	case t.Prefill < 0:
		return invalid(field+".Prefill", "must not be negative")
	case t.Decode < 0:
		return invalid(field+".Decode", "must not be negative")
	case !isShare(t.Jitter):
		return invalid(field+".Jitter", "must be from 0 to 1")
	}
	return nil
}

func (f Faults) validate() error {
	for _, r := range []struct {
		field string
		share float64
	}{
		{"Throttle", f.Throttle}, {"Error", f.Error}, {"Hang", f.Hang}, {"Cut", f.Cut}, {"Drop", f.Drop},
		{"Slow", f.Slow}, {"HTML", f.HTML}, {"Text", f.Text}, {"Redirect", f.Redirect},
	} {
		if !isShare(r.share) {
			return invalid("Faults."+r.field, "must be from 0 to 1")
		}
	}
	switch {
	case f.total() > 1+1e-9: // shares such as 0.7 + 0.2 + 0.1 may add up to a hair more than 1
		return invalid("Faults", fmt.Sprintf("shares add up to %g, which is more than 1", f.total()))
	case f.ErrorStatus < 500 || f.ErrorStatus > 599:
		return invalid("Faults.ErrorStatus", "must be from 500 to 599")
	case f.Slow > 0 && f.SlowBy == 0:
		return invalid("Faults.SlowBy", "must be set, since Faults.Slow is")
	}
	return nil
}

// isShare also refuses NaN.
func isShare(f float64) bool { return f >= 0 && f <= 1 }

// A ConfigError tells which field of a [Config] makes no sense, and why.
type ConfigError struct{ Field, Why string }

func (e *ConfigError) Error() string { return "sim: " + e.Field + " " + e.Why }

func invalid(field, why string) error { return &ConfigError{field, why} }
