package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"offpeak/internal/sim"
)

// Commands of scripts that speak HTTP.

// http STATUS METHOD URL [key=KEY] [json=TEXT | upload=FILE] makes one request, which must be
// answered with this status. Then stdout is the body of the answer, stderr its headers. Without
// key= it carries just any.
func call(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 3, "http STATUS METHOD URL [key=KEY] [json=TEXT | upload=FILE]")
	resp, body, err := request(ts, args[1], args[2], args[3:])
	ts.Check(err)
	ts.Stdout().Write(body)
	resp.Header.Write(ts.Stderr())
	if resp.StatusCode != number(ts, args[0]) {
		ts.Fatalf("HTTP %d, want %s", resp.StatusCode, args[0])
	}
}

// until REGEXP URL [key=KEY] gets URL until the body of the answer has a match.
func until(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2, "until REGEXP URL [key=KEY]")
	re := compile(ts, args[0])
	var body []byte
	poll(ts, func() string { return string(body) }, func() bool {
		var err error
		_, body, err = request(ts, http.MethodGet, args[1], args[2:])
		return err == nil && re.Match(body)
	})
	ts.Stdout().Write(body)
}

var scriptClient = &http.Client{
	Transport: &http.Transport{DisableKeepAlives: true}, // servers come and go at one address
	Timeout:   patience,
	CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	},
}

func request(ts *testscript.TestScript, method, url string, options []string) (*http.Response, []byte, error) {
	var body bytes.Buffer
	header := http.Header{"Authorization": {"Bearer any"}}
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "key":
			header.Del("Authorization")
			if value != "" {
				header.Set("Authorization", "Bearer "+value)
			}
		case "json":
			body.WriteString(value)
			header.Set("Content-Type", "application/json")
		case "upload":
			form := multipart.NewWriter(&body)
			ts.Check(form.WriteField("purpose", "batch"))
			file, err := form.CreateFormFile("file", filepath.Base(value))
			ts.Check(err)
			io.WriteString(file, ts.ReadFile(value))
			ts.Check(form.Close())
			header.Set("Content-Type", form.FormDataContentType())
		default:
			ts.Fatalf("unknown option %q", o)
		}
	}
	req, err := http.NewRequest(method, url, &body)
	ts.Check(err)
	req.Header = header
	resp, err := scriptClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp, answer, err
}

var callsTerm = regexp.MustCompile(`^(calls|answered|distinct|most)(=|>=)(\d+)$`)

// calls HOST TERM… checks what a simulated upstream has counted: calls, answered, distinct, and
// most, which is the number of calls of the request that came most often. A TERM with >= is waited
// for.
func calls(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2, "calls HOST NAME=N|NAME>=N…")
	for _, term := range args[1:] {
		m := callsTerm.FindStringSubmatch(term)
		if m == nil {
			ts.Fatalf("%q is not like calls=10 or answered>=3", term)
		}
		var body []byte
		poll(ts, func() string { return string(body) }, func() bool {
			var c sim.Calls
			var err error
			_, body, err = request(ts, http.MethodGet, args[0]+"/sim/calls", nil)
			ts.Check(err)
			ts.Check(json.Unmarshal(body, &c))
			got := map[string]int{"calls": c.Calls, "answered": c.Answered, "distinct": c.Distinct, "most": c.MaxPerRequest}[m[1]]
			want := number(ts, m[3])
			if m[2] == "=" && got != want {
				ts.Fatalf("%s is %d, want %d: %s", m[1], got, want, body)
			}
			return got >= want
		})
	}
}

// port VAR finds a port that nothing listens on. It is none of those that the kernel gives to
// connections, so it stays free.
func freePort(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1, "port VAR")
	for {
		port := strconv.Itoa(12000 + scriptOf(ts).random.IntN(20000))
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			ts.Setenv(args[0], port)
			return
		}
	}
}

// odd NAME [LATENCY] starts an upstream that does what a request says, and answers the others well,
// after LATENCY:
//
//	HANG       never answers
//	BIG n      answers with n bytes of text
//	CUT        breaks off in the middle of the answer
//	TEXT       answers with something that is not JSON
//	ECHO       refuses the request, and repeats the header it came with, keys and all
//
// $NAME is its base URL.
func oddUpstream(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1 || len(args) == 2, "odd NAME [LATENCY]")
	var latency time.Duration
	if len(args) == 2 {
		var err error
		latency, err = time.ParseDuration(args[1])
		ts.Check(err)
	}
	done := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.NotFound(w, r) // no list of models: it serves any
			return
		}
		body, _ := io.ReadAll(r.Body)
		size := 10
		switch m := oddWish.FindSubmatch(body); {
		case m == nil:
			time.Sleep(latency)
		case m[2] != nil:
			size, _ = strconv.Atoi(string(m[2]))
		case string(m[1]) == "HANG":
			select {
			case <-r.Context().Done():
			case <-done:
			}
			return
		case string(m[1]) == "CUT":
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, `{"id":`)
			panic(http.ErrAbortHandler)
		case string(m[1]) == "TEXT":
			io.WriteString(w, "upstream connect error")
			return
		case string(m[1]) == "ECHO":
			w.Header().Set("X-Request-Id", r.Header.Get("Authorization"))
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"error":{"message":"bad request of %s"}}`, r.Header.Get("Authorization"))
			return
		}
		fmt.Fprintf(w, `{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"%s"}}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`,
			strings.Repeat("x", size))
	}))
	s := scriptOf(ts)
	s.atEnd = append(s.atEnd, func() {
		close(done)
		server.CloseClientConnections()
		server.Close()
	})
	ts.Setenv(args[0], server.URL+"/v1")
}

var oddWish = regexp.MustCompile(`(HANG|CUT|TEXT|ECHO|BIG (\d+))`)
