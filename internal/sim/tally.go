package sim

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
)

// maxRepeated is how many bodies a report lists.
const maxRepeated = 1000

// Calls is what a server has counted, and what GET /sim/calls answers. A call counts when its
// body has arrived whole; it is answered when its own answer was written, which a fault's is not.
type Calls struct {
	Calls         int        `json:"calls"`
	Answered      int        `json:"answered"`
	Distinct      int        `json:"distinct"`        // bodies
	MaxPerRequest int        `json:"max_per_request"` // calls of the body that came most often
	Repeated      []Repeated `json:"repeated"`        // bodies that came more than once, at most 1,000, most often first
}

// Repeated is a body that was sent more than once.
type Repeated struct {
	SHA256   string `json:"sha256"` // the first half of it: 32 hexadecimal digits
	Calls    int    `json:"calls"`
	Answered int    `json:"answered"`
}

// A tally counts calls by body. A nil tally counts nothing.
type tally struct {
	mu     sync.Mutex
	bodies map[digest]counts
	total  Calls // without Distinct and Repeated
}

type counts struct{ calls, answered uint32 }

func newTally() *tally { return &tally{bodies: make(map[digest]counts)} }

// begin counts a call, and returns which attempt at its body it is, from 1.
func (t *tally) begin(of digest) (attempt int) {
	if t == nil {
		return 1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.bodies[of]
	n.calls++
	t.bodies[of] = n
	t.total.Calls++
	t.total.MaxPerRequest = max(t.total.MaxPerRequest, int(n.calls))
	return int(n.calls)
}

// answered counts an answer; a delta of -1 takes it back.
func (t *tally) answered(of digest, delta int) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.bodies[of]
	n.answered += uint32(delta)
	t.bodies[of] = n
	t.total.Answered += delta
}

func (t *tally) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bodies = make(map[digest]counts)
	t.total = Calls{}
}

func (t *tally) report() Calls {
	t.mu.Lock()
	defer t.mu.Unlock()
	report := t.total
	report.Distinct = len(t.bodies)
	report.Repeated = []Repeated{}
	for of, n := range t.bodies {
		if n.calls > 1 {
			report.Repeated = append(report.Repeated, Repeated{hex.EncodeToString(of[:]), int(n.calls), int(n.answered)})
		}
	}
	slices.SortFunc(report.Repeated, func(a, b Repeated) int {
		return cmp.Or(cmp.Compare(b.Calls, a.Calls), cmp.Compare(a.SHA256, b.SHA256))
	})
	report.Repeated = report.Repeated[:min(len(report.Repeated), maxRepeated)]
	return report
}

// Calls returns what was counted so far; nothing if neither Config.CountCalls nor a fault is set.
func (s *Server) Calls() Calls {
	if s.tally == nil {
		return Calls{Repeated: []Repeated{}}
	}
	return s.tally.report()
}

// CallsOf returns how often body was sent, and how often it got its answer.
func (s *Server) CallsOf(body []byte) (calls, answered int) {
	if s.tally == nil {
		return 0, 0
	}
	s.tally.mu.Lock()
	defer s.tally.mu.Unlock()
	n := s.tally.bodies[digestOf(body)]
	return int(n.calls), int(n.answered)
}

// ForgetCalls begins to count anew, attempts included, as DELETE /sim/calls does.
func (s *Server) ForgetCalls() {
	if s.tally != nil {
		s.tally.forget()
	}
}

func (s *Server) getCalls(w http.ResponseWriter, r *http.Request) {
	if s.tally == nil {
		s.refuse(w, &refusal{status: http.StatusNotFound, msg: "this server does not count calls"})
		return
	}
	b, err := json.Marshal(s.Calls())
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.writeJSON(w, http.StatusOK, b)
}

func (s *Server) deleteCalls(w http.ResponseWriter, r *http.Request) {
	s.ForgetCalls()
	w.WriteHeader(http.StatusNoContent)
}
