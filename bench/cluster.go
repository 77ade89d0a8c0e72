package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"offpeak/internal/lab"
)

// cluster measures what more nodes are good for, at an upstream that takes as many calls per node
// and 200 ms for each, and what they cost PostgreSQL, which a synchronous standby follows.
func cluster(ctx context.Context, e *env) error {
	l, err := lab.New()
	if err != nil {
		return err
	}
	defer l.Close()
	pg, err := l.Postgres(true)
	if errors.Is(err, lab.ErrMissing) {
		fmt.Fprintf(e.out, "%12s└ not measured: %v\n", "", err)
		return nil
	}
	if err != nil {
		return err
	}
	s3, err := l.S3()
	if errors.Is(err, lab.ErrMissing) {
		fmt.Fprintf(e.out, "%12s└ not measured: %v\n", "", err)
		return nil
	}
	if err != nil {
		return err
	}
	for _, v := range lab.S3Env {
		name, value, _ := strings.Cut(v, "=")
		os.Setenv(name, value) // of the servers, which are our children
	}
	up, err := newStub(200*time.Millisecond, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	one := 0.0
	for n := 1; n <= 3; n++ {
		c := clustered{env: e, pg: pg, up: up, args: []string{"--database", lab.DSN(pg.Addrs...), "--blobs", lab.S3URL(s3.Addr)}}
		if err := c.measure(ctx, n, &one); err != nil {
			return fmt.Errorf("%d nodes: %w", n, err)
		}
	}
	return nil
}

// clustered is what nodes share.
type clustered struct {
	*env
	pg   *lab.Postgres
	up   *stub
	args []string
}

// measure measures n nodes, beside n times what one did.
func (c clustered) measure(ctx context.Context, n int, one *float64) error {
	const each = 128 // in flight
	in, err := c.chats(n*c.size(6_000, 40_000), 335)
	if err != nil {
		return err
	}
	var nodes []*server
	defer func() {
		for _, s := range nodes {
			s.stop()
		}
	}()
	for i := range n {
		s, err := c.serve(ctx, serving{upstream: c.up.url(), inFlight: n * each, args: append(c.args, "--node", fmt.Sprint("n", i+1))})
		if err != nil {
			return err
		}
		nodes = append(nodes, s)
	}
	file, err := nodes[0].upload(ctx, in.path)
	if err != nil {
		return err
	}
	time.Sleep(6 * time.Second) // a heartbeat: all know how many they are
	before, err := c.cost()
	if err != nil {
		return err
	}
	begun := time.Now()
	used, err := cpuOf(nodes)
	if err != nil {
		return err
	}
	r := c.up.expect(in.lines)
	id, err := nodes[0].create(ctx, file, in.endpoint)
	if err != nil {
		return err
	}
	select { // and nobody asks for the batch meanwhile, which would be transactions, too
	case <-r.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if _, err := nodes[0].await(ctx, id, "completed", 20*time.Millisecond); err != nil {
		return err
	}
	took := time.Since(begun).Seconds()
	total, err := cpuOf(nodes)
	if err != nil {
		return err
	}
	after, err := c.cost()
	if err != nil {
		return err
	}
	if came := r.came.Load(); came != r.want {
		return fmt.Errorf("%d requests were sent of %d", came, r.want)
	}
	if n == 1 {
		*one = r.rate()
	}
	name := fmt.Sprintf("%s lines, 200 ms, %d in flight, %s", number(float64(in.lines)), n*each, plural(n, "node"))
	ideal := float64(n*each) / c.up.delay.Seconds()
	c.report(figure{Case: name, Unit: "requests/s", Measured: r.rate(), Reference: ideal, Against: "in flight ÷ 200 ms", Ratio: r.rate() / ideal},
		ratioOf(0.9, "beginning and end count too, when not every slot is filled"))
	if n > 1 {
		c.report(figure{Case: name, Unit: "requests/s", Measured: r.rate(), Reference: *one, Against: "of one node", Ratio: r.rate() / *one},
			ratioOf(0.85*float64(n), "all of them share this machine with their database, S3 and the upstream"))
	}
	thousands := float64(in.lines) / 1000
	c.report(figure{Case: name, Unit: "CPU-s/10k", Measured: perTenThousand(total-used, in.lines)}, goal{})
	c.report(figure{Case: name, Unit: "transactions/1k", Measured: (after.commits - before.commits) / thousands}, goal{})
	c.report(figure{Case: name, Unit: "KB of WAL/1k", Measured: (after.wal - before.wal) / 1000 / thousands}, goal{})
	c.report(figure{Case: name, Unit: "transactions/s/node", Measured: (after.commits - before.commits) / took / float64(n)},
		atMost(100, "tens of small ones are meant"))
	return nil
}

// cpuOf is what the nodes have used of the processors until now.
func cpuOf(nodes []*server) (sum time.Duration, err error) {
	for _, s := range nodes {
		d, err := s.cpu()
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// plural counts things.
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// A cost is what PostgreSQL has done until now.
type cost struct{ commits, wal float64 }

func (c clustered) cost() (cost, error) {
	time.Sleep(1200 * time.Millisecond) // what connections did is told once a second
	text, err := c.pg.Query(`SELECT xact_commit, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') FROM pg_stat_database WHERE datname = 'offpeak'`)
	if err != nil {
		return cost{}, err
	}
	commits, wal, _ := strings.Cut(text, "|")
	var k cost
	if k.commits, err = strconv.ParseFloat(commits, 64); err == nil {
		k.wal, err = strconv.ParseFloat(wal, 64)
	}
	return k, err
}
