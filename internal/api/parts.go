package api

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/http"
	"strings"
)

// parts reads the multipart body of a request. It is package mime/multipart, save that the content
// of a file goes by it: that package takes content 4 KiB at a time and looks at every byte one by
// one, which is most of what an upload costs.
//
// For that it gets one line at a time, so that it has read nothing of a part's content when it has
// read the part's header.
type parts struct {
	*multipart.Reader
	lines     *lines
	delimiter []byte // in front of every boundary but the first: "\r\n--boundary"
}

// newParts reads the parts of r.
func newParts(r *http.Request) (*parts, error) {
	l := &lines{body: bufio.NewReaderSize(r.Body, formBuffer)}
	r.Body = io.NopCloser(l)
	reader, err := r.MultipartReader()
	if err != nil {
		return nil, err
	}
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return &parts{Reader: reader, lines: l, delimiter: []byte("\r\n--" + params["boundary"])}, err
}

// next returns the next part, or io.EOF.
func (p *parts) next() (*multipart.Part, error) {
	part, err := p.NextRawPart() // what NextPart hides, copyTo must see
	p.lines.inParts = true
	return part, err
}

// content returns a part's content.
func content(part *multipart.Part) io.Reader {
	if quoted(part) {
		return quotedprintable.NewReader(part)
	}
	return part
}

func quoted(part *multipart.Part) bool {
	return strings.EqualFold(part.Header.Get("Content-Transfer-Encoding"), "quoted-printable")
}

// errTooMuch is returned by copyTo for content of more bytes than it may have.
var errTooMuch = errors.New("the part is too large")

// copyTo writes the content of a part that is just begun to w, and returns its size. What fails to be
// read fails with what readError makes of it. Before each write it tells by taken how much of the
// body is part of the content.
func (p *parts) copyTo(w io.Writer, part *multipart.Part, most int64, taken func(n int), readError func(error) error) (size int64, err error) {
	write := func(b []byte) error {
		taken(len(b))
		if size += int64(len(b)); size > most {
			return errTooMuch
		}
		_, err := w.Write(b)
		return err
	}
	body := p.lines.body
	start, _ := body.Peek(len(p.delimiter))
	// Lines may end without a carriage return, a part may be encoded, and empty content may lack the
	// end of its only line: nobody is in a hurry then.
	if p.lines.bare || quoted(part) || bytes.HasPrefix(start, p.delimiter[2:]) {
		from, buf := content(part), make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				if err := write(buf[:n]); err != nil {
					return size, err
				}
			}
			if err == io.EOF {
				return size, nil
			}
			if err != nil {
				return size, readError(err)
			}
		}
	}
	const after = 2 // bytes behind a delimiter tell if it is one
	for {
		if _, err := body.Peek(len(p.delimiter) + after); err == io.EOF {
			return size, readError(io.ErrUnexpectedEOF)
		} else if err != nil {
			return size, readError(err)
		}
		buf, _ := body.Peek(body.Buffered())
		i, end := bytes.Index(buf, p.delimiter), false
		switch {
		case i < 0: // its beginning may be the last that is here
			i = len(buf) - len(p.delimiter) + 1
		case i+len(p.delimiter)+after > len(buf): // look again when there is more
		case ends(buf[i+len(p.delimiter):]):
			end = true
		default:
			i += len(p.delimiter)
		}
		if err := write(buf[:i]); err != nil {
			return size, err
		}
		body.Discard(i)
		if end {
			return size, nil
		}
	}
}

// ends reports whether what stands behind a delimiter ends a part, as multipart.Reader sees it.
func ends(rest []byte) bool {
	return strings.IndexByte(" \t\r\n", rest[0]) >= 0 || rest[0] == '-' && rest[1] == '-'
}

// lines gives a body line by line. Lines beyond a reader's buffer come in pieces.
type lines struct {
	body    *bufio.Reader
	last    byte
	inParts bool // the first part has begun
	bare    bool // before that there was a line that ended without a carriage return
}

// Read implements io.Reader.
func (l *lines) Read(p []byte) (int, error) {
	if _, err := l.body.Peek(1); err != nil {
		return 0, err
	}
	line, _ := l.body.Peek(min(len(p), l.body.Buffered()))
	if len(line) == 0 {
		return 0, nil
	}
	if i := bytes.IndexByte(line, '\n'); i >= 0 {
		line = line[:i+1]
		before := l.last
		if i > 0 {
			before = line[i-1]
		}
		l.bare = l.bare || !l.inParts && before != '\r'
	}
	l.last = line[len(line)-1]
	n := copy(p, line)
	l.body.Discard(n)
	return n, nil
}
