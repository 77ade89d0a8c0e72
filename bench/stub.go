package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"
)

// A stub is an upstream that answers at once, always the same, at as little cost as may be: it
// shares the machine with what is measured.
type stub struct {
	l net.Listener

	mu          sync.Mutex
	first, last time.Time
	count       int
}

func newStub() (*stub, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &stub{l: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return s, nil
}

func (s *stub) Close() error { return s.l.Close() }

func (s *stub) url() string { return fmt.Sprintf("http://%s/v1", s.l.Addr()) }

func (s *stub) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.first, s.last, s.count = time.Time{}, time.Time{}, 0
}

func (s *stub) seen() (first, last time.Time, count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first, s.last, s.count
}

func (s *stub) note(start time.Time) {
	end := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == 0 {
		s.first = start
	}
	s.count++
	s.last = end
}

func answer(status, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

var (
	completion = answer("200 OK", `{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1789000000,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"The answer to this question is forty-two, as everybody knows who has read the book.","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":31,"completion_tokens":18,"total_tokens":49},"system_fingerprint":null}`)
	noList     = answer("404 Not Found", `{"error":{"message":"no list","type":"invalid_request_error","param":null,"code":null}}`)
)

func (s *stub) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 16<<10)
	for {
		get, length := false, 0
		for n := 0; ; n++ {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if n == 0 {
				get = bytes.HasPrefix(line, []byte("GET "))
			}
			if len(line) <= 2 {
				break
			}
			const name = "content-length:"
			if len(line) > len(name) && bytes.EqualFold(line[:len(name)], []byte(name)) {
				length, _ = strconv.Atoi(string(bytes.TrimSpace(line[len(name):])))
			}
		}
		start := time.Now()
		if _, err := r.Discard(length); err != nil && err != io.EOF {
			return
		}
		if get {
			c.Write(noList)
			continue
		}
		c.Write(completion)
		s.note(start)
	}
}
