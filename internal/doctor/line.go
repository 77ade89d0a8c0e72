package doctor

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"offpeak/internal/batch"
)

// A result is a line of an output or error file, or of a journal. Its slices point into the line.
type result struct {
	id       []byte
	customID []byte // unquoted
	status   int    // of the response; 0: there is none
	body     []byte // of the response
	failure  string // code of the error; empty: there is none
}

// never reports whether the request was not executed.
func (r result) never() bool {
	return r.failure == batch.FailureExpired.Code || r.failure == batch.FailureCancelled.Code
}

// ok reports whether the request succeeded.
func (r result) ok() bool { return r.status/100 == 2 }

// lineID is the id of the result of a line: the same, however often it is written.
func lineID(batchID string, line int64) string {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(batchID), uint64(line)))
	return "batch_req_" + hex.EncodeToString(sum[:16])
}

// A lineParser reads result lines as strictly as anybody might: these members, in this order, and
// nothing else (contract O-01). What is inside an answer is its upstream's affair.
type lineParser struct {
	src bytes.Buffer
	dec jsontext.Decoder
	err error
	raw []byte
}

var errNotUTF8 = errors.New("it is not valid UTF-8")

func (p *lineParser) parse(line []byte) (r result, err error) {
	if !utf8.Valid(line) {
		return r, errNotUTF8
	}
	p.raw, p.src, p.err = line, *bytes.NewBuffer(line), nil
	// Of an answer's keys there may be two alike, and halves of surrogates in its strings.
	p.dec.Reset(&p.src, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	p.punct('{')
	r.id = p.text("id")
	r.customID = p.text("custom_id")
	if p.object("response") {
		status := p.member("status_code")
		if r.status, err = strconv.Atoi(string(status)); err != nil || r.status < 100 {
			p.fail("status_code is %s", status)
		}
		p.text("request_id")
		r.body = p.member("body")
		p.punct('}')
	}
	if p.object("error") {
		if r.failure = string(p.text("code")); r.failure == "" {
			p.fail("the error has no code")
		}
		p.text("message")
		p.punct('}')
	}
	p.punct('}')
	if p.err == nil {
		if _, err := p.dec.ReadToken(); err == nil || len(bytes.TrimSpace(line[p.dec.InputOffset():])) > 0 {
			p.fail("there is more after the object")
		}
	}
	if p.err == nil && (r.status == 0) == (r.failure == "") {
		p.fail("one of response and error is to be null")
	}
	return r, p.err
}

func (p *lineParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

// punct takes a brace.
func (p *lineParser) punct(kind jsontext.Kind) {
	if p.err != nil {
		return
	}
	got := p.dec.PeekKind()
	if got != kind {
		p.fail("there is %q where %q is to be", byte(got), byte(kind))
		return
	}
	if _, err := p.dec.ReadToken(); err != nil {
		p.err = err
	}
}

// name takes the name of the next member.
func (p *lineParser) name(want string) {
	if p.err != nil {
		return
	}
	name, err := p.dec.ReadValue()
	if err == nil && string(name) != `"`+want+`"` {
		err = fmt.Errorf("there is %.40s where %q is to be", name, want)
	}
	p.err = err
}

// member takes the next member and returns its value as it stands.
func (p *lineParser) member(name string) []byte {
	p.name(name)
	if p.err != nil {
		return nil
	}
	v, err := p.dec.ReadValue()
	p.err = err
	end := p.dec.InputOffset()
	return p.raw[max(0, end-int64(len(v))):end]
}

// text takes the next member, a string, and returns it unquoted.
func (p *lineParser) text(name string) []byte {
	v := p.member(name)
	if p.err != nil {
		return nil
	}
	if v[0] != '"' {
		p.fail("%s is no string", name)
		return nil
	}
	return unquote(v)
}

// object takes the name of the next member, and its value if that is null: then it reports false.
// Else it enters the object.
func (p *lineParser) object(name string) bool {
	p.name(name)
	if p.err != nil {
		return false
	}
	if p.dec.PeekKind() == 'n' {
		_, p.err = p.dec.ReadToken()
		return false
	}
	p.punct('{')
	return p.err == nil
}

// unquote returns the text of a JSON string.
func unquote(token []byte) []byte {
	if len(token) >= 2 && bytes.IndexByte(token, '\\') < 0 {
		return token[1 : len(token)-1]
	}
	text, _ := jsontext.AppendUnquote(nil, token)
	return text
}
