package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"offpeak/internal/batch"
	"offpeak/internal/progress"
	"offpeak/internal/upstream"
)

// validateCmd is `offpeak validate`.
type validateCmd struct {
	Input    string   `arg:"" help:"JSONL file of requests; \"-\" is standard input."`
	Endpoint string   `placeholder:"PATH" help:"Endpoint of the batch, such as /v1/chat/completions. By default the url of the first line."`
	Upstream []string `sep:"," placeholder:"URL" env:"OFFPEAK_UPSTREAM" help:"Check that the models are served there; repeatable. By default any model is good."`
	Compat   string   `default:"extended" enum:"openai,extended" env:"OFFPEAK_COMPAT" help:"What is allowed: exactly what OpenAI allows (openai), or more (extended, the default)."`
	MaxLine  byteSize `default:"64MiB" placeholder:"SIZE" env:"OFFPEAK_MAX_LINE" help:"How long a line may be (default: ${default})."`
	JSON     bool     `name:"json" help:"Print one JSON object per problem."`
}

// Help implements kong.HelpProvider.
func (validateCmd) Help() string {
	return "Every problem is printed with its line, as the server would find it; nothing is sent.\n\n" +
		"Exit codes: 0 the file is good; 1 it could not be read; 4 it has problems."
}

// Run checks the file.
func (cmd *validateCmd) Run(ctx context.Context, s *streams) error {
	in, err := openInput(ctx, cmd.Input, s)
	if err != nil {
		return err
	}
	defer in.Close()
	f := engineFlags{MaxLine: cmd.MaxLine}
	rules := f.rules(batch.Profile(cmd.Compat), 0)
	rules.Endpoint = cmd.Endpoint
	if len(cmd.Upstream) > 0 {
		if rules.Serves, err = cmd.serves(ctx, s); err != nil {
			return err
		}
	}
	problems, c, err := check(in.body, rules, func(e batch.LineError) error {
		if cmd.JSON {
			return printJSON(s.Out, problem{e.Line, e.Code, e.Param, e.Message, e.Detail})
		}
		_, err := fmt.Fprintln(s.Out, problemOf(e))
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", inputName(cmd.Input), err)
	}
	if problems > 0 {
		return exitError{code: exitInvalid, err: fmt.Errorf("%s has %s", inputName(cmd.Input), count(problems, "problem"))}
	}
	model := c.Model()
	if model == "" {
		model = "several models"
	}
	_, err = fmt.Fprintf(s.Err, "%s is good: %s, %s\n", inputName(cmd.Input), count(c.Requests(), "request"), model)
	return err
}

// problemOf returns e as people read it.
func problemOf(e batch.LineError) progress.Problem {
	p := progress.Problem{Line: e.Line, Code: e.Code, Param: e.Param, Message: e.Message}
	if e.Detail != "" {
		p.Message += " (" + strings.TrimPrefix(e.Detail, "jsontext: ") + ")"
	}
	return p
}

// problem is a batch.LineError for --json, with nothing left out.
type problem struct {
	Line    int64  `json:"line"`
	Code    string `json:"code"`
	Param   string `json:"param"`
	Message string `json:"message"`
	Detail  string `json:"detail"`
}

// check tells of every problem of an input, and how many there are.
func check(r io.Reader, rules batch.Rules, tell func(batch.LineError) error) (problems int64, c *batch.Checker, err error) {
	c = batch.NewChecker(rules)
	for lines := batch.NewLines(r, 0, 1, rules.MaxLine); ; {
		line, err := lines.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return problems, c, err
		}
		if line.Blank() {
			continue
		}
		if _, _, e := c.Line(line); e != nil {
			problems++
			if err := tell(*e); err != nil {
				return problems, c, err
			}
		}
	}
	for _, e := range c.End() {
		problems++
		if err := tell(e); err != nil {
			return problems, c, err
		}
	}
	return problems, c, nil
}

// serves asks the upstreams what they serve.
func (cmd *validateCmd) serves(ctx context.Context, s *streams) (func(batch.Lane) bool, error) {
	var ups []*upstream.Upstream
	for _, url := range cmd.Upstream {
		u, err := upstream.New(upstream.Config{URL: url, Key: s.Getenv("OFFPEAK_UPSTREAM_KEY")})
		if err != nil {
			return nil, err
		}
		defer u.Close()
		ups = append(ups, u)
	}
	pool := upstream.NewPool(ups...)
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	done := make(chan struct{})
	go func() { defer close(done); pool.Run(ctx) }()
	defer func() { stop(); <-done }()
	for {
		changed := pool.Changed()
		trouble := pool.Trouble()
		if trouble == "" {
			if _, certain := pool.Serves(batch.Lane{}); certain {
				return func(l batch.Lane) bool { ok, _ := pool.Serves(l); return ok }, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errors.New(trouble)
		}
		if trouble := pool.Trouble(); trouble != "" {
			return nil, errors.New(trouble)
		}
	}
}

// count writes a number of things: "1 request", "1,319 requests".
func count(n int64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return humanize.Comma(n) + " " + thing
}
