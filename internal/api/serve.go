package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

// serveJSON makes a handler of do, which says what a route means: it finds out whose key the
// request carries, decodes the request, lets do act for that project, and encodes the outcome.
func serveJSON[In, Out any](
	s *server, turn *slots,
	decode func(*http.Request) (In, error),
	do func(context.Context, batch.Project, In) (Out, error),
) handler {
	return s.authenticated(answerJSON(s, turn, decode, do))
}

// answerJSON is serveJSON for somebody whose key is known. The slot is held while do acts, and not
// while a client is slow.
func answerJSON[In, Out any](
	s *server, turn *slots,
	decode func(*http.Request) (In, error),
	do func(context.Context, batch.Project, In) (Out, error),
) projectHandler {
	answer := func(w *response, r *http.Request, p batch.Project) error {
		in, err := decode(r)
		if err != nil {
			return err
		}
		out, err := within(r.Context(), turn, p.ID, func() (Out, error) { return do(r.Context(), p, in) })
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, out)
	}
	return func(w *response, r *http.Request, p batch.Project) error {
		if r.ContentLength >= 0 && r.ContentLength <= smallJSON {
			return answer(w, r, p)
		}
		return holding(s.large, answer)(w, r, p)
	}
}

// holding lets h answer while its project holds a slot.
func holding(s *slots, h projectHandler) projectHandler {
	return func(w *response, r *http.Request, p batch.Project) error {
		release, err := s.take(r.Context(), p.ID)
		if err != nil {
			return err
		}
		defer release()
		return h(w, r, p)
	}
}

// writeJSON answers with v.
func writeJSON(w *response, status int, v any) error {
	body, err := openai.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json") // contract SD-06
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body) // if that fails there is nobody left to tell
	return nil
}
