package storetest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
)

func testFile(d *db) {
	f := d.newFile(batch.PurposeBatch, 5, 0, 7)
	f.Filename = "Прошение \"1\".jsonl"
	f.ExpiresAt = f.CreatedAt.Add(time.Hour)
	d.must(d.CreateFile(d.ctx(), f))
	d.wantFile("file", f)
	// A file of the same blobs, and one of none.
	g := d.newFile("user_data")
	g.Parts, g.Bytes = []batch.Part{f.Parts[2], f.Parts[0], f.Parts[2]}, 19
	d.must(d.CreateFile(d.ctx(), g))
	d.wantFile("file of shared blobs", g)
	h := d.file("user_data")
	d.wantFile("file of no blobs", h)
	d.reopen()
	d.wantFile("after a restart", g)
}

func (d *db) wantFile(what string, want batch.File) {
	d.Helper()
	got, err := d.File(d.ctx(), want.Project, want.ID)
	d.must(err)
	d.wantSame(what, got, want)
}

// testFileList walks lists page by page while many files share their moment of creation.
func testFileList(d *db) {
	var all, evals []string
	for i := range 23 {
		if i%4 == 0 {
			d.clock.turn(time.Millisecond)
		}
		purpose := batch.PurposeBatch
		if i%3 == 0 {
			purpose = "evals"
		}
		f := d.file(purpose, 1)
		all = append(all, f.ID)
		if purpose == "evals" {
			evals = append(evals, f.ID)
		}
	}
	for _, limit := range []int{1, 2, 7, 8, 22, 23, 24, 10_000} {
		for _, q := range []batch.FileQuery{
			{Limit: limit}, {Limit: limit, Ascending: true},
			{Limit: limit, Purpose: "evals"}, {Limit: limit, Purpose: "evals", Ascending: true},
			{Limit: limit, Purpose: "vision"},
		} {
			var want []string
			switch q.Purpose {
			case "":
				want = slices.Clone(all)
			case "evals":
				want = slices.Clone(evals)
			}
			if !q.Ascending {
				slices.Reverse(want)
			}
			var got []string
			for more := true; more; {
				var page []batch.File
				var err error
				page, more, err = d.ListFiles(d.ctx(), batch.DefaultProject, q)
				d.must(err)
				if len(page) > limit || more && len(page) < limit {
					d.Fatalf("%+v: a page of %d, and more: %v", q, len(page), more)
				}
				for _, f := range page {
					got = append(got, f.ID)
					q.After = f.ID
				}
			}
			if !slices.Equal(got, want) {
				d.Errorf("%+v lists %v, want %v", q, got, want)
			}
		}
	}
	// A cursor whose file was deleted still leads on, until the file is swept.
	d.must(d.DeleteFile(d.ctx(), batch.DefaultProject, all[10]))
	page, _, err := d.ListFiles(d.ctx(), batch.DefaultProject, batch.FileQuery{After: all[10], Limit: 1})
	if err != nil || len(page) != 1 || page[0].ID != all[9] {
		d.Errorf("after a deleted cursor: %+v, %v; want %s", page, err, all[9])
	}
	_, _, err = d.ListFiles(d.ctx(), batch.DefaultProject, batch.FileQuery{After: "file-none", Limit: 1})
	d.wantKind("list after an unknown file", err, batch.NotFound)
}

func testFileExpiry(d *db) {
	f := d.newFile(batch.PurposeBatch, 1)
	f.ExpiresAt = d.clock.Now().Add(time.Hour)
	d.must(d.CreateFile(d.ctx(), f))
	seen := func() bool {
		_, err := d.File(d.ctx(), f.Project, f.ID)
		if err != nil {
			d.wantKind("expired file", err, batch.NotFound)
		}
		page, _, lerr := d.ListFiles(d.ctx(), f.Project, batch.FileQuery{Limit: 10})
		d.must(lerr)
		if (err == nil) != (len(page) == 1) {
			d.Errorf("File() says %v, the list has %d files", err, len(page))
		}
		return err == nil
	}
	d.clock.turn(time.Hour - time.Millisecond)
	if !seen() {
		d.Error("gone before it expires")
	}
	d.clock.turn(time.Millisecond)
	if seen() {
		d.Error("there at the moment it expires")
	}
	d.wantKind("delete an expired file", d.DeleteFile(d.ctx(), f.Project, f.ID), batch.NotFound)
	d.sweep()
	if seen() {
		d.Error("back after a sweep")
	}
}

func testFileDelete(d *db) {
	f, other := d.file(batch.PurposeBatch, 1), d.file(batch.PurposeBatch, 1)
	d.must(d.DeleteFile(d.ctx(), f.Project, f.ID))
	_, err := d.File(d.ctx(), f.Project, f.ID)
	d.wantKind("deleted file", err, batch.NotFound)
	d.wantKind("delete again", d.DeleteFile(d.ctx(), f.Project, f.ID), batch.NotFound)
	d.wantKind("delete an unknown file", d.DeleteFile(d.ctx(), f.Project, "file-none"), batch.NotFound)
	page, _, err := d.ListFiles(d.ctx(), f.Project, batch.FileQuery{Limit: 10})
	if err != nil || len(page) != 1 || page[0].ID != other.ID {
		d.Errorf("the list has %+v, %v; want %s alone", page, err, other.ID)
	}
}

// testFileNeedsBlobs wants a file of unreserved blobs refused, all of it.
func testFileNeedsBlobs(d *db) {
	f := d.newFile(batch.PurposeBatch, 1)
	f.Parts = append(f.Parts, batch.Part{Key: blob.NewKey(), Bytes: 1})
	if err := d.CreateFile(d.ctx(), f); err == nil {
		d.Fatal("a file of a blob that nobody reserved is created")
	}
	_, err := d.File(d.ctx(), f.Project, f.ID)
	d.wantKind("file that was refused", err, batch.NotFound)
	d.clock.turn(48 * time.Hour)
	d.sweep()
	if swept := d.deleted(f.Parts[0].Key); !swept[0] {
		d.Error("the refused file still names its first blob")
	}
}

// testForeignIDs wants ids of another project to behave as unknown ones do, to the letter.
func testForeignIDs(d *db) {
	p, err := d.CreateProject(d.ctx(), "other", 1)
	d.must(err)
	f, b := d.file(batch.PurposeBatch, 1), d.validating()
	const noFile, noBatch = "file-none", "batch_none"
	for _, test := range []struct {
		name, id, unknown string
		call              func(id string) error
	}{
		{"file", f.ID, noFile, func(id string) error {
			_, err := d.File(d.ctx(), p.ID, id)
			return err
		}},
		{"delete file", f.ID, noFile, func(id string) error { return d.DeleteFile(d.ctx(), p.ID, id) }},
		{"list files after", f.ID, noFile, func(id string) error {
			_, _, err := d.ListFiles(d.ctx(), p.ID, batch.FileQuery{After: id, Limit: 5})
			return err
		}},
		{"batch", b.ID, noBatch, func(id string) error {
			_, err := d.Batch(d.ctx(), p.ID, id)
			return err
		}},
		{"cancel batch", b.ID, noBatch, func(id string) error {
			_, err := d.CancelBatch(d.ctx(), p.ID, id)
			return err
		}},
		{"list batches after", b.ID, noBatch, func(id string) error {
			_, _, err := d.ListBatches(d.ctx(), p.ID, batch.BatchQuery{After: id, Limit: 5})
			return err
		}},
	} {
		foreign, unknown := test.call(test.id), test.call(test.unknown)
		d.wantKind(test.name, foreign, batch.NotFound)
		if got, want := fmt.Sprint(foreign), strings.ReplaceAll(fmt.Sprint(unknown), test.unknown, test.id); got != want {
			d.Errorf("%s: a foreign id says %q, an unknown one %q", test.name, got, want)
		}
	}
	if files, _, err := d.ListFiles(d.ctx(), p.ID, batch.FileQuery{Limit: 5}); err != nil || len(files) > 0 {
		d.Errorf("the other project lists files %+v, %v", files, err)
	}
	if batches, _, err := d.ListBatches(d.ctx(), p.ID, batch.BatchQuery{Limit: 5}); err != nil || len(batches) > 0 {
		d.Errorf("the other project lists batches %+v, %v", batches, err)
	}
	if got := d.batch(b.ID); got.Status != batch.Validating {
		d.Errorf("the other project's cancel made the batch %s", got.Status)
	}

	// A batch of a foreign input finds no file.
	d.must(d.Reject(d.ctx(), d.admission(b), nil))
	theirs := d.newBatch(f.ID)
	theirs.Project = p.ID
	d.must(d.CreateBatch(d.ctx(), theirs))
	if a := d.admission(theirs); a.Input != nil {
		d.Errorf("a batch of another project gets the input %+v", a.Input)
	}
}
