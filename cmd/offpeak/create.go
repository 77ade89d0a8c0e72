package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"offpeak/internal/batch"
	"offpeak/internal/client"
	"offpeak/internal/openai"
)

// batchesCreate is `offpeak batches create`.
type batchesCreate struct {
	apiFlags
	Input    string            `arg:"" name:"input" help:"JSONL file, \"-\" for standard input, or the id of an uploaded file."`
	Endpoint string            `placeholder:"PATH" help:"API path of all requests, such as /v1/chat/completions. By default the url of the first line."`
	Window   string            `default:"24h" help:"Completion window: how long the batch may take."`
	Metadata map[string]string `mapsep:"none" placeholder:"KEY=VALUE" help:"Note to keep with the batch. Repeatable."`
	Watch    bool              `help:"Stay and show the progress, like \"batches watch\"."`
	Output   string            `short:"o" placeholder:"FILE" help:"Watch, then write the answers to FILE and the failed requests beside it (out.jsonl, out.errors.jsonl)."`
	JSON     bool              `name:"json" help:"Print JSON: the batch, or the events of watching it."`
}

// Help implements kong.HelpProvider.
func (batchesCreate) Help() string {
	return "Without --watch or -o only the id of the batch is printed, for scripts." + watchExits
}

// Run uploads the input if it is not on the server, creates the batch, and watches it if asked.
func (cmd *batchesCreate) Run(ctx context.Context, s *streams) error {
	watching := cmd.Watch || cmd.Output != ""
	if cmd.JSON && cmd.Output == "-" {
		return errors.New("--json and -o - both want standard output")
	}
	c, err := cmd.client()
	if err != nil {
		return err
	}
	fileID, url, err := cmd.input(ctx, c, s)
	if err != nil {
		return err
	}
	b, err := c.CreateBatch(ctx, openai.CreateBatch{
		InputFileID: fileID, Endpoint: url, CompletionWindow: cmd.Window, Metadata: cmd.Metadata,
	})
	switch {
	case err != nil && fileID != cmd.Input:
		return fmt.Errorf("%s is uploaded as %s, but no batch created: %w", cmd.Input, fileID, err)
	case err != nil:
		return err
	case watching:
		w := watcher{c: c, s: s, p: newPrinter(s, cmd.JSON), out: cmd.Output}
		w.p.Message("created " + b.ID)
		return w.run(ctx, b.ID)
	case cmd.JSON:
		return printJSON(s.Out, b)
	}
	_, err = fmt.Fprintln(s.Out, b.ID)
	return err
}

// input returns the id of the input file, uploading it first where Input is not that id, and
// the endpoint of its requests.
func (cmd *batchesCreate) input(ctx context.Context, c *client.Client, s *streams) (fileID, url string, err error) {
	if isFileID(cmd.Input) {
		if cmd.Endpoint != "" {
			return cmd.Input, cmd.Endpoint, nil
		}
		body, err := c.Content(ctx, cmd.Input)
		if err != nil {
			return "", "", err
		}
		defer body.Close()
		url, _, err := firstURL(body)
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", cmd.Input, err)
		}
		return cmd.Input, url, nil
	}

	in, err := openInput(ctx, cmd.Input, s)
	if err != nil {
		return "", "", err
	}
	defer in.Close()
	url = cmd.Endpoint
	if url == "" {
		u, head, err := firstURL(in.body)
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", cmd.Input, err)
		}
		url, in.body = u, io.MultiReader(bytes.NewReader(head), in.body)
	}
	f, err := in.upload(ctx, c, s, batch.PurposeBatch)
	if err != nil {
		return "", "", err
	}
	return f.ID, url, nil
}

// isFileID reports whether s names a file on the server rather than one here.
func isFileID(s string) bool {
	if !strings.HasPrefix(s, "file-") {
		return false
	}
	_, err := os.Stat(s)
	return errors.Is(err, fs.ErrNotExist)
}

// maxFirstLine is how long the first line may be if its url is to be found.
const maxFirstLine = 64 << 20

// firstURL returns the url of the first request in r, and what it read of r for that.
func firstURL(r io.Reader) (url string, head []byte, err error) {
	br := bufio.NewReader(io.LimitReader(r, maxFirstLine))
	for line := 1; ; line++ {
		text, err := br.ReadBytes('\n')
		head = append(head, text...)
		if err != nil && err != io.EOF {
			return "", head, err
		}
		if len(bytes.TrimSpace(text)) == 0 && err == nil {
			continue // blank lines are legal
		}
		rest, _ := br.Peek(br.Buffered())
		head = append(head, rest...)
		if len(bytes.TrimSpace(text)) == 0 {
			return "", head, errors.New("no request in it")
		}
		var request struct {
			URL string `json:"url"`
		}
		if err := json.Unmarshal(text, &request); err != nil {
			return "", head, fmt.Errorf("line %d: not valid JSON: %w", line, err)
		}
		if request.URL == "" {
			return "", head, fmt.Errorf("line %d: no url", line)
		}
		return request.URL, head, nil
	}
}
