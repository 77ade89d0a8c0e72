package batch

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// This file is the only place that knows the JSON library. Everything is done on raw bytes in one
// pass: what is forwarded or stored is cut out of the input, never decoded and encoded again
// (contract I-08, O-04).

// A scanner walks one JSON value at a time. It is reused from value to value, and does not keep a
// large one.
type scanner struct {
	src bytes.Buffer
	raw []byte
	dec *jsontext.Decoder
}

// lenient allows what must pass through unchanged: duplicate keys and, inside strings, escapes of
// lone surrogates. Bytes that are not UTF-8 are refused before, by valid.
var lenient = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

var (
	errNotUTF8  = errors.New("not valid UTF-8")
	errNoObject = errors.New("not a JSON object")
	errTrailing = errors.New("text after the end of the JSON object")
	errBOM      = errors.New("starts with a UTF-8 byte order mark; save the file without it")
)

// object walks raw, which must be a single JSON object, and calls member with each name in it.
// member must take exactly one value. The whole of raw is checked.
func (s *scanner) object(raw []byte, member func(name []byte) error) error {
	err := s.walk(raw, member)
	if len(raw) > 1<<20 {
		*s = scanner{} // its owner may wait an hour for the next value
	}
	return err
}

func (s *scanner) walk(raw []byte, member func(name []byte) error) error {
	if !utf8.Valid(raw) {
		return errNotUTF8
	}
	s.raw, s.src = raw, *bytes.NewBuffer(raw)
	if s.dec == nil {
		s.dec = jsontext.NewDecoder(&s.src, lenient...)
	} else {
		s.dec.Reset(&s.src, lenient...)
	}
	if k := s.dec.PeekKind(); k != '{' && k != 0 {
		if err := s.dec.SkipValue(); err != nil {
			return err
		}
		return errNoObject
	}
	if err := s.members(member); err != nil {
		return err
	}
	switch _, err := s.dec.ReadToken(); {
	case err == io.EOF:
		return nil
	case err != nil:
		return err
	}
	return errTrailing
}

// members walks the object that comes next.
func (s *scanner) members(member func(name []byte) error) error {
	if _, err := s.dec.ReadToken(); err != nil {
		return err
	}
	for s.dec.PeekKind() != '}' {
		name, err := s.dec.ReadValue()
		if err != nil {
			return err
		}
		if err := member(unquote(name)); err != nil {
			return err
		}
	}
	_, err := s.dec.ReadToken()
	return err
}

// value takes the value that comes next and returns it as it stands in the input.
func (s *scanner) value() ([]byte, error) {
	v, err := s.dec.ReadValue()
	if err != nil {
		return nil, err
	}
	end := s.dec.InputOffset()
	return s.raw[end-int64(len(v)) : end], nil
}

func (s *scanner) skip() error { return s.dec.SkipValue() }

// count takes the value that comes next, and returns what whole number it is, or 0 if it is none that
// anybody would count to.
func (s *scanner) count() (int64, error) {
	v, err := s.value()
	if n, bad := strconv.ParseFloat(string(v), 64); bad == nil && n >= 0 && n < 1<<31 {
		return int64(n), err
	}
	return 0, err
}

// next returns the kind of the value that comes next: one of n f t " 0 { [, or 0 if it is broken.
func (s *scanner) next() byte { return byte(s.dec.PeekKind()) }

// unquote returns the text of a JSON string token, without copying where there is no escape.
func unquote(token []byte) []byte {
	if len(token) < 2 || token[0] != '"' {
		return nil
	}
	if text := token[1 : len(token)-1]; bytes.IndexByte(text, '\\') < 0 {
		return text
	}
	text, _ := jsontext.AppendUnquote(nil, token) // checked already; lone surrogates become U+FFFD
	return text
}

// Quoted returns text as a JSON string.
func Quoted(text string) []byte { return appendQuoted(nil, text) }

// appendQuoted appends text as a JSON string.
func appendQuoted(dst []byte, text string) []byte {
	dst, _ = jsontext.AppendQuote(dst, text) // an error tells of invalid UTF-8, which was replaced
	return dst
}

// oneLine returns the JSON value raw so that it fits on one line: as it is, unless it is
// pretty-printed. Only white space between tokens goes.
func oneLine(raw []byte) []byte {
	raw = bytes.TrimSpace(raw)
	if isOneLine(raw) {
		return raw
	}
	v := jsontext.Value(bytes.Clone(raw))
	if err := v.Compact(); err != nil {
		// Not JSON, which the caller should have checked. A line must be one line all the same.
		v = bytes.ReplaceAll(bytes.ReplaceAll(raw, []byte("\n"), []byte(" ")), []byte("\r"), []byte(" "))
	}
	return v
}

// isOneLine reports whether text has no line breaks.
func isOneLine(text []byte) bool {
	return bytes.IndexByte(text, '\n') < 0 && bytes.IndexByte(text, '\r') < 0
}

// dropSpace takes the white space between the tokens of a JSON value out of it where it is.
func dropSpace(raw []byte) []byte {
	to, quoted, escaped := 0, false, false
	for _, c := range raw {
		switch {
		case quoted && (c == '\n' || c == '\r'): // not JSON; a line must be one line all the same
			c = ' '
		case escaped:
			escaped = false
		case quoted:
			escaped, quoted = c == '\\', c != '"'
		case c == '"':
			quoted = true
		case c == ' ', c == '\n', c == '\r', c == '\t':
			continue
		}
		raw[to] = c
		to++
	}
	return raw[:to]
}

// kindName names the kind of a JSON value as the API's errors do.
func kindName(raw []byte) string {
	if len(raw) == 0 {
		return "nothing"
	}
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}
