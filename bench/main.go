// Command bench measures Offpeak beside the least that the same work can cost on the same machine,
// in the same run: a bare loop of net/http calls, writing and syncing the bytes, cat.
//
//	go run ./bench                      # every row but the long ones, a few minutes
//	go run ./bench -rows executor,first # some
//	go run ./bench -full                # at the sizes that take long
//	go run ./bench -json out.jsonl      # one more line in a file, to follow over time
//
// Every process that is measured is a child of this one, so its CPU time and peak memory are the
// operating system's own figures. Measurement and reference take turns, and the medians are
// compared. docs/benchmarks.md says how each row is measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// rows are what can be measured, in the order in which it is.
func rows() []row {
	return []row{
		{"executor", "an upstream that answers at once: requests/s and CPU beside a bare loop, and wrk", executor},
		{"waiting", "an upstream that takes 200 ms: how many of the slots are full", waiting},
		{"first", "from the call that creates a batch to its first request", first},
		{"finish", "from the last answer to a result that can be downloaded", finish},
		{"upload", "beside writing and syncing the same bytes", upload},
		{"admission", "every check of a file, beside reading and hashing it", admission},
		{"download", "beside cat into a socket", download},
		{"memory", "peak memory of the server", memory},
		{"lists", "reading batches with a million of them on record, while one runs", lists},
		{"embeddings", "answers of 3,072 floats, beside a bare loop", embeddings},
		{"growth", "what a request costs as batches grow", growth},
		{"databases", "SQLite and PostgreSQL", databases},
		{"cluster", "1, 2 and 3 nodes on PostgreSQL and S3, and what they cost the database", cluster},
		{"binary", "its size, and from its start to ready", binary},
		{"scheduling", "how full upstreams are kept, in simulated time: a table of its own", scheduling},
		{"auto", "the limit that is found beside limits that are given, in real time; not by default", auto},
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 {
		if ref := referenceNamed(args[0]); ref != nil {
			return ref(args[1:])
		}
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	e := &env{out: out}
	names := flags.String("rows", "", "what to measure, separated by commas; by default everything but auto:\n"+help())
	record := flags.String("json", "", "append the figures as one line of JSON to this file; - is standard output, without the table")
	flags.BoolVar(&e.full, "full", false, "the sizes that take long: 2 GB, 1,000,000 lines, 3,000,000 results")
	flags.IntVar(&e.reps, "reps", 3, "repetitions whose median is taken")
	flags.StringVar(&e.offpeak, "offpeak", "", "binary to measure; by default this tree's is built")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	chosen, err := choose(*names)
	if err != nil {
		return err
	}
	if *record == "-" {
		e.out = io.Discard
	}
	if err := e.prepare(ctx); err != nil {
		return err
	}
	defer e.close()
	e.heading()
	for _, r := range chosen {
		e.row = r.name
		if err := r.run(ctx, e); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		e.tidy()
	}
	e.summary()
	return e.record(*record, out)
}

func help() string {
	var b strings.Builder
	for _, r := range rows() {
		fmt.Fprintf(&b, "  %-11s %s\n", r.name, r.what)
	}
	return b.String()
}

// choose returns the rows of these names; without names all but auto, which no machine's speed
// matters to and which takes minutes.
func choose(names string) ([]row, error) {
	all := rows()
	if names == "" {
		return slices.DeleteFunc(all, func(r row) bool { return r.name == "auto" }), nil
	}
	var chosen []row
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(r row) bool { return r.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no row %q; there are:\n%s", name, help())
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}
