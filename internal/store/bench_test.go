package store_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/store"
	"offpeak/internal/store/storetest"
)

// BenchmarkJournal records results in groups as large as an engine's at full speed, 100 of 80
// incompressible bytes each, of four segments in a transaction, and seals segments of 1,000. An
// operation is one result.
//
//	go test ./internal/store -bench Journal -benchtime 1000000x -run -
//
// For PostgreSQL it tells how large the table of the journal has become, with Store.Vacuum every
// three seconds and with autovacuum alone.
func BenchmarkJournal(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) {
		s, err := store.Open(b.Context(), b.TempDir(), store.Options{})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		journal(b, s, 0)
	})
	for _, every := range []time.Duration{3 * time.Second, 0} {
		name := "postgres, autovacuum alone"
		if every > 0 {
			name = "postgres, vacuum every " + every.String()
		}
		b.Run(name, func(b *testing.B) {
			dsn := storetest.Postgres(b)
			s, err := store.Connect(b.Context(), dsn, store.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			db := raw(b, dsn)
			measure := func() (size, wal int64) {
				if err := db.QueryRow(`SELECT pg_total_relation_size('journal'), pg_current_wal_lsn() - '0/0'`).Scan(&size, &wal); err != nil {
					b.Fatal(err)
				}
				return size, wal
			}
			_, before := measure()
			journal(b, s, every)
			size, after := measure()
			b.ReportMetric(float64(size)/(1<<20), "MB-journal")
			b.ReportMetric(float64(after-before)/float64(b.N), "WAL-B/op")
		})
	}
}

func journal(b *testing.B, s *store.Store, every time.Duration) {
	const perGroup, perSegment, atOnce = 100, 1000, 4
	ctx := b.Context()
	node, err := s.Join(ctx, "n")
	if err != nil {
		b.Fatal(err)
	}
	key := blob.NewKey()
	if err := s.ReserveBlob(ctx, key); err != nil {
		b.Fatal(err)
	}
	f := batch.File{ID: batch.NewFileID(), Project: batch.DefaultProject, Purpose: batch.PurposeBatch, Filename: "in.jsonl",
		CreatedAt: time.Now(), Parts: []batch.Part{{Key: key, Bytes: 1}}}
	if err := s.CreateFile(ctx, f); err != nil {
		b.Fatal(err)
	}
	made, err := batch.New(batch.CreateParams{Project: batch.DefaultProject, InputFileID: f.ID, Endpoint: "/v1/embeddings", CompletionWindow: "24h"}, batch.Policy{}, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	if err := s.CreateBatch(ctx, made); err != nil {
		b.Fatal(err)
	}
	a, err := s.ClaimValidating(ctx, node)
	if err != nil {
		b.Fatal(err)
	}
	lane := batch.Lane{Model: "m", Endpoint: made.Endpoint}
	var segments []batch.Segment
	for i := range b.N/perSegment + atOnce {
		segments = append(segments, batch.Segment{Lane: lane, Offset: int64(i), Length: 1, FirstLine: 1, Total: perSegment})
	}
	if err := s.Admit(ctx, *a, "m", segments); err != nil {
		b.Fatal(err)
	}
	data := make([]byte, perGroup*80)
	rand.NewChaCha8([32]byte{1}).Read(data)

	b.ResetTimer()
	vacuumed := time.Now()
	for done := 0; done < b.N; {
		var groups []batch.Group
		for range atOnce {
			l, err := s.Claim(ctx, node, batch.Work{BatchID: made.ID, Lane: lane})
			if err != nil || l == nil {
				b.Fatal(l, err)
			}
			groups = append(groups, batch.Group{Lease: *l, Data: data})
		}
		for range perSegment / perGroup {
			for i := range groups {
				groups[i].Tally.Completed += perGroup
			}
			if lost, err := s.Record(ctx, groups); err != nil || len(lost) > 0 {
				b.Fatal(lost, err)
			}
			for i := range groups {
				groups[i].Lease.Seq++
			}
			done += atOnce * perGroup
		}
		for _, g := range groups {
			out := batch.Part{Key: fmt.Sprint("out", g.Lease.ID), Bytes: 1}
			if err := s.ReserveBlob(ctx, out.Key); err != nil {
				b.Fatal(err)
			}
			if _, err := s.Seal(ctx, g.Lease, out, batch.Part{}); err != nil {
				b.Fatal(err)
			}
		}
		if every > 0 && time.Since(vacuumed) > every {
			if err := s.Vacuum(ctx); err != nil {
				b.Fatal(err)
			}
			vacuumed = time.Now()
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "results/s")
}
