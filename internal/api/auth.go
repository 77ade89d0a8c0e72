package api

import (
	"cmp"
	"context"
	"net/http"
	"strings"

	"offpeak/internal/batch"
)

// Keys knows the API keys.
type Keys interface {
	// Authenticate returns the project that a key opens. For a key that is unknown or revoked it
	// fails with a batch.Error of kind NotFound.
	Authenticate(ctx context.Context, key string) (batch.Project, error)
}

// AnyKey takes every key for one of the default project: for a server that has no keys.
type AnyKey struct{}

var _ Keys = AnyKey{}

// Authenticate implements Keys.
func (AnyKey) Authenticate(context.Context, string) (batch.Project, error) {
	return batch.Project{ID: batch.DefaultProject, Name: "default", Weight: 1}, nil
}

// authenticated lets h answer those who come with a key.
func (s *server) authenticated(h func(w *response, r *http.Request, p batch.Project) error) handler {
	return func(w *response, r *http.Request) error {
		p, err := s.authenticate(r)
		if err != nil {
			return err
		}
		w.project = p.ID
		w.Header().Set("openai-organization", cmp.Or(p.Name, p.ID))
		return h(w, r, p)
	}
}

func (s *server) authenticate(r *http.Request) (batch.Project, error) {
	scheme, key, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	key = strings.TrimSpace(key)
	if !strings.EqualFold(scheme, "Bearer") || key == "" {
		return batch.Project{}, errNoKey
	}
	p, err := s.Keys.Authenticate(r.Context(), key)
	if batch.KindOf(err) == batch.NotFound {
		return batch.Project{}, &batch.Error{
			Kind: unauthorized, Code: "invalid_api_key",
			Msg: "Incorrect API key provided: " + maskKey(key) + ". You can find your API key at https://platform.openai.com/account/api-keys.",
		}
	}
	return p, err
}

// maskKey shows as much of a key as helps its owner to tell which one it is, and nothing of one
// that is too short to be ours (contract ER-05).
func maskKey(key string) string {
	const head, tail, shortest, mostStars = 5, 4, 16, 32
	if len(key) < shortest {
		return "***"
	}
	stars := min(len(key)-head-tail, mostStars)
	return key[:head] + strings.Repeat("*", stars) + key[len(key)-tail:]
}
