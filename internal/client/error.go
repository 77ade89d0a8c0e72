package client

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// An Error is an answer of the server that is not a success.
type Error struct {
	Status    int    // of HTTP
	Code      string // "invalid_value"; often empty
	Param     string // what the server refuses, as the API names it; often empty
	Type      string // "invalid_request_error"
	Message   string // for people; never empty
	RequestID string // names the call in the server's log

	RetryAfter time.Duration // what the server asked for; 0 if nothing
}

// Error returns the message, and where it comes from.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	fmt.Fprintf(&b, " (HTTP %d", e.Status)
	if e.Code != "" {
		b.WriteString(", " + e.Code)
	}
	if e.Param != "" && !strings.Contains(e.Message, "'"+e.Param+"'") {
		b.WriteString(", param " + e.Param)
	}
	if e.RequestID != "" && e.Status >= 500 { // of use to an operator only
		b.WriteString(", request " + e.RequestID)
	}
	b.WriteString(")")
	return b.String()
}

// maxErrorBody is how much of an error's body is read. What is longer is no error object.
const maxErrorBody = 64 << 10

// readError makes an Error of a response. Servers and proxies that don't know the API's error
// object still get a message that says what to look at: the URL and what answered there.
func readError(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	e := &Error{
		Status:     resp.StatusCode,
		RequestID:  resp.Header.Get("X-Request-Id"),
		RetryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
	var envelope struct {
		Error   json.RawMessage `json:"error"`
		Detail  json.RawMessage `json:"detail"` // FastAPI's
		Message json.RawMessage `json:"message"`
	}
	if json.Unmarshal(body, &envelope) == nil {
		var o struct {
			Message string `json:"message"`
			Type    string `json:"type"`
			Param   any    `json:"param"`
			Code    any    `json:"code"` // some servers send the status, a number
		}
		if json.Unmarshal(envelope.Error, &o) == nil {
			e.Message, e.Type = o.Message, o.Type
			e.Param, _ = o.Param.(string)
			e.Code, _ = o.Code.(string)
		}
		for _, raw := range []json.RawMessage{envelope.Error, envelope.Detail, envelope.Message} {
			if e.Message == "" {
				json.Unmarshal(raw, &e.Message)
			}
		}
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("%s %s answered %s with %s", resp.Request.Method, resp.Request.URL.Redacted(), resp.Status, describe(resp, body))
	}
	if to := resp.Header.Get("Location"); resp.StatusCode/100 == 3 && to != "" {
		e.Message = fmt.Sprintf("%s %s is redirected to %s; use that server's base URL", resp.Request.Method, resp.Request.URL.Redacted(), to)
	}
	return e
}

// describe says in a few words what a body is that should have been this API's JSON.
func describe(resp *http.Response, body []byte) string {
	text := strings.Join(strings.Fields(string(body)), " ")
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	switch {
	case text == "":
		return "an empty body"
	case kind == "text/html", strings.HasPrefix(text, "<"):
		return "an HTML page, not this API's JSON; is the base URL right?"
	}
	if short := []rune(text); len(short) > 200 {
		text = string(short[:200]) + "…"
	}
	return strconv.Quote(text)
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(value string, now time.Time) time.Duration {
	if s, err := strconv.ParseFloat(value, 64); err == nil && s > 0 && s < 1e9 {
		return time.Duration(s * float64(time.Second))
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
