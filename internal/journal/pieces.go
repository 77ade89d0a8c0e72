package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"
)

// A line may have tens of megabytes, and each copy of it as many again: packed, on its way to the
// database, within it, and back. So a large line is recorded in pieces, one group after the other, and
// its result counts with the last of them. A group with a piece has one entry:
//
//	uvarint  index of the request
//	byte     8, and 1 if the request succeeded, and 4 if more pieces follow
//	uvarint  where the piece stands in the line
//	uvarint  length
//	bytes    the piece
//
// If the line was not recorded to its end, its request has no result. When it is sent again, its new
// line begins with a piece at 0, which is how the former ones are known to be void.

// pieceBytes is how much of a line is in one group.
const pieceBytes = 4 << 20

// maxLine bounds where a piece may stand, so that a damaged one does not count for much.
const maxLine = 1 << 40

// Groups makes the groups that record one result, whose line comes in parts, and says of each if it is
// the last. Of a small line there is one, like any other.
func (p *Packer) Groups(index int, ok bool, line ...[]byte) iter.Seq2[[]byte, bool] {
	return func(yield func([]byte, bool) bool) {
		size := 0
		for _, part := range line {
			size += len(part)
		}
		if size <= pieceBytes {
			yield(p.Pack(AppendEntry(nil, index, ok, slices.Concat(line...))), true)
			return
		}
		left := slices.Clone(line)
		data := make([]byte, 0, pieceBytes+4*binary.MaxVarintLen64)
		for at := 0; at < size; at += pieceBytes {
			n := min(size-at, pieceBytes)
			last := at+n == size
			flags := entryPiece | flagOf(ok)
			if !last {
				flags |= entryMore
			}
			data = append(binary.AppendUvarint(data[:0], uint64(index)), flags)
			data = binary.AppendUvarint(binary.AppendUvarint(data, uint64(at)), uint64(n))
			for n > 0 {
				k := min(n, len(left[0]))
				data = append(data, left[0][:k]...)
				n -= k
				if left[0] = left[0][k:]; len(left[0]) == 0 {
					left = left[1:]
				}
			}
			group := p.Pack(data)
			group[0] |= formatPiece
			if !yield(group, last) {
				return
			}
		}
	}
}

// Piece reports whether the entry is a piece of a line.
func (e Entry) Piece() bool { return e.piece }

// Pieces are the pieces of lines that were found so far in the journal of a segment. The zero value has
// none.
type Pieces struct{ begun map[int]*pieces }

type pieces struct {
	groups []int64
	size   int
}

// Add notes a piece, which is an entry of a group. With the last piece of a line it returns the groups
// that have the pieces, in their order. Groups are to be read oldest first.
func (p *Pieces) Add(seq int64, e Entry) (whole []int64, err error) {
	if p.begun == nil {
		p.begun = map[int]*pieces{}
	}
	line := p.begun[e.Index]
	if e.At == 0 { // whatever came before of it was not recorded to its end
		line = &pieces{}
		p.begun[e.Index] = line
	}
	if line == nil || line.size != e.At {
		return nil, errDamaged
	}
	line.groups = append(line.groups, seq)
	line.size += len(e.Line)
	if e.More {
		return nil, nil
	}
	delete(p.begun, e.Index)
	return line.groups, nil
}

// Join is Add that returns, with the last piece of a line, the whole line, else nil. e is no longer valid
// then.
func (p *Pieces) Join(ctx context.Context, s Groups, u *Unpacker, segment, seq int64, e Entry) ([]byte, error) {
	size := e.At + len(e.Line)
	groups, err := p.Add(seq, e)
	if err != nil || groups == nil {
		return nil, err
	}
	var line bytes.Buffer
	line.Grow(size)
	err = WritePieces(ctx, s, u, segment, groups, &line)
	return line.Bytes(), err
}

// WriteLine writes the finished line of the request with the index. Lines are meant to be asked for in
// the order of requests. A large one is in memory by pieces.
func (r *Record) WriteLine(ctx context.Context, i int, w io.Writer) error {
	if r.places[i].group != inPieces {
		line, _, err := r.Line(ctx, i)
		if err == nil {
			_, err = w.Write(line)
		}
		return err
	}
	return WritePieces(ctx, r.store, r.unpack, r.segment, r.whole[i], w)
}

// Groups are the groups of segments.
type Groups interface {
	JournalGroup(ctx context.Context, segment, seq int64) ([]byte, error)
}

// WritePieces writes a line that stands in groups of a segment.
func WritePieces(ctx context.Context, s Groups, u *Unpacker, segment int64, groups []int64, w io.Writer) error {
	for _, seq := range groups {
		group, err := s.JournalGroup(ctx, segment, seq)
		if err != nil {
			return fmt.Errorf("group %d: %w", seq, err)
		}
		data, err := u.Unpack(group)
		if err != nil {
			return fmt.Errorf("group %d: %w", seq, err)
		}
		for e, err := range Entries(data) {
			if err != nil {
				return fmt.Errorf("group %d: %w", seq, err)
			}
			if _, err := w.Write(e.Line); err != nil {
				return err
			}
		}
	}
	return nil
}
