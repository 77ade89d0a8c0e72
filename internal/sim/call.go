package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// A call is what one call needs while it lasts, kept for the next call to use again.
type call struct {
	body    []byte
	dec     *jsontext.Decoder
	query   query
	choices []choice
	blocks  []uint64 // of the prompt, for the prefix cache
	out     []byte   // the answer
}

// errGone ends a call that nobody waits for, or that is to be cut: its connection is closed.
var errGone = errors.New("sim: call cut")

// ends are the two events that end a call early.
type ends struct {
	client <-chan struct{} // the client left
	outage <-chan struct{} // the server went down
}

// sleep waits for d, or returns errGone as soon as the call ends.
func (e ends) sleep(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-e.client:
	case <-e.outage:
	}
	return errGone
}

// scratchLimit is how large a buffer may be to be kept for the next call.
const scratchLimit = 1 << 20

func (s *Server) serve(ep endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.authorized(w, r) {
			return
		}
		c := s.scratch.Get().(*call)
		defer func() {
			if cap(c.body) <= scratchLimit && cap(c.out) <= scratchLimit {
				s.scratch.Put(c)
			}
		}()

		err := s.handle(c, ep, w, r)
		var no *refusal
		switch {
		case err == nil:
		case errors.As(err, &no):
			s.refuse(w, no)
		default:
			// The client left, or must think that we did. Returning instead would send an
			// empty 200 to a client that closed only its own half.
			panic(http.ErrAbortHandler)
		}
	}
}

// handle takes a call from its body to its answer. The answer is written unless err says why not.
func (s *Server) handle(c *call, ep endpoint, w http.ResponseWriter, r *http.Request) error {
	e := ends{client: r.Context().Done(), outage: s.up.Load().over}
	if err := c.read(r, s.cfg.MaxBody); err != nil {
		return err
	}
	if isClosed(e.outage) { // down since the body began
		return errGone
	}
	of := digestOf(c.body)
	attempt := s.tally.begin(of)
	if err := s.logBody(c.body); err != nil {
		return err
	}
	inFlight := s.inFlight.Add(1)
	defer s.inFlight.Add(-1)
	if s.cfg.MaxInFlight > 0 && inFlight > int64(s.cfg.MaxInFlight) {
		return &refusal{status: http.StatusTooManyRequests, msg: fmt.Sprintf("more than %d requests in flight", s.cfg.MaxInFlight)}
	}

	f := s.fate(c.body, of, attempt)
	if struck, err := s.strike(w, f, e); struck {
		return err
	}

	q := &c.query
	if err := q.decode(ep, c.dec, c.body); err != nil {
		return err
	}
	m, err := s.model(q.model)
	if err != nil {
		return err
	}
	a, err := s.plan(c, ep, of)
	if err != nil {
		return err
	}
	if err := s.work(c, m, &a, of, e, f == slow); err != nil {
		return err
	}
	c.out = s.appendAnswer(c.out[:0], ep, q, &a)

	w.Header().Set("X-Request-Id", "req_"+a.id)
	switch {
	case f == dropped, isClosed(e.outage):
		return errGone
	case f == cut:
		writeHead(w, http.StatusOK, len(c.out))
		w.Write(c.out[:len(c.out)/2])
		http.NewResponseController(w).Flush()
		return errGone
	}
	// Counted before it is written: whoever has the answer finds it counted.
	s.tally.answered(of, 1)
	writeHead(w, http.StatusOK, len(c.out))
	if _, err := w.Write(c.out); err != nil {
		s.tally.answered(of, -1)
		return errGone
	}
	return nil
}

// read reads the body of r into c.body.
func (c *call) read(r *http.Request, limit int64) error {
	if r.ContentLength > limit {
		return tooLarge(limit)
	}
	buf := bytes.NewBuffer(c.body[:0])
	if r.ContentLength > 0 {
		buf.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	_, err := buf.ReadFrom(io.LimitReader(r.Body, limit+1))
	c.body = buf.Bytes()
	switch {
	case err != nil:
		return errGone
	case int64(len(c.body)) > limit:
		return tooLarge(limit)
	}
	return nil
}

func tooLarge(limit int64) error {
	return &refusal{
		status: http.StatusRequestEntityTooLarge,
		msg:    fmt.Sprintf("the body has more than %d bytes", limit),
	}
}

// model returns the model whose name stands quoted in a body.
func (s *Server) model(quoted []byte) (*model, error) {
	if s.any != nil {
		return s.any, nil
	}
	if m := s.models[string(inside(quoted))]; m != nil {
		return m, nil
	}
	name, err := jsontext.AppendUnquote(nil, quoted)
	if err != nil {
		return nil, malformed(err)
	}
	if m := s.models[string(name)]; m != nil {
		return m, nil
	}
	return nil, unknownModel(string(name))
}

// work spends the time that the call costs, in a slot. It fills in what of the prompt was cached.
func (s *Server) work(c *call, m *model, a *answer, of digest, e ends, late bool) error {
	if !s.slots.try() {
		m.waiting.Add(1)
		err := s.slots.wait(e)
		m.waiting.Add(-1)
		if errors.Is(err, errQueueFull) {
			return &refusal{status: s.cfg.QueueStatus, msg: "the queue is full"}
		}
		if err != nil {
			return err
		}
	}
	defer s.slots.give()
	m.running.Add(1)
	defer m.running.Add(-1)

	if s.cache != nil {
		c.blocks = s.cache.chain(c.blocks[:0], c.query.model, c.query.prompt)
		a.cachedTokens = cachedTokens(a.promptTokens, s.cache.visit(c.blocks), len(c.query.prompt))
		m.cacheQueries.Add(uint64(a.promptTokens))
		m.cacheHitTokens.Add(uint64(a.cachedTokens))
	}

	t := &m.timing
	d := t.Latency +
		t.Prefill*time.Duration(a.promptTokens-a.cachedTokens)/1000 +
		t.Decode*time.Duration(a.longest)
	if t.Jitter > 0 {
		dice := newDraw(s.cfg.Seed, of, forTiming)
		d = time.Duration(float64(d) * (1 + t.Jitter*(2*dice.share()-1)))
	}
	if late {
		d += s.cfg.Faults.SlowBy
	}
	if err := e.sleep(d); err != nil {
		return err
	}
	m.promptTokens.Add(uint64(a.promptTokens))
	m.outputTokens.Add(uint64(a.outputTokens))
	return nil
}

// A refusal is an answer in OpenAI's error envelope.
type refusal struct {
	status int
	param  string // the field at fault; "": none
	msg    string
}

func (r *refusal) Error() string { return fmt.Sprintf("sim: %d %s", r.status, r.msg) }

func unknownModel(name string) error {
	return &refusal{
		status: http.StatusNotFound,
		param:  "model",
		msg:    fmt.Sprintf("The model `%s` does not exist.", name),
	}
}

// kind is the error's type, as vLLM names it.
func (r *refusal) kind() string {
	switch r.status {
	case http.StatusUnauthorized:
		return "AuthenticationError"
	case http.StatusNotFound:
		return "NotFoundError"
	case http.StatusTooManyRequests:
		return "RateLimitError"
	case http.StatusServiceUnavailable:
		return "ServiceUnavailableError"
	}
	if r.status >= 500 {
		return "InternalServerError"
	}
	return "BadRequestError"
}

// refuse answers with an error. Its code is the status as a number, as vLLM has it.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	var r *refusal
	if !errors.As(err, &r) {
		r = &refusal{status: http.StatusInternalServerError, msg: err.Error()}
	}
	if after := s.cfg.RetryAfter; after > 0 &&
		(r.status == http.StatusTooManyRequests || r.status == http.StatusServiceUnavailable) {
		w.Header().Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	}
	b := append([]byte(nil), `{"error":{"message":`...)
	b = appendString(b, r.msg)
	b = append(b, `,"type":"`...)
	b = append(b, r.kind()...)
	b = append(b, `","param":`...)
	if r.param == "" {
		b = append(b, "null"...)
	} else {
		b = appendString(b, r.param)
	}
	b = append(b, `,"code":`...)
	b = strconv.AppendInt(b, int64(r.status), 10)
	b = append(b, "}}"...)
	s.writeJSON(w, r.status, b)
}

func (s *Server) writeJSON(w http.ResponseWriter, status int, b []byte) {
	writeHead(w, status, len(b))
	w.Write(b)
}

func writeHead(w http.ResponseWriter, status, length int) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(length))
	w.WriteHeader(status)
}

// appendString appends s as JSON, with � for what is not UTF-8.
func appendString(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s)
	return b
}
