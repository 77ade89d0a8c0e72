package api

import (
	"bufio"
	"context"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/openai"
)

func (s *server) listFiles(ctx context.Context, p batch.Project, q batch.FileQuery) (openai.List[openai.File], error) {
	files, more, err := s.Store.ListFiles(ctx, p.ID, q)
	return openai.NewList(wireAll(files, wireFile), fileID, more), err
}

func (s *server) file(ctx context.Context, p batch.Project, id string) (openai.File, error) {
	f, err := s.Store.File(ctx, p.ID, id)
	return wireFile(f), err
}

// deleteFile hides the file. A batch that reads it goes on: whoever needs its bytes has them
// (contract FI-16).
func (s *server) deleteFile(ctx context.Context, p batch.Project, id string) (openai.FileDeleted, error) {
	err := s.Store.DeleteFile(ctx, p.ID, id)
	return openai.FileDeleted{ID: id, Object: "file", Deleted: true}, err
}

// content streams a file, part after part (contract FI-13).
func (s *server) content(w *response, r *http.Request, p batch.Project) error {
	f, err := s.Store.File(r.Context(), p.ID, clean(r.PathValue("id")))
	if err != nil {
		return err
	}
	return s.sendFile(w, r, f)
}

// sendFile streams a file, or the range of it that r asks for.
func (s *server) sendFile(w *response, r *http.Request, f batch.File) (err error) {
	etag := `"` + f.ID + `"` // files never change
	span, partial := span{0, f.Bytes}, false
	if ifRange := r.Header.Get("If-Range"); ifRange == "" || ifRange == etag {
		if span, partial, err = parseRange(r.Header.Get("Range"), f.Bytes); err != nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", f.Bytes))
			return err
		}
	}

	src := blob.Concat(r.Context(), s.Blobs, f.Parts, span.off, span.n)
	defer src.Close()
	buf := bufio.NewReaderSize(src, 128<<10)
	if span.n > 0 && r.Method != http.MethodHead {
		// Once the header is out, nothing but a broken connection can tell of an error.
		if _, err := buf.Peek(1); err != nil {
			return fmt.Errorf("read file %s: %w", f.ID, err)
		}
	}

	h, status := w.Header(), http.StatusOK
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", disposition(f.Filename))
	h.Set("Content-Length", strconv.FormatInt(span.n, 10))
	h.Set("Accept-Ranges", "bytes")
	h.Set("ETag", etag)
	if partial {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", span.off, span.off+span.n-1, f.Bytes))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := buf.WriteTo(w); err != nil {
		return fmt.Errorf("send file %s: %w", f.ID, err)
	}
	return nil
}

// disposition is the header that makes a browser save a file under its name.
func disposition(filename string) string {
	if strings.ContainsFunc(filename, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
		return mime.FormatMediaType("attachment", map[string]string{"filename": filename})
	}
	return `attachment; filename="` + filename + `"`
}

// A span is n bytes of a file from off on.
type span struct{ off, n int64 }

// parseRange reads a Range header for a file of size bytes. What it does not understand, several
// ranges included, is ignored, as RFC 9110 allows: then the span is the whole file. It fails for a
// range that lies outside the file.
func parseRange(header string, size int64) (s span, partial bool, err error) {
	whole := span{0, size}
	first, last, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	if !ok || !strings.HasPrefix(header, "bytes=") || strings.Contains(header, ",") {
		return whole, false, nil
	}
	from, errFrom := strconv.ParseUint(first, 10, 63)
	to, errTo := strconv.ParseUint(last, 10, 63)
	switch {
	case first == "" && errTo == nil: // the last bytes
		s = span{max(0, size-int64(to)), min(size, int64(to))}
	case errFrom == nil && last == "":
		s = span{int64(from), size - int64(from)}
	case errFrom == nil && errTo == nil && from <= to:
		s = span{int64(from), min(int64(to), size-1) - int64(from) + 1}
	default:
		return whole, false, nil
	}
	if s.n <= 0 {
		return span{}, false, &batch.Error{Kind: badRange, Msg: fmt.Sprintf("The requested range is outside the file, which has %d bytes.", size)}
	}
	return s, true, nil
}
