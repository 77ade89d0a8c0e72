package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"offpeak/internal/batch"
)

// maxJSON bounds the body of every request that brings no file. The largest that means anything is
// the list of an upload's parts: 20,000 of them fit. Metadata of 16 pairs with every character
// escaped has a tenth of that.
const maxJSON = 1 << 20

// smallJSON is what any number of requests may bring at a time. Nearly all have less; to bring more
// takes a slot.
const smallJSON = 16 << 10

// clean returns what a client wrote as text that every database can hold: NUL bytes and what is
// not UTF-8 become U+FFFD, which no id has in it. So an id with such bytes is simply an unknown
// one (contract R-03).
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}

func decodeNothing(*http.Request) (struct{}, error) { return struct{}{}, nil }

// decodeID returns the id in the path, unescaped once (contract MO-02).
func decodeID(r *http.Request) (string, error) { return clean(r.PathValue("id")), nil }

// decodeBatchQuery reads the parameters of contract L-02 and L-04.
func decodeBatchQuery(r *http.Request) (batch.BatchQuery, error) {
	q := query{values: r.URL.Query()}
	return batch.BatchQuery{
		After: q.text("after"),
		Limit: q.integer("limit", 20, 0, 100),
	}, q.err
}

// decodeFileQuery reads the parameters of contract FI-11.
func decodeFileQuery(r *http.Request) (batch.FileQuery, error) {
	q := query{values: r.URL.Query()}
	return batch.FileQuery{
		After:     q.text("after"),
		Limit:     q.integer("limit", 10_000, 1, 10_000),
		Ascending: q.choice("order", "desc", "asc") == "asc",
		Purpose:   q.text("purpose"),
	}, q.err
}

// A query reads parameters out of a URL and remembers the first error. A parameter that is empty
// is an absent one.
type query struct {
	values url.Values
	err    error
}

func (q *query) text(name string) string { return clean(q.values.Get(name)) }

func (q *query) integer(name string, absent, least, most int64) int {
	s := q.text(name)
	if s == "" || q.err != nil {
		return int(absent)
	}
	n, err := parseInteger(name, s)
	if err == nil {
		err = batch.CheckRange(name, n, least, most)
	}
	q.err = err
	return int(n)
}

// choice reads a parameter that is one of the choices, the first if it is absent.
func (q *query) choice(name string, choices ...string) string {
	s := q.text(name)
	switch {
	case s == "":
		return choices[0]
	case q.err == nil && !slices.Contains(choices, s):
		slices.Sort(choices)
		q.err = batch.InvalidValue(name, s, choices...)
	}
	return s
}

// parseInteger reads an integer written as text. One that is out of all bounds is taken for the
// nearest that is not.
func parseInteger(param, s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, batch.WrongType(param, "an integer", []byte(`"`))
	}
	return n, nil
}

// decodeCreateBatch reads the body of POST /v1/batches. What the values must be is the rule of
// batch.New; here it is their types that count. Parameters that we do not know are ignored
// (contract CR-10).
func decodeCreateBatch(r *http.Request) (newBatch, error) {
	o, err := readObject(r)
	if err != nil {
		return newBatch{}, err
	}
	p := batch.CreateParams{
		InputFileID:      o.text("input_file_id"),
		Endpoint:         o.text("endpoint"),
		CompletionWindow: o.text("completion_window"),
		Metadata:         o.texts("metadata"),
	}
	if e := o.object("output_expires_after"); e != nil {
		p.OutputExpiresAfter = &batch.ExpiresAfter{Anchor: e.text("anchor"), Seconds: e.integer("seconds")}
	}
	return newBatch{p, clean(r.Header.Get(idempotencyKey))}, *o.err
}

// jsonOptions let the last of duplicate keys count, as OpenAI's parser does. Bytes that are not
// UTF-8 are refused.
var jsonOptions = jsontext.AllowDuplicateNames(true)

// readObject reads a request's body as one JSON object, whatever its Content-Type says (contract
// CR-12).
func readObject(r *http.Request) (*object, error) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		if batch.KindOf(err) == 0 {
			err = errNotJSON // broken off or badly framed
		}
		return nil, err
	}
	if raw = bytes.TrimSpace(raw); len(raw) == 0 || raw[0] != '{' {
		return nil, errNotJSON
	}
	o := &object{err: new(error)}
	if err := json.Unmarshal(raw, &o.members, jsonOptions); err != nil {
		return nil, errNotJSON
	}
	return o, nil
}

// An object reads parameters out of a JSON object and remembers the first error, together with the
// objects inside it. An absent parameter yields its zero value.
type object struct {
	path    string // in front of names, such as "output_expires_after."
	members map[string]jsontext.Value
	err     *error
}

// value returns the member called name if it has the kind wanted, else nil. Kinds are those of
// jsontext; 'n' stands for null as well as for what is absent.
func (o *object) value(name string, want jsontext.Kind, wanted string, nullable bool) jsontext.Value {
	v, ok := o.members[name]
	switch {
	case !ok, nullable && v.Kind() == 'n':
		return nil
	case v.Kind() != want:
		o.fail(batch.WrongType(o.path+name, wanted, v))
		return nil
	}
	return v
}

func (o *object) fail(err error) {
	if *o.err == nil {
		*o.err = err
	}
}

func (o *object) text(name string) (s string) {
	if v := o.value(name, '"', "a string", false); v != nil {
		o.decode(v, &s)
	}
	return clean(s)
}

func (o *object) integer(name string) *int64 {
	v := o.value(name, '0', "an integer", false)
	if v == nil {
		return nil
	}
	n, err := parseInteger(o.path+name, string(v))
	if err != nil {
		err = batch.WrongType(o.path+name, "an integer", v) // such as 1.5 or 1e3
		o.fail(err)
	}
	return &n
}

// object returns the object called name, or nil if it is absent or null.
func (o *object) object(name string) *object {
	v := o.value(name, '{', "an object", true)
	if v == nil {
		return nil
	}
	inner := &object{path: o.path + name + ".", err: o.err}
	o.decode(v, &inner.members)
	return inner
}

// texts returns the object called name, all of whose members must be strings, or nil if it is
// absent or null.
func (o *object) texts(name string) map[string]string {
	inner := o.object(name)
	if inner == nil {
		return nil
	}
	texts := make(map[string]string, len(inner.members))
	for _, k := range slices.Sorted(maps.Keys(inner.members)) {
		texts[clean(k)] = inner.text(k)
	}
	return texts
}

// list returns the array called name, all of whose elements must be strings, or nil if it is absent.
func (o *object) list(name string) []string {
	v := o.value(name, '[', "an array", false)
	if v == nil {
		return nil
	}
	var elements []jsontext.Value
	o.decode(v, &elements)
	list := make([]string, len(elements))
	for i, e := range elements {
		if e.Kind() != '"' {
			o.fail(batch.WrongType(fmt.Sprintf("%s[%d]", o.path+name, i), "a string", e))
			return nil
		}
		o.decode(e, &list[i])
		list[i] = clean(list[i])
	}
	return list
}

// decode decodes a value that is known to be of the right kind.
func (o *object) decode(v jsontext.Value, into any) {
	if err := json.Unmarshal(v, into, jsonOptions); err != nil {
		o.fail(errNotJSON)
	}
}
