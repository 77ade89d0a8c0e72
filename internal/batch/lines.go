package batch

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"iter"
)

// DefaultMaxLine is how long an input line may be where nobody says otherwise, in bytes.
const DefaultMaxLine = 64 << 20

// A Line is the raw text of one line of a JSON Lines file, without its line break.
type Line struct {
	Number int64 // from 1; blank lines count (contract I-07)
	Offset int64 // of its first byte in the file
	Length int64 // in bytes, with its line break
	Text   []byte
	// TooLong tells that the line is longer than the reader's limit; Text is nil then.
	TooLong bool
}

// Blank reports whether there is nothing but white space on the line. Such lines are skipped
// (contract I-07).
func (l Line) Blank() bool { return !l.TooLong && len(bytes.TrimSpace(l.Text)) == 0 }

// Lines reads a JSON Lines file line by line, in memory bounded by the longest line allowed. The
// last line need not end in a line break; a carriage return before one belongs to it.
type Lines struct {
	r    *bufio.Reader
	max  int
	long []byte // a line longer than r's buffer
	next Line
}

// NewLines reads from r, whose first byte stands at offset in the file and begins the line
// numbered first. Lines longer than maxLine bytes are passed over (see Line.TooLong).
func NewLines(r io.Reader, offset, first int64, maxLine int) *Lines {
	return &Lines{
		r: bufio.NewReaderSize(r, 256<<10), max: maxLine,
		next: Line{Offset: offset, Number: first},
	}
}

// Reset has l read from another reader, as NewLines would, in the buffers that it has.
func (l *Lines) Reset(r io.Reader, offset, first int64) {
	l.r.Reset(r)
	l.next = Line{Offset: offset, Number: first}
}

// Next returns the next line, or io.EOF after the last. Its text is valid until the next call.
func (l *Lines) Next() (Line, error) {
	line := l.next
	l.long = l.long[:0]
	for {
		chunk, err := l.r.ReadSlice('\n')
		line.Length += int64(len(chunk))
		if err == bufio.ErrBufferFull {
			if line.Length > int64(l.max)+1 { // the last byte may be a carriage return, which does not count
				line.TooLong = true
			} else {
				l.long = append(l.long, chunk...)
			}
			continue
		}
		if err != nil && err != io.EOF {
			return Line{}, err
		}
		if line.Length == 0 {
			return Line{}, io.EOF
		}
		line.Text = chunk
		if len(l.long) > 0 {
			l.long = append(l.long, chunk...)
			line.Text = l.long
		}
		break
	}
	l.next = Line{Offset: line.Offset + line.Length, Number: line.Number + 1}
	line.Text = bytes.TrimSuffix(bytes.TrimSuffix(line.Text, []byte("\n")), []byte("\r"))
	if line.TooLong = line.TooLong || len(line.Text) > l.max; line.TooLong {
		line.Text = nil
		l.long = nil
	}
	return line, nil
}

// A Request is one parsed line. Its byte slices point into the line.
type Request struct {
	Line     int64
	CustomID []byte // the JSON string as it stands in the line, quotes included
	Body     []byte // the JSON object as it stands in the line
	Model    string
}

// A Parser cuts requests out of lines. It is not safe for concurrent use.
type Parser struct {
	s     scanner
	q     quick
	model string // the last one seen, to share its memory
	line  fields
}

// fields are the values of a line that anybody asks for; nil where absent.
type fields struct {
	customID, method, url, body    []byte
	model, stream, messages, input []byte
	inputs                         int64 // elements of body.input; 1 unless it is an array of inputs
}

// Request cuts the request out of a line that validation found good.
func (p *Parser) Request(line Line) (Request, error) {
	p.line = fields{}
	f := &p.line
	if ok := p.q.request(line.Text, f); !ok {
		var err error
		if f, err = p.parse(line.Text); err != nil {
			return Request{}, fmt.Errorf("line %d: %w", line.Number, err)
		}
	}
	return Request{Line: line.Number, CustomID: f.customID, Body: f.body, Model: p.intern(unquote(f.model))}, nil
}

// parse checks that text is one JSON object and finds the values of interest in it. Of duplicate
// keys the last counts, as in the parsers of OpenAI and of every upstream known to us.
func (p *Parser) parse(text []byte) (*fields, error) {
	p.line = fields{}
	f := &p.line
	if bytes.HasPrefix(text, []byte("\xef\xbb\xbf")) {
		return f, errBOM
	}
	err := p.s.object(text, func(name []byte) (err error) {
		switch string(name) {
		case "custom_id":
			f.customID, err = p.s.value()
		case "method":
			f.method, err = p.s.value()
		case "url":
			f.url, err = p.s.value()
		case "body":
			err = p.parseBody(f)
		default:
			err = p.s.skip()
		}
		return err
	})
	return f, err
}

func (p *Parser) parseBody(f *fields) (err error) {
	f.model, f.stream, f.messages, f.input, f.inputs = nil, nil, nil, nil, 0
	if p.s.next() != '{' {
		f.body, err = p.s.value()
		return err
	}
	// The offset before the value counts the white space in front of it: it ends at the brace.
	start := p.s.dec.InputOffset()
	start += int64(bytes.IndexByte(p.s.raw[start:], '{'))
	err = p.s.members(func(name []byte) (err error) {
		switch string(name) {
		case "model":
			f.model, err = p.s.value()
		case "stream":
			f.stream, err = p.s.value()
		case "messages":
			f.messages, err = p.s.value()
		case "input":
			if p.s.next() == '[' {
				start := p.s.dec.InputOffset()
				f.inputs, err = p.s.inputs()
				f.input = p.s.raw[start:p.s.dec.InputOffset()]
				f.input = f.input[bytes.IndexByte(f.input, '['):]
			} else {
				f.inputs = 1
				f.input, err = p.s.value()
			}
		default:
			err = p.s.skip()
		}
		return err
	})
	f.body = p.s.raw[start:p.s.dec.InputOffset()]
	return err
}

// inputs counts the inputs in the array that comes next: its elements, or one if they are the
// tokens of a single input.
func (s *scanner) inputs() (n int64, err error) {
	if _, err := s.dec.ReadToken(); err != nil {
		return 0, err
	}
	tokens := s.next() == '0'
	for s.next() != ']' {
		if err := s.skip(); err != nil {
			return 0, err
		}
		n++
	}
	if tokens {
		n = 1
	}
	_, err = s.dec.ReadToken()
	return n, err
}

func (p *Parser) intern(model []byte) string {
	if p.model != string(model) {
		p.model = string(model)
	}
	return p.model
}

// A BodyParser finds things in the bodies of requests. It is not safe for concurrent use.
type BodyParser struct{ s scanner }

// Model returns the model that a body names, and where in it: body[from:to] is the JSON string. Of
// duplicate keys the last counts, as everywhere. It is not ok if the body names none.
func (p *BodyParser) Model(body []byte) (model string, from, to int, ok bool) {
	var token []byte
	err := p.s.object(body, func(name []byte) (err error) {
		if string(name) != "model" {
			return p.s.skip()
		}
		token, err = p.s.value()
		to = int(p.s.dec.InputOffset())
		return err
	})
	if err != nil || len(token) == 0 || token[0] != '"' {
		return "", 0, 0, false
	}
	return string(unquote(token)), to - len(token), to, true
}

// MostTokens returns how many tokens the answer to a body may have, if the body states that, else 0. Where
// several answers are asked for at once, to one prompt or to several, that is of all together.
func (p *BodyParser) MostTokens(body []byte) int64 {
	if !bytes.Contains(body, []byte(`_tokens"`)) {
		return 0
	}
	most, times, prompts := int64(0), int64(1), int64(1)
	err := p.s.object(body, func(name []byte) (err error) {
		switch string(name) {
		case "max_tokens", "max_completion_tokens", "max_output_tokens":
			var n int64
			n, err = p.s.count()
			most = max(most, n)
		case "n", "best_of":
			var n int64
			n, err = p.s.count()
			times = max(times, n)
		case "prompt":
			if p.s.next() != '[' {
				return p.s.skip()
			}
			prompts, err = p.s.inputs()
		default:
			err = p.s.skip()
		}
		return err
	})
	if err != nil {
		return 0
	}
	return most * times * max(prompts, 1)
}

// SplitLines yields the lines of a window that is in memory, the first being numbered first. Their
// text points into the window.
func SplitLines(window []byte, first int64) iter.Seq[Line] {
	return func(yield func(Line) bool) {
		line := Line{Number: first}
		for int(line.Offset) < len(window) {
			rest := window[line.Offset:]
			n := bytes.IndexByte(rest, '\n') + 1
			if n == 0 {
				n = len(rest)
			}
			line.Length = int64(n)
			line.Text = bytes.TrimSuffix(bytes.TrimSuffix(rest[:n], []byte("\n")), []byte("\r"))
			if !yield(line) {
				return
			}
			line.Offset += line.Length
			line.Number++
		}
	}
}
