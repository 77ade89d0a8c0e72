// Command offpeak runs batches of requests to language models: one file here and now, or as a
// server with OpenAI's Batch API.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// cli is every command there is.
type cli struct {
	Run      runCmd      `cmd:"" help:"Run one file of requests here and now, and write every answer to a file."`
	Serve    serveCmd    `cmd:"" help:"Serve the Batch API."`
	Validate validateCmd `cmd:"" help:"Check a file as the server would. Nothing is sent."`
	Batches  batchesCmd  `cmd:"" help:"Batches on a server."`
	Files    filesCmd    `cmd:"" help:"Files on a server."`

	Upstreams upstreamsCmd `cmd:"" help:"Inference servers behind a server."`

	Projects projectsCmd `cmd:"" help:"Projects of the server with this data folder."`
	Keys     keysCmd     `cmd:"" help:"API keys of the server with this data folder."`
	Nodes    nodesCmd    `cmd:"" help:"Processes that work, or worked, on a server's batches."`
	Doctor   doctorCmd   `cmd:"" help:"Examine a data folder: is everything there, and does it add up? Nothing is changed."`
	Migrate  migrateCmd  `cmd:"" help:"Move a stopped server's data folder to PostgreSQL and a bucket."`
	Health   healthCmd   `cmd:"" help:"Ask the server on this machine whether it is alive, or ready."`
	Sim      simCmd      `cmd:"" help:"Run a simulated upstream, for trying things out and for capacity planning."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

// streams are what a command reads and writes besides files.
type streams struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	// Abort ends when the user insists on stopping: the second interrupt.
	Abort context.Context
}

func main() {
	// The first interrupt asks to stop, the second insists, the third does not ask.
	ctx, stop := context.WithCancelCause(context.Background())
	abort, insist := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		stop(errInterrupted)
		<-signals
		insist()
		<-signals
		os.Exit(exitUnfinished)
	}()
	// A setting in the environment that is empty is none: whoever composes containers passes on
	// variables without knowing whether they are set.
	for _, v := range os.Environ() {
		if name, value, _ := strings.Cut(v, "="); value == "" && strings.HasPrefix(name, "OFFPEAK_") {
			os.Unsetenv(name)
		}
	}
	// A reader of our output that leaves makes writing to it fail, as a full disk does, so that the
	// command can clean up and a server lives on.
	signal.Ignore(syscall.SIGPIPE)
	go collectLazily(ctx, os.Getenv)
	s := &streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv, Abort: abort}
	os.Exit(exitCode(run(ctx, s, os.Args[1:]), os.Stderr))
}

var errInterrupted = errors.New("interrupted")

// run parses arguments and runs the command they name.
func run(ctx context.Context, s *streams, args []string) (err error) {
	exited := -1
	parser, err := newParser(ctx, s, &cli{}, &configFile{}, args, func(code int) { exited = code })
	if err != nil {
		return err
	}
	if len(args) == 0 || len(args) == 1 && args[0] == "help" {
		args = []string{"--help"}
	} else if args[0] == "help" {
		args = append(args[1:], "--help")
	}
	command, err := parser.Parse(args)
	if exited >= 0 { // help was asked for and is printed
		return nil
	}
	if e, ok := errors.AsType[*kong.ParseError](err); ok {
		return fmt.Errorf("%w\nTry: offpeak %s", err, helpFor(e.Context))
	}
	if err != nil {
		return err
	}
	err = command.Run()
	if _, special := errors.AsType[exitError](err); special || !errors.Is(context.Cause(ctx), errInterrupted) {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, errInterrupted) {
		return exitError{code: exitUnfinished, err: errInterrupted}
	}
	return err
}

// newParser returns a parser of the arguments that fills in command, and c if they name a config
// file.
func newParser(ctx context.Context, s *streams, command *cli, c *configFile, args []string, exit func(code int)) (*kong.Kong, error) {
	return kong.New(command,
		kong.Name("offpeak"),
		kong.Description("Offpeak is a batch server for language models: the OpenAI Batch API on your own machines.\n\n"+
			"  offpeak run in.jsonl --upstream http://localhost:8000/v1     every answer, in a file\n"+
			"  offpeak serve --upstream http://localhost:8000/v1            the same over HTTP, for OpenAI's SDKs\n\n"+
			"A flag with a $VARIABLE in its help can also be set there, and for run, serve, keys, projects, nodes and doctor in a YAML file given with --config; the flag itself comes first, then the variable."),
		kong.Writers(s.Out, s.Err),
		kong.Exit(exit),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(s, c, rereader(func() (*engineFlags, *configFile, error) {
			fresh, c := &cli{}, &configFile{}
			parser, err := newParser(ctx, s, fresh, c, args, func(int) {})
			if err == nil {
				_, err = parser.Parse(args)
			}
			return &fresh.Serve.engineFlags, c, err
		})),
	)
}

// A rereader reads the arguments of `serve` again, and with them the config file and the
// environment.
type rereader func() (*engineFlags, *configFile, error)

// helpFor returns which help says most to somebody whose arguments are wrong.
func helpFor(c *kong.Context) string {
	words := []string{"help"}
	for _, p := range c.Path {
		if p.Command != nil {
			words = append(words, p.Command.Name)
		}
	}
	return strings.Join(words, " ")
}

// An exitError is an error with an exit code of its own. Without err there is nothing left to say.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// exitCode says what went wrong, if anything did, and returns the exit code for it.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok && e.Path == os.Stdout.Name() && e.Err == syscall.EPIPE {
		return 128 + int(syscall.SIGPIPE) // as shells have it; whoever left wants no explanation
	}
	e, special := errors.AsType[exitError](err)
	if !special || e.err != nil {
		fmt.Fprintln(stderr, "offpeak:", err)
	}
	if special {
		return e.code
	}
	return 1
}
