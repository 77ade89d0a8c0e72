package main

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	_ "modernc.org/sqlite" // to put a million batches on record
)

// lists measures how long it takes to read batches with a million on record, asked for a thousand
// times a second while a batch runs. A request that is late counts from when it was due.
func lists(ctx context.Context, e *env) error {
	const onRecord, perSecond = 1_000_000, 1000
	up, err := newStub(50*time.Millisecond, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	s, err := e.serve(ctx, serving{upstream: up.url()}) // makes the database
	if err != nil {
		return err
	}
	s.stop()
	if err := record(ctx, s.data, onRecord); err != nil {
		return fmt.Errorf("put batches on record: %w", err)
	}
	if s, err = e.serve(ctx, serving{upstream: up.url(), inFlight: 256, data: s.data}); err != nil {
		return err
	}
	defer s.stop()
	in, err := e.chats(1_000_000, 120)
	if err != nil {
		return err
	}
	file, err := s.upload(ctx, in.path)
	if err != nil {
		return err
	}
	r := up.expect(in.lines)
	if _, err := s.create(ctx, file, in.endpoint); err != nil {
		return err
	}
	for r.answered.Load() == 0 {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	seconds := time.Duration(e.size(5, 30)) * time.Second
	const page = 20 // as many as by default
	for _, ask := range []struct{ what, path string }{
		{"one batch", "/v1/batches/" + recorded(onRecord/2)},
		{"page 1", "/v1/batches"},
		{"page 10,000", "/v1/batches?after=" + recorded(onRecord-9_999*page)},
	} {
		began, answered := time.Now(), r.answered.Load()
		before, err := s.cpu()
		if err != nil {
			return err
		}
		took, err := s.ask(ctx, ask.path, perSecond, seconds)
		if err != nil {
			return err
		}
		after, err := s.cpu()
		if err != nil {
			return err
		}
		busy := float64(r.answered.Load()-answered) / time.Since(began).Seconds()
		e.report(figure{Case: fmt.Sprintf("%s, p99; %s requests/s run", ask.what, number(busy)), Unit: "ms", Measured: quantile(took, 0.99)},
			atMost(10, "the server, its upstream and whoever asks share the cores: it waits for one of them"))
		e.report(figure{Case: ask.what + ", CPU of it and what runs", Unit: "ms", Measured: milliseconds(after-before) / float64(len(took))}, goal{})
	}
	return nil
}

// recorded is the id of the n-th batch that record makes, from 1.
func recorded(n int) string { return fmt.Sprintf("batch_%032x", n) }

// record puts n completed batches on record, one a second, the last a day ago. Doing that by the API would
// take an hour.
func record(ctx context.Context, data string, n int) error {
	db, err := sql.Open("sqlite", filepath.Join(data, "offpeak.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	last := time.Now().Add(-24 * time.Hour).UnixMilli()
	_, err = db.ExecContext(ctx, `INSERT INTO batches (id, project_id, endpoint, model, input_file_id, output_file_id, error_file_id,
			output_expires_after, completion_window, metadata, status, ending, total, completed,
			input_tokens, output_tokens, total_tokens, created_at, expires_at, in_progress_at, finalizing_at, completed_at)
		WITH RECURSIVE made(i, at) AS (SELECT 1, $1 - 1000 * ($2 - 1) UNION ALL SELECT i + 1, at + 1000 FROM made WHERE i < $2)
		SELECT printf('batch_%032x', i), 'proj_default', '/v1/chat/completions', 'm', printf('file-%022x', i), printf('file-%021xo', i),
			printf('file-%021xe', i), 2592000000, '24h', '{"n":"' || i || '"}', 'completed', 'completed', 100, 100,
			3100, 1800, 4900, at, at + 86400000, at + 100, at + 900, at + 1000 FROM made`, last, n)
	return err
}

// ask sends the same GET so many times a second for a while and returns how many milliseconds each
// took from when it was due.
func (c client) ask(ctx context.Context, path string, perSecond int, during time.Duration) (took []float64, err error) {
	const connections = 64
	c = newClient(c.base, connections)
	defer c.http.CloseIdleConnections()
	due := make(chan time.Time, perSecond)
	var mu sync.Mutex // guards took and err
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			for at := range due {
				failed := c.get(ctx, path, nil)
				end := time.Now()
				mu.Lock()
				if failed != nil {
					err = failed
				}
				took = append(took, milliseconds(end.Sub(at)))
				mu.Unlock()
			}
		})
	}
	start := time.Now()
	for i := range int(during.Seconds() * float64(perSecond)) {
		at := start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
		time.Sleep(time.Until(at))
		due <- at
	}
	close(due)
	wg.Wait()
	return took, err
}
