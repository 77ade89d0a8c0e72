package api

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"unicode/utf8"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

// A newBatch is what a client asks for with POST /v1/batches.
type newBatch struct {
	batch.CreateParams
	once string // its Idempotency-Key, if any
}

// idempotencyKey is the header that names a request for good; profile openai does not know it
// (contract §20).
const idempotencyKey, maxIdempotencyKey = "Idempotency-Key", 512

// createBatch answers as soon as the batch is recorded; its input is checked afterwards (contract
// S-01).
func (s *server) createBatch(ctx context.Context, p batch.Project, in newBatch) (openai.Batch, error) {
	in.Project = p.ID
	b, err := batch.New(in.CreateParams, s.Policy, s.Now())
	if err != nil {
		return openai.Batch{}, err
	}
	if in.once == "" || s.Policy.Profile == batch.ProfileOpenAI {
		err = s.Store.CreateBatch(ctx, b)
	} else if n := utf8.RuneCountInString(in.once); n > maxIdempotencyKey {
		err = batch.TooLong(idempotencyKey, maxIdempotencyKey, n)
	} else {
		b, err = s.Store.CreateBatchOnce(ctx, b, in.once, in.hash())
	}
	if err != nil {
		return openai.Batch{}, err
	}
	s.Wake()
	return s.batchObject(b), nil
}

// hash tells requests apart: those with equal parameters are the same, however they are written.
func (n newBatch) hash() [sha256.Size]byte {
	text, _ := json.Marshal(n.CreateParams) // of strings and numbers: it cannot fail
	return sha256.Sum256(text)
}

func (s *server) listBatches(ctx context.Context, p batch.Project, q batch.BatchQuery) (openai.List[openai.Batch], error) {
	if q.Limit == 0 { // allowed, and always an empty page (contract L-02)
		return openai.NewList[openai.Batch](nil, batchID, false), nil
	}
	batches, more, err := s.Store.ListBatches(ctx, p.ID, q)
	if err != nil {
		return openai.List[openai.Batch]{}, err
	}
	return openai.NewList(wireAll(batches, s.batchObject), batchID, more), nil
}

func (s *server) batch(ctx context.Context, p batch.Project, id string) (openai.Batch, error) {
	b, err := s.Store.Batch(ctx, p.ID, id)
	if err != nil {
		return openai.Batch{}, err
	}
	return s.batchObject(b), nil
}

// cancelBatch records the wish and answers; whoever runs the batch sees to the rest (contract
// CA-03).
func (s *server) cancelBatch(ctx context.Context, p batch.Project, id string) (openai.Batch, error) {
	b, err := s.Store.CancelBatch(ctx, p.ID, id)
	if err != nil {
		return openai.Batch{}, err
	}
	s.Wake()
	return s.batchObject(b), nil
}
