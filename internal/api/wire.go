package api

import (
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

// nullable returns s as the API shows it: null if it is empty.
func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// unix returns t as the API shows it: whole seconds, null if it is unset.
func unix(t time.Time) *int64 {
	if t.IsZero() {
		return nil
	}
	s := t.Unix()
	return &s
}

func wireBatch(b batch.Batch) openai.Batch {
	w := openai.Batch{
		ID: b.ID, Object: "batch",
		Endpoint: b.Endpoint, Model: nullable(b.Model),
		Errors:           wireErrors(b),
		InputFileID:      b.InputFileID,
		CompletionWindow: b.CompletionWindow,
		Status:           string(b.Status),
		CreatedAt:        b.CreatedAt.Unix(),
		InProgressAt:     unix(b.InProgressAt),
		ExpiresAt:        unix(b.ExpiresAt),
		FinalizingAt:     unix(b.FinalizingAt),
		CompletedAt:      unix(b.CompletedAt),
		FailedAt:         unix(b.FailedAt),
		ExpiredAt:        unix(b.ExpiredAt),
		CancellingAt:     unix(b.CancellingAt),
		CancelledAt:      unix(b.CancelledAt),
		RequestCounts:    openai.RequestCounts(b.Counts),
		Metadata:         b.Metadata,
	}
	if !b.Status.Terminal() {
		return w // the ids of its files are drawn, but there are no such files (contract S-06)
	}
	w.OutputFileID, w.ErrorFileID = nullable(b.OutputFileID), nullable(b.ErrorFileID)
	if b.Counts.Completed+b.Counts.Failed > 0 { // contract B-06
		w.Usage = &openai.Usage{
			InputTokens:         b.Usage.Input,
			InputTokensDetails:  openai.InputTokensDetails{CachedTokens: b.Usage.Cached},
			OutputTokens:        b.Usage.Output,
			OutputTokensDetails: openai.OutputTokensDetails{ReasoningTokens: b.Usage.Reasoning},
			TotalTokens:         b.Usage.Total,
		}
	}
	return w
}

// batchObject is b as the API shows it, with what goes on for it if the profile has a place for that.
func (s *server) batchObject(b batch.Batch) openai.Batch {
	w := wireBatch(b)
	if s.Policy.Profile != batch.ProfileOpenAI {
		w.Offpeak = s.offpeak(b)
	}
	return w
}

func (s *server) offpeak(b batch.Batch) *openai.Offpeak {
	if b.Status.Terminal() || s.Activity == nil {
		return &openai.Offpeak{}
	}
	a := s.Activity(b)
	o := &openai.Offpeak{WaitingFor: nullable(a.WaitingFor), InFlight: &a.InFlight}
	if b.Status == batch.Validating {
		return o
	}
	o.RequestsPerSecond = &a.Rate
	if !a.ETA.IsZero() {
		o.ETA, o.DeadlineAtRisk = unix(a.ETA), &a.AtRisk
	}
	return o
}

// wireErrors says why b failed, if it did.
func wireErrors(b batch.Batch) *openai.BatchErrors {
	if b.Status != batch.Failed {
		return nil
	}
	errs := &openai.BatchErrors{Object: "list", Data: make([]openai.BatchError, len(b.Errors))}
	for i, e := range b.Errors {
		errs.Data[i] = openai.BatchError{Code: e.Code, Message: e.Message, Param: nullable(e.Param)}
		if e.Line > 0 {
			errs.Data[i].Line = &e.Line
		}
	}
	return errs
}

func wireFile(f batch.File) openai.File {
	return openai.File{
		ID: f.ID, Object: "file", Bytes: f.Bytes,
		CreatedAt: f.CreatedAt.Unix(), ExpiresAt: unix(f.ExpiresAt),
		Filename: f.Filename, Purpose: f.Purpose,
		Status: "processed", // clients wait for it (contract SD-10)
	}
}

func wireModel(m batch.ModelInfo) openai.Model {
	w := openai.Model{ID: m.ID, Object: "model", OwnedBy: m.OwnedBy}
	if !m.Created.IsZero() {
		w.Created = m.Created.Unix()
	}
	return w
}

// wireAll converts what a list holds.
func wireAll[T, W any](objects []T, wire func(T) W) []W {
	out := make([]W, len(objects))
	for i, o := range objects {
		out[i] = wire(o)
	}
	return out
}

func fileID(f openai.File) string   { return f.ID }
func batchID(b openai.Batch) string { return b.ID }
