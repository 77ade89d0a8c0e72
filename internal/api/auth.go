package api

import (
	"cmp"
	"context"
	"crypto/sha256"
	"net"
	"net/http"
	"strings"
	"sync"

	"offpeak/internal/batch"
)

// Keys knows the API keys.
type Keys interface {
	// Authenticate returns the project that a key opens. For a key that is unknown or revoked it
	// fails with a batch.Error of kind NotFound.
	//
	// Where any key will do, since there is none yet, it will only for a request that is local: one
	// that calls this machine by a name of its own. Else it fails with batch.ErrNotLocal.
	Authenticate(ctx context.Context, key string, local bool) (batch.Project, error)
}

// AnyKey takes every key for one of the default project: for a server that has no keys.
type AnyKey struct{}

var _ Keys = AnyKey{}

// Authenticate implements Keys.
func (AnyKey) Authenticate(_ context.Context, _ string, local bool) (batch.Project, error) {
	if !local {
		return batch.Project{}, batch.ErrNotLocal
	}
	return batch.Project{ID: batch.DefaultProject, Name: "default", Weight: 1}, nil
}

// authenticated lets h answer those who come with a key.
func (s *server) authenticated(h projectHandler) handler {
	return func(w *response, r *http.Request) error {
		if err := s.origin.Check(r); err != nil {
			return errCrossOrigin
		}
		p, err := s.authenticate(r)
		if err != nil {
			return err
		}
		w.project = p.ID
		w.Header().Set("openai-organization", cmp.Or(p.Name, p.ID))
		if c := r.Header.Get("Content-Encoding"); c != "" && !strings.EqualFold(c, "identity") {
			w.Header().Set("Accept-Encoding", "identity")
			return compressed(c)
		}
		return h(w, r, p)
	}
}

func (s *server) authenticate(r *http.Request) (batch.Project, error) {
	scheme, key, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	key = strings.TrimSpace(key)
	if !strings.EqualFold(scheme, "Bearer") || key == "" {
		return batch.Project{}, errNoKey
	}
	hash := sha256.Sum256([]byte(key))
	p, err := within(r.Context(), s.reads, s.keys.project(hash), func() (batch.Project, error) {
		return s.Keys.Authenticate(r.Context(), key, isLocal(r.Host))
	})
	if err == nil {
		s.keys.note(hash, p.ID)
	}
	if batch.KindOf(err) == batch.NotFound {
		return batch.Project{}, &batch.Error{
			Kind: unauthorized, Code: "invalid_api_key",
			Msg: "Incorrect API key provided: " + maskKey(key) + ". You can find your API key at https://platform.openai.com/account/api-keys.",
		}
	}
	return p, err
}

// A keyring remembers which project a key was good for last, to know in whose turn it is asked for
// again. It opens nothing: a key may have been revoked since. Keys that never were good take turns
// as if they were one project.
type keyring struct {
	mu       sync.Mutex
	projects map[[32]byte]string // by the hash of the key
}

// maxKeyring is how many keys are remembered.
const maxKeyring = 4096

func (k *keyring) project(hash [32]byte) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.projects[hash]
}

func (k *keyring) note(hash [32]byte, project string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.projects[hash] == project {
		return
	}
	if len(k.projects) == maxKeyring {
		clear(k.projects) // they come back with their next request
	}
	k.projects[hash] = project
}

// isLocal reports whether a request's Host is a name that every machine has for itself. A web page
// cannot make a browser send one of those to us with its own code: a name that it has made to point
// here (DNS rebinding) is another, and under ours the browser asks first whether it may (CORS).
func isLocal(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || net.ParseIP(host).IsLoopback()
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
