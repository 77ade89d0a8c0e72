package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/store"
)

// upload creates a pending upload of n bytes.
func (d *db) upload(n int64) batch.Upload {
	d.Helper()
	u, err := batch.NewUpload(batch.CreateUploadParams{
		Project: batch.DefaultProject, Filename: "in.jsonl", Purpose: batch.PurposeBatch, Bytes: &n, MIMEType: "application/jsonl",
	}, d.clock.Now())
	d.must(err)
	d.must(d.CreateUpload(d.ctx(), u))
	return u
}

// bring adds a part of n bytes to the upload.
func (d *db) bring(u batch.Upload, n int64) batch.UploadPart {
	d.Helper()
	p := batch.NewUploadPart(u.ID, d.part(n), d.clock.Now())
	d.must(d.AddPart(d.ctx(), u.Project, p))
	return p
}

// naming is a completion by the parts.
func naming(parts ...batch.UploadPart) (c batch.Completion) {
	for _, p := range parts {
		c.PartIDs = append(c.PartIDs, p.ID)
	}
	return c
}

func (d *db) complete(u batch.Upload, c batch.Completion) (batch.Upload, error) {
	return d.CompleteUpload(d.ctx(), u.Project, u.ID, c)
}

// completedUpload completes the upload with the parts.
func (d *db) completedUpload(u batch.Upload, parts ...batch.UploadPart) batch.Upload {
	d.Helper()
	u, err := d.complete(u, naming(parts...))
	d.must(err)
	return u
}

func (d *db) wantUpload(what string, want batch.Upload) {
	d.Helper()
	got, err := d.Upload(d.ctx(), want.Project, want.ID)
	d.must(err)
	d.wantSame(what, got, want)
}

// wantNotPending wants the upload to refuse whatever it refuses with that status.
func (d *db) wantNotPending(u batch.Upload, status batch.UploadStatus) {
	d.Helper()
	part := batch.NewUploadPart(u.ID, d.part(1), d.clock.Now())
	_, err := d.complete(u, batch.Completion{PartIDs: []string{"part_none"}})
	calls := map[string]error{"part": d.AddPart(d.ctx(), u.Project, part), "complete": err}
	if status != batch.UploadCancelled { // which can be repeated
		_, calls["cancel"] = d.CancelUpload(d.ctx(), u.Project, u.ID)
	}
	for what, err := range calls {
		d.wantKind(what, err, batch.Invalid)
		if want := fmt.Sprintf("Upload %s is not pending; its status is '%s'.", u.ID, status); fmt.Sprint(err) != want {
			d.Errorf("%s: %v, want %s", what, err, want)
		}
	}
}

// testUpload makes a file of parts in the order in which they are named, without those that are
// not.
func testUpload(d *db) {
	u := d.upload(12)
	d.wantUpload("created", u)
	third, dropped, first, empty, second := d.bring(u, 7), d.bring(u, 100), d.bring(u, 3), d.bring(u, 0), d.bring(u, 2)
	ids := naming(first, empty, second, third)
	got, err := d.UploadParts(d.ctx(), u.Project, u.ID, ids.PartIDs)
	d.must(err)
	want := []batch.Part{first.Part, empty.Part, second.Part, third.Part}
	if !same(got, want) {
		d.Errorf("parts %+v, want %+v", got, want)
	}
	d.wantUpload("with parts", u)

	d.clock.turn(5 * time.Minute)
	done := d.completedUpload(u, first, empty, second, third)
	f := done.File()
	if done.Status != batch.UploadCompleted || f == nil || !f.CreatedAt.Equal(d.clock.Now()) || f.Bytes != 12 {
		d.Fatalf("completed: %+v", done)
	}
	f.Parts = want
	d.wantUpload("completed", done)
	d.wantFile("the upload's file", *f)
	if page, _, err := d.ListFiles(d.ctx(), u.Project, batch.FileQuery{Limit: 10}); err != nil || len(page) != 1 || page[0].ID != f.ID {
		d.Errorf("the list has %+v, %v; want %s alone", page, err, f.ID)
	}
	d.reopen()
	d.wantFile("after a restart", *f)

	// The same again, as a client does that had no answer, is answered alike.
	for range 2 {
		d.clock.turn(time.Hour)
		d.wantSame("completed again", d.completedUpload(u, first, empty, second, third), done)
	}
	d.wantNotPending(u, batch.UploadCompleted)
	for what, c := range map[string]batch.Completion{
		"another order": naming(second, empty, first, third),
		"with an MD5":   {PartIDs: ids.PartIDs, MD5: strings.Repeat("0", 32)},
		"dropped part":  naming(dropped),
	} {
		_, err := d.complete(u, c)
		d.wantKind("completed by "+what, err, batch.Invalid)
	}

	// Only what the file does not have is swept, and the file goes on its own.
	d.clock.turn(store.PendingFor)
	d.sweep()
	if got := d.deleted(first.Key, empty.Key, second.Key, third.Key, dropped.Key); !slices.Equal(got, []bool{false, false, false, false, true}) {
		d.Errorf("swept: %v, want the dropped part alone", got)
	}
	d.wantFile("after a sweep", *f)
	d.must(d.DeleteFile(d.ctx(), f.Project, f.ID))
	d.sweep()
	if got := d.deleted(first.Key, empty.Key, second.Key, third.Key); slices.Contains(got, false) {
		d.Errorf("swept with the file: %v", got)
	}
	d.must(d.Forget(d.ctx(), []string{first.Key, empty.Key, second.Key, third.Key, dropped.Key}))
	d.wantSame("completed again, its file gone", d.completedUpload(u, first, empty, second, third), done)
}

// testUploadRefuses wants a completion refused, all of it, that names the wrong parts.
func testUploadRefuses(d *db) {
	u, other := d.upload(5), d.upload(5)
	a, b, c := d.bring(u, 2), d.bring(u, 3), d.bring(other, 3)
	for what, ids := range map[string]batch.Completion{
		"unknown part":          {PartIDs: []string{a.ID, "part_none"}},
		"part of another":       naming(a, c),
		"part of another, odd":  {PartIDs: []string{a.ID, c.ID, c.ID}},
		"the same part twice":   naming(a, a),
		"the right size, twice": naming(b, a, a),
		"too few bytes":         naming(a),
		"no parts":              {},
		"bad MD5":               {PartIDs: []string{a.ID, b.ID}, MD5: "x"},
	} {
		_, err := d.complete(u, ids)
		d.wantKind(what, err, batch.Invalid)
		d.wantUpload("after "+what, u)
	}
	_, err := d.UploadParts(d.ctx(), u.Project, u.ID, []string{a.ID, c.ID})
	if want := batch.NoUploadPart(u.ID, c.ID); fmt.Sprint(err) != fmt.Sprint(want) {
		d.Errorf("the part of another upload: %v, want %v", err, want)
	}
	if files, _, err := d.ListFiles(d.ctx(), u.Project, batch.FileQuery{Limit: 10}); err != nil || len(files) > 0 {
		d.Errorf("refused completions leave the files %+v, %v", files, err)
	}
	// Nothing is lost by it.
	d.completedUpload(u, b, a)
	d.wantUpload("the other", other)

	// A part's blob is reserved and not swept.
	if err := d.AddPart(d.ctx(), other.Project, batch.NewUploadPart(other.ID, batch.Part{Key: blob.NewKey(), Bytes: 1}, d.clock.Now())); !errors.Is(err, batch.ErrSwept) {
		d.Errorf("a part of an unreserved blob: %v, want %v", err, batch.ErrSwept)
	}
}

// testUploadForeign wants uploads of another project to behave as unknown ones do, to the letter.
func testUploadForeign(d *db) {
	p, err := d.CreateProject(d.ctx(), "other", 1)
	d.must(err)
	u := d.upload(1)
	part := d.bring(u, 1)
	theirs := u
	theirs.ID, theirs.Project = "upload_theirs", p.ID
	d.must(d.CreateUpload(d.ctx(), theirs))
	for what, call := range map[string]func(id string) error{
		"upload": func(id string) error { _, err := d.Upload(d.ctx(), p.ID, id); return err },
		"part": func(id string) error {
			return d.AddPart(d.ctx(), p.ID, batch.NewUploadPart(id, d.part(1), d.clock.Now()))
		},
		"parts":    func(id string) error { _, err := d.UploadParts(d.ctx(), p.ID, id, []string{part.ID}); return err },
		"cancel":   func(id string) error { _, err := d.CancelUpload(d.ctx(), p.ID, id); return err },
		"complete": func(id string) error { _, err := d.CompleteUpload(d.ctx(), p.ID, id, naming(part)); return err },
	} {
		foreign, unknown := call(u.ID), call("upload_none")
		if got, want := fmt.Sprint(foreign), strings.ReplaceAll(fmt.Sprint(unknown), "upload_none", u.ID); foreign == nil || got != want {
			d.Errorf("%s: a foreign id says %q, an unknown one %q", what, got, want)
		}
	}
	_, foreign := d.complete(theirs, naming(part))
	_, unknown := d.complete(theirs, batch.Completion{PartIDs: []string{"part_none"}})
	if got, want := fmt.Sprint(foreign), strings.ReplaceAll(fmt.Sprint(unknown), "part_none", part.ID); foreign == nil || got != want {
		d.Errorf("a foreign part says %q, an unknown one %q", got, want)
	}
	d.wantUpload("after the other project's calls", u)
	d.completedUpload(u, part)
}

// testUploadEnds lets uploads expire and be cancelled: no part comes any more, and those that came
// are swept. In the end they are forgotten.
func testUploadEnds(d *db) {
	expired, cancelled, kept := d.upload(1), d.upload(1), d.upload(1)
	var keys []string
	for range 300 { // more than one sweep takes at a time
		keys = append(keys, d.bring(expired, 1).Key, d.bring(cancelled, 1).Key)
	}
	part := d.bring(kept, 1)
	d.completedUpload(kept, part)
	d.clock.turn(batch.UploadTime - time.Millisecond)
	d.bring(expired, 1)
	gone, err := d.CancelUpload(d.ctx(), cancelled.Project, cancelled.ID)
	d.must(err)
	if gone.Status != batch.UploadCancelled {
		d.Errorf("cancelled, it is %s", gone.Status)
	}
	d.wantUpload("cancelled", gone)
	again, err := d.CancelUpload(d.ctx(), cancelled.Project, cancelled.ID)
	d.must(err)
	d.wantSame("cancelled again", again, gone)
	d.wantNotPending(cancelled, batch.UploadCancelled)

	d.clock.turn(time.Millisecond)
	for _, swept := range []bool{false, true} {
		if swept {
			d.sweep()
		}
		d.wantNotPending(expired, batch.UploadExpired)
		d.wantNotPending(cancelled, batch.UploadCancelled)
		got, err := d.Upload(d.ctx(), expired.Project, expired.ID)
		d.must(err)
		if s := got.StatusAt(d.clock.Now()); s != batch.UploadExpired {
			d.Errorf("swept %v: the upload is %s", swept, s)
		}
	}
	if got := d.deleted(keys...); slices.Contains(got, true) {
		d.Error("blobs are swept before their day is over")
	}
	d.clock.turn(store.PendingFor)
	d.sweep()
	swept := map[string]bool{}
	for {
		some, err := d.Deleted(d.ctx(), 0)
		d.must(err)
		if len(some) == 0 {
			break
		}
		for _, k := range some {
			swept[k] = true
		}
		d.must(d.Forget(d.ctx(), some)) // nothing refers to them
	}
	for _, k := range keys {
		if !swept[k] {
			d.Errorf("blob %s of an upload that ended is left", k)
		}
	}
	if swept[part.Key] {
		d.Error("a blob of a file is swept")
	}

	d.clock.turn(store.UploadMemory - store.PendingFor - time.Millisecond)
	d.sweep()
	d.wantUpload("about to be forgotten", gone)
	d.clock.turn(time.Millisecond)
	d.sweep()
	for _, u := range []batch.Upload{expired, cancelled, kept} {
		_, err := d.Upload(d.ctx(), u.Project, u.ID)
		d.wantKind("a forgotten upload", err, batch.NotFound)
	}
}

// testUploadKeepsParts sweeps while an upload is pending, and takes nothing of it.
func testUploadKeepsParts(d *db) {
	d.clock.turn(time.Millisecond)
	key := d.blob()
	d.clock.turn(store.PendingFor - time.Millisecond) // the part was long under way
	u := d.upload(4)
	slow := batch.NewUploadPart(u.ID, batch.Part{Key: key, Bytes: 1}, d.clock.Now())
	d.must(d.AddPart(d.ctx(), u.Project, slow))
	fast := d.bring(u, 3)
	d.clock.turn(batch.UploadTime - time.Millisecond)
	d.sweep()
	if got := d.deleted(slow.Key, fast.Key); slices.Contains(got, true) {
		d.Errorf("swept from a pending upload: %v", got)
	}
	done := d.completedUpload(u, slow, fast)
	f := done.File()
	f.Parts = []batch.Part{slow.Part, fast.Part}
	d.wantFile("file of a slow part", *f)
}

// testUploadManyParts makes a file of more parts than one statement takes.
func testUploadManyParts(d *db) {
	const n = 1201
	u := d.upload(n)
	var parts []batch.UploadPart
	for range n {
		parts = append(parts, d.bring(u, 1))
	}
	slices.Reverse(parts)
	done := d.completedUpload(u, parts...)
	f := done.File()
	for _, p := range parts {
		f.Parts = append(f.Parts, p.Part)
	}
	d.wantFile("file of many parts", *f)
	left, err := d.UploadParts(d.ctx(), u.Project, u.ID, nil)
	if err != nil || len(left) > 0 {
		d.Errorf("parts left: %v, %v", left, err)
	}
	for _, p := range []batch.UploadPart{parts[0], parts[600], parts[n-1]} {
		if _, err := d.UploadParts(d.ctx(), u.Project, u.ID, []string{p.ID}); err == nil {
			d.Errorf("part %s is left", p.ID)
		}
	}
}

// testUploadRaces lets parts, completions and a cancel meet. One ending wins; a part that was
// acknowledged is either named in time or dropped.
func testUploadRaces(d *db) {
	for round := range 20 {
		u := d.upload(8)
		var mu sync.Mutex
		var brought []batch.UploadPart
		concurrently(8, func(int) { // parts in parallel
			p := d.bring(u, 1)
			mu.Lock()
			defer mu.Unlock()
			brought = append(brought, p)
		})
		one, two := naming(brought...), naming(brought...)
		slices.Reverse(two.PartIDs)
		var ended []string
		files := map[string]bool{}
		concurrently(7, func(i int) {
			var what string
			var done batch.Upload
			var err error
			switch {
			case i < 2:
				what = "one"
				done, err = d.complete(u, one)
			case i < 4:
				what = "two"
				done, err = d.complete(u, two)
			case i == 4 && round%2 == 0:
				what = "cancel"
				done, err = d.CancelUpload(d.ctx(), u.Project, u.ID)
			default:
				p := batch.NewUploadPart(u.ID, d.part(1), d.clock.Now())
				if err := d.AddPart(d.ctx(), u.Project, p); err != nil {
					d.wantKind("late part", err, batch.Invalid)
				}
				return
			}
			if err != nil {
				d.wantKind(what, err, batch.Invalid)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ended = append(ended, what)
			files[done.FileID] = true
		})
		if len(ended) == 0 || len(slices.Compact(ended)) != 1 || len(files) != 1 {
			d.Fatalf("round %d: ended by %v with files %v; want one ending", round, ended, files)
		}
	}
	// Every acknowledged file is there, and nothing else names a blob.
	files, _, err := d.ListFiles(d.ctx(), batch.DefaultProject, batch.FileQuery{Limit: 100})
	d.must(err)
	d.clock.turn(store.PendingFor + batch.UploadTime)
	d.sweep()
	for _, f := range files {
		full, err := d.File(d.ctx(), f.Project, f.ID)
		d.must(err)
		for _, p := range full.Parts {
			if d.deleted(p.Key)[0] {
				d.Errorf("file %s has lost a part", f.ID)
			}
		}
	}
}
