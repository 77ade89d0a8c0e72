package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"offpeak/internal/lab"
)

// databases compares the same batches on SQLite and on PostgreSQL, and measures what is left of the
// journal in either when many results have gone through it.
func databases(ctx context.Context, e *env) error {
	l, err := lab.NewIn(os.TempDir()) // on the disk that SQLite is on
	if err != nil {
		return err
	}
	defer l.Close()
	pg, err := l.Postgres(false)
	if errors.Is(err, lab.ErrMissing) {
		fmt.Fprintf(e.out, "%12s└ not measured: %v\n", "", err)
		return nil
	}
	if err != nil {
		return err
	}
	in, err := e.chats(50_000, 335)
	if err != nil {
		return err
	}
	up, err := newStub(0, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	lite, err := e.kept(ctx, up, in)
	if err != nil {
		return err
	}
	defer lite.stop()
	post, err := e.kept(ctx, up, in, "--database", lab.DSN(pg.Addrs...), "--blobs", e.path("blobs"))
	if err != nil {
		return err
	}
	defer post.stop()
	results := e.size(300_000, 3_000_000)
	for range max(e.reps, results/in.lines) {
		if err := lite.run(ctx, e, up, in); err != nil {
			return err
		}
		if err := post.run(ctx, e, up, in); err != nil {
			return err
		}
	}
	is := fmt.Sprintf("PostgreSQL, %s lines, 256 in flight", number(float64(in.lines)))
	a, b := medianOf(post.samples, rate), medianOf(lite.samples, rate)
	e.report(figure{Case: is, Unit: "requests/s", Measured: a, Reference: b, Against: "SQLite", Ratio: a / b},
		ratioOf(0.9, "PostgreSQL's own processes take a third of what the server does, which takes the same on both, and share its cores"))
	a, b = medianOf(post.samples, cpu), medianOf(lite.samples, cpu)
	e.report(figure{Case: is + ", CPU", Unit: "s/10,000", Measured: a, Reference: b, Against: "SQLite", Ratio: a / b}, goal{})
	is = fmt.Sprintf("after %s results", number(float64(results)))
	e.report(figure{Case: "SQLite, " + is, Unit: "MB", Measured: megabytes(lite.databaseSize())}, atMost(64, ""))
	text, err := pg.Query("SELECT pg_database_size('offpeak')") // its log apart, which PostgreSQL bounds by itself
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return err
	}
	e.report(figure{Case: "PostgreSQL, " + is, Unit: "MB", Measured: megabytes(size)}, atMost(64, "rows of the journal are deleted and vacuumed every few seconds, not at once"))
	return nil
}

// A keeper is a server with a database of some kind, and what came of its batches.
type keeper struct {
	*server
	file    string
	samples []sample
}

func (e *env) kept(ctx context.Context, up *stub, in input, args ...string) (*keeper, error) {
	s, err := e.serve(ctx, serving{upstream: up.url(), inFlight: 256, args: args})
	if err != nil {
		return nil, err
	}
	file, err := s.upload(ctx, in.path)
	if err != nil {
		s.stop()
		return nil, err
	}
	return &keeper{server: s, file: file}, nil
}

func (k *keeper) run(ctx context.Context, e *env, up *stub, in input) error {
	x, err := e.batch(ctx, k.server, up, in, k.file)
	k.samples = append(k.samples, x)
	return err
}
