package api

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// observe logs and counts a request that was answered.
func (s *server) observe(w *response, r *http.Request) {
	took := time.Since(w.start)
	s.Observe(route(r), class(w.status), took)
	if w.project != "" && w.status < 300 {
		s.away.Note(nil)
	}
	if !s.Log.Enabled(r.Context(), slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{
		slog.String("request", w.id), slog.String("method", r.Method), slog.String("route", route(r)),
		slog.Int("status", w.status), slog.Duration("dur", took),
	}
	for _, a := range []slog.Attr{
		slog.String("project", w.project),
		slog.String("client_request", clientRequestID(r)),
		slog.String("retry", retryCount(r)),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	s.Log.LogAttrs(context.WithoutCancel(r.Context()), slog.LevelDebug, "request", attrs...)
}

// route is the pattern that r was served by: one of a fixed set, fit for a label.
func route(r *http.Request) string {
	if strings.Contains(r.Pattern, " ") { // patterns without a method are those of 404 and 405
		return r.Pattern
	}
	return "other"
}

// class is the class of a status, such as "2xx". What would be answered at another time is told from
// what is our fault.
func class(status int) string {
	switch {
	case status < 100 || status > 599:
		return "none"
	case status == http.StatusServiceUnavailable:
		return "503"
	}
	return strconv.Itoa(status/100) + "xx"
}

// clientRequestID is the name that the client has for the request, if it is one (contract §14).
func clientRequestID(r *http.Request) string {
	id := r.Header.Get("X-Client-Request-Id")
	if len(id) > 512 || strings.ContainsFunc(id, func(c rune) bool { return c < ' ' || c > '~' }) {
		return ""
	}
	return id
}

// retryCount is how often an SDK says it has sent the request before, if it has.
func retryCount(r *http.Request) string {
	n, err := strconv.ParseUint(r.Header.Get("X-Stainless-Retry-Count"), 10, 8)
	if err != nil || n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
