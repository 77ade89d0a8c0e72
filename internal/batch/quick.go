package batch

import (
	"encoding/binary"
	"math/bits"
	"strings"
	"unicode/utf8"
)

// A quick walks one JSON value that is as most are, in half the time that a scanner takes. Wherever it
// says that something is not ok, that may be right and only unusual: a scanner then has the last word.
// What it finds ok, a scanner finds so, too.
type quick struct {
	raw []byte
	at  int
}

// quickDepth is how deep values may be in each other.
const quickDepth = 64

// document walks raw, which must be a single JSON object, and calls member with each name in it, which
// must take exactly one value. A name with escapes in it is unusual.
func (q *quick) document(raw []byte, member func(name []byte) bool) (ok bool) {
	q.raw, q.at = raw, 0
	if !utf8.Valid(raw) {
		return false
	}
	q.space()
	if !q.object(member) {
		return false
	}
	q.space()
	return q.at == len(raw)
}

// next returns the byte that comes next, or 0 at the end.
func (q *quick) next() byte {
	if q.at < len(q.raw) {
		return q.raw[q.at]
	}
	return 0
}

// is takes the byte c if it comes next.
func (q *quick) is(c byte) bool {
	if q.next() == c {
		q.at++
		return true
	}
	return false
}

func (q *quick) space() {
	for q.at < len(q.raw) {
		switch q.raw[q.at] {
		case ' ', '\n', '\t', '\r':
			q.at++
		default:
			return
		}
	}
}

// object walks the object that comes next.
func (q *quick) object(member func(name []byte) bool) bool {
	if !q.is('{') {
		return false
	}
	q.space()
	if q.is('}') {
		return true
	}
	for {
		start := q.at
		if escaped, ok := q.text(); !ok || escaped {
			return false
		}
		name := q.raw[start+1 : q.at-1]
		q.space()
		if !q.is(':') {
			return false
		}
		q.space()
		if !member(name) {
			return false
		}
		q.space()
		if q.is('}') {
			return true
		}
		if !q.is(',') {
			return false
		}
		q.space()
	}
}

// value takes the value that comes next and returns it as it stands there.
func (q *quick) value() ([]byte, bool) {
	start := q.at
	if !q.skip(quickDepth) {
		return nil, false // and the end may be beyond that of what there is
	}
	return q.raw[start:q.at], true
}

// skip passes over the value that comes next.
func (q *quick) skip(depth int) bool {
	switch q.next() {
	case '"':
		_, ok := q.text()
		return ok
	case '{', '[':
		return depth > 0 && q.inside(depth-1)
	case 't':
		return q.word("true")
	case 'f':
		return q.word("false")
	case 'n':
		return q.word("null")
	}
	return q.number()
}

// inside passes over the object or array that comes next.
func (q *quick) inside(depth int) bool {
	object := q.next() == '{'
	end := byte(']')
	if object {
		end = '}'
	}
	q.at++
	q.space()
	if q.is(end) {
		return true
	}
	if !object {
		q.numbers()
		q.space()
	}
	for {
		if object {
			if _, ok := q.text(); !ok {
				return false
			}
			q.space()
			if !q.is(':') {
				return false
			}
			q.space()
		}
		if !q.skip(depth) {
			return false
		}
		q.space()
		if q.is(end) {
			return true
		}
		if !q.is(',') {
			return false
		}
		q.space()
	}
}

// text passes over the string that comes next, and says if there are escapes in it.
func (q *quick) text() (escaped, ok bool) {
	if !q.is('"') {
		return false, false
	}
	for i, c := range q.raw[q.at:] {
		switch {
		case c == '"':
			q.at += i + 1
			return false, true
		case c == '\\':
			q.at += i
			return true, q.escapes()
		case c < ' ':
			return false, false
		}
	}
	return false, false
}

// escapes passes over the rest of a string, from the first escape in it.
func (q *quick) escapes() bool {
	for q.at < len(q.raw) {
		c := q.raw[q.at]
		q.at++
		switch {
		case c == '"':
			return true
		case c < ' ':
			return false
		case c == '\\':
			e := q.next()
			q.at++
			if e == 'u' {
				for range 4 {
					if !isHex(q.next()) {
						return false
					}
					q.at++
				}
			} else if strings.IndexByte(`"\/bfnrt`, e) < 0 {
				return false
			}
		}
	}
	return false
}

func isHex(c byte) bool   { return isDigit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func (q *quick) word(w string) bool {
	if len(q.raw)-q.at < len(w) || string(q.raw[q.at:q.at+len(w)]) != w {
		return false
	}
	q.at += len(w)
	return true
}

// numbers passes over all but the last of the numbers that come next in an array: an embedding is
// thousands. What it stops at is for others to judge.
func (q *quick) numbers() {
	for {
		end := q.numberEnd()
		if end >= len(q.raw) || q.raw[end] != ',' {
			return
		}
		q.at = end + 1
		if q.next() == ' ' {
			q.at++
		}
	}
}

// numberEnd returns where the number that comes next ends, or the end of what there is if it is none.
func (q *quick) numberEnd() int {
	raw, i := q.raw, q.at
	none := len(raw)
	if i < len(raw) && raw[i] == '-' {
		i++
	}
	if i >= len(raw) {
		return none
	}
	if raw[i] == '0' {
		i++
	} else {
		n := countDigits(raw[i:])
		if n == 0 {
			return none
		}
		i += n
	}
	if i < len(raw) && raw[i] == '.' {
		n := countDigits(raw[i+1:])
		if n == 0 {
			return none
		}
		i += 1 + n
	}
	if i < len(raw) && raw[i]|0x20 == 'e' {
		i++
		if i < len(raw) && (raw[i] == '-' || raw[i] == '+') {
			i++
		}
		n := countDigits(raw[i:])
		if n == 0 {
			return none
		}
		i += n
	}
	return i
}

// countDigits returns how many digits b begins with. It looks at eight bytes at a time.
func countDigits(b []byte) (n int) {
	for len(b)-n >= 8 {
		// A digit's byte becomes 0 to 9, to which 0x76 is added without reaching the highest bit. Others
		// reach it, or have it; what they carry into comes after them.
		x := binary.LittleEndian.Uint64(b[n:]) ^ 0x3030303030303030
		if others := (x + 0x7676767676767676 | x) & 0x8080808080808080; others != 0 {
			return n + bits.TrailingZeros64(others)/8
		}
		n += 8
	}
	for n < len(b) && isDigit(b[n]) {
		n++
	}
	return n
}

func (q *quick) number() bool {
	end := q.numberEnd()
	if end == len(q.raw) {
		return false // it is none, and if it is one the object around it is not closed
	}
	q.at = end
	return true
}

// count reads the value that comes next into n; what is no count leaves n as it is.
func (q *quick) count(n *int64) bool {
	raw, ok := q.value()
	setCount(n, raw)
	return ok
}

// usage is what AnswerParser.Usage returns of a body that is as most are.
func (q *quick) usage(body []byte) (u Usage, ok bool) {
	ok = q.document(body, func(name []byte) bool {
		if string(name) != "usage" || q.next() != '{' {
			return q.skip(quickDepth)
		}
		u = Usage{}
		return q.object(func(name []byte) bool {
			switch string(name) {
			case "prompt_tokens", "input_tokens":
				return q.count(&u.Input)
			case "completion_tokens", "output_tokens":
				return q.count(&u.Output)
			case "total_tokens":
				return q.count(&u.Total)
			case "prompt_tokens_details", "input_tokens_details":
				return q.detail("cached_tokens", &u.Cached)
			case "completion_tokens_details", "output_tokens_details":
				return q.detail("reasoning_tokens", &u.Reasoning)
			}
			return q.skip(quickDepth)
		})
	})
	return u, ok
}

// detail reads one number of the object that comes next, which may be null.
func (q *quick) detail(want string, n *int64) bool {
	if q.next() != '{' {
		return q.skip(quickDepth)
	}
	return q.object(func(name []byte) bool {
		if string(name) == want {
			return q.count(n)
		}
		return q.skip(quickDepth)
	})
}

// request finds what Parser.Request wants of a line that is as most are.
func (q *quick) request(line []byte, f *fields) (ok bool) {
	return q.document(line, func(name []byte) (ok bool) {
		switch string(name) {
		case "custom_id":
			f.customID, ok = q.value()
			return ok
		case "body":
			f.model = nil
			start := q.at
			if !q.object(func(name []byte) (ok bool) {
				if string(name) == "model" {
					f.model, ok = q.value()
					return ok
				}
				return q.skip(quickDepth)
			}) {
				return false
			}
			f.body = q.raw[start:q.at]
			return true
		}
		return q.skip(quickDepth)
	})
}
