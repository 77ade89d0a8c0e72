package api

import (
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

// Kinds of errors that only HTTP knows, beside those of package batch.
const (
	unauthorized batch.Kind = -1 - iota
	notAllowed
	timedOut
	badRange
	unavailable
	crossOrigin
	unsupported
)

// statuses says which status tells a client of an error. A kind that is not here, and an error
// without one, is our fault: 500.
var statuses = map[batch.Kind]int{
	batch.Invalid:  http.StatusBadRequest,
	batch.NotFound: http.StatusNotFound,
	batch.Conflict: http.StatusConflict,
	unauthorized:   http.StatusUnauthorized,
	notAllowed:     http.StatusMethodNotAllowed,
	timedOut:       http.StatusRequestTimeout,
	badRange:       http.StatusRequestedRangeNotSatisfiable,
	unavailable:    http.StatusServiceUnavailable,
	crossOrigin:    http.StatusForbidden,
	unsupported:    http.StatusUnsupportedMediaType,
}

var (
	errNoKey error = &batch.Error{Kind: unauthorized, Msg: "You didn't provide an API key. " +
		"You need to provide your API key in an Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), " +
		"or as the password field (with blank username) if you're accessing the API from your browser and are prompted for a username and password. " +
		"You can obtain an API key from https://platform.openai.com/account/api-keys."}

	errNotJSON error = &batch.Error{Kind: batch.Invalid, Msg: "We could not parse the JSON body of your request. " +
		"(HINT: This likely means you aren't using your HTTP library correctly. " +
		"The OpenAI API expects a JSON payload, but what was sent was not valid JSON. " +
		"If you have trouble figuring out how to fix this, please contact us through our help center at help.openai.com.)"}

	errNotForm error = &batch.Error{Kind: batch.Invalid, Msg: "We could not parse the form in the body of your request. " +
		"(HINT: A file is uploaded as multipart/form-data, such as curl sends with -F file=@input.jsonl -F purpose=batch.)"}

	errBodyTooLarge error = &batch.Error{Kind: batch.Invalid, Msg: "The body of your request is too large."}

	errStalled error = &batch.Error{Kind: timedOut, Msg: "Your request was given up because its body did not arrive in time."}

	errCrossOrigin error = &batch.Error{Kind: crossOrigin, Msg: "Web pages from elsewhere may not use this server."}

	errUnavailable error = &batch.Error{Kind: unavailable, Msg: "The engine is currently overloaded, please try again later"}

	errAway error = &batch.Error{Kind: unavailable, Msg: "The server cannot reach its storage at the moment, please try again later"}
)

// compressed refuses a body with a content coding.
func compressed(coding string) error {
	return &batch.Error{Kind: unsupported, Msg: fmt.Sprintf(
		"The body of your request is encoded (Content-Encoding: %s). Send it as it is.", strconv.QuoteToASCII(coding[:min(len(coding), 64)]))}
}

const serverErrorText = "The server had an error while processing your request. Sorry about that!"

// noRoute answers a path that nothing is served at.
func noRoute(_ *response, r *http.Request) error {
	return &batch.Error{Kind: batch.NotFound, Msg: fmt.Sprintf("Invalid URL (%s %s)", r.Method, r.URL.Path)}
}

// wrongMethod answers a path that is served with other methods.
func wrongMethod(allowed string) handler {
	return func(w *response, r *http.Request) error {
		w.Header().Set("Allow", allowed)
		return &batch.Error{Kind: notAllowed, Msg: fmt.Sprintf(
			"Not allowed to %s on %s. (HINT: Perhaps you meant to use a different HTTP method?)", r.Method, r.URL.Path)}
	}
}

// fail answers with err, in the envelope of contract ER-01. An error of ours is logged, here and
// nowhere else.
func (s *server) fail(w *response, r *http.Request, err error) {
	status, e := describe(err)
	switch {
	case status != http.StatusInternalServerError:
	case w.broken:
		s.Log.Debug("client gone", "request", w.id, "err", err)
	case r.Context().Err() != nil:
		// The client has left, or the process is about to: either way the request may be sent again.
		s.Log.Debug("request given up", "request", w.id, "err", err)
		status, e = describe(errUnavailable)
	case s.Away(err):
		s.away.Note(err, "request", w.id, "route", route(r))
		status, e = describe(errAway)
	default:
		s.Log.Error("request failed", "request", w.id, "route", route(r), "project", w.project, "err", err)
	}
	if w.status != 0 {
		w.cut = true
		return
	}
	switch status {
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", "Bearer")
	case http.StatusConflict:
		w.Header().Set("x-should-retry", "false") // SDKs would, twice (contract CA-01)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "5")
	}
	linger := w.body.hangs()
	if linger {
		w.answerEarly()
	}
	if err := writeJSON(w, status, openai.ErrorResponse{Error: e}); err != nil {
		s.Log.Error("error not told", "request", w.id, "err", err)
	}
	if linger {
		w.linger()
	}
}

// describe returns what a client is told of err.
func describe(err error) (status int, e openai.Error) {
	known, _ := errors.AsType[*batch.Error](err)
	if known != nil {
		status = statuses[known.Kind]
	}
	if status == 0 {
		return http.StatusInternalServerError, openai.Error{Type: "server_error", Message: serverErrorText}
	}
	e = openai.Error{
		Type: "invalid_request_error", Message: known.Msg,
		Param: nullable(known.Param), Code: nullable(known.Code),
	}
	if status >= 500 {
		e.Type = "server_error"
	}
	return status, e
}

// A panicError is a panic that was caught.
type panicError struct {
	value any
	stack []byte
}

// newPanicError is called by the function that recovers, while the stack is still there.
func newPanicError(v any) error { return &panicError{v, debug.Stack()} }

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }
