package storetest

import (
	"errors"
	"fmt"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/store"
)

// testJoin lets processes die one after the other. Where the database belongs to one of them, the
// next finds everything free, and told how many died over it in a row.
func testJoin(d *db) {
	if !d.Alone {
		d.Skip("other nodes' leases are judged by their heartbeats")
	}
	b, waiting := d.running(2), d.validating()
	released := d.claim(b)
	d.must(d.Release(d.ctx(), *released))
	for deaths := range 4 {
		l := d.claim(b)
		if l.Deaths != deaths {
			d.Errorf("after %d deaths the lease counts %d", deaths, l.Deaths)
		}
		a := d.admission(waiting)
		d.reopen()
		d.wantLost("record of a former process", writes[0].call(d, *l))
		d.wantLost("seal of a former process", writes[1].call(d, *l))
		d.wantLost("admission of a former process", d.Admit(d.ctx(), a, "m", nil))
	}
	l, other := d.claim(b), d.claim(b)
	if l.Deaths != 4 || other.Deaths != 0 {
		d.Errorf("leases count %d and %d deaths, want 4 and 0", l.Deaths, other.Deaths)
	}
	d.record(l, tally(1, 0), "a") // whoever records something does not die of it
	d.seal(other, 10, 0)
	d.reopen()
	if l := d.claim(b); l.Deaths != 1 || l.Tally != tally(1, 0) {
		d.Errorf("after something was recorded the lease is %+v, want 1 death", *l)
	}
	if l, err := d.Claim(d.ctx(), d.node, work(b, "m")); l != nil || err != nil {
		d.Errorf("a sealed segment is free: %+v, %v", l, err)
	}
	d.must(d.Leave(d.ctx(), d.node))
	d.must(d.Leave(d.ctx(), "no such node"))
}

// testReferences wants rows that refer to something that is not there to be refused.
func testReferences(d *db) {
	f := d.newFile(batch.PurposeBatch, 1)
	f.Project = "proj_unknown"
	if err := d.CreateFile(d.ctx(), f); err == nil {
		d.Error("a file was made in a project that does not exist")
	}
	b := d.running(1)
	if l, err := d.Claim(d.ctx(), "unknown", work(b, "m")); err == nil {
		d.Errorf("a node that never joined claimed %+v", l)
	}
	d.wantSame("the claim of a node that is known", d.claim(b).BatchID, b.ID)
}

// testReopen opens the database many times; what is in it stays as it is.
func testReopen(d *db) {
	b, f := d.completed(), d.file(batch.PurposeBatch, 3)
	for range 3 {
		d.reopen()
		d.wantSame("batch after a restart", d.batch(b.ID), b)
		d.wantFile("file after a restart", f)
	}
	d.must(d.Ping(d.ctx()))
	d.must(d.Close())
	if err := d.Ping(d.ctx()); err == nil {
		d.Error("a closed store answers")
	}
}

// testKeys makes, uses and revokes keys.
func testKeys(d *db) {
	anyone, required := d.Store.Keys(false), d.Store.Keys(true)
	if p, err := anyone.Authenticate(d.ctx(), "whatever", true); err != nil || p.ID != batch.DefaultProject {
		d.Errorf("without keys, any key opens %+v, %v", p, err)
	}
	if _, err := anyone.Authenticate(d.ctx(), "whatever", false); !errors.Is(err, batch.ErrNotLocal) {
		d.Errorf("without keys, under a foreign name: %v", err)
	}
	_, err := required.Authenticate(d.ctx(), "whatever", true)
	d.wantKind("without keys where they are required", err, batch.NotFound)
	if has, err := d.HasKeys(d.ctx()); has || err != nil {
		d.Errorf("HasKeys() = %v, %v", has, err)
	}
	p, err := d.CreateProject(d.ctx(), "team", 3)
	d.must(err)
	_, err = d.CreateProject(d.ctx(), "team", 1)
	d.wantKind("a second project of one name", err, batch.Conflict)
	_, _, err = d.CreateKey(d.ctx(), "nobody", "k")
	d.wantKind("a key for nobody", err, batch.NotFound)

	for _, bad := range []string{"\xff", "a\x00b", "caf\xe9"} {
		_, err = d.CreateProject(d.ctx(), bad, 1)
		d.wantKind(fmt.Sprintf("project %q", bad), err, batch.Invalid)
		_, _, err = d.CreateKey(d.ctx(), "team", bad)
		d.wantKind(fmt.Sprintf("key %q", bad), err, batch.Invalid)
	}

	byName, secret, err := d.CreateKey(d.ctx(), "team", "laptop")
	d.must(err)
	d.clock.turn(time.Second)
	byID, secret2, err := d.CreateKey(d.ctx(), p.ID, "")
	d.must(err)
	for _, s := range []string{secret, secret2} {
		for _, k := range []*store.Keys{anyone, required} {
			if got, err := k.Authenticate(d.ctx(), s, false); err != nil || !same(got, p) {
				d.Errorf("the key opens %+v, %v; want %+v", got, err, p)
			}
		}
	}
	for _, bad := range []string{"", "whatever", secret[:len(secret)-1], secret + "A", byName.ID, byName.Prefix} {
		_, err := anyone.Authenticate(d.ctx(), bad, true)
		d.wantKind(fmt.Sprintf("key %q", bad), err, batch.NotFound)
	}
	d.must(d.RevokeKey(d.ctx(), byName.ID))
	d.clock.turn(time.Second)
	d.must(d.RevokeKey(d.ctx(), byName.ID)) // which does not change when it was
	_, err = anyone.Authenticate(d.ctx(), secret, true)
	d.wantKind("a revoked key", err, batch.NotFound)
	d.wantKind("revoke an unknown key", d.RevokeKey(d.ctx(), "key_none"), batch.NotFound)

	now := d.clock.Now()
	byName.LastUsedAt, byName.RevokedAt = now.Add(-time.Second), now.Add(-time.Second)
	byID.LastUsedAt = now.Add(-time.Second)
	d.reopen()
	if keys, err := d.ListKeys(d.ctx()); err != nil || !same(keys, []store.Key{byName, byID}) {
		d.Errorf("ListKeys() = %+v, %v; want %+v", keys, err, []store.Key{byName, byID})
	}
	d.must(d.RevokeKey(d.ctx(), byID.ID))
	_, err = d.Store.Keys(false).Authenticate(d.ctx(), "whatever", true)
	d.wantKind("any key once all are revoked", err, batch.NotFound)
	projects, err := d.Projects(d.ctx())
	if err != nil || len(projects) != 2 || projects[0].ID != batch.DefaultProject || !same(projects[1], p) {
		d.Errorf("Projects() = %+v, %v", projects, err)
	}
}
