package main

import (
	"context"
	"fmt"
	"io"

	"offpeak/internal/batch"
	"offpeak/internal/client"
)

// batchesOutput is `offpeak batches output`.
type batchesOutput struct{ resultFlags }

// Run fetches the output file of a batch.
func (cmd *batchesOutput) Run(ctx context.Context, s *streams) error { return cmd.fetch(ctx, s, false) }

// batchesErrors is `offpeak batches errors`.
type batchesErrors struct{ resultFlags }

// Run fetches the error file of a batch.
func (cmd *batchesErrors) Run(ctx context.Context, s *streams) error { return cmd.fetch(ctx, s, true) }

// resultFlags are those of output and errors.
type resultFlags struct {
	apiFlags
	ID      string `arg:"" help:"Id of the batch."`
	Output  string `short:"o" default:"-" placeholder:"FILE" help:"Where to write; \"-\" is standard output. A file appears when it is whole."`
	Partial bool   `help:"While the batch runs, take what is recorded so far. Only Offpeak servers know this."`
}

// fetch writes one of the two result files of a batch.
func (cmd *resultFlags) fetch(ctx context.Context, s *streams, failed bool) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	b, err := c.Batch(ctx, cmd.ID)
	if err != nil {
		return err
	}
	fileID := deref(b.OutputFileID)
	if failed {
		fileID = deref(b.ErrorFileID)
	}
	switch {
	case fileID != "":
		return download(ctx, c, fileID, cmd.Output, s.Out)
	case batch.Status(b.Status).Terminal():
		return noResult(b, failed, s.Err)
	case !cmd.Partial:
		return fmt.Errorf("%s is %s: its files come when it has ended; --partial takes what is recorded so far", b.ID, b.Status)
	}
	return save(cmd.Output, s.Out, func(w io.Writer) error {
		body, err := c.Recorded(ctx, b.ID, failed)
		if err != nil {
			return err
		}
		defer body.Close()
		_, err = io.Copy(w, body)
		return err
	})
}

// noResult says why a batch that is terminal has no such file.
func noResult(b *client.Batch, failed bool, w io.Writer) error {
	switch {
	case b.Status == string(batch.Failed):
		for _, p := range batchProblems(b.Errors) {
			fmt.Fprintln(w, p)
		}
		return exitError{code: exitInvalid, err: fmt.Errorf("%s was refused and has no files", b.ID)}
	case failed && b.RequestCounts.Completed == b.RequestCounts.Total && b.RequestCounts.Total > 0:
		fmt.Fprintf(w, "%s has no error file: every request succeeded\n", b.ID)
		return nil // which is what one hopes for, not an error
	case failed:
		return fmt.Errorf("%s is %s and has no error file", b.ID, b.Status)
	}
	return fmt.Errorf("%s is %s and has no output: no request succeeded; see: offpeak batches errors %s", b.ID, b.Status, b.ID)
}
