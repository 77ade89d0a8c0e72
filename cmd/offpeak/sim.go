package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"offpeak/internal/sim"
)

// simCmd is `offpeak sim`: a simulated upstream that runs until it is interrupted.
type simCmd struct {
	Listen      string        `default:"127.0.0.1:8000" placeholder:"ADDR" help:"Address to listen on; port 0 takes a free one (default: ${default})."`
	Model       []string      `sep:"none" placeholder:"NAME" help:"Model to serve; repeatable. With none, requests may name any model, and GET /v1/models answers 404."`
	APIKey      string        `name:"api-key" placeholder:"KEY" help:"Key that calls must carry; none by default."`
	Seed        uint64        `default:"0" placeholder:"N" help:"Seed of every answer, length and fault."`
	IdleTimeout time.Duration `placeholder:"DURATION" help:"Close a connection that is idle for so long, as uvicorn does after 5s; never by default."`

	Slots         int           `group:"Capacity" default:"64" placeholder:"N" help:"Calls worked on at once (default: ${default})."`
	Queue         int           `group:"Capacity" placeholder:"N" help:"Calls that may wait for a slot; no limit by default."`
	QueueStatus   int           `group:"Capacity" default:"429" enum:"429,503" placeholder:"STATUS" help:"Answer when the queue is full, 429 or 503 (default: ${default})."`
	MaxConcurrent int           `group:"Capacity" placeholder:"N" help:"Calls in flight, running and waiting, above which more are answered 429; no limit by default."`
	RetryAfter    time.Duration `group:"Capacity" placeholder:"DURATION" help:"Retry-After of every 429 and 503; no header by default."`

	Latency     time.Duration `group:"Time" placeholder:"DURATION" help:"Time of every call, whatever it asks."`
	Prefill     time.Duration `group:"Time" placeholder:"DURATION" help:"Time for each 1,000 tokens of the prompt."`
	Decode      time.Duration `group:"Time" placeholder:"DURATION" help:"Time for each token of the answer."`
	Jitter      float64       `group:"Time" placeholder:"SHARE" help:"Share, from 0 to 1, by which the time of a call may be more or less."`
	PrefixCache int           `group:"Time" placeholder:"BLOCKS" help:"Blocks of 16 tokens in the prefix cache, which saves prefill time; off by default."`

	MedianTokens int  `group:"Answers" default:"32" placeholder:"N" help:"Length that half of the answers stay under (default: ${default})."`
	P99Tokens    int  `group:"Answers" name:"p99-tokens" placeholder:"N" help:"Length that 99 of 100 answers stay under; eight times the median by default."`
	Context      int  `group:"Answers" default:"32768" placeholder:"N" help:"Tokens that prompt and answer may have together (default: ${default})."`
	Dimensions   int  `group:"Answers" default:"8" placeholder:"N" help:"Length of embeddings, where a request does not say (default: ${default})."`
	ReportCached bool `group:"Answers" help:"Report cached_tokens in usage. Answers then depend on what was asked before."`

	Rate429       float64       `group:"Faults" name:"rate-429" placeholder:"SHARE" help:"Share of calls, from 0 to 1, answered 429. All rates together are at most 1."`
	Rate5xx       float64       `group:"Faults" name:"rate-5xx" placeholder:"SHARE" help:"Share answered --status-5xx."`
	Status5xx     int           `group:"Faults" name:"status-5xx" default:"500" placeholder:"STATUS" help:"The 5xx (default: ${default})."`
	RateHang      float64       `group:"Faults" placeholder:"SHARE" help:"Share never answered."`
	RateCut       float64       `group:"Faults" placeholder:"SHARE" help:"Share cut after half of the answer."`
	RateDrop      float64       `group:"Faults" placeholder:"SHARE" help:"Share cut before the answer."`
	RateSlow      float64       `group:"Faults" placeholder:"SHARE" help:"Share answered --slow-first-byte later."`
	SlowFirstByte time.Duration `group:"Faults" default:"10s" placeholder:"DURATION" help:"What --rate-slow adds (default: ${default})."`
	RateHTML      float64       `group:"Faults" name:"rate-html" placeholder:"SHARE" help:"Share answered 200 with a web page."`
	RateText      float64       `group:"Faults" placeholder:"SHARE" help:"Share answered 200 with text that is not JSON."`
	RateRedirect  float64       `group:"Faults" placeholder:"SHARE" help:"Share answered 302."`
	FaultAttempts int           `group:"Faults" placeholder:"N" help:"Attempts at a request that may go wrong; later ones are spared. All may by default."`
	Poison        string        `group:"Faults" placeholder:"TEXT" help:"Cut every call whose body has this text."`
	PoisonCrashes bool          `group:"Faults" help:"Let a poisoned call cut all others in flight as well."`
	Always500     string        `group:"Faults" name:"always-500" placeholder:"TEXT" help:"Answer 500 to every body with this text."`
	Always400     string        `group:"Faults" name:"always-400" placeholder:"TEXT" help:"Answer 400 to every body with this text."`

	NoMetrics  bool   `group:"Watching" help:"Have no /metrics, as servers other than vLLM and SGLang."`
	CountCalls bool   `group:"Watching" default:"true" negatable:"" help:"Count the calls of each request, for GET /sim/calls (on by default; some fifty bytes for each distinct request)."`
	BodyLog    string `group:"Watching" placeholder:"FILE" help:"Append every body that arrives to FILE, each followed by a line feed."`
}

// Run serves until ctx ends.
func (c *simCmd) Run(ctx context.Context, s *streams) error {
	cfg := c.config()
	if c.BodyLog != "" {
		f, err := os.OpenFile(c.BodyLog, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("--body-log: %w", err)
		}
		defer f.Close()
		cfg.BodyLog = f
	}

	if err := cfg.Validate(); err != nil {
		return inFlags(err)
	}
	up, err := sim.Start(cfg, c.Listen)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is in use by another program: choose another address with --listen (port 0 takes a free one)", c.Listen)
	case err != nil:
		return fmt.Errorf("--listen %s: %w", c.Listen, err)
	}
	models := "any model"
	if len(c.Model) > 0 {
		models = fmt.Sprintf("models %q", c.Model)
	}
	fmt.Fprintf(s.Out, "simulated upstream on %s (%s)\n", up.URL(), models)

	<-ctx.Done()
	return up.Close()
}

// simFlags are the flags that set what sim.Config has other names for.
var simFlags = map[string]string{
	"Slots": "--slots", "QueueLimit": "--queue", "QueueStatus": "--queue-status", "MaxInFlight": "--max-concurrent",
	"RetryAfter": "--retry-after", "MedianTokens": "--median-tokens", "P99Tokens": "--p99-tokens", "Context": "--context",
	"Dimensions": "--dimensions", "PrefixCache": "--prefix-cache", "IdleTimeout": "--idle-timeout",
	"Timing.Latency": "--latency", "Timing.Prefill": "--prefill", "Timing.Decode": "--decode", "Timing.Jitter": "--jitter",
	"Faults": "the --rate flags'", "Faults.SlowBy": "--slow-first-byte", "Faults.Attempts": "--fault-attempts",
	"Faults.ErrorStatus": "--status-5xx", "Faults.Throttle": "--rate-429", "Faults.Error": "--rate-5xx",
	"Faults.Hang": "--rate-hang", "Faults.Cut": "--rate-cut", "Faults.Drop": "--rate-drop", "Faults.Slow": "--rate-slow",
	"Faults.HTML": "--rate-html", "Faults.Text": "--rate-text", "Faults.Redirect": "--rate-redirect",
}

// inFlags names the flag in an error about a field of sim.Config.
func inFlags(err error) error {
	e, ok := errors.AsType[*sim.ConfigError](err)
	if !ok {
		return err
	}
	name := simFlags[e.Field]
	if strings.HasPrefix(e.Field, "Models") {
		name = "--model"
	}
	return fmt.Errorf("%s %s", cmp.Or(name, e.Field), e.Why)
}

func (c *simCmd) config() sim.Config {
	cfg := sim.Config{
		Seed:        c.Seed,
		APIKey:      c.APIKey,
		Slots:       c.Slots,
		QueueLimit:  c.Queue,
		QueueStatus: c.QueueStatus,
		MaxInFlight: c.MaxConcurrent,
		RetryAfter:  c.RetryAfter,
		Timing: sim.Timing{
			Latency: c.Latency,
			Prefill: c.Prefill,
			Decode:  c.Decode,
			Jitter:  c.Jitter,
		},
		MedianTokens: c.MedianTokens,
		P99Tokens:    c.P99Tokens,
		Context:      c.Context,
		Dimensions:   c.Dimensions,
		PrefixCache:  c.PrefixCache,
		ReportCached: c.ReportCached,
		Faults: sim.Faults{
			Throttle:    c.Rate429,
			Error:       c.Rate5xx,
			ErrorStatus: c.Status5xx,
			Hang:        c.RateHang,
			Cut:         c.RateCut,
			Drop:        c.RateDrop,
			Slow:        c.RateSlow,
			SlowBy:      c.SlowFirstByte,
			HTML:        c.RateHTML,
			Text:        c.RateText,
			Redirect:    c.RateRedirect,
			Attempts:    c.FaultAttempts,
		},
		Poison:        c.Poison,
		PoisonCrashes: c.PoisonCrashes,
		Always500:     c.Always500,
		Always400:     c.Always400,
		NoMetrics:     c.NoMetrics,
		CountCalls:    c.CountCalls,
		IdleTimeout:   c.IdleTimeout,
	}
	for _, id := range c.Model {
		cfg.Models = append(cfg.Models, sim.Model{ID: id})
	}
	return cfg
}
