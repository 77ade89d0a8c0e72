package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// client is what rows need of the API.
type client struct {
	base string
	http *http.Client
}

// newClient makes a client that keeps so many connections.
func newClient(base string, connections int) client {
	return client{base, &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections,
		DisableCompression: true, WriteBufferSize: 256 << 10, ReadBufferSize: 256 << 10}}}
}

func (c client) do(ctx context.Context, method, path, contentType string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer bench")
	if body != nil {
		req.Header.Set("Content-Type", contentType)
		req.ContentLength = size
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: HTTP %d: %s", method, path, resp.StatusCode, text)
	}
	return resp, nil
}

func decode(resp *http.Response, err error, into any) error {
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func (c client) get(ctx context.Context, path string, into any) error {
	resp, err := c.do(ctx, "GET", path, "", nil, 0)
	return decode(resp, err, into)
}

// upload uploads a file and returns its id.
func (c client) upload(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	return c.uploadFrom(ctx, f, fi.Size())
}

// uploadFrom uploads so many bytes of a reader.
func (c client) uploadFrom(ctx context.Context, content io.Reader, size int64) (string, error) {
	const head = "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n" +
		"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n"
	const tail = "\r\n--B--\r\n"
	body := io.MultiReader(strings.NewReader(head), io.LimitReader(content, size), strings.NewReader(tail))
	var file struct{ ID string }
	resp, err := c.do(ctx, "POST", "/v1/files", "multipart/form-data; boundary=B", body, int64(len(head)+len(tail))+size)
	err = decode(resp, err, &file)
	return file.ID, err
}

// create creates a batch of a file.
func (c client) create(ctx context.Context, file, endpoint string) (string, error) {
	text := fmt.Sprintf(`{"input_file_id":%q,"endpoint":%q,"completion_window":"24h"}`, file, endpoint)
	var b batchState
	resp, err := c.do(ctx, "POST", "/v1/batches", "application/json", strings.NewReader(text), int64(len(text)))
	err = decode(resp, err, &b)
	return b.ID, err
}

type batchState struct {
	ID     string
	Status string
	Output string `json:"output_file_id"`
	Errors json.RawMessage
	Counts struct{ Total, Completed, Failed int } `json:"request_counts"`
}

// await polls a batch, so often, until it is of the status.
func (c client) await(ctx context.Context, id, status string, every time.Duration) (b batchState, err error) {
	for {
		if err := c.get(ctx, "/v1/batches/"+id, &b); err != nil {
			return b, err
		}
		switch b.Status {
		case status:
			if b.Counts.Failed > 0 {
				return b, fmt.Errorf("%s: %d requests failed", id, b.Counts.Failed)
			}
			return b, nil
		case "failed", "expired", "cancelled", "completed":
			return b, fmt.Errorf("%s is %s, not %s: %s", id, b.Status, status, b.Errors)
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return b, ctx.Err()
		}
	}
}

// content reads a file to its end and returns its size.
func (c client) content(ctx context.Context, file string) (int64, error) {
	resp, err := c.do(ctx, "GET", "/v1/files/"+file+"/content", "", nil, 0)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return io.Copy(io.Discard, resp.Body)
}
