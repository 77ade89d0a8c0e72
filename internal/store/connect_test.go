package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/store"
	"offpeak/internal/store/pgtest"
	"offpeak/internal/store/storetest"
)

// connect connects to the database, for as long as the test lasts or until it is closed.
func connect(t *testing.T, dsn string) *store.Store {
	t.Helper()
	s, err := store.Connect(t.Context(), dsn, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestFirstConnectedAtOnce makes several nodes the first to come to an empty database, all of them.
func TestFirstConnectedAtOnce(t *testing.T) {
	for range 3 {
		dsn := pgtest.Empty(t)
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				s, err := store.Connect(t.Context(), dsn, store.Options{})
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				if projects, err := s.Projects(t.Context()); err != nil || len(projects) != 1 {
					t.Errorf("Projects() = %v, %v", projects, err)
				}
			})
		}
		wg.Wait()
	}
}

// TestUnfitPostgres refuses servers and databases that would not keep what they are given, and says
// what to do.
func TestUnfitPostgres(t *testing.T) {
	for _, test := range []struct {
		name, want string
		dsn        func(t *testing.T) string
	}{
		{"synchronous_commit", "synchronous_commit is off on this server: what is acknowledged would not be on the disk: set it", func(t *testing.T) string {
			dsn := storetest.Postgres(t)
			run(t, dsn, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$`)
			return dsn
		}},
		{"encoding", "server_encoding is SQL_ASCII on this server: make the database with ENCODING 'UTF8'", func(t *testing.T) string {
			return pgtest.Empty(t, "ENCODING 'SQL_ASCII' TEMPLATE template0")
		}},
		{"newer schema", "the schema has version 99999", func(t *testing.T) string {
			dsn := storetest.Postgres(t)
			run(t, dsn, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, true)`)
			return dsn
		}},
		{"read-only", "read only connection", func(t *testing.T) string {
			dsn := storetest.Postgres(t)
			run(t, dsn, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`)
			return dsn
		}},
		{"no database", "a / in a password is written %2F", func(t *testing.T) string { return "postgres://u:1/geheim@127.0.0.1:1/x" }},
		{"no host", "in a password that is written %40", func(t *testing.T) string { return "postgres://u:x@geheim@127.0.0.1:1/x" }},
		{"nobody there", "connection refused", func(t *testing.T) string {
			return "postgres://u:geheim@127.0.0.1:1/x"
		}},
		{"no DSN", "cannot parse", func(t *testing.T) string { return "postgres://u:geheim@%zz/x" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := store.Connect(t.Context(), test.dsn(t), store.Options{})
			if err == nil {
				s.Close()
				t.Fatal("it connects")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q, want %q in it", err, test.want)
			}
			if strings.Contains(err.Error(), "geheim") {
				t.Errorf("error %q tells the password", err)
			}
		})
	}
}

// run runs a statement on the database.
func run(t *testing.T, dsn, query string) {
	t.Helper()
	if _, err := raw(t, dsn).Exec(query); err != nil {
		t.Fatal(err)
	}
}

// TestSilentPostgres: a server that says nothing any more is given up in a bounded time, by who
// reads, who writes, and who waits for a commit. What comes after finds the server that is there.
func TestSilentPostgres(t *testing.T) {
	dsn := storetest.Postgres(t)
	line := newLine(t, pgtest.Get(t).Addr())
	s, err := store.ConnectImpatiently(t.Context(), line.through(pgtest.Get(t).TCP(dsn)), 300*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	read := func() error { _, err := s.Projects(t.Context()); return err }
	n := 0
	write := func() error { n++; return s.ReserveBlob(t.Context(), fmt.Sprint("key", n)) }
	for _, call := range []struct {
		name string
		do   func() error
	}{{"read", read}, {"write", write}} {
		if err := call.do(); err != nil {
			t.Fatalf("%s: %v", call.name, err)
		}
		line.silence(true)
		start := time.Now()
		err := call.do()
		if !store.Away(err) {
			t.Errorf("%s of a silent server ends with %v", call.name, err)
		}
		if took := time.Since(start); took > 5*time.Second { // a few connections, each in its time
			t.Errorf("%s of a silent server takes %v", call.name, took)
		}
		line.silence(false)
		if err := call.do(); err != nil {
			t.Errorf("%s of a server that is back: %v", call.name, err)
		}
	}
}

// TestHeartbeatFindsPrimary: where several hosts say nothing, a heartbeat reaches the one that does before
// it is given up, whatever the DSN says of patience.
func TestHeartbeatFindsPrimary(t *testing.T) {
	dsn := pgtest.Get(t).TCP(storetest.Postgres(t))
	var silent []string
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		silent = append(silent, l.Addr().String())
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("connect_timeout", "10")
	u.Host, u.RawQuery = u.Host+","+strings.Join(silent, ","), q.Encode() // the server first, so that there is a store soon
	s, err := store.Connect(t.Context(), u.String(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	node, err := s.Join(t.Context(), "node")
	if err != nil {
		t.Fatal(err)
	}
	u.Host = strings.Join(silent, ",") + "," + strings.Split(u.Host, ",")[0]
	beat, err := store.ConnectLazily(u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer beat.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // as the engine has it
	defer cancel()
	if _, err := beat.Heartbeat(ctx, node); err != nil {
		t.Errorf("a heartbeat does not find the server behind %d that say nothing: %v", len(silent), err)
	}
}

// TestCutPostgres: connections that were cut while they were idle are nobody's concern.
func TestCutPostgres(t *testing.T) {
	dsn := storetest.Postgres(t)
	s := connect(t, dsn)
	for i := range 3 {
		if err := s.ReserveBlob(t.Context(), fmt.Sprint("key", i)); err != nil {
			t.Errorf("after its connections were cut: %v", err)
		}
		run(t, dsn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
	}
}

// TestVanishedInTransaction: what a client holds that has vanished in the middle of a transaction is free
// before others lose their patience. It is told if it comes back.
func TestVanishedInTransaction(t *testing.T) {
	dsn := storetest.Postgres(t)
	holds, back := make(chan struct{}), make(chan struct{})
	var writes atomic.Bool
	vanished, err := store.ConnectGatedFor(t.Context(), dsn, store.Options{}, 200*time.Millisecond, func(query string) error {
		if query == "COMMIT" && writes.CompareAndSwap(true, false) {
			close(holds)
			<-back
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer vanished.Close()
	create := func(s *store.Store) error { _, err := s.CreateProject(t.Context(), "team", 1); return err }
	writes.Store(true)
	ended := make(chan error, 1)
	go func() { ended <- create(vanished) }()
	<-holds
	if err := create(connect(t, dsn)); err != nil {
		t.Errorf("a write to what a client holds that has vanished: %v", err)
	}
	close(back)
	// Unless it could not even send the commit: then it has tried again, and found what there is.
	if err := <-ended; !store.Away(err) && batch.KindOf(err) != batch.Conflict {
		t.Errorf("the client that was away for too long is told %v", err)
	}
	if err := create(vanished); batch.KindOf(err) != batch.Conflict {
		t.Errorf("on a new connection: %v, want a conflict with what is there", err)
	}
}

// TestDemoted: of a connection that comes out at a standby, which behind a pooler is no news to it, one
// write fails. The next one is made on a new connection.
func TestDemoted(t *testing.T) {
	dsn := storetest.Postgres(t)
	s := connect(t, dsn)
	if err := s.ReserveBlob(t.Context(), "before"); err != nil {
		t.Fatal(err)
	}
	// To those who are connected now, the server says what a standby does.
	run(t, dsn, `CREATE TABLE demoted AS SELECT pid FROM pg_stat_activity WHERE datname = current_database();
		CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF EXISTS (SELECT 1 FROM demoted WHERE pid = pg_backend_pid()) THEN
				RAISE 'cannot execute INSERT in a read-only transaction' USING ERRCODE = 'read_only_sql_transaction';
			END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER refuse BEFORE INSERT ON blobs FOR EACH ROW EXECUTE FUNCTION refuse()`)
	if err := s.ReserveBlob(t.Context(), "demoted"); !store.Away(err) {
		t.Errorf("a write to a standby ends with %v", err)
	}
	if err := s.ReserveBlob(t.Context(), "after"); err != nil {
		t.Errorf("the write after: %v", err)
	}
}

// TestAstray: a standby refuses already that a transaction begins which may write. Nobody notices: it is
// begun on a new connection.
func TestAstray(t *testing.T) {
	primary := pgtest.Start(t)
	connect(t, hosts(primary)).Close() // which makes the schema
	s, err := store.ConnectAstray(t.Context(), hosts(primary), hosts(primary.Standby(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 2 {
		if err := s.ReserveBlob(t.Context(), fmt.Sprint("key", i)); err != nil {
			t.Errorf("a write: %v; Away says %v", err, store.Away(err))
		}
	}
}

// TestDescribe: what people may see of a DSN tells no password, wherever that stands.
func TestDescribe(t *testing.T) {
	for _, test := range []struct{ env, dsn, want string }{
		{"", "postgres://u:geheim@h:1/d", "postgres://u@h:1/d"},
		{"", "postgresql://u:geheim@h:1/d?sslmode=disable", "postgres://u@h:1/d"},
		{"", "postgres://u:ge%68eim@h:1/d", "postgres://u@h:1/d"},
		{"", "postgres://u:geheim@h:1,i:2/d", "postgres://u@h:1,i:2/d"},
		{"", "postgres://u:geheim@[::1]:1/d", "postgres://u@[::1]:1/d"},
		{"", "postgres://h:1/d?user=u&password=geheim", "postgres://u@h:1/d"},
		{"", "postgres:///d?host=/tmp&port=1&user=u&password=geheim", "postgres://u@/tmp:1/d"},
		{"", "host=h port=1 user=u password=geheim dbname=d", "postgres://u@h:1/d"},
		{"", `password = 'x \' geheim' host=h,i port=1,2 user=u dbname=d`, "postgres://u@h:1,i:2/d"},
		{"geheim", "postgres://u@h:1/d", "postgres://u@h:1/d"},
		{"geheim", "host=h port=1 user=u dbname=d", "postgres://u@h:1/d"},
		{"", "postgres://u:geheim@%zz/d", "postgres://…"},
		{"", "postgres://u:x/geheim@h/d", "postgres://…"},
		{"", "postgres://u:1/geheim@h/d", "postgres://…"},
		{"", "postgres://u:x@geheim@h:1/d", "postgres://…"},
		{"", "host=h port=none user=u password=geheim", "postgres://…"},
		{"", "geheim", "postgres://…"},
	} {
		t.Setenv("PGPASSWORD", test.env)
		if got := store.Describe(test.dsn); got != test.want {
			t.Errorf("PGPASSWORD=%s: Describe(%q) = %q, want %q", test.env, test.dsn, got, test.want)
		}
	}
}

// synchronous starts a primary, and a standby that each of its commits waits for.
func synchronous(t *testing.T) (primary, standby *pgtest.Server) {
	t.Helper()
	primary = pgtest.Start(t)
	standby = primary.Standby(t)
	run(t, hosts(primary), `ALTER SYSTEM SET synchronous_standby_names = 'standby'`)
	run(t, hosts(primary), `SELECT pg_reload_conf()`)
	for sync, db := false, raw(t, hosts(primary)); !sync; {
		if err := db.QueryRow(`SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'`).Scan(&sync); err != nil {
			t.Fatal(err)
		}
	}
	run(t, hosts(primary), `CHECKPOINT`) // by the process that tells others to wait for standbys, once it has read the settings
	return primary, standby
}

// hosts returns a DSN of several servers.
func hosts(servers ...*pgtest.Server) string {
	addrs := make([]string, len(servers))
	for i, s := range servers {
		addrs[i] = s.Addr()
	}
	return "postgres://postgres@" + strings.Join(addrs, ",") + "/postgres"
}

// TestStandbyStandsStill: what is not on the standby is not committed, even where somebody has lost
// patience with it.
func TestStandbyStandsStill(t *testing.T) {
	primary, standby := synchronous(t)
	storetest.Standby(t, storetest.Database{
		Open: func(o store.Options) (*store.Store, error) { return store.Connect(t.Context(), hosts(primary), o) },
	}, func(still bool) {
		if still {
			standby.Stop(t)
		} else {
			standby.Continue(t)
		}
	})
}

// TestPrimaryLost kills a primary that a synchronous standby follows. A store that was told of both
// goes on with the standby as soon as that is promoted, and misses nothing that was acknowledged.
func TestPrimaryLost(t *testing.T) {
	primary, standby := synchronous(t)
	dsn := hosts
	if s, err := store.Connect(t.Context(), dsn(standby), store.Options{}); err == nil {
		s.Close()
		t.Fatal("it connects to a standby")
	}
	s := connect(t, dsn(standby, primary))
	var kept []string
	write := func(i int) error {
		p, err := s.CreateProject(t.Context(), fmt.Sprint("p", i), 1)
		if err == nil {
			kept = append(kept, p.Name)
		}
		return err
	}
	for i := range 20 {
		if err := write(i); err != nil {
			t.Fatal(err)
		}
	}
	primary.Kill(t)
	if err := write(20); !store.Away(err) {
		t.Errorf("without a primary a write ends with %v", err)
	}
	standby.Promote(t)
	start := time.Now()
	for i := 21; ; i++ {
		err := write(i)
		if err == nil {
			break
		}
		if time.Since(start) > 10*time.Second || !store.Away(err) {
			t.Fatal(err)
		}
	}
	projects, err := s.Projects(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, p := range projects {
		there[p.Name] = true
	}
	for _, name := range kept {
		if !there[name] {
			t.Errorf("project %s was acknowledged, and is gone", name)
		}
	}
}

// TestStandbyMissing: while the synchronous standby is away nothing is acknowledged, and no limit of
// ours makes the server say otherwise.
func TestStandbyMissing(t *testing.T) {
	server := pgtest.Start(t)
	s, err := store.ConnectImpatiently(t.Context(), server.DSN("postgres"), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	run(t, server.DSN("postgres"), `ALTER SYSTEM SET synchronous_standby_names = 'standby'`)
	run(t, server.DSN("postgres"), `SELECT pg_reload_conf()`)
	db := raw(t, server.DSN("postgres"))
	// Who waits for a standby goes by what the checkpointer has made of the setting, and that shows in no other way.
	start := time.Now()
	for i := 0; err == nil && time.Since(start) < 30*time.Second; i++ {
		err = s.ReserveBlob(t.Context(), fmt.Sprint("a", i))
	}
	if !errors.Is(err, store.ErrSilent) || !store.Away(err) {
		t.Errorf("a write without the standby: %v, want %v", err, store.ErrSilent)
	}
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, query := range []string{store.Begin(50 * time.Millisecond), `INSERT INTO blobs (key, created_at) VALUES ('b', 1)`} {
		if _, err := c.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.ExecContext(ctx, "COMMIT"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a commit that waits for the standby ends with %v", err)
	}
	// For the clean-up, which commits, too.
	run(t, server.DSN("postgres"), `ALTER SYSTEM RESET synchronous_standby_names`)
	run(t, server.DSN("postgres"), `SELECT pg_reload_conf()`)
}

// TestPostgresStopped: a server that is there and does not answer is given up in time, and found again.
func TestPostgresStopped(t *testing.T) {
	server := pgtest.Start(t)
	s, err := store.ConnectImpatiently(t.Context(), server.DSN("postgres"), 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	server.Stop(t)
	start := time.Now()
	if err := s.ReserveBlob(t.Context(), "a"); !store.Away(err) {
		t.Errorf("a write to a server that is stopped ends with %v", err)
	}
	if err := s.Ping(t.Context()); err == nil {
		t.Error("a server that is stopped answers")
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("given up after %v", took)
	}
	server.Continue(t)
	if err := s.ReserveBlob(t.Context(), "b"); err != nil {
		t.Errorf("a server that goes on: %v", err)
	}
}

// TestNotDurablePostgres refuses a server that does not write what it acknowledges.
func TestNotDurablePostgres(t *testing.T) {
	s, err := store.Connect(t.Context(), pgtest.Start(t, "fsync=off").DSN("postgres"), store.Options{})
	if err == nil {
		s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "fsync is off on this server: what is acknowledged would not survive a crash: set it to on") {
		t.Errorf("Connect() = %v", err)
	}
}

// TestAskedInVain: a caller that goes away ends what it asked for, and no other.
func TestAskedInVain(t *testing.T) {
	s := connect(t, storetest.Postgres(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Batch(ctx, batch.DefaultProject, "batch_x"); !errors.Is(err, context.Canceled) {
		t.Errorf("Batch() = %v, want %v", err, context.Canceled)
	}
	if _, err := s.Batch(t.Context(), batch.DefaultProject, "batch_x"); batch.KindOf(err) != batch.NotFound {
		t.Errorf("Batch() = %v, want not found", err)
	}
}

// A line carries connections to an address, until it is silent.
type line struct {
	l net.Listener

	mu     sync.Mutex
	silent chan struct{} // closed while nothing is carried
	conns  []net.Conn
}

func newLine(t *testing.T, to string) *line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &line{l: l, silent: make(chan struct{})}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		n.mu.Lock()
		for _, c := range n.conns {
			c.Close()
		}
		n.mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			n.mu.Lock()
			n.conns = append(n.conns, in, out)
			n.mu.Unlock()
			wg.Go(func() { n.carry(out, in) })
			wg.Go(func() { n.carry(in, out) })
		}
	})
	return n
}

// carry copies what comes while the line is not silent, and drops the rest.
func (n *line) carry(to, from net.Conn) {
	defer to.Close()
	io.Copy(writerFunc(func(p []byte) (int, error) {
		n.mu.Lock()
		silent := n.silent
		n.mu.Unlock()
		select {
		case <-silent:
			return len(p), nil
		default:
			return to.Write(p)
		}
	}), from)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// silence lets nothing through any more, or, of new connections, everything.
func (n *line) silence(silent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if silent {
		close(n.silent)
		return
	}
	n.silent = make(chan struct{})
	for _, c := range n.conns { // they have lost bytes
		c.Close()
	}
	n.conns = nil
}

// through is the DSN by way of the line.
func (n *line) through(dsn string) string {
	return strings.Replace(dsn, pgtestAddr(dsn), n.l.Addr().String(), 1)
}

// pgtestAddr is the host and port of a DSN.
func pgtestAddr(dsn string) string {
	_, rest, _ := strings.Cut(dsn, "@")
	addr, _, _ := strings.Cut(rest, "/")
	return addr
}
