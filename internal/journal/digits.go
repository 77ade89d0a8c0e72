package journal

import (
	"encoding/binary"
	"slices"
)

// An embedding is thousands of numbers, in which hardly anything repeats. Compressing them costs more
// than everything else that is done for an answer, and brings little more than what is done here:
// where a line has nothing but the sixteen characters of numbers in a list, two go into a byte.
//
// A packed line is, after a uvarint of how long it is unpacked, in turn
//
//	uvarint  length
//	bytes    so many bytes as they are
//	uint32   length, little endian, a multiple of four
//	bytes    so many bytes, each of two characters: the first is in the lower half
//
// and ends where the line does.

const (
	// smallLine is the least length of a line that is looked at: what is smaller compresses better with
	// its neighbours.
	smallLine = 4 << 10
	// A line is packed if of samples of its characters this many are numbers'.
	samples       = 64
	numberSamples = 56
)

// numeral are the characters that take half a byte, each at the place of its value. Those that most
// numbers have are known by their lower halves.
const numerals = "0123456789 +,-.e"

// values are those of characters: noNumeral, or the place in numerals.
var values = func() (t [256]byte) {
	for i := range t {
		t[i] = noNumeral
	}
	for i := range len(numerals) {
		t[numerals[i]] = byte(i)
	}
	return t
}()

const noNumeral = 0x10

// pairs are the two characters that a byte stands for, the first in the lower half.
var pairs = func() (t [256]uint16) {
	for i := range t {
		t[i] = uint16(numerals[i&15]) | uint16(numerals[i>>4])<<8
	}
	return t
}()

// isNumbers reports whether a line is hardly anything but numbers.
func isNumbers(line []byte) bool {
	if len(line) < smallLine {
		return false
	}
	n := 0
	for i := range samples {
		if values[line[i*(len(line)/samples)]] != noNumeral {
			n++
		}
	}
	return n >= numberSamples
}

const each = 0x0101010101010101 // byte of eight

// common reports whether the eight bytes of x are + , - . and 0 to 9, of which each has its value in
// its lower half. They are from 0x2b to 0x39, but not 0x2f: sums have the highest bit of a byte say how
// it compares, which does not reach into the next byte.
func common(x uint64) bool {
	low := x & (0x1f * each)
	from, to, slash := low+(0x80-0x0b)*each, low+(0x80-0x1a)*each, (low^0x0f*each)+0x7f*each
	return x&(0xe0*each)^0x20*each|(from & ^to & slash & (0x80*each) ^ 0x80*each) == 0
}

// valuesOf returns the values of the first eight characters of b in the lower halves of its bytes, if
// they have any.
func valuesOf(b []byte) (x uint64, ok bool) {
	var all byte
	for i, c := range b[:8] {
		v := values[c]
		all |= v
		x |= uint64(v) << (8 * i)
	}
	return x, all&noNumeral == 0
}

// squeeze puts the lower halves of the eight bytes of x next to each other.
func squeeze(x uint64) uint32 {
	x &= 0x0f * each
	x = (x | x>>4) & 0x00ff00ff00ff00ff
	x = (x | x>>8) & 0x0000ffff0000ffff
	return uint32(x | x>>16)
}

// pack8 returns the four bytes that the first eight characters of b go into, if they do.
func pack8(b []byte) (packed uint32, ok bool) {
	x := binary.LittleEndian.Uint64(b)
	ok = common(x)
	if !ok {
		x, ok = valuesOf(b)
	}
	return squeeze(x), ok
}

// appendPacked appends the packed line.
func appendPacked(dst, line []byte) []byte {
	dst = slices.Grow(dst, len(line)*5/8) // it takes about half
	dst = binary.AppendUvarint(dst, uint64(len(line)))
	for rest := line; len(rest) > 0; {
		// Numbers have to go on for a while to be worth the lengths.
		n := 0
		for ; len(rest)-n >= 16; n += 8 {
			if _, ok := pack8(rest[n:]); ok {
				if _, ok := pack8(rest[n+8:]); ok {
					break
				}
			}
		}
		if len(rest)-n < 16 {
			n = len(rest)
		}
		dst = append(binary.AppendUvarint(dst, uint64(n)), rest[:n]...)
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
		at := len(dst)
		dst = slices.Grow(append(dst, 0, 0, 0, 0), len(rest)/2)
		out := dst[at+4 : cap(dst)]
		for len(rest) >= 8 && len(out) >= 4 {
			x := binary.LittleEndian.Uint64(rest)
			if !common(x) {
				var ok bool
				if x, ok = valuesOf(rest); !ok {
					break
				}
			}
			binary.LittleEndian.PutUint32(out, squeeze(x))
			rest, out = rest[8:], out[4:]
		}
		dst = dst[:cap(dst)-len(out)]
		binary.LittleEndian.PutUint32(dst[at:], uint32(len(dst)-at-4))
	}
	return dst
}

// appendUnpacked appends the line that was packed.
func appendUnpacked(dst, packed []byte) ([]byte, error) {
	size, k := binary.Uvarint(packed)
	// No byte stands for more than two, so a damaged line does not claim all the memory there is.
	if k <= 0 || size > 2*uint64(len(packed)) {
		return dst, errDamaged
	}
	packed = packed[k:]
	end := len(dst) + int(size)
	dst = slices.Grow(dst, int(size))
	for len(dst) < end {
		n, k := binary.Uvarint(packed)
		if k <= 0 || n > uint64(len(packed)-k) || n > uint64(end-len(dst)) {
			return dst, errDamaged
		}
		dst = append(dst, packed[k:k+int(n)]...)
		packed = packed[k+int(n):]
		if len(dst) == end {
			break
		}
		if len(packed) < 4 {
			return dst, errDamaged
		}
		n, packed = uint64(binary.LittleEndian.Uint32(packed)), packed[4:]
		if n == 0 || n%4 != 0 || n > uint64(len(packed)) || 2*n > uint64(end-len(dst)) {
			return dst, errDamaged
		}
		at := len(dst)
		dst = dst[:at+2*int(n)]
		for out, in := dst[at:], packed[:n]; len(in) >= 4 && len(out) >= 8; out, in = out[8:], in[4:] {
			binary.LittleEndian.PutUint64(out, uint64(pairs[in[0]])|uint64(pairs[in[1]])<<16|uint64(pairs[in[2]])<<32|uint64(pairs[in[3]])<<48)
		}
		packed = packed[n:]
	}
	if len(packed) > 0 {
		return dst, errDamaged
	}
	return dst, nil
}
