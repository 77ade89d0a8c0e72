package engine_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/engine"
	"offpeak/internal/sched"
	"offpeak/internal/sim"
	"offpeak/internal/store/storetest"
	"offpeak/internal/upstream"
)

// fixtures is the folder of data folders that former versions made, one for each version of the
// schema.
const fixtures = "../store/testdata/schema"

// makeFixtures is the variable in the environment that makes TestMakeFixture make one.
const makeFixtures = "OFFPEAK_MAKE_FIXTURE"

// TestMakeFixture makes the data folder of today's schema, if it is asked to: a server died over it,
// with something in every table and batches of every status. Once released, a fixture stays as it
// is.
func TestMakeFixture(t *testing.T) {
	aboutFolders(t)
	if os.Getenv(makeFixtures) == "" {
		t.Skip("only with " + makeFixtures + "=1")
	}
	migrations, err := filepath.Glob("../store/migrations/sqlite/*.sql")
	if err != nil || len(migrations) == 0 {
		t.Fatal(migrations, err)
	}
	version, _, _ := strings.Cut(filepath.Base(slices.Max(migrations)), "_")
	to := filepath.Join(fixtures, version)
	if _, err := os.Stat(to); err == nil {
		t.Fatalf("%s is there already, and what was released is not to change", to)
	}
	bubble(t, func(b *bench) {
		b.furnish()
		b.examine()
		b.store.Close()
		b.saveFixture(to)
		b.open() // for those who close it
	})
}

// saveFixture copies the folder, without its locks.
func (b *bench) saveFixture(to string) {
	b.Helper()
	if err := os.RemoveAll(filepath.Join(b.dir, "blobs", "tmp")); err != nil {
		b.Fatal(err)
	}
	locks, err := filepath.Glob(filepath.Join(b.dir, "lock*"))
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range append(locks, filepath.Join(b.dir, "offpeak.db-shm"), filepath.Join(b.dir, "offpeak.db-wal")) {
		if err := os.RemoveAll(path); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.CopyFS(to, os.DirFS(b.dir)); err != nil {
		b.Fatal(err)
	}
}

// furnish makes everything in the folder that a server may leave there when it dies.
func (b *bench) furnish() {
	b.Helper()
	must := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	ctx := b.Context()
	_, err := b.store.CreateProject(ctx, "other", 2)
	must(err)
	_, secret, err := b.store.CreateKey(ctx, "other", "a key")
	must(err)
	must(os.WriteFile(filepath.Join(b.dir, "secret"), []byte(secret), 0o600))
	revoked, _, err := b.store.CreateKey(ctx, "default", "revoked")
	must(err)
	must(b.store.RevokeKey(ctx, revoked.ID))

	deleted := b.upload([]byte(line("gone", "m", "x")))
	for _, status := range []batch.UploadStatus{batch.UploadPending, batch.UploadCompleted, batch.UploadCancelled} {
		b.bring(status)
	}
	must(b.store.ReserveBlob(ctx, blob.NewKey()))
	must(b.store.Pair(ctx, b.part("blob")))

	b.upstream(sim.Config{Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.5}, Always400: "wrong"},
		upstream.Config{MaxInFlight: 8, Models: []string{"m", "n"}})
	f := newFaults(nil)
	p := b.start(f.in, small(8))
	b.want(b.ends(b.run(mixed(20, 5, "wrong"))), batch.Completed, 20, 16, 4)
	b.ends(b.run([]byte("nonsense\n")))
	b.ends(b.create(b.upload(chat(60)), 7*time.Second))
	cancelled := b.run(chat(40))
	b.recorded(cancelled, 5)
	b.cancel(cancelled)
	b.ends(cancelled)
	for _, node := range query[string](b, "SELECT id FROM nodes WHERE dead_at IS NULL") {
		_, err = b.store.Share(ctx, node, []batch.Claim{
			{Upstream: "up0", Limit: batch.LimitCalls, Auto: true, Keeps: 5, Uses: 5, Wants: 50, Least: 1, Found: 16},
			{Upstream: "up0", Limit: batch.LimitRequests, Stated: 600, Wants: 100, Least: 1},
		}, sched.Divide)
		must(err)
		must(b.store.Tell(ctx, node, map[string]batch.Activity{cancelled: {InFlight: 3, Rate: 1.5, WaitingFor: "up0"}}))
	}
	must(b.store.DeleteFile(ctx, batch.DefaultProject, deleted))

	ending, long := b.run(chat(60)), b.run(chat(120, "m", "n"))
	unknown := b.run(chat(3, "unheard of")) // is refused
	b.ends(unknown)
	b.recorded(ending, 9)
	b.recorded(long, 60)
	once := b.batch(b.upload(chat(2)), 24*time.Hour)
	_, err = b.store.CreateBatchOnce(ctx, once, "again", sha256.Sum256([]byte("request")))
	must(err)
	b.look(once.ID)
	b.cancel(ending)
	f.die()
	b.run(chat(2, "m", "n")) // is left in validation
	p.die()
}

// part writes a blob that is reserved.
func (b *bench) part(text string) batch.Part {
	b.Helper()
	must := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	p := batch.Part{Key: blob.NewKey()}
	must(b.store.ReserveBlob(b.Context(), p.Key))
	w, err := b.blobs.Create(b.Context(), p.Key)
	must(err)
	fmt.Fprint(w, text)
	p.Bytes, err = w.Commit()
	must(err)
	return p
}

// bring brings an upload in two parts, and ends it as told.
func (b *bench) bring(status batch.UploadStatus) {
	b.Helper()
	must := func(err error) {
		if err != nil {
			b.Helper()
			b.Fatal(err)
		}
	}
	text := line("a", "m", "x") + line("b", "m", "y")
	n := int64(len(text))
	u, err := batch.NewUpload(batch.CreateUploadParams{
		Project: batch.DefaultProject, Filename: "big.jsonl", Purpose: batch.PurposeBatch, Bytes: &n, MIMEType: "text/jsonl",
	}, time.Now())
	must(err)
	must(b.store.CreateUpload(b.Context(), u))
	var ids []string
	for _, half := range []string{text[:n/2], text[n/2:]} {
		part := batch.NewUploadPart(u.ID, b.part(half), time.Now())
		must(b.store.AddPart(b.Context(), batch.DefaultProject, part))
		ids = append(ids, part.ID)
	}
	switch status {
	case batch.UploadCompleted:
		_, err = b.store.CompleteUpload(b.Context(), batch.DefaultProject, u.ID, batch.Completion{PartIDs: ids})
	case batch.UploadCancelled:
		_, err = b.store.CancelUpload(b.Context(), batch.DefaultProject, u.ID)
	}
	must(err)
}

// TestUpgrade takes over the data folder of every former version of the schema, from a server that
// died, and brings to an end what is in it.
func TestUpgrade(t *testing.T) {
	eachFixture(t, func(t *testing.T, folder string) {
		bubble(t, func(b *bench) {
			b.takeFixture(folder)
			b.examine()
			b.finishFixture()
			b.examine()
		})
	})
}

// TestMigrate moves the data folder of every version of the schema to PostgreSQL, where nodes bring to
// an end what is in it.
func TestMigrate(t *testing.T) {
	eachFixture(t, func(t *testing.T, path string) {
		dsn := storetest.Postgres(t)
		bubble(t, func(b *bench) {
			b.takeFixture(path)
			from := b.store
			node, err := from.Join(b.Context(), "the one that moves it")
			if err == nil {
				err = from.Leave(b.Context(), node)
			}
			if err != nil {
				b.Fatal(err)
			}
			b.storage = database{folder: b.storage.(folder), dsn: dsn}
			b.open()
			if err := from.CopyTo(b.Context(), b.store, func(int64, int64) {}); err != nil {
				b.Fatal(err)
			}
			from.Close()
			b.doctor = b.newDoctor()
			b.examine()
			b.finishFixture()
			b.examine()
		})
	})
}

func eachFixture(t *testing.T, f func(t *testing.T, folder string)) {
	t.Helper()
	aboutFolders(t)
	folders, err := filepath.Glob(filepath.Join(fixtures, "*"))
	if err != nil || len(folders) == 0 {
		t.Fatal(folders, err)
	}
	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) { f(t, folder) })
	}
}

// takeFixture puts a fixture in the place of the bench's folder.
func (b *bench) takeFixture(folder string) {
	b.Helper()
	b.store.Close()
	b.foreign = true // answers of a simulated upstream may have been others then
	if err := os.RemoveAll(filepath.Join(b.dir, "blobs")); err != nil {
		b.Fatal(err)
	}
	if err := os.Remove(filepath.Join(b.dir, "offpeak.db")); err != nil {
		b.Fatal(err)
	}
	if err := os.CopyFS(b.dir, os.DirFS(folder)); err != nil {
		b.Fatal(err)
	}
	time.Sleep(time.Hour - time.Minute) // the fixture's time began when ours did
	b.open()
}

// finishFixture has a server come to an end with what furnish left.
func (b *bench) finishFixture() {
	b.Helper()
	for _, id := range query[string](b, "SELECT id FROM batches") {
		b.look(id)
	}
	running := 0
	for _, x := range b.seen {
		if !x.Status.Terminal() {
			running++
		}
	}
	if running < 4 || len(b.seen) < 9 {
		b.Errorf("the fixture has %d batches, of which %d run", len(b.seen), running)
	}
	secret, err := os.ReadFile(filepath.Join(b.dir, "secret"))
	if err != nil {
		b.Fatal(err)
	}
	if project, err := b.store.Keys(true).Authenticate(b.Context(), string(secret), false); err != nil || project.Name != "other" || project.Weight != 2 {
		b.Errorf("the key opens %+v, %v", project, err)
	}
	b.upstream(sim.Config{Timing: sim.Timing{Latency: 2 * time.Second, Jitter: 0.5}}, upstream.Config{MaxInFlight: 8})
	p := b.start(small(8), func(c *engine.Config) { c.KeepDeleted = time.Minute })
	statuses := map[batch.Status]int{}
	for id := range b.seen {
		x := b.ends(id)
		statuses[x.Status]++
		if x.Status == batch.Completed && x.Counts.Total == 120 {
			b.want(x, batch.Completed, 120, 120, 0)
		}
	}
	if fmt.Sprint(statuses) != "map[cancelled:2 completed:4 expired:1 failed:2]" {
		b.Errorf("the batches have ended as %v", statuses)
	}
	time.Sleep(5 * time.Minute) // for sweeps
	p.drain()
}
