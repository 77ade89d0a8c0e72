package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"offpeak/internal/batch"
)

// A Key opens a project to whoever has it. The key itself is shown once and not kept.
type Key struct {
	ID         string
	Project    string // its name
	Name       string
	Prefix     string // the beginning of the key, by which people know it again
	CreatedAt  time.Time
	LastUsedAt time.Time // within a minute; zero: never
	RevokedAt  time.Time // zero: it is good
}

// prefixLen is how much of a key is kept in clear: "sk-offpeak-" and six characters.
const prefixLen = 17

// CreateProject makes a project of a name that none has yet.
func (s *Store) CreateProject(ctx context.Context, name string, weight int) (batch.Project, error) {
	if err := checkName(name); err != nil {
		return batch.Project{}, err
	}
	p := batch.Project{ID: "proj_" + batch.NewToken(), Name: name, Weight: weight, CreatedAt: s.now()}
	err := s.tx(ctx, func(q querier) error {
		n, err := exec(ctx, q, `INSERT INTO projects (id, name, weight, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING`,
			p.ID, p.Name, p.Weight, ms(p.CreatedAt))
		if err == nil && n == 0 {
			return &batch.Error{Kind: batch.Conflict, Msg: fmt.Sprintf("there is a project %q already", name)}
		}
		return err
	})
	return p, err
}

// checkName refuses a name that not every database keeps. What comes by the API was made text before;
// names come from command lines.
func checkName(name string) error {
	if utf8.ValidString(name) && strings.IndexByte(name, 0) < 0 {
		return nil
	}
	return &batch.Error{Kind: batch.Invalid, Param: "name", Msg: fmt.Sprintf("the name %q is not text in UTF-8", name)}
}

// Projects lists every project, oldest first.
func (s *Store) Projects(ctx context.Context) ([]batch.Project, error) {
	return all(ctx, s.read, scanProject, `SELECT id, name, weight, created_at FROM projects ORDER BY created_at, id`)
}

func scanProject(r row) (p batch.Project, err error) {
	err = r.Scan(&p.ID, &p.Name, &p.Weight, at(&p.CreatedAt))
	return p, err
}

// CreateKey makes a key of 256 random bits for the project with the given name or id. The secret
// is not to be had again.
func (s *Store) CreateKey(ctx context.Context, project, name string) (k Key, secret string, err error) {
	if err := errors.Join(checkName(project), checkName(name)); err != nil {
		return Key{}, "", err
	}
	var raw [32]byte
	rand.Read(raw[:])
	secret = "sk-offpeak-" + base64.RawURLEncoding.EncodeToString(raw[:])
	hash := sha256.Sum256([]byte(secret))
	k = Key{ID: "key_" + batch.NewToken(), Name: name, Prefix: secret[:prefixLen], CreatedAt: s.now()}
	err = s.tx(ctx, func(q querier) error {
		var id string
		err := q.QueryRowContext(ctx, `SELECT id, name FROM projects WHERE name = $1 OR id = $1`, project).Scan(&id, &k.Project)
		if errors.Is(err, sql.ErrNoRows) {
			return &batch.Error{Kind: batch.NotFound, Msg: fmt.Sprintf("there is no project %q", project)}
		}
		if err != nil {
			return err
		}
		_, err = exec(ctx, q, `INSERT INTO keys (id, project_id, name, prefix, hash, created_at) VALUES ($1, $2, $3, $4, $5, $6)`,
			k.ID, id, k.Name, k.Prefix, hash[:], ms(k.CreatedAt))
		return err
	})
	return k, secret, err
}

// ListKeys lists every key, oldest first, revoked ones included.
func (s *Store) ListKeys(ctx context.Context) ([]Key, error) {
	return all(ctx, s.read, func(r row) (k Key, err error) {
		err = r.Scan(&k.ID, &k.Project, &k.Name, &k.Prefix, at(&k.CreatedAt), at(&k.LastUsedAt), at(&k.RevokedAt))
		return k, err
	}, `SELECT k.id, p.name, k.name, k.prefix, k.created_at, k.last_used_at, k.revoked_at
		FROM keys k JOIN projects p ON p.id = k.project_id ORDER BY k.created_at, k.id`)
}

// RevokeKey makes the key with the id useless, from the next call on.
func (s *Store) RevokeKey(ctx context.Context, id string) error {
	n, err := s.change(ctx, `UPDATE keys SET revoked_at = coalesce(revoked_at, $2) WHERE id = $1`, id, ms(s.now()))
	if err == nil && n == 0 {
		return &batch.Error{Kind: batch.NotFound, Msg: fmt.Sprintf("there is no key with the id %q", id)}
	}
	return err
}

// HasKeys reports whether a key was ever created. Revoking the last one closes the server; it does
// not open it to everybody.
func (s *Store) HasKeys(ctx context.Context) (bool, error) {
	var n int
	err := s.read.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM keys LIMIT 1) AS k`).Scan(&n)
	return n > 0, err
}

// Keys tells who is calling. Unless keys are required, any key will do until the first is created.
type Keys struct {
	store    *Store
	required bool

	mu    sync.Mutex
	noted map[string]time.Time // when a key's last use was noted, by its id
}

// Keys returns the keys of s.
func (s *Store) Keys(required bool) *Keys {
	return &Keys{store: s, required: required, noted: map[string]time.Time{}}
}

// Authenticate returns the project that a key opens, or a NotFound. The key is looked up by its
// hash, which tells nothing to somebody who measures how long that takes. Where any key will do, it
// will only for a request that is local; for another it fails with batch.ErrNotLocal.
func (k *Keys) Authenticate(ctx context.Context, secret string, local bool) (batch.Project, error) {
	s := k.store
	hash := sha256.Sum256([]byte(secret))
	var id string
	var p batch.Project
	var used time.Time
	err := s.read.QueryRowContext(ctx, `SELECT k.id, k.last_used_at, p.id, p.name, p.weight, p.created_at
		FROM keys k JOIN projects p ON p.id = k.project_id WHERE k.hash = $1 AND k.revoked_at IS NULL`, hash[:]).
		Scan(&id, at(&used), &p.ID, &p.Name, &p.Weight, at(&p.CreatedAt))
	if errors.Is(err, sql.ErrNoRows) {
		if !k.required {
			if any, err := s.HasKeys(ctx); err != nil {
				return batch.Project{}, err
			} else if !any && !local {
				return batch.Project{}, batch.ErrNotLocal
			} else if !any {
				return scanProject(s.read.QueryRowContext(ctx, `SELECT id, name, weight, created_at FROM projects WHERE id = $1`, batch.DefaultProject))
			}
		}
		return batch.Project{}, &batch.Error{Kind: batch.NotFound, Msg: "no such key"}
	}
	if err != nil {
		return batch.Project{}, err
	}
	if now := s.now(); now.Sub(used) > time.Minute && k.mayNote(id, now) {
		// A note for people; a call is neither refused because it could not be taken, nor held up for
		// as long as a slow disk may take.
		ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		s.change(ctx, `UPDATE keys SET last_used_at = $2 WHERE id = $1`, id, ms(now))
	}
	return p, nil
}

// mayNote reports whether this call is to note that the key was used: of very many with one key
// that come at once, one is.
func (k *Keys) mayNote(id string, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now.Sub(k.noted[id]).Abs() <= time.Minute { // an absolute time: clocks are set back, too
		return false
	}
	k.noted[id] = now
	return true
}
