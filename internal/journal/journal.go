// Package journal is the format in which results are recorded until their segment is sealed, and
// the way to read them back.
//
// The results of a segment stand in groups, one for each transaction that recorded some. A group
// is a format byte and then, compressed unless the format says otherwise, one entry a result:
//
//	uvarint  index of the request among those of the segment, in the order of lines
//	byte     1 if the request succeeded, else 0; and 2 more if the line is packed (embeddings)
//	uvarint  length
//	bytes    the finished line of the output or error file
//
// The length of a packed line is a uint32, little endian. There are some only where the format says
// so. How one is packed stands in digits.go.
//
// A line that is large stands in several groups, each with a piece of it and nothing else: see pieces.go.
//
// Every version that may work on one database reads every format that the others write.
package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// Formats of a group.
const (
	formatPlain      byte = iota
	formatZstd            // of the same data
	formatPacked          // plain, and lines may be packed
	formatPackedZstd      // of the same data
	// formatPiece is added to the format of a group that has a piece of a line.
	formatPiece byte = 0x80
)

// The bits of an entry's second field.
const (
	entryOK byte = 1 << iota
	entryPacked
	entryMore  // it is a piece, and others follow
	entryPiece // it is a piece
)

// AppendEntry appends the entry of one result to the data of a group, from which a Packer makes it.
func AppendEntry(dst []byte, index int, ok bool, line []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(index))
	flags := flagOf(ok)
	if !isNumbers(line) {
		return appendPlain(append(dst, flags), line)
	}
	at := len(dst) + 1
	dst = appendPacked(append(dst, flags|entryPacked, 0, 0, 0, 0), line)
	if size := len(dst) - at - 4; size < len(line)*3/4 {
		binary.LittleEndian.PutUint32(dst[at:], uint32(size))
		return dst
	}
	return appendPlain(append(dst[:at-1], flags), line) // it is not as numbers as it looks
}

// flagOf returns the flag of a result that succeeded, or none.
func flagOf(ok bool) byte {
	if ok {
		return entryOK
	}
	return 0
}

// appendPlain appends the line to the beginning of its entry.
func appendPlain(dst, line []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(line))), line...)
}

// An Entry is one result in the data of a group.
type Entry struct {
	Index  int
	OK     bool
	Offset int    // of Line in the data
	Line   []byte // points into the data
	packed bool   // Line is; never in what an Unpacker returns
	// Of a piece, see Piece.
	At   int  // of Line in the whole line
	More bool // others follow

	piece bool
}

var errDamaged = errors.New("damaged group")

// Entries yields the entries in the data of a group, or an error and nothing more.
func Entries(data []byte) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for rest := data; len(rest) > 0; {
			index, k := binary.Uvarint(rest)
			if k <= 0 || index > 1<<31 || len(rest) <= k {
				yield(Entry{}, errDamaged)
				return
			}
			flags := rest[k]
			e := Entry{
				Index: int(index), OK: flags&entryOK != 0, More: flags&entryMore != 0,
				packed: flags&entryPacked != 0, piece: flags&entryPiece != 0,
			}
			rest = rest[k+1:]
			if e.piece {
				at, k := binary.Uvarint(rest)
				if k <= 0 || at > maxLine {
					yield(Entry{}, errDamaged)
					return
				}
				e.At, rest = int(at), rest[k:]
			}
			size, k := binary.Uvarint(rest)
			if e.packed {
				if size, k = 0, 4; len(rest) >= 4 {
					size = uint64(binary.LittleEndian.Uint32(rest))
				}
			}
			if k <= 0 || len(rest) < k || size == 0 || size > uint64(len(rest)-k) {
				yield(Entry{}, errDamaged)
				return
			}
			e.Offset = len(data) - len(rest) + k
			e.Line = rest[k : k+int(size)]
			rest = rest[k+int(size):]
			if !yield(e, nil) {
				return
			}
		}
	}
}

// A Packer compresses groups. It is not safe for concurrent use.
type Packer struct{ enc *zstd.Encoder }

// NewPacker returns a packer for groups of about size bytes.
func NewPacker(size int) *Packer {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(size), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // of the options, which are constant but for a size that is
	}
	return &Packer{enc}
}

// Close gives the packer's memory back.
func (p *Packer) Close() { p.enc.Close() }

// Pack makes a group of its data, compressed unless that gains little: most of it is packed already,
// or never repeats itself.
func (p *Packer) Pack(data []byte) []byte {
	plain, zstd := formatPlain, formatZstd
	if packed := packedBytes(data); packed > 0 {
		plain, zstd = formatPacked, formatPackedZstd
		if packed > len(data)/2 {
			return append([]byte{plain}, data...)
		}
	}
	group := p.enc.EncodeAll(data, []byte{zstd})
	if len(group) > len(data)*9/10 {
		return append(append(group[:0], plain), data...)
	}
	return group
}

// packedBytes is how much of the data of a group is packed lines.
func packedBytes(data []byte) (n int) {
	for e := range Entries(data) {
		if e.packed {
			n += len(e.Line)
		}
	}
	return n
}

// An Unpacker is the reverse of a Packer. It is not safe for concurrent use.
type Unpacker struct {
	dec   *zstd.Decoder
	piece []byte // memory for groups with a piece of a line
}

// NewUnpacker returns an unpacker.
func NewUnpacker() *Unpacker {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic(err) // of the options, which are constant
	}
	return &Unpacker{dec: dec}
}

// Close gives the unpacker's memory back.
func (u *Unpacker) Close() { u.dec.Close() }

// maxGroup bounds what a group may unpack to, so that a damaged one does not claim all the memory
// there is. A group that was packed is smaller: it has few answers, and those are bounded.
const maxGroup = 1 << 30

// smallGroup bounds what a group holds whose size zstd does not write down.
const smallGroup = 1 << 10

// Unpack returns the data of a group. It may point into the group, and with a piece of a line it is valid
// until the next call.
func (u *Unpacker) Unpack(group []byte) ([]byte, error) {
	data, err := u.decompress(group)
	if err != nil || packedBytes(data) == 0 {
		return data, err
	}
	plain := make([]byte, 0, 2*len(data)+16)
	var line []byte
	for e, err := range Entries(data) {
		if err == nil && e.packed {
			line, err = appendUnpacked(line[:0], e.Line)
			e.Line = line
		}
		if err != nil {
			return nil, err
		}
		plain = appendPlain(append(binary.AppendUvarint(plain, uint64(e.Index)), flagOf(e.OK)), e.Line)
	}
	return plain, nil
}

// decompress returns the data of a group with packed lines as they are. It may point into the group.
func (u *Unpacker) decompress(group []byte) ([]byte, error) {
	if len(group) == 0 {
		return nil, errDamaged
	}
	switch group[0] &^ formatPiece {
	case formatPlain, formatPacked:
		return group[1:], nil
	case formatZstd, formatPackedZstd:
		// A Packer says how much there is, unless that is little, and then that is all that may come.
		var h zstd.Header
		if err := h.Decode(group[1:]); err != nil || h.FrameContentSize > maxGroup {
			return nil, errDamaged
		}
		size := h.FrameContentSize
		if !h.HasFCS {
			size = smallGroup
		}
		if group[0]&formatPiece == 0 {
			return u.dec.DecodeAll(group[1:], make([]byte, 0, size))
		}
		u.piece = slices.Grow(u.piece[:0], int(size))
		return u.dec.DecodeAll(group[1:], u.piece[:0:size])
	}
	return nil, fmt.Errorf("group format %d is of a newer version", group[0])
}

// Store is where groups are recorded.
type Store interface {
	// JournalSeqs lists the groups of a segment, oldest first.
	JournalSeqs(ctx context.Context, segment int64) ([]int64, error)
	Groups
}

// A Record is what is recorded of a segment: for each request, where its line stands.
type Record struct {
	store   Store
	segment int64
	seqs    []int64
	places  []place
	pieces  Pieces
	whole   map[int][]int64 // the groups of lines that stand in several, by request
	unpack  *Unpacker
	line    []byte // that was packed
	// The data of all groups, if that is no more than cacheBytes; else nil. Here and below lines that
	// are packed stay so.
	cache  map[int32][]byte
	cached int // bytes in cache
	// Else the lines of some requests that follow each other.
	from, to int    // which: those before to
	lines    []byte // one after the other
}

// A place is where a line stands.
type place struct {
	group        int32 // index into seqs, or inPieces
	offset, size int   // in the data of the group; size 0: not recorded
	at           int   // in lines
	ok, packed   bool
}

// inPieces is the group of a line that stands in several.
const inPieces = -1

// cacheBytes bounds the data that is kept while lines are read. Results stand in the journal in
// the order they came; of a segment of large answers each group is unpacked once for every so many
// bytes of lines of which it has any.
const cacheBytes = 8 << 20

// Read reads what is recorded of a segment of n requests. Close the record after use.
func Read(ctx context.Context, s Store, segment int64, n int) (*Record, error) {
	seqs, err := s.JournalSeqs(ctx, segment)
	if err != nil {
		return nil, err
	}
	r := &Record{store: s, segment: segment, seqs: seqs, places: make([]place, n), whole: map[int][]int64{}, cache: map[int32][]byte{}}
	if len(seqs) == 0 {
		return r, nil
	}
	r.unpack = NewUnpacker()
	for i := range seqs {
		if err := r.index(ctx, int32(i)); err != nil {
			r.Close()
			return nil, fmt.Errorf("group %d: %w", seqs[i], err)
		}
	}
	return r, nil
}

func (r *Record) index(ctx context.Context, group int32) error {
	data, err := r.load(ctx, group)
	if err != nil {
		return err
	}
	for e, err := range Entries(data) {
		if err != nil {
			return err
		}
		if e.Index >= len(r.places) {
			return errDamaged
		}
		if e.Piece() {
			whole, err := r.pieces.Add(r.seqs[group], e)
			if err != nil {
				return err
			}
			if whole != nil {
				r.places[e.Index] = place{group: inPieces, size: e.At + len(e.Line), ok: e.OK}
				r.whole[e.Index] = whole
			}
			return nil // there is nothing else in its group, which need not be kept
		}
		r.places[e.Index] = place{group: group, offset: e.Offset, size: len(e.Line), ok: e.OK, packed: e.packed}
	}
	if r.cached += len(data); r.cached > cacheBytes {
		r.cache = nil
	}
	if r.cache != nil {
		r.cache[group] = data
	}
	return nil
}

// Has reports whether the request with the index has a result.
func (r *Record) Has(i int) bool { return r.places[i].size > 0 }

// OK reports whether the request with the index succeeded.
func (r *Record) OK(i int) bool { return r.places[i].ok }

// Line returns the finished line of the request with the index, and whether it succeeded. The line
// is valid until the next call. Lines are meant to be asked for in the order of requests.
func (r *Record) Line(ctx context.Context, i int) (line []byte, ok bool, err error) {
	p := &r.places[i]
	if p.group == inPieces {
		var whole bytes.Buffer
		err := r.WriteLine(ctx, i, &whole)
		return whole.Bytes(), p.ok, err
	}
	if r.cache != nil {
		line, err = r.unpacked(p, r.cache[p.group][p.offset:p.offset+p.size])
		return line, p.ok, err
	}
	if i < r.from || i >= r.to {
		if err := r.gather(ctx, i); err != nil {
			return nil, false, err
		}
	}
	line, err = r.unpacked(p, r.lines[p.at:p.at+p.size])
	return line, p.ok, err
}

// unpacked returns the line that stands at p.
func (r *Record) unpacked(p *place, line []byte) ([]byte, error) {
	if !p.packed {
		return line, nil
	}
	var err error
	r.line, err = appendUnpacked(r.line[:0], line)
	return r.line, err
}

// gather reads the lines of the request with the index and of as many behind it as there is room
// for. It has one group in memory at a time.
func (r *Record) gather(ctx context.Context, from int) error {
	r.from, r.to = 0, 0 // nothing, should this fail
	size, to := 0, from
	var groups []int32
	for ; to < len(r.places); to++ {
		p := &r.places[to]
		if p.group == inPieces {
			continue // it is not read with others
		}
		if size > 0 && size+p.size > cacheBytes {
			break
		}
		p.at, size = size, size+p.size
		if p.size > 0 {
			groups = append(groups, p.group)
		}
	}
	if to == from+1 { // a large one is not copied
		p := &r.places[from]
		data, err := r.load(ctx, p.group)
		if err != nil {
			return fmt.Errorf("group %d: %w", r.seqs[p.group], err)
		}
		r.from, r.to, r.lines = from, to, data[p.offset:p.offset+p.size:p.offset+p.size]
		return nil
	}
	r.lines = slices.Grow(r.lines[:0], size)[:size]
	slices.Sort(groups)
	for _, group := range slices.Compact(groups) {
		data, err := r.load(ctx, group)
		if err != nil {
			return fmt.Errorf("group %d: %w", r.seqs[group], err)
		}
		for i := from; i < to; i++ {
			if p := r.places[i]; p.group == group && p.size > 0 {
				copy(r.lines[p.at:], data[p.offset:p.offset+p.size])
			}
		}
	}
	r.from, r.to = from, to
	return nil
}

// load reads and unpacks a group.
func (r *Record) load(ctx context.Context, group int32) ([]byte, error) {
	packed, err := r.store.JournalGroup(ctx, r.segment, r.seqs[group])
	if err != nil {
		return nil, err
	}
	return r.unpack.decompress(packed)
}

// Close gives the record's memory back.
func (r *Record) Close() {
	if r.unpack != nil {
		r.unpack.Close()
	}
}
