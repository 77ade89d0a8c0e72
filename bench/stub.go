package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// A stub is an upstream that takes as little of the machine as may be, since it shares it with what
// is measured: answers are made beforehand and given in turn, each after the same time. It serves
// what is measured and the reference alike.
type stub struct {
	l       net.Listener
	delay   time.Duration
	answers [][]byte // whole, with their headers
	now     atomic.Pointer[round]
}

// A round is one measurement.
type round struct {
	want           int64
	came, answered atomic.Int64
	first, last    time.Time // of the first request and the last answer; good once done
	done           chan struct{}
}

// newStub starts a stub that gives these bodies.
func newStub(delay time.Duration, bodies ...string) (*stub, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &stub{l: l, delay: delay}
	s.expect(0)
	for _, b := range bodies {
		s.answers = append(s.answers, answer("200 OK", b))
	}
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

func (s *stub) close() { s.l.Close() }

func (s *stub) url() string { return fmt.Sprintf("http://%s/v1", s.l.Addr()) }

// expect begins a round of n requests.
func (s *stub) expect(n int) *round {
	r := &round{want: int64(n), done: make(chan struct{})}
	s.now.Store(r)
	return r
}

func answer(status, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

// serve answers one connection.
func (s *stub) serve(c net.Conn) {
	defer c.Close()
	noList := answer("404 Not Found", `{"error":{"message":"no list","type":"invalid_request_error","param":null,"code":null}}`)
	r := bufio.NewReaderSize(c, 8<<10)
	for {
		get, length, err := readHead(r)
		if err != nil {
			return
		}
		if get {
			if _, err := c.Write(noList); err != nil {
				return
			}
			continue
		}
		now := s.now.Load()
		i := now.came.Add(1)
		if i == 1 {
			now.first = time.Now()
		}
		if _, err := r.Discard(length); err != nil {
			return
		}
		if s.delay > 0 {
			time.Sleep(s.delay)
		}
		if _, err := c.Write(s.answers[int(i)%len(s.answers)]); err != nil {
			return
		}
		if now.answered.Add(1) == now.want {
			now.last = time.Now()
			close(now.done)
		}
	}
}

// readHead reads a request up to its body.
func readHead(r *bufio.Reader) (get bool, length int, err error) {
	for n := 0; ; n++ {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return false, 0, err
		}
		if len(line) <= 2 {
			return get, length, nil
		}
		if n == 0 {
			get = line[0] == 'G'
			continue
		}
		const name = "content-length:"
		if len(line) > len(name) && line[0]|0x20 == 'c' && bytes.EqualFold(line[:len(name)], []byte(name)) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(name):]))); err != nil {
				return false, 0, err
			}
		}
	}
}

// completions are n answers of a chat, each with other words, so that compressing them is as hard
// as it is for real ones. The content of each is so many bytes.
func completions(n, content int) []string {
	words := strings.Fields(`the answer to this question depends on what you mean by it and there are several
		ways of looking at that one might say first of all note however because model batch request number
		consider following example therefore which gives about half as many when compared with others`)
	r := rand.New(rand.NewPCG(1, 2))
	all := make([]string, n)
	for i := range all {
		var text strings.Builder
		for text.Len() < content {
			text.WriteString(words[r.IntN(len(words))])
			text.WriteByte(' ')
		}
		all[i] = fmt.Sprintf(`{"id":"chatcmpl-%016x","object":"chat.completion","created":%d,"model":"m","choices":[{"index":0,`+
			`"message":{"role":"assistant","content":"%s","refusal":null},"logprobs":null,"finish_reason":"stop"}],`+
			`"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d},"system_fingerprint":null}`,
			r.Uint64(), 1_789_000_000+i, text.String()[:content], 31, content/4, 31+content/4)
	}
	return all
}

// vectors are answers of an embedding model, of so many floats each.
func vectors(floats int) []string {
	r := rand.New(rand.NewPCG(3, 4))
	all := make([]string, 64)
	for i := range all {
		text := []byte(`{"object":"list","data":[{"object":"embedding","index":0,"embedding":[`)
		for j := range floats {
			if j > 0 {
				text = append(text, ',')
			}
			text = strconv.AppendFloat(text, r.NormFloat64()/50, 'g', 8, 64)
		}
		all[i] = string(append(text, `]}],"model":"m","usage":{"prompt_tokens":31,"total_tokens":31}}`...))
	}
	return all
}

// wait waits until every request of the round is answered.
func (r *round) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d of %d requests were sent: %w", r.came.Load(), r.want, ctx.Err())
	}
}

// rate is in requests/s, from the first that came to the last answer.
func (r *round) rate() float64 { return float64(r.want) / r.last.Sub(r.first).Seconds() }
