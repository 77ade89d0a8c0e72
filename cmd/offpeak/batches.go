package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"

	"offpeak/internal/client"
)

// batchesCmd is `offpeak batches`: batches on a server.
type batchesCmd struct {
	Create batchesCreate `cmd:"" help:"Create a batch from a JSONL file, and print its id."`
	List   batchesList   `cmd:"" help:"List batches, newest first."`
	Get    batchesGet    `cmd:"" help:"Show one batch."`
	Watch  batchesWatch  `cmd:"" help:"Show the progress of a batch until it ends."`
	Cancel batchesCancel `cmd:"" help:"Cancel a batch. What is answered is kept."`
	Output batchesOutput `cmd:"" help:"Fetch the answers of a batch."`
	Errors batchesErrors `cmd:"" help:"Fetch the failed requests of a batch."`
}

const watchExits = `

Exit codes: 0 every request succeeded; 1 an error that has nothing to do with the requests;
2 some requests failed; 3 the batch was cancelled, has expired, or watching it was interrupted;
4 the input was refused (each reason is printed with its line).`

// batchesList is `offpeak batches list`.
type batchesList struct {
	apiFlags
	Limit int  `short:"n" default:"20" help:"How many to list; 0 for all."`
	JSON  bool `name:"json" help:"Print JSON, one batch per line."`
}

// Run prints a table of batches.
func (cmd *batchesList) Run(ctx context.Context, s *streams) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	return printList(s.Out, c.Batches(ctx), cmd.Limit, cmd.JSON, "ID\tSTATUS\tANSWERED\tFAILED\tENDPOINT\tMODEL\tCREATED", func(b client.Batch) string {
		n := b.RequestCounts
		return fmt.Sprintf("%s\t%s\t%d/%d\t%d\t%s\t%s\t%s", b.ID, b.Status, n.Completed+n.Failed, n.Total, n.Failed,
			b.Endpoint, orDash(deref(b.Model)), localTime(b.CreatedAt))
	})
}

// batchesGet is `offpeak batches get`.
type batchesGet struct {
	apiFlags
	ID   string `arg:"" help:"Id of the batch."`
	JSON bool   `name:"json" help:"Print the batch as JSON."`
}

// Run prints a batch.
func (cmd *batchesGet) Run(ctx context.Context, s *streams) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	b, err := c.Batch(ctx, cmd.ID)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return printJSON(s.Out, b)
	}
	return printBatch(s.Out, b)
}

func printBatch(w io.Writer, b *client.Batch) error {
	t := newRows(w)
	t.add("id", b.ID)
	t.add("status", b.Status)
	if n := b.RequestCounts; n.Total > 0 {
		t.add("requests", fmt.Sprintf("%s of %s answered, %s failed",
			humanize.Comma(n.Completed+n.Failed), humanize.Comma(n.Total), humanize.Comma(n.Failed)))
	}
	if u := b.Usage; u != nil {
		t.add("tokens", fmt.Sprintf("%s in, %s out", humanize.Comma(u.InputTokens), humanize.Comma(u.OutputTokens)))
	}
	if x := b.Offpeak; x != nil {
		if n := deref(x.InFlight); n > 0 {
			t.add("in flight", humanize.Comma(int64(n)))
		}
		if rate := deref(x.RequestsPerSecond); rate > 0 {
			t.add("rate", fmt.Sprintf("%.1f requests/s", rate))
		}
		t.add("waiting for", deref(x.WaitingFor))
		if x.ETA != nil {
			late := ""
			if deref(x.DeadlineAtRisk) {
				late = ", after its deadline"
			}
			t.add("done about", localTime(*x.ETA)+late)
		}
	}
	t.add("endpoint", b.Endpoint)
	t.add("model", deref(b.Model))
	t.add("input file", b.InputFileID)
	t.add("output file", deref(b.OutputFileID))
	t.add("error file", deref(b.ErrorFileID))
	t.add("created", localTime(b.CreatedAt))
	t.add("window", b.CompletionWindow)
	t.add("deadline", localTime(deref(b.ExpiresAt)))
	t.add("ended", localTime(endedAt(b)))
	for _, k := range sortedKeys(b.Metadata) {
		t.add("metadata", k+"="+b.Metadata[k])
	}
	for _, p := range batchProblems(b.Errors) {
		t.add("error", p.String())
	}
	return t.flush()
}

// batchesWatch is `offpeak batches watch`.
type batchesWatch struct {
	apiFlags
	ID     string `arg:"" help:"Id of the batch."`
	Output string `short:"o" placeholder:"FILE" help:"At the end write the answers to FILE and the failed requests beside it (out.jsonl, out.errors.jsonl)."`
	JSON   bool   `name:"json" help:"Print JSON lines: events \"progress\", \"message\", and \"summary\" at the end."`
}

// Help implements kong.HelpProvider.
func (batchesWatch) Help() string { return strings.TrimSpace(watchExits) }

// Run watches a batch.
func (cmd *batchesWatch) Run(ctx context.Context, s *streams) error {
	if cmd.JSON && cmd.Output == "-" {
		return errors.New("--json and -o - both want standard output")
	}
	c, err := cmd.client()
	if err != nil {
		return err
	}
	w := watcher{c: c, s: s, p: newPrinter(s, cmd.JSON), out: cmd.Output}
	return w.run(ctx, cmd.ID)
}

// batchesCancel is `offpeak batches cancel`.
type batchesCancel struct {
	apiFlags
	ID   string `arg:"" help:"Id of the batch."`
	JSON bool   `name:"json" help:"Print the batch as JSON."`
}

// Run asks for the end of a batch.
func (cmd *batchesCancel) Run(ctx context.Context, s *streams) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	b, err := c.CancelBatch(ctx, cmd.ID)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return printJSON(s.Out, b)
	}
	_, err = fmt.Fprintln(s.Out, b.ID, b.Status)
	return err
}
