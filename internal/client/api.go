package client

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"strconv"

	"offpeak/internal/openai"
)

// A Batch is the API's batch. Its Offpeak is nil from other servers.
type Batch = openai.Batch

// CreateBatch creates a batch. It is not retried: see the package comment.
func (c *Client) CreateBatch(ctx context.Context, in openai.CreateBatch) (*Batch, error) {
	return fetch[Batch](ctx, c, http.MethodPost, "/batches", in)
}

// Batch returns the batch of that id.
func (c *Client) Batch(ctx context.Context, id string) (*Batch, error) {
	return fetch[Batch](ctx, c, http.MethodGet, "/batches/"+url.PathEscape(id), nil)
}

// CancelBatch asks for the end of a batch and returns it as it then is.
func (c *Client) CancelBatch(ctx context.Context, id string) (*Batch, error) {
	return fetch[Batch](ctx, c, http.MethodPost, "/batches/"+url.PathEscape(id)+"/cancel", nil)
}

// Batches returns the batches, newest first, as many as the caller takes. After an error there
// is nothing more.
func (c *Client) Batches(ctx context.Context) iter.Seq2[Batch, error] {
	return pages(ctx, c, "/batches", url.Values{}, 100, func(b Batch) string { return b.ID })
}

// File returns the description of a file.
func (c *Client) File(ctx context.Context, id string) (*openai.File, error) {
	return fetch[openai.File](ctx, c, http.MethodGet, "/files/"+url.PathEscape(id), nil)
}

// DeleteFile deletes a file.
func (c *Client) DeleteFile(ctx context.Context, id string) (*openai.FileDeleted, error) {
	return fetch[openai.FileDeleted](ctx, c, http.MethodDelete, "/files/"+url.PathEscape(id), nil)
}

// Files returns the files of a purpose, or all if it is empty, newest first. After an error
// there is nothing more.
func (c *Client) Files(ctx context.Context, purpose string) iter.Seq2[openai.File, error] {
	q := url.Values{}
	if purpose != "" {
		q.Set("purpose", purpose)
	}
	return pages(ctx, c, "/files", q, 1000, func(f openai.File) string { return f.ID })
}

// Upstreams returns how the upstreams behind an Offpeak server stand. Other servers do not say.
func (c *Client) Upstreams(ctx context.Context) ([]openai.Upstream, error) {
	l, err := fetch[openai.UpstreamList](ctx, c, http.MethodGet, "/offpeak/upstreams", nil)
	if err != nil {
		return nil, err
	}
	return l.Data, nil
}

// Models returns the models that the server knows.
func (c *Client) Models(ctx context.Context) ([]openai.Model, error) {
	list, err := fetch[openai.ModelList](ctx, c, http.MethodGet, "/models", nil)
	if err != nil {
		return nil, err
	}
	return list.Data, nil
}

// fetch sends in, if it isn't nil, and returns the answer.
func fetch[T any](ctx context.Context, c *Client, method, path string, in any) (*T, error) {
	out := new(T)
	if err := c.roundTrip(ctx, method, path, in, out); err != nil {
		return nil, err
	}
	return out, nil
}

// pages walks a list. It asks for a page only when the caller has taken the one before.
func pages[T any](ctx context.Context, c *Client, path string, q url.Values, size int, id func(T) string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		q := maps.Clone(q) // each walk starts from the first page
		q.Set("limit", strconv.Itoa(size))
		for after := ""; ; {
			page, err := fetch[openai.List[T]](ctx, c, http.MethodGet, path+"?"+q.Encode(), nil)
			if err != nil {
				yield(*new(T), err)
				return
			}
			for _, v := range page.Data {
				if !yield(v, nil) {
					return
				}
			}
			// A server that claims more behind an empty page has no more for us.
			if !page.HasMore || len(page.Data) == 0 {
				return
			}
			last := id(page.Data[len(page.Data)-1])
			if last == after || last == "" {
				yield(*new(T), fmt.Errorf("%s%s: the server sends the same page again and again", c.name, path))
				return
			}
			after = last
			q.Set("after", after)
		}
	}
}
