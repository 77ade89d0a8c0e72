package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
)

// Bounds of a form beside its file.
const (
	maxFormParts = 32
	maxFormName  = 64
	maxFormField = 64 << 10
	maxFormExtra = 1<<20 + 4*maxFormField // of all fields together, with the headers of all parts
)

// upload takes a file. The order of its steps makes a 200 a promise, and a crash harmless:
//
//  1. The blob is reserved. From here on the sweeper knows of it.
//  2. Its bytes are written as they arrive, then made durable. If we crash here, or the client
//     breaks off, nothing names the blob, and it is swept.
//  3. One transaction makes the file and names the blob. If we crash here, the client has no
//     answer; it may find the file in its list.
func (s *server) upload(w *response, r *http.Request, p batch.Project) error {
	f := s.newForm("file", s.Policy.MaxBytes(""), batch.ErrFileTooLarge)
	f.admit = f.checkFile
	f.sink = &f.first
	defer f.abort() // does nothing once committed
	if err := f.read(w, r); err != nil {
		return err
	}
	params, err := f.params(p)
	if err != nil {
		return err
	}
	file, err := batch.NewFile(params, s.Policy, s.Now())
	if err != nil {
		return err
	}
	if err := f.commit(); err != nil {
		return err
	}
	if err := s.Store.CreateFile(r.Context(), file); err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	return writeJSON(w, http.StatusOK, wireFile(file))
}

// A form is the multipart body of an upload, read as it comes. SDKs send its fields in any order,
// so the file is on its way to a blob before it is known what it is for (contract FI-01).
type form struct {
	*server
	name     string // of the field with the file
	most     int64  // bytes that the file can have, whatever else comes
	tooLarge error  // what is said of one that has more
	// admit is asked once the file begins: may it come, and with how many bytes at most?
	admit func() (most int64, err error)
	sink  io.Writer // gets the bytes of the file too

	body   *body             // of the request
	fields map[string]string // all but the file

	// The file; a nil blob: none came yet.
	blob     blob.Writer
	key      string
	filename string
	size     int64
	first    firstLine
}

// formBuffer is how much of a form is read at once; formBuffers bounds what all buffers behind one
// another have read ahead.
const (
	formBuffer  = 64 << 10
	formBuffers = 2 * formBuffer
)

// newForm makes a form with a file of at most so many bytes in the field called name.
func (s *server) newForm(name string, most int64, tooLarge error) *form {
	return &form{
		server: s, name: name, most: most, tooLarge: tooLarge,
		admit: func() (int64, error) { return most, nil },
		sink:  io.Discard, fields: make(map[string]string),
	}
}

// read reads the whole form.
func (f *form) read(w *response, r *http.Request) error {
	most := f.most + maxFormExtra
	if r.ContentLength > most {
		return f.tooLarge
	}
	// Package mime takes parts with headers of 10 MB each. So what may be read is what fields may have,
	// and as much more, again and again, as was taken out as part of the file.
	f.body = w.body
	f.body.left, f.body.whole = maxFormExtra+formBuffers, false
	parts, err := newParts(r)
	if err != nil {
		return errNotForm
	}
	for range maxFormParts {
		part, err := parts.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return f.error(err)
		}
		if part.FormName() == f.name {
			err = f.readFile(r.Context(), parts, part)
		} else {
			err = f.readField(part)
		}
		if err != nil {
			return err
		}
	}
	return errNotForm
}

func (f *form) readField(part *multipart.Part) error {
	value, err := io.ReadAll(io.LimitReader(content(part), maxFormField+1))
	if err != nil {
		return f.error(err)
	}
	name := part.FormName()
	name = clean(name[:min(len(name), maxFormName)]) // none that we know is longer
	if len(value) > maxFormField {
		return batch.TooLong(name, maxFormField, len(value))
	}
	f.fields[name] = clean(string(value))
	return nil
}

func (f *form) readFile(ctx context.Context, parts *parts, part *multipart.Part) error {
	if f.blob != nil {
		return &batch.Error{Kind: batch.Invalid, Param: f.name,
			Msg: fmt.Sprintf("Invalid '%s': only one file can be uploaded at a time.", f.name)}
	}
	f.filename = clean(part.FileName())
	most, err := f.admit()
	if err != nil {
		return err
	}
	if err := f.createBlob(ctx); err != nil {
		return err
	}
	taken := func(n int) { f.body.left += int64(n) } // that is not the form's
	f.size, err = parts.copyTo(io.MultiWriter(f.blob, f.sink), part, most, taken, f.error)
	if errors.Is(err, errTooMuch) {
		return f.tooLarge
	}
	if err != nil {
		return fmt.Errorf("receive upload: %w", err)
	}
	return nil
}

// checkFile admits a file by what is known of its purpose, which may come behind it, if at all.
func (f *form) checkFile() (most int64, err error) {
	purpose := f.fields["purpose"]
	if purpose != "" {
		err = batch.CheckUpload(purpose, f.filename)
	}
	return f.Policy.MaxBytes(purpose), err
}

func (f *form) createBlob(ctx context.Context) error {
	key := blob.NewKey()
	if err := f.Store.ReserveBlob(ctx, key); err != nil {
		return fmt.Errorf("reserve blob: %w", err)
	}
	w, err := f.Blobs.Create(ctx, key)
	if err != nil {
		return err
	}
	f.key, f.blob = key, w
	return nil
}

// params returns what the form says of the file.
func (f *form) params(p batch.Project) (batch.UploadParams, error) {
	if f.blob == nil {
		return batch.UploadParams{}, batch.Missing("file")
	}
	expires, err := f.expiresAfter()
	return batch.UploadParams{
		Project: p.ID, Purpose: f.fields["purpose"], Filename: f.filename,
		ExpiresAfter: expires,
		Parts:        []batch.Part{{Key: f.key, Bytes: f.size}},
		FirstLine:    f.first.text, FirstLineCut: f.first.cut,
	}, err
}

// expiresAfter reads the two fields of contract FI-03.
func (f *form) expiresAfter() (*batch.ExpiresAfter, error) {
	const name = "expires_after"
	if v, ok := f.fields[name]; ok {
		return nil, batch.WrongType(name, "an object", []byte(`"`+v))
	}
	anchor, seconds := f.fields[name+"[anchor]"], f.fields[name+"[seconds]"]
	if anchor == "" && seconds == "" {
		return nil, nil
	}
	e := &batch.ExpiresAfter{Anchor: anchor}
	if seconds != "" {
		n, err := parseInteger(name+".seconds", seconds)
		if err != nil {
			return nil, err
		}
		e.Seconds = &n
	}
	return e, nil
}

// commit makes the file's bytes durable.
func (f *form) commit() error {
	size, err := f.blob.Commit()
	if err == nil && size != f.size {
		err = fmt.Errorf("blob %s has %d bytes of %d", f.key, size, f.size)
	}
	if err != nil {
		return fmt.Errorf("commit upload: %w", err)
	}
	return nil
}

func (f *form) abort() {
	if f.blob != nil {
		f.blob.Abort()
	}
}

// error says what the failure to read a form is to its client: either our own refusal to read
// on, or bytes that are no form, or stop being one. So are too many that are not the file's.
func (f *form) error(err error) error {
	if batch.KindOf(err) != 0 && !errors.Is(err, errBodyTooLarge) {
		return err
	}
	return errNotForm
}

// maxFirstLine is how much is kept of a first line. Nearly all are shorter; what is longer is left
// to validation. There are as many first lines in memory as uploads at a time.
const maxFirstLine = 256 << 10

// A firstLine keeps the first line of what is written to it that is not blank, without the white
// space in front of it.
type firstLine struct {
	text []byte
	full bool // text is all there will be
	cut  bool // the line is longer than text
}

// Write implements io.Writer.
func (l *firstLine) Write(p []byte) (int, error) {
	n := len(p)
	if len(l.text) == 0 {
		p = bytes.TrimLeft(p, " \t\r\n")
	}
	if l.full || len(p) == 0 {
		return n, nil
	}
	line, _, ended := bytes.Cut(p, []byte("\n"))
	room := maxFirstLine - len(l.text)
	l.cut = len(line) > room
	l.full = l.cut || ended
	l.text = append(l.text, line[:min(len(line), room)]...)
	return n, nil
}
