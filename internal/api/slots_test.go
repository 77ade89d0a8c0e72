package api

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"offpeak/internal/batch"
)

// TestSlotsAreShared: a project alone gets half, another half of the rest, and nobody all.
func TestSlotsAreShared(t *testing.T) {
	s := newSlots(16)
	s.wait = 0
	for _, want := range []int{8, 4, 2, 1, 1} {
		project := fmt.Sprint("takes ", want, " of ", s.free)
		n := 0
		for {
			if _, err := s.take(t.Context(), project); err != nil {
				break
			}
			n++
		}
		if n != want {
			t.Errorf("%s: took %d", project, n)
		}
	}
}

// TestSlotsInTurn: who waits is served in the order of arrival within a project, and the project
// with the fewest slots first. Who gives up loses nothing and takes nothing.
func TestSlotsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(4)
		var order []string
		var mu sync.Mutex
		var wg sync.WaitGroup
		wait := func(ctx context.Context, project, name string, hold time.Duration) {
			wg.Go(func() {
				release, err := s.take(ctx, project)
				mu.Lock()
				order = append(order, fmt.Sprint(name, " ", err))
				mu.Unlock()
				if err == nil {
					time.Sleep(hold)
					release()
				}
			})
			synctest.Wait()
		}
		ctx, leave := context.WithCancel(t.Context())
		wait(t.Context(), "a", "a1", 10*time.Second)
		wait(t.Context(), "a", "a2", 15*time.Second)
		wait(t.Context(), "a", "a3", 20*time.Second)
		wait(ctx, "a", "a4", time.Second)
		wait(t.Context(), "a", "a5", 10*time.Second)
		wait(t.Context(), "b", "b1", 12*time.Second)
		wait(t.Context(), "b", "b2", 10*time.Second)
		leave()
		wg.Wait()
		want := "[a1 <nil> a2 <nil> b1 <nil> a4 context canceled a3 <nil> b2 <nil> a5 <nil>]"
		if got := fmt.Sprint(order); got != want {
			t.Errorf("order %s\nwant  %s", got, want)
		}
		if s.free != 4 || len(s.held) > 0 || len(s.waiting) > 0 {
			t.Errorf("in the end %d are free, held %v, waiting %v", s.free, s.held, s.waiting)
		}
	})
}

// TestSlotsAddUp: in any history no more are held than there are, no project holds more than its
// share at the moment it takes one, and none that could be given is kept.
func TestSlotsAddUp(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	synctest.Test(t, func(t *testing.T) {
		const n = 8
		s := newSlots(n)
		var wg sync.WaitGroup
		refused := 0
		for range 2000 {
			project := fmt.Sprint(random.IntN(4))
			hold, patience := time.Duration(random.IntN(30))*time.Second, time.Duration(random.IntN(90))*time.Second
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				_, err := within(ctx, s, project, func() (int, error) {
					s.mu.Lock()
					held := 0
					for _, h := range s.held {
						held += h
					}
					if held+s.free != n || s.free < 0 {
						t.Errorf("%d held and %d free of %d", held, s.free, n)
					}
					s.mu.Unlock()
					time.Sleep(hold)
					return 0, nil
				})
				if err != nil && !errors.Is(err, errUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				if err != nil {
					s.mu.Lock()
					refused++
					s.mu.Unlock()
				}
			})
			time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
			synctest.Wait()
			s.mu.Lock()
			for p := range s.waiting {
				if s.may(p) {
					t.Errorf("%s waits with %d held and %d free", p, s.held[p], s.free)
				}
			}
			s.mu.Unlock()
		}
		wg.Wait()
		if s.free != n || len(s.held) > 0 || len(s.waiting) > 0 || refused == 0 {
			t.Errorf("in the end %d are free, held %v, waiting %v; %d were refused", s.free, s.held, s.waiting, refused)
		}
	})
}

// TestWithinPanics: a panic on the goroutine of a slot is an error like any, and gives the slot back.
func TestWithinPanics(t *testing.T) {
	s := newSlots(2)
	for range 3 {
		_, err := within(t.Context(), s, "a", func() (int, error) { panic("broken") })
		if err == nil || !strings.Contains(err.Error(), "panic: broken") || !strings.Contains(err.Error(), "slots_test.go") {
			t.Fatalf("error %v", err)
		}
	}
}

// A crowd is a server on a store whose writes hang like those of a slow disk, in a bubble of its
// own time.
type crowd struct {
	testing.TB
	h     http.Handler
	store *fakeStore
	blobs *fakeBlobs
	stuck chan struct{} // closed: the disk works again
}

func newCrowd(t testing.TB, hang func(op string) bool) *crowd {
	c := &crowd{TB: t, store: newFakeStore(time.Now), blobs: newFakeBlobs(), stuck: make(chan struct{})}
	c.h = New(Config{
		Store: hangingStore{c.store, func(ctx context.Context, op string) {
			if hang(op) {
				select {
				case <-c.stuck:
				case <-ctx.Done():
				}
			}
		}}, Blobs: c.blobs, Keys: fakeKeys{},
	})
	return c
}

// A hangingStore takes its time before an operation, without holding up others.
type hangingStore struct {
	*fakeStore
	hang func(ctx context.Context, op string)
}

func (s hangingStore) CreateBatch(ctx context.Context, b batch.Batch) error {
	s.hang(ctx, "CreateBatch")
	return s.fakeStore.CreateBatch(ctx, b)
}

func (s hangingStore) Batch(ctx context.Context, project, id string) (batch.Batch, error) {
	s.hang(ctx, "Batch")
	return s.fakeStore.Batch(ctx, project, id)
}

func (s hangingStore) CreateFile(ctx context.Context, f batch.File) error {
	s.hang(ctx, "CreateFile")
	return s.fakeStore.CreateFile(ctx, f)
}

func (c *crowd) send(key, method, path, contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	c.h.ServeHTTP(w, r)
	return w
}

// TestCrowds: while one project's requests hang in any number, another's are answered at once, with
// all that they need. The crowd is told to come again, in the contract's words, before anything
// between us and them gives up; and when the disk works again everything that was taken on is done.
func TestCrowds(t *testing.T) {
	ct, form := encodeForm(forBatch, fileField("{}\n"))
	for _, tt := range []struct {
		hangs, method, path, contentType, body string

		taken  int    // of the crowd
		goesOn string // what else the same project can do meanwhile
	}{
		{"CreateBatch", "POST", "/v1/batches", "application/json", createBody, 8, "/v1/batches"},
		{"CreateFile", "POST", "/v1/files", ct, string(form), 64, "/v1/batches"},
		{"Batch", "GET", "/v1/batches/b", "", "", 8, ""},
	} {
		t.Run(tt.hangs, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				hung := 0
				c := newCrowd(t, func(op string) bool {
					mu.Lock()
					defer mu.Unlock()
					if op == tt.hangs && hung < tt.taken {
						hung++
						return true
					}
					return false
				})
				const n = 500
				answers := make(chan *httptest.ResponseRecorder, n)
				begin := time.Now()
				for range n {
					go func() { answers <- c.send(keyA, tt.method, tt.path, tt.contentType, tt.body) }()
				}
				synctest.Wait()
				if hung != tt.taken || len(answers) > 0 {
					t.Fatalf("%d of a project were taken on, want %d; %d answers", hung, tt.taken, len(answers))
				}
				for _, r := range [][4]string{
					{"GET", "/v1/batches"}, {"GET", "/v1/files"}, {"GET", "/v1/models"}, {"GET", "/v1/batches/b"}, {"POST", "/v1/batches/b/cancel"},
					{"POST", "/v1/batches", "application/json", createBody}, {"POST", "/v1/files", ct, string(form)},
				} {
					if w := c.send(keyB, r[0], r[1], r[2], r[3]); w.Code != 200 && w.Code != 404 {
						t.Errorf("%s %s of another project: status %d, %s", r[0], r[1], w.Code, w.Body)
					}
				}
				if tt.goesOn != "" {
					if w := c.send(keyA, "GET", tt.goesOn, "", ""); w.Code != 200 {
						t.Errorf("something else of the same project: status %d", w.Code)
					}
				}
				if took := time.Since(begin); took > 0 {
					t.Errorf("others took %v", took)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if len(answers) != n-tt.taken {
					t.Errorf("%d were answered, want %d", len(answers), n-tt.taken)
				}
				for range n - tt.taken {
					w := <-answers
					if w.Code != 503 || w.Header().Get("Retry-After") != "5" || !strings.Contains(w.Body.String(), `"message":"The engine is currently overloaded, please try again later"`) {
						t.Fatalf("status %d, %s", w.Code, w.Body)
					}
				}
				close(c.stuck)
				for range tt.taken {
					if w := <-answers; w.Code != 200 && w.Code != 404 {
						t.Errorf("one that was taken on: status %d, %s", w.Code, w.Body)
					}
				}
				if w := c.send(keyA, tt.method, tt.path, tt.contentType, tt.body); w.Code != 200 && w.Code != 404 {
					t.Errorf("afterwards: status %d", w.Code)
				}
			})
		})
	}
}

// TestWrongKeysTakeTurns: whoever tries keys does not keep those out who have one.
func TestWrongKeysTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		h := New(Config{Store: newFakeStore(time.Now), Blobs: newFakeBlobs(), Keys: slowKeys{stuck}})
		call := func(key string) *httptest.ResponseRecorder {
			r := httptest.NewRequest("GET", "/v1/batches", nil)
			r.Header.Set("Authorization", "Bearer "+key)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w
		}
		if w := call(keyA); w.Code != 200 {
			t.Fatalf("status %d", w.Code)
		}
		answers := make(chan *httptest.ResponseRecorder, 500)
		for i := range cap(answers) {
			go func() { answers <- call(fmt.Sprint("sk-wrong-wrong-wrong-", i)) }()
		}
		synctest.Wait()
		if w := call(keyA); w.Code != 200 {
			t.Errorf("a good key meanwhile: status %d", w.Code)
		}
		if len(answers) > 0 {
			t.Errorf("%d are answered already", len(answers))
		}
		close(stuck)
		for range cap(answers) {
			if w := <-answers; w.Code != 401 {
				t.Errorf("status %d", w.Code)
			}
		}
	})
}

// slowKeys finds out late that a key is wrong.
type slowKeys struct{ until chan struct{} }

func (k slowKeys) Authenticate(ctx context.Context, key string, local bool) (batch.Project, error) {
	if key != keyA {
		<-k.until
	}
	return fakeKeys{}.Authenticate(ctx, key, local)
}
