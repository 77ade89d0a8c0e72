package api

import (
	"bytes"
	"context"
	"crypto/sha256"
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
	if _, err := s.Store.Batch(r.Context(), p.ID, id); err != nil {
		return err // of a batch of others nothing is read
	}
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
	var sent lineSet
	if !g.Sealed {
		n, err := s.sendJournal(ctx, w, g.Segment, failed, &sent)
		if err == nil && n > 0 {
			return nil
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
	part := blob.Concat(ctx, s.Blobs, []batch.Part{g.Part}, 0, g.Part.Bytes)
	defer part.Close()
	if len(sent) == 0 {
		_, err := io.Copy(w, part)
		return err
	}
	return sent.copyOthers(w, part)
}

// sendJournal writes what is recorded of an open segment, one group after the other, and returns how
// many there are. It fails with batch.ErrSealed if the segment is sealed meanwhile; what it wrote
// until then is in sent.
func (s *server) sendJournal(ctx context.Context, w io.Writer, segment int64, failed bool, sent *lineSet) (n int, err error) {
	seqs, err := s.Store.JournalSeqs(ctx, segment)
	if err != nil || len(seqs) == 0 {
		return 0, err
	}
	u := journal.NewUnpacker()
	defer u.Close()
	var pieces journal.Pieces
	for _, seq := range seqs {
		g, err := s.Store.JournalGroup(ctx, segment, seq)
		if err != nil {
			return 0, err
		}
		data, err := u.Unpack(g)
		if err != nil {
			return 0, err
		}
		for e, err := range journal.Entries(data) {
			if err != nil {
				return 0, err
			}
			if e.OK == failed {
				continue
			}
			line := e.Line
			if e.Piece() {
				// Nothing may be written before all of the line is there: its groups are gone at once when
				// the segment is sealed.
				if line, err = pieces.Join(ctx, s.Store, u, segment, seq, e); err != nil {
					return 0, err
				}
			}
			if line == nil {
				continue
			}
			if _, err := w.Write(line); err != nil {
				return 0, err
			}
			sent.add(line)
		}
	}
	return len(seqs), nil
}

// A lineSet remembers lines of a segment by their sums: no two are equal, since their custom_ids
// are not.
type lineSet map[[16]byte]struct{}

func (l *lineSet) add(line []byte) {
	if *l == nil {
		*l = lineSet{}
	}
	(*l)[lineSum(line)] = struct{}{}
}

func lineSum(line []byte) [16]byte {
	sum := sha256.Sum256(bytes.TrimSuffix(line, []byte("\n")))
	return [16]byte(sum[:16])
}

// copyOthers copies the lines of src that are not in the set.
func (l lineSet) copyOthers(w io.Writer, src io.Reader) error {
	const anyLength = 1 << 40
	for lines := batch.NewLines(src, 0, 1, anyLength); ; {
		line, err := lines.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, ok := l[lineSum(line.Text)]; ok {
			continue
		}
		if _, err := w.Write(line.Text); err != nil {
			return err
		}
		if _, err := w.Write([]byte("\n")); err != nil {
			return err
		}
	}
}
