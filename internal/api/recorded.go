package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/journal"
)

// results is what is recorded of a batch that is not terminal.
type results interface {
	journal.Store
	// Segments lists the segments of a batch in input order, with the parts of those that are
	// sealed: of successful or of failed lines.
	Segments(ctx context.Context, batchID string, failed bool) ([]batch.Sealed, error)
}

func (s *server) recordedOutput(w *response, r *http.Request, p batch.Project) error {
	return s.sendRecorded(w, r, p, false)
}

func (s *server) recordedErrors(w *response, r *http.Request, p batch.Project) error {
	return s.sendRecorded(w, r, p, true)
}

// sendRecorded streams the output or error lines of a batch as they are recorded now; once it is
// terminal, its file.
func (s *server) sendRecorded(w *response, r *http.Request, p batch.Project, failed bool) error {
	id := clean(r.PathValue("id"))
	// First the segments: a batch that is finalized after that is read as it was before.
	segments, err := s.Store.Segments(r.Context(), id, failed)
	if err != nil {
		return err
	}
	b, err := s.Store.Batch(r.Context(), p.ID, id)
	if err != nil {
		return err
	}
	file := b.OutputFileID
	if failed {
		file = b.ErrorFileID
	}
	if b.Status.Terminal() && file != "" {
		f, err := s.Store.File(r.Context(), p.ID, file)
		if err != nil {
			return err
		}
		return s.sendFile(w, r, f)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead || b.Status.Terminal() {
		return nil
	}
	for _, g := range segments {
		if err := s.sendSegment(r.Context(), w, id, g, failed); err != nil {
			return fmt.Errorf("send what is recorded of %s: %w", id, err)
		}
	}
	return nil
}

// sendSegment writes the lines of one segment, whole ones and each once, whatever happens to the
// segment meanwhile.
func (s *server) sendSegment(ctx context.Context, w io.Writer, batchID string, g batch.Sealed, failed bool) error {
	if !g.Sealed {
		groups, err := s.groups(ctx, g.Segment)
		if err == nil && len(groups) > 0 {
			return sendGroups(w, groups, failed)
		}
		if err != nil && !errors.Is(err, batch.ErrSealed) {
			return err
		}
		// Nothing is recorded, or it was sealed since it was listed.
		now, err := s.Store.Segments(ctx, batchID, failed)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(now, func(x batch.Sealed) bool { return x.Segment == g.Segment })
		if i < 0 {
			return errors.New("the batch ended meanwhile; its file has everything")
		}
		g = now[i] // without a part if it is still open
	}
	if g.Part.Key == "" {
		return nil
	}
	lines := blob.Concat(ctx, s.Blobs, []batch.Part{g.Part}, 0, g.Part.Bytes)
	defer lines.Close()
	_, err := io.Copy(w, lines)
	return err
}

// groups returns what is recorded of an open segment, all of it before a line is sent: a segment
// that is sealed in between is begun anew.
func (s *server) groups(ctx context.Context, segment int64) (groups [][]byte, err error) {
	seqs, err := s.Store.JournalSeqs(ctx, segment)
	if err != nil {
		return nil, err
	}
	for _, seq := range seqs {
		g, err := s.Store.JournalGroup(ctx, segment, seq)
		if err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	return groups, nil
}

func sendGroups(w io.Writer, groups [][]byte, failed bool) error {
	u := journal.NewUnpacker()
	defer u.Close()
	for _, g := range groups {
		data, err := u.Unpack(g)
		if err != nil {
			return err
		}
		for e, err := range journal.Entries(data) {
			if err != nil {
				return err
			}
			if e.OK == failed {
				continue
			}
			if _, err := w.Write(e.Line); err != nil {
				return err
			}
		}
	}
	return nil
}
