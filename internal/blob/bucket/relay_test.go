package bucket_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"offpeak/internal/blob/s3test"
)

// A relay stands in front of a real S3 server and spoils what goes through it.
type relay struct {
	addr  string
	proxy *httputil.ReverseProxy

	mu    sync.Mutex
	spoil func(w http.ResponseWriter, r *http.Request, pass http.Handler) // nil: all is well
	calls []string
}

func newRelay(t *testing.T, server *s3test.Server) *relay {
	t.Helper()
	to := &url.URL{Scheme: "http", Host: server.Addr}
	r := &relay{proxy: &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(to)
			p.Out.Host = p.In.Host // it is signed
		},
		FlushInterval: -1,
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		Transport:     &http.Transport{DisableCompression: true},
	}}
	s := httptest.NewUnstartedServer(r)
	s.Config.ErrorLog = nil
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	r.addr = s.Listener.Addr().String()
	return r
}

func (r *relay) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	spoil := r.spoil
	r.calls = append(r.calls, op(req))
	r.mu.Unlock()
	if spoil == nil {
		r.proxy.ServeHTTP(w, req)
		return
	}
	spoil(w, req, r.proxy)
}

// set makes the relay spoil what comes from now on, and forgets what came before.
func (r *relay) set(spoil func(w http.ResponseWriter, r *http.Request, pass http.Handler)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spoil, r.calls = spoil, nil
}

// count counts the calls of a kind since set.
func (r *relay) count(kind string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.calls {
		if c == kind {
			n++
		}
	}
	return n
}

// op names what a request to S3 asks for.
func op(r *http.Request) string {
	q := r.URL.Query()
	object := strings.Contains(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case q.Has("uploads") && r.Method == http.MethodPost:
		return "begin"
	case q.Has("uploads"):
		return "uploads"
	case q.Has("uploadId") && r.Method == http.MethodPut:
		return "part"
	case q.Has("uploadId") && r.Method == http.MethodPost:
		return "complete"
	case q.Has("uploadId"):
		return "drop"
	case r.Method == http.MethodPut:
		return "put"
	case r.Method == http.MethodDelete:
		return "delete"
	case r.Method == http.MethodHead:
		return "head"
	case object:
		return "get"
	}
	return "list"
}

// refuse answers as S3 does when it is out of order.
func refuse(w http.ResponseWriter, r *http.Request, status int, code string) {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>`+code+`</Code><Message>so it is</Message></Error>`)
	}
}

// cut breaks the connection.
func cut() { panic(http.ErrAbortHandler) }

// land lets a request through and keeps the answer to itself.
func land(r *http.Request, pass http.Handler) {
	pass.ServeHTTP(httptest.NewRecorder(), r)
}

// first applies spoil to the first n requests of each kind, and lets the others through.
func first(n int, kinds string, spoil func(w http.ResponseWriter, r *http.Request, pass http.Handler)) func(http.ResponseWriter, *http.Request, http.Handler) {
	var mu sync.Mutex
	seen := map[string]int{}
	return func(w http.ResponseWriter, r *http.Request, pass http.Handler) {
		mu.Lock()
		kind := op(r)
		key := kind + " " + r.URL.Query().Get("partNumber")
		seen[key]++
		hit := seen[key] <= n && (kinds == "" || strings.Contains(" "+kinds+" ", " "+kind+" "))
		mu.Unlock()
		if hit {
			spoil(w, r, pass)
			return
		}
		pass.ServeHTTP(w, r)
	}
}

// limited passes an answer on until so many bytes of its body went by, then breaks the connection.
type limited struct {
	http.ResponseWriter
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n, err := l.ResponseWriter.Write(p[:min(len(p), l.left)])
	if l.left -= n; l.left == 0 {
		http.NewResponseController(l.ResponseWriter).Flush()
		cut()
	}
	return n, err
}

func (l *limited) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// hold answers nothing until the client is gone, which a server notices once it has read the request.
func hold(r *http.Request) {
	io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}
