package sim

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// chatBody is as long as the requests of an ordinary batch.
const chatBody = `{"model":"llama-3.1-8b","messages":[{"role":"system","content":"You are a careful annotator. ` +
	`Answer with one word."},{"role":"user","content":"Is the following review positive or negative? ` +
	`The room was small but clean, and the staff went out of their way to help us find a taxi at four in the ` +
	`morning."}],"temperature":0,"max_tokens":64}`

// discard is a ResponseWriter that costs next to nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

// BenchmarkInstant measures the handler alone, at no simulated cost.
func BenchmarkInstant(b *testing.B) {
	for _, c := range []struct {
		name string
		cfg  Config
	}{
		{"plain", Config{}},
		{"counting", Config{CountCalls: true}},
		{"prefix cache", Config{PrefixCache: 10000}},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := New(c.cfg)
			b.SetBytes(int64(len(chatBody)))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				w := &discard{header: make(http.Header)}
				body := strings.NewReader("")
				r, _ := http.NewRequest("POST", "/v1/chat/completions", io.NopCloser(body))
				r.ContentLength = int64(len(chatBody))
				for pb.Next() {
					body.Reset(chatBody)
					s.ServeHTTP(w, r)
				}
			})
		})
	}
}

// BenchmarkLoopback measures client, kernel and server together.
func BenchmarkLoopback(b *testing.B) {
	up, err := Start(Config{}, "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer up.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			res, err := client.Post(up.URL()+"/chat/completions", "application/json", strings.NewReader(chatBody))
			if err != nil {
				b.Error(err)
				return
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	})
}
