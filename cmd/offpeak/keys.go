package main

import (
	"context"
	"fmt"
	"iter"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/store"
)

// dataFlags say whose data a command works on. It may be that of a running server.
type dataFlags struct {
	Config configFlag `placeholder:"FILE" env:"OFFPEAK_CONFIG" help:"The server's YAML file with settings; of them only where its data is matters here."`
	storageFlags
}

// open opens the database beside whoever else has it open.
func (f *dataFlags) open(ctx context.Context) (*store.Store, error) {
	if f.Database == "" && !exists(f.Data) {
		return nil, fmt.Errorf("%s is not the data folder of a server; say where that is with --data (or --database)", f.Data)
	}
	return f.openStore(ctx, store.Options{Guest: true})
}

// create is open, for a server that may never have run.
func (f *dataFlags) create(ctx context.Context) (*store.Store, error) {
	if f.Database == "" {
		if err := makeFolder(f.Data); err != nil {
			return nil, err
		}
	}
	return f.openStore(ctx, store.Options{Guest: true})
}

// keysCmd is `offpeak keys`.
type keysCmd struct {
	Create keysCreate `cmd:"" help:"Make a key and print it, this one time, alone on standard output. From the first key on the server asks for one."`
	List   keysList   `cmd:"" help:"List the keys."`
	Revoke keysRevoke `cmd:"" help:"Make a key useless, from the next call on."`
}

type keysCreate struct {
	dataFlags
	Project string `default:"default" placeholder:"NAME" help:"Project that the key opens (default: ${default})."`
	Name    string `placeholder:"TEXT" help:"Note of what the key is for."`
}

// Run makes a key.
func (cmd *keysCreate) Run(ctx context.Context, s *streams) error {
	db, err := cmd.create(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	k, secret, err := db.CreateKey(ctx, cmd.Project, cmd.Name)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.Err, "key %s of project %s, for %s; it is shown this one time:\n", k.ID, k.Project, cmd.whose())
	_, err = fmt.Fprintln(s.Out, secret)
	return err
}

type keysList struct{ dataFlags }

// Run lists the keys.
func (cmd *keysList) Run(ctx context.Context, s *streams) error {
	db, err := cmd.open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	keys, err := db.ListKeys(ctx)
	if err != nil {
		return err
	}
	return printList(s.Out, each(keys), 0, false, "ID\tKEY\tPROJECT\tNAME\tCREATED\tLAST USED\tREVOKED", func(k store.Key) string {
		return fmt.Sprintf("%s\t%s…\t%s\t%s\t%s\t%s\t%s", k.ID, k.Prefix, k.Project, orDash(k.Name),
			minute(k.CreatedAt), minute(k.LastUsedAt), minute(k.RevokedAt))
	})
}

type keysRevoke struct {
	dataFlags
	ID string `arg:"" help:"Id of the key, as \"keys list\" shows it."`
}

// Run revokes a key.
func (cmd *keysRevoke) Run(ctx context.Context, s *streams) error {
	db, err := cmd.open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.RevokeKey(ctx, cmd.ID)
}

// projectsCmd is `offpeak projects`.
type projectsCmd struct {
	Create projectsCreate `cmd:"" help:"Make a project. Projects do not see each other's files and batches."`
	List   projectsList   `cmd:"" help:"List the projects."`
}

type projectsCreate struct {
	dataFlags
	Name   string `arg:"" help:"Name of the project."`
	Weight int    `default:"1" placeholder:"N" help:"Share of the upstreams relative to other projects (default: ${default})."`
}

// Run makes a project.
func (cmd *projectsCreate) Run(ctx context.Context, s *streams) error {
	if cmd.Name == "" || cmd.Weight < 1 {
		return fmt.Errorf("a project has a name and a weight of at least 1")
	}
	db, err := cmd.create(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	p, err := db.CreateProject(ctx, cmd.Name, cmd.Weight)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(s.Out, p.ID)
	return err
}

type projectsList struct{ dataFlags }

// Run lists the projects.
func (cmd *projectsList) Run(ctx context.Context, s *streams) error {
	db, err := cmd.open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	projects, err := db.Projects(ctx)
	if err != nil {
		return err
	}
	return printList(s.Out, each(projects), 0, false, "ID\tNAME\tWEIGHT\tCREATED", func(p batch.Project) string {
		return fmt.Sprintf("%s\t%s\t%d\t%s", p.ID, p.Name, p.Weight, minute(p.CreatedAt))
	})
}

// each yields the values of a list as printList wants them.
func each[T any](list []T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for _, v := range list {
			if !yield(v, nil) {
				return
			}
		}
	}
}

func minute(t time.Time) string {
	if t.Unix() <= 0 {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}
