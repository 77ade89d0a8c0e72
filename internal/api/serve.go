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
	s *server,
	decode func(*http.Request) (In, error),
	do func(context.Context, batch.Project, In) (Out, error),
) handler {
	return s.authenticated(func(w *response, r *http.Request, p batch.Project) error {
		in, err := decode(r)
		if err != nil {
			return err
		}
		out, err := do(r.Context(), p, in)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, out)
	})
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
