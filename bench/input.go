package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

// An input is a file of requests.
type input struct {
	lines    int
	bytes    int64
	path     string
	endpoint string
	bodies   string // a file of their bodies alone, for the bare loop; "" if it is not asked for
}

const chat = "/v1/chat/completions"

// chats makes an input of n lines of so many bytes each.
func (e *env) chats(n, size int) (input, error) {
	line := func(i int, fill string) (body string) {
		return fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":"%07d %s"}],"max_tokens":100}`, i, fill)
	}
	return e.input(n, size, chat, line)
}

// texts makes an input of n texts to embed.
func (e *env) texts(n int) (input, error) {
	line := func(i int, fill string) (body string) {
		return fmt.Sprintf(`{"model":"m","input":"%07d %s"}`, i, fill)
	}
	return e.input(n, 335, "/v1/embeddings", line)
}

func (e *env) input(n, size int, endpoint string, body func(i int, fill string) string) (in input, err error) {
	in = input{lines: n, path: e.path(fmt.Sprintf("in-%d-%d.jsonl", n, size)), endpoint: endpoint}
	f, err := os.Create(in.path)
	if err != nil {
		return in, err
	}
	defer f.Close()
	whole := func(i int, body string) string {
		return fmt.Sprintf(`{"custom_id":"request-%07d","method":"POST","url":"%s","body":%s}`+"\n", i, endpoint, body)
	}
	fill := strings.Repeat("x", max(0, size-len(whole(0, body(0, "")))))
	w := bufio.NewWriterSize(f, 1<<20)
	for i := range n {
		line := whole(i, body(i, fill))
		in.bytes += int64(len(line))
		w.WriteString(line)
	}
	return in, w.Flush()
}

// withBodies adds the file of bodies to an input. Cutting them out is no part of the bare loop.
func (in input) withBodies() (input, error) {
	from, err := os.Open(in.path)
	if err != nil {
		return in, err
	}
	defer from.Close()
	in.bodies = in.path + ".bodies"
	to, err := os.Create(in.bodies)
	if err != nil {
		return in, err
	}
	defer to.Close()
	r, w := bufio.NewReaderSize(from, 1<<20), bufio.NewWriterSize(to, 1<<20)
	for {
		line, err := r.ReadString('\n')
		if err == io.EOF {
			return in, w.Flush()
		}
		if err != nil {
			return in, err
		}
		_, body, _ := strings.Cut(line, `"body":`)
		w.WriteString(strings.TrimSuffix(body, "}\n") + "\n")
	}
}
