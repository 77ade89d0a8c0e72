package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/engine"
	"offpeak/internal/progress"
	"offpeak/internal/store"
)

// runCmd is `offpeak run`: one file, here and now.
type runCmd struct {
	engineFlags
	Input   string `arg:"" help:"JSONL file of requests, as for OpenAI's Batch API; \"-\" is standard input."`
	Output  string `short:"o" placeholder:"FILE" help:"Where the answers go; \"-\" is standard output, failed requests included. By default beside the input: in.jsonl gives in.output.jsonl, and in.output.errors.jsonl for failed requests."`
	Restart bool   `help:"Begin anew, even if an earlier run has answers."`
	JSON    bool   `name:"json" help:"Print JSON lines: events \"progress\", \"message\", and \"summary\" at the end."`
}

// Help implements kong.HelpProvider.
func (runCmd) Help() string {
	return `Every request is sent until it has an answer. An upstream that is away, busy or restarting is waited for. What is answered is recorded at once, in a folder beside the output (out.jsonl.offpeak): after a crash or an interrupt the same command goes on where it was. The first interrupt lets the requests in flight end, a second stops at once. Answers are in the order of the input; where it has several models, in that order for each.

Exit codes: 0 every request succeeded; 1 an error that has nothing to do with the requests; 2 some requests failed; 3 interrupted; 4 the input was refused (each reason is printed with its line).`
}

// Run runs the file.
func (cmd *runCmd) Run(ctx context.Context, s *streams, c *configFile) error {
	r, err := cmd.runner(s)
	if err != nil {
		return err
	}
	if r.streams { // nothing to go on from another time
		if r.dir, err = os.MkdirTemp("", "offpeak-run-"); err != nil {
			return err
		}
		defer os.RemoveAll(r.dir)
	} else if cmd.Restart {
		if err := r.restart(ctx); err != nil {
			return err
		}
	} else if done, err := r.earlier(ctx); err != nil || done {
		return err
	}
	r.p = newPrinter(s, cmd.JSON)
	defer r.p.Close()
	// The engine's rules, and so its errors, are the server's.
	r.rules = cmd.rules(batch.ProfileExtended, math.MaxInt64)
	fresh := !exists(r.dir)
	n, err := openNode(ctx, &storageFlags{Data: r.dir}, &cmd.engineFlags, c, &engine.Config{Rules: r.rules, Drain: drainForGood}, s, slog.New(&shortLog{p: r.p}))
	if errors.Is(err, store.ErrLocked) {
		return r.busy()
	}
	if err != nil {
		if fresh {
			r.removeFolder()
		}
		return err
	}
	r.node = n
	b, err := r.batch(ctx)
	if err == nil {
		err = r.run(ctx, b)
	} else {
		r.forget = fresh // nothing came of it
	}
	err = errors.Join(n.close(), err)
	err = tellRoom(err, r.dir)
	if r.forget {
		r.removeFolder()
	}
	return err
}

// runner returns the run that the flags describe, or why it cannot be.
func (cmd *runCmd) runner(s *streams) (*runner, error) {
	out := cmd.Output
	if out == "" {
		out = "-"
		if cmd.Input != "-" {
			out = strings.TrimSuffix(cmd.Input, filepath.Ext(cmd.Input)) + ".output.jsonl"
		}
	}
	r := &runner{cmd: cmd, s: s, out: out, errs: errorsPath(out), dir: out + ".offpeak"}
	if err := checkInput(cmd.Input); err != nil {
		return nil, err
	}
	st, err := os.Stat(out)
	switch {
	case out == "-":
		r.streams = true
	case err == nil && st.IsDir():
		return nil, fmt.Errorf("%s is a folder; name a file for the answers with -o", out)
	case err == nil && !st.Mode().IsRegular(): // such as /dev/null
		r.streams = true
	case sameFile(cmd.Input, out):
		return nil, fmt.Errorf("%s is the input; choose another file for the answers with -o", out)
	case sameFile(cmd.Input, r.errs):
		return nil, fmt.Errorf("%s is the input, and where failed requests would go; choose another file for the answers with -o", r.errs)
	}
	if r.streams {
		r.errs = out
	}
	if out == "-" && cmd.JSON {
		return nil, errors.New("--json wants standard output for itself; write the answers to a file with -o")
	}
	return r, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// drainForGood is how long an interrupted run waits for the requests in flight: until the user
// interrupts again.
const drainForGood = 24 * time.Hour

// A runner is one run of a file. Its state is in a folder of its own: a server's data with one
// batch in it, and, once the answers are written, only a note of that.
type runner struct {
	cmd     *runCmd
	s       *streams
	p       progress.Printer
	out     string // where answers go
	errs    string // where failed requests go
	streams bool   // out is standard output, a device or a pipe, and gets both
	dir     string
	rules   batch.Rules
	node    *node
	forget  bool // the folder is of no use to anybody
}

func (r *runner) hashInput(ctx context.Context) (string, error) {
	in, err := openInput(ctx, r.cmd.Input, r.s)
	if err != nil {
		return "", err
	}
	defer in.Close()
	h := sha256.New()
	_, err = io.Copy(h, in.body)
	return hex.EncodeToString(h.Sum(nil)), err
}

// run runs the batch to its end, and writes its results.
func (r *runner) run(ctx context.Context, b batch.Batch) error {
	already := b.Counts.Completed + b.Counts.Failed
	if already > 0 {
		r.p.Message(fmt.Sprintf("going on: %s of %s answers are there already", humanize.Comma(already), humanize.Comma(b.Counts.Total)))
	}
	start := time.Now()
	b, err := r.execute(ctx, b, already)
	if err != nil {
		return err
	}
	sum := progress.Summary{
		Status: string(b.Status), Total: b.Counts.Total, Completed: b.Counts.Completed, Failed: b.Counts.Failed,
		Already: already, InputTokens: b.Usage.Input, OutputTokens: b.Usage.Output, Elapsed: time.Since(start),
	}
	switch {
	case !b.Status.Terminal():
		sum.Status = "interrupted"
		sum.Next = "To go on, run the same command again: what is answered is not sent again."
		if r.streams {
			sum.Next = "The answers are lost, having no file to go to. With -o FILE one can go on."
		}
		r.p.Summary(sum)
		return exitError{code: exitUnfinished}
	case b.Status == batch.Failed:
		sum.Status, sum.Elapsed = "refused", 0
		sum.Problems, sum.Next = r.problems(ctx, b)
		sum.Next += "Nothing was sent. Once the input is mended, run the same command again."
		r.forget = true // for the mended file
		r.p.Summary(sum)
		return outcome(b.Status, 0)
	}
	// Whoever interrupted now wants the answers: there is nothing left to wait for.
	switch err := r.write(r.s.Abort, b, &sum); {
	case err == nil:
		r.p.Summary(sum)
		return outcome(b.Status, b.Counts.Failed)
	case r.streams:
		return err
	case r.s.Abort.Err() != nil:
		return exitError{exitUnfinished, errors.New("interrupted while writing the answers; the same command writes them")}
	default:
		return fmt.Errorf("%w; the answers are recorded: once that is mended, the same command writes them", err)
	}
}

// problems tells why the input was refused, with more to say of each reason than a batch has place
// for.
func (r *runner) problems(ctx context.Context, b batch.Batch) (list []progress.Problem, next string) {
	for _, e := range b.Errors {
		list = append(list, problemOf(e))
	}
	f, err := r.node.store.File(ctx, b.Project, b.InputFileID)
	if err != nil {
		return list, ""
	}
	rules := r.rules
	rules.Endpoint = b.Endpoint
	rules.Serves = func(l batch.Lane) bool { serves, _ := r.node.pool.Serves(l); return serves }
	body := blob.Concat(ctx, r.node.blobs, f.Parts, 0, f.Bytes)
	defer body.Close()
	var again []progress.Problem
	n, _, err := check(body, rules, func(e batch.LineError) error {
		if len(again) < batch.MaxLineErrors {
			again = append(again, problemOf(e))
		}
		return nil
	})
	if err != nil || n == 0 {
		return list, ""
	}
	if more := n - int64(len(again)); more > 0 {
		next = fmt.Sprintf("And %s; offpeak validate lists all.\n", count(more, "more problem"))
	}
	return again, next
}

// batch returns the batch of an earlier run, or makes one.
func (r *runner) batch(ctx context.Context) (batch.Batch, error) {
	db := r.node.store
	known, _, err := db.ListBatches(ctx, batch.DefaultProject, batch.BatchQuery{Limit: 1})
	if err != nil {
		return batch.Batch{}, err
	}
	if len(known) > 0 {
		sum, err := r.hashInput(ctx)
		if err != nil {
			return batch.Batch{}, err
		}
		if sum != known[0].Metadata["input_sha256"] {
			return batch.Batch{}, r.changed()
		}
		return known[0], nil
	}
	f, sum, err := r.upload(ctx)
	if err != nil {
		return batch.Batch{}, err
	}
	endpoint := r.endpoint(ctx, f)
	b, err := batch.New(batch.CreateParams{
		Project: batch.DefaultProject, InputFileID: f.ID, Endpoint: endpoint, CompletionWindow: "30d",
		Metadata: map[string]string{"input_sha256": sum},
	}, batch.Policy{Endpoints: []string{endpoint}}, time.Now())
	if err != nil {
		return batch.Batch{}, err
	}
	return b, db.CreateBatch(ctx, b)
}

// upload copies the input, so that it stays the same until every request of it is answered.
func (r *runner) upload(ctx context.Context) (f batch.File, sum string, err error) {
	in, err := openInput(ctx, r.cmd.Input, r.s)
	if err != nil {
		return f, "", err
	}
	defer in.Close()
	key := blob.NewKey()
	if err := r.node.store.ReserveBlob(ctx, key); err != nil {
		return f, "", err
	}
	w, err := r.node.blobs.Create(ctx, key)
	if err != nil {
		return f, "", err
	}
	defer w.Abort()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, h), in.body); err != nil {
		return f, "", fmt.Errorf("copy %s to %s: %w", inputName(r.cmd.Input), r.dir, err)
	}
	n, err := w.Commit()
	if err != nil {
		return f, "", err
	}
	f = batch.File{
		ID: batch.NewFileID(), Project: batch.DefaultProject, Purpose: batch.PurposeBatch, Filename: in.name,
		Bytes: n, CreatedAt: time.Now(), Parts: []batch.Part{{Key: key, Bytes: n}},
	}
	return f, hex.EncodeToString(h.Sum(nil)), r.node.store.CreateFile(ctx, f)
}

// endpoint returns the url of the first request. If that is broken validation will say so, whatever
// the endpoint.
func (r *runner) endpoint(ctx context.Context, f batch.File) string {
	body := blob.Concat(ctx, r.node.blobs, f.Parts, 0, f.Bytes)
	defer body.Close()
	url, _, err := firstURL(body)
	if err != nil || !strings.HasPrefix(url, "/") {
		return "/v1/chat/completions"
	}
	return url
}

// execute runs the batch until it is terminal or ctx ends, and returns it as it is then.
func (r *runner) execute(ctx context.Context, b batch.Batch, already int64) (batch.Batch, error) {
	engineCtx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.node.engine.Run(engineCtx, r.s.Abort) }()
	running := true
	defer func() {
		stop()
		if running {
			<-ended
		}
	}()
	reading := context.WithoutCancel(ctx)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	interrupted := ctx.Done()
	for running {
		select {
		case err := <-ended:
			running = false
			if err != nil {
				return b, err
			}
		case <-interrupted:
			interrupted = nil
			r.p.Message("stopping: letting the requests in flight end; interrupt again to stop at once")
		case <-tick.C:
		}
		var err error
		if b, err = r.node.store.Batch(reading, b.Project, b.ID); err != nil {
			return b, err
		}
		if b.Status.Terminal() {
			stop()
		}
		if b.Status != batch.Failed { // of which the summary says it all
			r.p.Update(r.snapshot(b, already))
		}
	}
	return b, nil
}

func (r *runner) snapshot(b batch.Batch, already int64) progress.Snapshot {
	a := r.node.engine.Activity(b)
	return progress.Snapshot{
		Batch: b.ID, Status: string(b.Status), Total: b.Counts.Total, Completed: b.Counts.Completed, Failed: b.Counts.Failed,
		Already: already, InputTokens: b.Usage.Input, OutputTokens: b.Usage.Output, InFlight: a.InFlight, WaitingFor: a.WaitingFor, ETA: a.ETA, AtRisk: a.AtRisk,
	}
}

// write writes the results where they were asked for, and then drops everything but a note.
func (r *runner) write(ctx context.Context, b batch.Batch, sum *progress.Summary) error {
	r.p.Close() // so that nothing is drawn while answers go to standard output
	if err := r.copy(ctx, b.OutputFileID, r.out); err != nil {
		return fmt.Errorf("write the answers: %w", err)
	}
	if b.ErrorFileID != "" {
		if err := r.copy(ctx, b.ErrorFileID, r.errs); err != nil {
			return fmt.Errorf("write the failed requests: %w", err)
		}
		codes, err := r.codes(ctx, b.ErrorFileID)
		if err != nil {
			return err
		}
		sum.Codes = codes
	} else if !r.streams { // of a run before --restart
		if err := os.Remove(r.errs); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if r.streams {
		return nil
	}
	sum.OutputFile = r.out
	if b.ErrorFileID != "" {
		sum.ErrorFile = r.errs
	}
	text, err := json.Marshal(note{SHA256: b.Metadata["input_sha256"], Summary: *sum})
	if err != nil {
		return err
	}
	if err := save(filepath.Join(r.dir, "done.json"), nil, func(w io.Writer) error {
		_, err := w.Write(text)
		return err
	}); err != nil {
		return err
	}
	// If we crash before this, the next run finds the note, and does not mind the rest.
	return removeAll(r.dir, databaseFiles...)
}

// copy writes a result file to path. A file that does not exist has no lines.
func (r *runner) copy(ctx context.Context, id, path string) error {
	return save(path, r.s.Out, func(w io.Writer) error {
		if id == "" {
			return nil
		}
		body, err := r.open(ctx, id)
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.Copy(w, body)
		return err
	})
}

func (r *runner) codes(ctx context.Context, id string) (map[string]int64, error) {
	body, err := r.open(ctx, id)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return countErrorCodes(body)
}

func (r *runner) open(ctx context.Context, id string) (io.ReadCloser, error) {
	f, err := r.node.store.File(ctx, batch.DefaultProject, id)
	if err != nil {
		return nil, err
	}
	return blob.Concat(ctx, r.node.blobs, f.Parts, 0, f.Bytes), nil
}
