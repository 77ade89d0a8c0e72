package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"offpeak/internal/batch"
	"offpeak/internal/sched"
	"offpeak/internal/store"
	"offpeak/internal/store/storetest"
)

// nodesOn opens a PostgreSQL database as often as there are names, each as a node.
func nodesOn(t *testing.T, dsn string, names ...string) (stores []*store.Store, nodes []string) {
	t.Helper()
	for _, name := range names {
		s, err := store.Connect(t.Context(), dsn, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		node, err := s.Join(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		stores, nodes = append(stores, s), append(nodes, node)
	}
	return stores, nodes
}

// blocked waits until somebody waits for a lock in the database.
func blocked(t *testing.T, dsn string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.WithoutCancel(t.Context()))
	for n, start := 0, time.Now(); n == 0; {
		if time.Since(start) > 20*time.Second {
			t.Error("nobody waits for a lock")
			return
		}
		if err := c.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
}

func calls(upstream string, stated, keeps, wants int64) batch.Claim {
	return batch.Claim{Upstream: upstream, Limit: batch.LimitCalls, Stated: stated, Keeps: keeps, Uses: keeps, Wants: wants, Least: 1}
}

// TestLastSlots has two nodes ask for the last slots, the second while the first one's question is
// under way: it waits, and gets what the first one left. So it is for the first two ever to ask, and
// later.
func TestLastSlots(t *testing.T) {
	dsn := storetest.Postgres(t)
	s, node := nodesOn(t, dsn, "a", "b")
	for _, test := range []struct {
		what        string
		keeps       [2]int64
		first, then int64
	}{
		{"at first", [2]int64{0, 0}, 8, 0},
		{"with some in use", [2]int64{5, 0}, 5, 3},
		{"with both's in use", [2]int64{1, 3}, 4, 4},
	} {
		second := make(chan []batch.Grant, 1)
		first, err := s[0].Share(t.Context(), node[0], []batch.Claim{calls("up", 8, test.keeps[0], 9)}, func(d batch.Division) (batch.Grant, batch.Search) {
			go func() {
				g, err := s[1].Share(context.WithoutCancel(t.Context()), node[1], []batch.Claim{calls("up", 8, test.keeps[1], 9)}, sched.Divide)
				if err != nil {
					t.Error(err)
				}
				second <- g
			}()
			blocked(t, dsn) // and the first one's transaction goes on
			return sched.Divide(d)
		})
		if err != nil {
			t.Fatal(err)
		}
		g := <-second
		if len(g) != 1 || first[0].Holds != test.first || g[0].Holds != test.then || first[0].Holds+g[0].Holds > 8 {
			t.Errorf("%s: the first has %+v, the second %+v; want %d and %d", test.what, first, g, test.first, test.then)
		}
	}
}

// TestShareLostReply loses the answer to a question by which a node was granted less. As long as it
// does not know, nobody is granted what it may still use.
func TestShareLostReply(t *testing.T) {
	dsn := storetest.Postgres(t)
	s, node := nodesOn(t, dsn, "a", "b")
	lost := errors.New("lost")
	share := func(i int, keeps, wants int64) batch.Grant {
		g, err := s[i].Share(t.Context(), node[i], []batch.Claim{calls("up", 8, keeps, wants)}, sched.Divide)
		if err != nil {
			t.Fatal(err)
		}
		return g[0]
	}
	faulty, err := store.Connect(t.Context(), dsn, store.Options{Fault: func(string) (bool, error) { return true, lost }})
	if err != nil {
		t.Fatal(err)
	}
	defer faulty.Close()

	a := share(0, 0, 8) // a may use all
	if b := share(1, 0, 8); a.May != 8 || b.May != 0 {
		t.Fatalf("granted %+v and %+v", a, b)
	}
	if _, err := faulty.Share(t.Context(), node[0], []batch.Claim{calls("up", 8, a.May, 8)}, sched.Divide); !errors.Is(err, lost) {
		t.Fatal(err)
	}
	if b := share(1, 0, 8); b.May != 0 {
		t.Errorf("b may use %d, and a does not know yet that it may not use all", b.May)
	}
	a = share(0, a.May, 8)
	if a.May != 4 || a.Holds != 8 {
		t.Errorf("a is granted %+v, want to hold 8 and to use 4 from now on", a)
	}
	a = share(0, a.May, 8)
	if b := share(1, 0, 8); a.Holds != 4 || b.May != 4 {
		t.Errorf("a holds %d and b may use %d, want 4 and 4", a.Holds, b.May)
	}
}

// TestSharesInAnyOrder has nodes ask for several upstreams in different orders, all at once. Nobody
// waits for ever, and no limit is exceeded.
func TestSharesInAnyOrder(t *testing.T) {
	dsn := storetest.Postgres(t)
	s, node := nodesOn(t, dsn, "a", "b", "c")
	orders := [][]string{{"x", "y", "z"}, {"z", "y", "x"}, {"y", "z", "x"}}
	done := make(chan error)
	start := time.Now()
	for i := range s {
		go func() {
			done <- func() error {
				may := map[string]int64{}
				for n := range int64(30) {
					var claims []batch.Claim
					for _, name := range orders[i] {
						claims = append(claims, calls(name, 7, may[name], n%5))
					}
					grants, err := s[i].Share(t.Context(), node[i], claims, sched.Divide)
					if err != nil {
						return err
					}
					for _, g := range grants {
						may[g.Upstream] = g.May
					}
				}
				return nil
			}()
		}()
	}
	for range s {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Logf("90 questions in %v", time.Since(start))
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.WithoutCancel(t.Context()))
	var most int64
	if err := c.QueryRow(t.Context(), `SELECT max(n) FROM (SELECT sum(granted)::bigint AS n FROM grants GROUP BY upstream) x`).Scan(&most); err != nil {
		t.Fatal(err)
	}
	if most > 7 {
		t.Errorf("%d are granted of 7", most)
	}
	for _, s := range s { // they tell the statistics what befell them when they end
		s.Close()
	}
	var deadlocks int
	for others := 1; others > 0; {
		if err := c.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`).Scan(&others); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.QueryRow(t.Context(), `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`).Scan(&deadlocks); err != nil {
		t.Fatal(err)
	}
	if deadlocks > 0 {
		t.Errorf("%d times two nodes waited for each other", deadlocks)
	}
}
