package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/dustin/go-humanize"

	"offpeak/internal/doctor"
	"offpeak/internal/store"
)

// exitFindings is the exit code of a doctor who found something.
const exitFindings = 2

// doctorCmd is `offpeak doctor`.
type doctorCmd struct {
	dataFlags
	JSON bool `name:"json" help:"Print JSON lines: one per finding, and a summary."`
}

// Help implements kong.HelpProvider.
func (doctorCmd) Help() string {
	return "Holds the database, the journal and every file against each other and against what is promised (docs/design.md): " +
		"each request has one result and no second, counts and tokens equal the files, everything that is named is there and whole, " +
		"nothing is left that no sweep would take, and every batch came to its status by a legal way. " +
		"Each finding is printed on a line of its own, with the promise that is broken and what to do about it.\n\n" +
		"It may be run at any time, also while a server works on the folder, and for the folder of \"offpeak run\" (out.jsonl.offpeak). " +
		"It only reads: nothing is locked, changed or removed. It examines a cluster with --database and --blobs. Every file is read once, so it takes as long as the disk takes for that.\n\n" +
		"Exit codes: 0 everything is sound; 1 it could not be examined; 2 something is not as it should be."
}

// A diagnosis is the summary for --json.
type diagnosis struct {
	Event    string          `json:"event"`
	Sound    bool            `json:"sound"`
	Findings int64           `json:"findings"` // also those beyond what is printed
	Running  bool            `json:"running"`
	Examined doctor.Examined `json:"examined"`
	Seconds  float64         `json:"seconds"`
}

// A finding is a doctor's, for --json.
type finding struct {
	Event string `json:"event"`
	doctor.Finding
}

// Run examines the folder.
func (cmd *doctorCmd) Run(ctx context.Context, s *streams) error {
	// A table of requests is nearly all that there is in memory, and stays: to collect often is
	// cheap, and there shall be room for the server.
	debug.SetGCPercent(25)
	start := time.Now()
	d, what, err := cmd.doctor(ctx)
	if err != nil {
		return err
	}
	r, err := d.Examine(ctx)
	if errors.Is(err, doctor.ErrNoDatabase) && !cmd.cluster() {
		if _, e := os.Stat(filepath.Join(cmd.Data, "done.json")); e == nil && !exists(cmd.Data) {
			fmt.Fprintf(s.Err, "%s is what is left of a run that has ended: its answers are written, and there is nothing to examine\n", cmd.Data)
			return nil
		} else if !exists(cmd.Data) {
			return fmt.Errorf("%s is not the data folder of a server or a run; say where that is with --data", cmd.Data)
		}
	}
	if err != nil {
		return fmt.Errorf("%s could not be examined: %w", what, err)
	}
	took := time.Since(start)
	for _, f := range r.Findings {
		if cmd.JSON {
			err = printJSON(s.Out, finding{"finding", f})
		} else {
			_, err = fmt.Fprintln(s.Out, f)
		}
		if err != nil {
			return err
		}
	}
	findings := int64(len(r.Findings)) + r.Omitted
	if cmd.JSON {
		if err := printJSON(s.Out, diagnosis{"summary", r.Sound(), findings, r.Running, r.Examined, took.Seconds()}); err != nil {
			return err
		}
	} else {
		printExamined(s, r, took)
	}
	if r.Sound() {
		return nil
	}
	return exitError{code: exitFindings, err: fmt.Errorf("%s has %s", what, count(findings, "finding"))}
}

// doctor returns who is to examine what, and the name of that.
func (cmd *doctorCmd) doctor(ctx context.Context) (d *doctor.Doctor, what string, err error) {
	if err := cmd.check(); err != nil {
		return nil, "", err
	}
	if cmd.Database == "" && cmd.Blobs == "" {
		return doctor.Open(cmd.Data, doctor.Options{}), cmd.Data, nil
	}
	blobs, err := cmd.viewBlobs(ctx)
	if err != nil {
		return nil, "", err
	}
	if cmd.Database == "" {
		return doctor.OpenWith(cmd.Data, blobs, doctor.Options{}), cmd.Data, nil
	}
	return doctor.Connect(cmd.Database, blobs, doctor.Options{}), store.Describe(cmd.Database), nil
}

// printExamined says what was looked at.
func printExamined(s *streams, r *doctor.Report, took time.Duration) {
	if r.Omitted > 0 {
		fmt.Fprintf(s.Out, "and %s more of the same\n", humanize.Comma(r.Omitted))
	}
	e := r.Examined
	fmt.Fprintf(s.Err, "examined %s, %s, %s, %s, %s with %s, in %s", batches(e.Batches), count(e.Requests, "request"), count(e.Results, "result"),
		count(e.Files, "file"), count(e.Blobs, "blob"), humanize.IBytes(uint64(e.Bytes)), took.Round(10*time.Millisecond))
	if r.Running {
		fmt.Fprint(s.Err, ", while a server works on it")
	}
	if e.WithoutInput > 0 {
		fmt.Fprintf(s.Err, "; of %s the input is gone, so that its lines could not be compared", batches(e.WithoutInput))
	}
	if e.WithoutResult > 0 {
		fmt.Fprintf(s.Err, "; %s, deleted or expired, could not be read", count(e.WithoutResult, "result file"))
	}
	if r.Sound() {
		fmt.Fprint(s.Err, ": everything is sound")
	}
	fmt.Fprintln(s.Err)
}

func batches(n int64) string {
	if n == 1 {
		return "1 batch"
	}
	return humanize.Comma(n) + " batches"
}
