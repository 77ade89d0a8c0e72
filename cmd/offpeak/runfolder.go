package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/dustin/go-humanize"

	"offpeak/internal/batch"
	"offpeak/internal/progress"
	"offpeak/internal/store"
)

// What a run leaves in its folder, and what the next one makes of it.

// A note is what remains of the folder when everything is done.
type note struct {
	SHA256  string           `json:"input_sha256"`
	Summary progress.Summary `json:"summary"`
}

// earlier deals with what earlier runs left: it reports true if there is nothing left to do.
func (r *runner) earlier(ctx context.Context) (done bool, err error) {
	text, err := os.ReadFile(filepath.Join(r.dir, "done.json"))
	none := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) // the latter is for makeFolder to tell
	if none && exists(r.dir) {
		return false, nil
	}
	if none {
		for _, path := range []string{r.out, r.errs} {
			if _, err := os.Stat(path); err == nil {
				return false, fmt.Errorf("%s exists, and is not from an earlier run of this command; move it away, choose another file with -o, or replace it with --restart", path)
			}
		}
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var d note
	if err := json.Unmarshal(text, &d); err != nil {
		return false, fmt.Errorf("%s: %w", filepath.Join(r.dir, "done.json"), err)
	}
	if _, err := os.Stat(r.out); err != nil {
		return false, fmt.Errorf("an earlier run was complete, but its output is gone: %w; run again with --restart", err)
	}
	sum, err := r.hashInput(ctx)
	if err != nil {
		return false, err
	}
	if sum != d.SHA256 {
		return false, r.changed()
	}
	removeAll(r.dir, databaseFiles...) // if that run died before it could
	d.Summary.Already = d.Summary.Completed + d.Summary.Failed
	d.Summary.Elapsed = 0
	p := newPrinter(r.s, r.cmd.JSON)
	p.Message(fmt.Sprintf("all %s answers are there already", humanize.Comma(d.Summary.Already)))
	p.Summary(d.Summary)
	return true, outcome(batch.Status(d.Summary.Status), d.Summary.Failed)
}

func (r *runner) changed() error {
	return fmt.Errorf("%s has changed since an earlier run for %s; choose another output with -o, or begin anew with --restart", inputName(r.cmd.Input), r.out)
}

func (r *runner) busy() error {
	return fmt.Errorf("another offpeak run is working on %s; wait for it, or choose another output with -o", r.out)
}

// restart removes what earlier runs left, unless one of them goes on.
func (r *runner) restart(ctx context.Context) error {
	if _, err := os.Stat(r.dir); err != nil {
		return nil
	}
	db, err := store.Open(ctx, r.dir, store.Options{})
	if errors.Is(err, store.ErrLocked) {
		return r.busy()
	}
	if err == nil { // else it is damaged, and cannot be in use
		defer db.Close() // and with it the lock
	}
	return r.remove()
}

// databaseFiles are the names in a server's data folder.
var databaseFiles = []string{"offpeak.db*", "blobs"}

// remove removes everything but the lock.
func (r *runner) remove() error { return removeAll(r.dir, append(databaseFiles, "done.json")...) }

// removeFolder removes the folder, unless somebody else keeps something in it.
func (r *runner) removeFolder() {
	r.remove()
	removeAll(r.dir, "lock*")
	os.Remove(r.dir)
}

// removeAll removes what has these names in a folder: what we made, and nothing else.
func removeAll(dir string, patterns ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		for _, pattern := range patterns {
			if ours, _ := filepath.Match(pattern, e.Name()); ours {
				err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
			}
		}
	}
	return err
}

// exists reports whether there is a database in the folder already.
func exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "offpeak.db"))
	return err == nil
}
