package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/client"
	"offpeak/internal/openai"
	"offpeak/internal/progress"
)

// A watcher follows one batch to its end.
type watcher struct {
	c   *client.Client
	p   progress.Printer
	s   *streams
	out string // where the output goes when the batch has ended; empty: it stays on the server
}

// run shows the progress of a batch until it is terminal or ctx ends, fetches its files if that
// is asked for, and returns its outcome.
func (w *watcher) run(ctx context.Context, id string) error {
	defer w.p.Close()
	b, err := w.follow(ctx, id)
	switch {
	case err != nil && ctx.Err() == nil:
		return err
	case err != nil && b == nil:
		return exitError{code: exitUnfinished, err: err}
	case err != nil:
		sum := batchSummary(b)
		sum.Next = "The batch goes on without us. To watch it again: offpeak batches watch " + id
		w.p.Summary(sum)
		return outcome(batch.Status(b.Status), b.RequestCounts.Failed)
	}
	sum, err := w.collect(ctx, b)
	w.p.Summary(sum)
	switch {
	case err != nil && ctx.Err() != nil:
		return exitError{code: exitUnfinished, err: fmt.Errorf("interrupted; to get the output: offpeak batches output %s -o FILE", id)}
	case err != nil:
		return err
	}
	return outcome(batch.Status(b.Status), b.RequestCounts.Failed)
}

// follow polls until the batch is terminal. With an error it returns the batch as last seen, if
// it was. A server that goes away later is waited for, as long as it takes: its batches come
// back with it.
func (w *watcher) follow(ctx context.Context, id string) (*client.Batch, error) {
	var last *client.Batch
	var gone time.Time // since when the server does not answer; zero while it does
	start := time.Now()
	for {
		b, err := w.c.Batch(ctx, id)
		now := time.Now()
		switch {
		case err == nil:
			last, gone = b, time.Time{}
			w.p.Update(batchSnapshot(b, now))
			if batch.Status(b.Status).Terminal() {
				return b, nil
			}
		case last == nil || !client.Temporary(err) || ctx.Err() != nil:
			return last, err
		default:
			if gone.IsZero() {
				gone = now
			}
			s := batchSnapshot(last, now)
			s.WaitingFor = serverGone(w.c.URL(), err, gone)
			w.p.Update(s)
		}
		select {
		case <-ctx.Done():
			return last, context.Cause(ctx)
		case <-time.After(pollInterval(now.Sub(start))):
		}
	}
}

// pollInterval returns how long to wait before the next look at a batch that was watched for so
// long: short batches end promptly, long ones cost the server little.
func pollInterval(watched time.Duration) time.Duration {
	return min(5*time.Second, max(200*time.Millisecond, watched/20))
}

func serverGone(url string, err error, since time.Time) string {
	what := "unreachable"
	if e, ok := errors.AsType[*client.Error](err); ok {
		what = fmt.Sprintf("answers HTTP %d", e.Status)
	}
	return fmt.Sprintf("server %s %s since %s", url, what, since.Format("15:04"))
}

// collect fetches the files of a batch that is terminal, if they are wanted, and sums up.
func (w *watcher) collect(ctx context.Context, b *client.Batch) (progress.Summary, error) {
	sum := batchSummary(b)
	output, failed := deref(b.OutputFileID), deref(b.ErrorFileID)
	w.p.Close() // so that nothing is drawn while the output goes to standard output

	switch {
	case w.out == "":
		if output != "" {
			sum.Next = fmt.Sprintf("To get the output: offpeak batches output %s -o out.jsonl", b.ID)
		}
	case output != "":
		if err := download(ctx, w.c, output, w.out, w.s.Out); err != nil {
			return sum, err
		}
		sum.OutputFile = w.out
	}
	if failed == "" {
		return sum, nil
	}

	var err error
	if w.out == "" || w.out == "-" {
		sum.Codes, err = w.remoteCodes(ctx, failed)
	} else {
		path := errorsPath(w.out)
		if err := download(ctx, w.c, failed, path, w.s.Out); err != nil {
			return sum, err
		}
		sum.ErrorFile = path
		sum.Codes, err = localCodes(path)
	}
	if err != nil { // worth a word, but the outcome stands
		w.p.Message("error codes not counted: " + err.Error())
	}
	return sum, nil
}

func (w *watcher) remoteCodes(ctx context.Context, fileID string) (map[string]int64, error) {
	r, err := w.c.Content(ctx, fileID)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return countErrorCodes(r)
}

func localCodes(path string) (map[string]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return countErrorCodes(f)
}

// batchSnapshot returns how b stands.
func batchSnapshot(b *client.Batch, now time.Time) progress.Snapshot {
	s := progress.Snapshot{
		Time: now, Started: unixTime(b.CreatedAt), Batch: b.ID, Status: b.Status,
		Total: b.RequestCounts.Total, Completed: b.RequestCounts.Completed, Failed: b.RequestCounts.Failed,
	}
	if b.InProgressAt != nil {
		s.Started = unixTime(*b.InProgressAt)
	}
	if u := b.Usage; u != nil {
		s.InputTokens, s.OutputTokens = u.InputTokens, u.OutputTokens
	}
	if x := b.Offpeak; x != nil {
		s.InFlight, s.Rate, s.WaitingFor = deref(x.InFlight), deref(x.RequestsPerSecond), deref(x.WaitingFor)
		if x.ETA != nil {
			s.ETA, s.AtRisk = unixTime(*x.ETA), deref(x.DeadlineAtRisk)
		}
	}
	return s
}

// batchSummary returns what came of b. Its files are those on the server.
func batchSummary(b *client.Batch) progress.Summary {
	s := progress.Summary{
		Batch: b.ID, Status: b.Status,
		Total: b.RequestCounts.Total, Completed: b.RequestCounts.Completed, Failed: b.RequestCounts.Failed,
		OutputFile: deref(b.OutputFileID), ErrorFile: deref(b.ErrorFileID), Problems: batchProblems(b.Errors),
	}
	if u := b.Usage; u != nil {
		s.InputTokens, s.OutputTokens = u.InputTokens, u.OutputTokens
	}
	if from, to := deref(b.InProgressAt), endedAt(b); from > 0 && to > from {
		s.Elapsed = time.Duration(to-from) * time.Second
	}
	return s
}

// endedAt returns when b became terminal, in unix seconds, or 0.
func endedAt(b *client.Batch) int64 {
	for _, at := range []*int64{b.CompletedAt, b.FailedAt, b.ExpiredAt, b.CancelledAt} {
		if at != nil {
			return *at
		}
	}
	return 0
}

// batchProblems returns what validation found.
func batchProblems(errs *openai.BatchErrors) []progress.Problem {
	if errs == nil {
		return nil
	}
	var ps []progress.Problem
	for _, e := range errs.Data {
		ps = append(ps, progress.Problem{Line: deref(e.Line), Code: e.Code, Param: deref(e.Param), Message: e.Message})
	}
	return ps
}

// deref returns what p points to, or the zero value for null.
func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// unixTime returns the time of unix seconds, or the zero time for 0.
func unixTime(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}
