package journal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A line may have tens of megabytes. Such a one is packed from the pieces that it comes in, as a group
// of its own, and read back piece by piece: unpacked it is in memory but once, where its answer is. The
// formats are the same as those of other groups.

const (
	sampleBytes = 256 << 10 // of a large line tell how well it compresses
	plainRatio  = 0.9       // is too little of a gain
)

// PackLarge makes a group of one result, whose line comes in pieces.
func (p *Packer) PackLarge(index int, ok bool, line ...[]byte) []byte {
	size := 0
	for _, piece := range line {
		size += len(piece)
	}
	head := appendHead(nil, index, ok, size)
	size += len(head)
	ratio := p.ratio(line)
	if ratio > plainRatio {
		group := append(append(make([]byte, 0, 1+size), formatPlain), head...)
		for _, piece := range line {
			group = append(group, piece...)
		}
		return group
	}
	group := grown{append(make([]byte, 0, int(float64(size)*ratio*1.1)+4<<10), formatZstd)}
	p.enc.ResetContentSize(&group, int64(size))
	p.enc.Write(head)
	for _, piece := range line {
		p.enc.Write(piece) // to memory, which does not fail
	}
	p.enc.Close()
	p.enc.Reset(nil)
	return group.data
}

// ratio is what a line that comes in pieces compresses to, as far as its middle tells.
func (p *Packer) ratio(line [][]byte) float64 {
	var longest []byte
	for _, piece := range line {
		if len(piece) > len(longest) {
			longest = piece
		}
	}
	sample := longest[len(longest)/2:]
	sample = sample[:min(len(sample), sampleBytes)]
	return float64(len(p.enc.EncodeAll(sample, nil))) / float64(max(1, len(sample)))
}

// grown is what was written to it.
type grown struct{ data []byte }

// Write implements io.Writer.
func (g *grown) Write(p []byte) (int, error) {
	g.data = append(g.data, p...)
	return len(p), nil
}

// maxWindow bounds what reading a group piece by piece takes.
const maxWindow = 8 << 20

// isLarge reports whether a group unpacks to more than is kept in memory.
func (u *Unpacker) isLarge(group []byte) bool {
	if len(group) == 0 {
		return false
	}
	switch group[0] {
	case formatPlain:
		return len(group) > cacheBytes
	case formatZstd:
		var h zstd.Header
		return h.Decode(group[1:]) == nil && h.HasFCS && h.FrameContentSize > cacheBytes
	}
	return false
}

// A Reader reads the entries of a group one after the other, and their lines piece by piece.
type Reader struct {
	in   *bufio.Reader
	at   int64 // in the data of the group
	left int64 // of the line
}

// Open reads a group whose lines may be large. The reader is good until the unpacker's next use.
func (u *Unpacker) Open(group []byte) (*Reader, error) {
	if !u.isLarge(group) {
		data, err := u.Unpack(group)
		return newReader(bytes.NewReader(data)), err
	}
	if group[0] == formatPlain {
		return newReader(bytes.NewReader(group[1:])), nil
	}
	if u.stream == nil {
		var err error
		u.stream, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			panic(err) // of the options, which are constant
		}
	}
	if err := u.stream.Reset(bytes.NewReader(group[1:])); err != nil {
		return nil, errDamaged
	}
	return newReader(u.stream), nil
}

func newReader(in io.Reader) *Reader { return &Reader{in: bufio.NewReaderSize(in, 64<<10)} }

// Next returns the next entry, without its line, and the size of that. It fails with io.EOF after the
// last.
func (r *Reader) Next() (e Entry, size int64, err error) {
	if err := r.skip(r.left); err != nil {
		return e, 0, err
	}
	if _, err := r.in.Peek(1); err == io.EOF {
		return e, 0, io.EOF
	} else if err != nil {
		return e, 0, errDamaged
	}
	head, _ := r.in.Peek(2*binary.MaxVarintLen64 + 1)
	index, k := binary.Uvarint(head)
	if k <= 0 || index > 1<<31 || len(head) <= k {
		return e, 0, errDamaged
	}
	n, m := binary.Uvarint(head[k+1:])
	if m <= 0 || n == 0 || n > maxGroup {
		return e, 0, errDamaged
	}
	e = Entry{Index: int(index), OK: head[k] == 1}
	if err := r.skip(int64(k + 1 + m)); err != nil {
		return e, 0, err
	}
	e.Offset, r.left = int(r.at), int64(n)
	return e, r.left, nil
}

// skip passes over so many bytes.
func (r *Reader) skip(n int64) error {
	for n > 0 {
		k, err := r.in.Discard(int(min(n, 1<<30)))
		if r.at += int64(k); err != nil {
			return errDamaged
		}
		n -= int64(k)
	}
	r.left = 0
	return nil
}

// WriteTo writes the line of the last entry.
func (r *Reader) WriteTo(w io.Writer) (n int64, err error) {
	n, err = io.CopyN(w, r.in, r.left)
	r.at += n
	r.left -= n
	if err == io.EOF {
		err = errDamaged
	}
	return n, err
}

// indexLarge notes where the lines of a large group stand.
func (r *Record) indexLarge(packed []byte, group int32) error {
	in, err := r.unpack.Open(packed)
	if err != nil {
		return err
	}
	for {
		e, size, err := in.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = r.note(e, int(size), group)
		}
		if err != nil {
			return err
		}
	}
}

// WriteLine writes the finished line of the request with the index. Lines are meant to be asked for in
// the order of requests.
func (r *Record) WriteLine(ctx context.Context, i int, w io.Writer) error {
	p := &r.places[i]
	if p.size <= cacheBytes {
		line, _, err := r.Line(ctx, i)
		if err == nil {
			_, err = w.Write(line)
		}
		return err
	}
	packed, err := r.store.JournalGroup(ctx, r.segment, r.seqs[p.group])
	if err != nil {
		return fmt.Errorf("group %d: %w", r.seqs[p.group], err)
	}
	in, err := r.unpack.Open(packed)
	if err == nil {
		err = in.skip(int64(p.offset))
	}
	if err != nil {
		return fmt.Errorf("group %d: %w", r.seqs[p.group], err)
	}
	in.left = int64(p.size)
	if _, err := in.WriteTo(w); err != nil {
		return err
	}
	if _, _, err = in.Next(); err == io.EOF { // there the group says if it was damaged
		err = nil
	}
	return err
}
