package main

import (
	"context"
	"fmt"

	"github.com/dustin/go-humanize"

	"offpeak/internal/openai"
)

// filesCmd is `offpeak files`: files on a server.
type filesCmd struct {
	Upload  filesUpload  `cmd:"" help:"Upload a file, and print its id."`
	List    filesList    `cmd:"" help:"List files, newest first."`
	Get     filesGet     `cmd:"" help:"Show one file."`
	Content filesContent `cmd:"" help:"Fetch the bytes of a file."`
	Delete  filesDelete  `cmd:"" help:"Delete a file."`
}

// filesUpload is `offpeak files upload`.
type filesUpload struct {
	apiFlags
	Path     string `arg:"" help:"File to upload; \"-\" is standard input."`
	Purpose  string `default:"batch" help:"What the file is for."`
	Filename string `placeholder:"NAME" help:"Name to give it. By default its own; input of a batch must end in .jsonl."`
	JSON     bool   `name:"json" help:"Print the file object as JSON."`
}

// Run uploads a file.
func (cmd *filesUpload) Run(ctx context.Context, s *streams) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	in, err := openInput(ctx, cmd.Path, s)
	if err != nil {
		return err
	}
	defer in.Close()
	if cmd.Filename != "" {
		in.name = cmd.Filename
	}
	f, err := in.upload(ctx, c, s, cmd.Purpose)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return printJSON(s.Out, f)
	}
	_, err = fmt.Fprintln(s.Out, f.ID)
	return err
}

// filesList is `offpeak files list`.
type filesList struct {
	apiFlags
	Purpose string `help:"List only files of this purpose, such as batch or batch_output."`
	Limit   int    `short:"n" default:"20" help:"How many to list; 0 for all."`
	JSON    bool   `name:"json" help:"Print JSON, one file per line."`
}

// Run prints a table of files.
func (cmd *filesList) Run(ctx context.Context, s *streams) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	return printList(s.Out, c.Files(ctx, cmd.Purpose), cmd.Limit, cmd.JSON, "ID\tNAME\tBYTES\tPURPOSE\tCREATED\tEXPIRES", func(f openai.File) string {
		return fmt.Sprintf("%s\t%s\t%d\t%s\t%s\t%s", f.ID, f.Filename, f.Bytes, f.Purpose,
			localTime(f.CreatedAt), orDash(localTime(deref(f.ExpiresAt))))
	})
}

// filesGet is `offpeak files get`.
type filesGet struct {
	apiFlags
	ID   string `arg:"" help:"Id of the file."`
	JSON bool   `name:"json" help:"Print the file object as JSON."`
}

// Run prints what is known of a file.
func (cmd *filesGet) Run(ctx context.Context, s *streams) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	f, err := c.File(ctx, cmd.ID)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return printJSON(s.Out, f)
	}
	t := newRows(s.Out)
	t.add("id", f.ID)
	t.add("name", f.Filename)
	t.add("bytes", humanize.Comma(f.Bytes))
	t.add("purpose", f.Purpose)
	t.add("created", localTime(f.CreatedAt))
	t.add("expires", localTime(deref(f.ExpiresAt)))
	return t.flush()
}

// filesContent is `offpeak files content`.
type filesContent struct {
	apiFlags
	ID     string `arg:"" help:"Id of the file."`
	Output string `short:"o" default:"-" placeholder:"FILE" help:"Where to write; \"-\" is standard output. A file appears when it is whole."`
}

// Run fetches a file.
func (cmd *filesContent) Run(ctx context.Context, s *streams) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	return download(ctx, c, cmd.ID, cmd.Output, s.Out)
}

// filesDelete is `offpeak files delete`.
type filesDelete struct {
	apiFlags
	ID string `arg:"" help:"Id of the file."`
}

// Run deletes a file.
func (cmd *filesDelete) Run(ctx context.Context, s *streams) error {
	c, err := cmd.client()
	if err != nil {
		return err
	}
	d, err := c.DeleteFile(ctx, cmd.ID)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.Out, "deleted", d.ID)
	return err
}
