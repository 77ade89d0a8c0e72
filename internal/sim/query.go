package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// An endpoint is one kind of call.
type endpoint int

const (
	chat endpoint = iota
	completions
	responses
	embeddings
	moderations
)

// mediaTokens is what an image, a sound or a document in a message counts for.
const mediaTokens = 256

// A query is what the simulation needs to know of a request. Its slices point into the body.
type query struct {
	model      []byte // as it stands in the body, quotes included
	prompt     []byte // the JSON value of messages, prompt or input
	inputs     []input
	echo       []byte // the last thing the user said, the inside of a JSON string; may be nil
	n          int    // answers asked for each input
	maxTokens  int    // 0: not given
	dimensions int    // 0: not given
	base64     bool
	stream     bool
}

// An input is one prompt, conversation or text to embed.
type input struct {
	raw    []byte // its JSON value
	tokens int
}

// textTokens is the length in tokens of text of n bytes.
func textTokens(n int) int { return max(1, (n+3)/4) }

// A reader decodes one body. Each method reads one value, and keeps the first thing wrong in err;
// after that all of them do nothing, so that callers check once.
type reader struct {
	dec  *jsontext.Decoder
	body []byte
	err  error
}

// decode reads body as a request to ep into q, whose inputs it reuses.
func (q *query) decode(ep endpoint, dec *jsontext.Decoder, body []byte) error {
	*q = query{inputs: q.inputs[:0], n: 1}
	// Like vLLM, take the last of two members with one name.
	dec.Reset(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true))
	r := reader{dec: dec, body: body}

	if dec.PeekKind() != '{' {
		if _, err := dec.ReadValue(); err != nil {
			return malformed(err)
		}
		return badRequest("", "the body must be a JSON object")
	}
	r.object(func(name []byte) {
		switch string(name) {
		case "model":
			q.model = r.stringValue("model")
		case "messages", "prompt", "input":
			if string(name) != ep.promptField() {
				r.value()
				return
			}
			start := r.dec.InputOffset()
			q.inputs, q.echo = q.inputs[:0], nil
			if ep == chat || ep == responses && r.dec.PeekKind() == '[' {
				q.readMessages(&r, ep)
			} else {
				q.readTexts(&r, ep)
			}
			q.prompt = r.since(start)
		case "max_tokens":
			// The newer name of the two wins, wherever it stands.
			if n := r.intValue("max_tokens", 1, 1<<31-1); (ep == chat && q.maxTokens == 0) || ep == completions {
				q.maxTokens = n
			}
		case "max_completion_tokens":
			if n := r.intValue("max_completion_tokens", 1, 1<<31-1); ep == chat && n > 0 {
				q.maxTokens = n
			}
		case "max_output_tokens":
			if n := r.intValue("max_output_tokens", 1, 1<<31-1); ep == responses {
				q.maxTokens = n
			}
		case "n":
			if n := r.intValue("n", 1, maxChoices); n > 0 && (ep == chat || ep == completions) {
				q.n = n
			}
		case "dimensions":
			q.dimensions = r.intValue("dimensions", 1, maxDimensions)
		case "encoding_format":
			q.base64 = string(r.value()) == `"base64"`
		case "stream":
			q.stream = string(r.value()) == "true"
		default:
			r.value()
		}
	})
	if r.err == nil {
		if _, err := dec.ReadToken(); err != io.EOF {
			return malformed(errors.Join(err, errors.New("something follows the object")))
		}
	}

	switch {
	case r.err != nil:
		return r.err
	case q.model == nil:
		return badRequest("model", "model is missing")
	case len(q.inputs) == 0:
		return badRequest(ep.promptField(), ep.promptField()+" is missing or empty")
	case len(q.inputs) > maxInputs:
		return badRequest(ep.promptField(), fmt.Sprintf("%s has %d elements, more than %d", ep.promptField(), len(q.inputs), maxInputs))
	case q.stream:
		return badRequest("stream", "this server does not stream")
	}
	if q.maxTokens == 0 && ep == completions {
		q.maxTokens = 16 // as OpenAI and vLLM have it for this endpoint alone
	}
	return nil
}

func (ep endpoint) promptField() string {
	switch ep {
	case chat:
		return "messages"
	case completions:
		return "prompt"
	default:
		return "input"
	}
}

// readMessages reads a list of messages as one input.
func (q *query) readMessages(r *reader, ep endpoint) {
	field := ep.promptField()
	tokens := 0
	start := r.dec.InputOffset()
	count := r.array(field, func() {
		if r.dec.PeekKind() != '{' {
			r.fail(field, "each of "+field+" must be an object")
			return
		}
		var role, text []byte
		r.object(func(name []byte) {
			switch string(name) {
			case "role":
				role = r.stringValue(field)
			case "content":
				var n int
				text, n = r.content()
				tokens += n
			default:
				r.value()
			}
		})
		if role == nil && ep == chat && r.err == nil {
			r.fail(field, "each of messages must have a role")
		}
		if string(role) == `"user"` && text != nil {
			q.echo = text
		}
		tokens += 4 // what a chat template puts around a message
	})
	if count > 0 {
		q.inputs = append(q.inputs, input{r.since(start), tokens})
	}
}

// content reads what a message says: a string, or parts of which some are text.
func (r *reader) content() (text []byte, tokens int) {
	switch r.dec.PeekKind() {
	case '"':
		text = inside(r.value())
		return text, textTokens(len(text))
	case '[':
		r.array("content", func() {
			if r.dec.PeekKind() != '{' {
				r.value()
				return
			}
			n := mediaTokens
			r.object(func(name []byte) {
				v := r.value()
				if string(name) == "text" && len(v) > 0 && v[0] == '"' {
					text = inside(v)
					n = textTokens(len(text))
				}
			})
			tokens += n
		})
	default:
		r.value()
	}
	return text, tokens
}

// readTexts reads a text, a list of token numbers, or a list of either; for moderations also a
// list of parts, which is one input.
func (q *query) readTexts(r *reader, ep endpoint) {
	field := ep.promptField()
	if r.dec.PeekKind() == '"' {
		v := r.value()
		q.inputs = append(q.inputs, input{v, textTokens(len(v) - 2)})
		q.echo = inside(v)
		return
	}
	start := r.dec.InputOffset()
	var first jsontext.Kind
	count := r.array(field, func() {
		kind := r.dec.PeekKind()
		if first == 0 {
			first = kind
		}
		switch {
		case r.err != nil || kind == 0:
			r.value()
		case kind != first:
			r.fail(field, field+" must not mix kinds of elements")
		case kind == '"':
			v := r.value()
			q.inputs = append(q.inputs, input{v, textTokens(len(v) - 2)})
		case kind == '[':
			start := r.dec.InputOffset()
			n := r.array(field, func() { r.tokenID(field) })
			if n == 0 && r.err == nil {
				r.fail(field, field+" must not have an empty element")
			}
			q.inputs = append(q.inputs, input{r.since(start), n})
		case kind == '0':
			r.tokenID(field)
		case kind == '{' && ep == moderations:
			r.value()
		default:
			r.fail(field, field+" must be text, token numbers, or a list of either")
		}
	})
	switch {
	case count == 0:
	case first == '0':
		q.inputs = append(q.inputs, input{r.since(start), count})
	case first == '{':
		raw := r.since(start)
		q.inputs = append(q.inputs, input{raw, textTokens(len(raw))})
	}
}

// object reads an object, and calls member after each name to read its value. The name is valid
// until then.
func (r *reader) object(member func(name []byte)) {
	if r.err != nil {
		return
	}
	if _, err := r.dec.ReadToken(); err != nil {
		r.err = malformed(err)
		return
	}
	for r.err == nil && r.dec.PeekKind() != '}' {
		name := r.value()
		if len(name) < 2 {
			return
		}
		if bytes.IndexByte(name, '\\') >= 0 {
			unquoted, _ := jsontext.AppendUnquote(nil, name)
			member(unquoted)
		} else {
			member(name[1 : len(name)-1])
		}
	}
	r.token()
}

// array reads an array, calling element to read each of its elements, and returns how many
// there were. Another value than an array, or null, is a mistake in field.
func (r *reader) array(field string, element func()) (count int) {
	switch kind := r.dec.PeekKind(); {
	case r.err != nil:
		return 0
	case kind == 'n':
		r.value()
		return 0
	case kind != '[' && kind != 0:
		r.fail(field, field+" must be a list")
		return 0
	}
	r.token()
	for r.err == nil && r.dec.PeekKind() != ']' {
		element()
		count++
	}
	r.token()
	return count
}

// value reads any value, and returns its bytes in the body; nil after a mistake.
func (r *reader) value() []byte {
	if r.err != nil {
		return nil
	}
	v, err := r.dec.ReadValue()
	if err != nil {
		r.err = malformed(err)
		return nil
	}
	end := r.dec.InputOffset() // v itself is the decoder's, and not ours to keep
	return r.body[end-int64(len(v)) : end]
}

// stringValue reads a string and returns it with its quotes; nil for null.
func (r *reader) stringValue(field string) []byte {
	v := r.value()
	switch {
	case len(v) == 0 || string(v) == "null":
		return nil
	case v[0] != '"':
		r.fail(field, field+" must be a string")
		return nil
	}
	return v
}

// intValue reads a whole number from low to high; 0 for null.
func (r *reader) intValue(field string, low, high int) int {
	v := r.value()
	if len(v) == 0 || string(v) == "null" {
		return 0
	}
	n, err := strconv.Atoi(string(v))
	if err != nil || n < low || n > high {
		r.fail(field, fmt.Sprintf("%s must be a whole number from %d to %d", field, low, high))
		return 0
	}
	return n
}

// tokenID reads the number of a token.
func (r *reader) tokenID(field string) {
	if v := r.value(); len(v) > 0 && (v[0] < '0' || v[0] > '9') {
		r.fail(field, field+" must have whole numbers for tokens")
	}
}

func (r *reader) token() {
	if r.err != nil {
		return
	}
	if _, err := r.dec.ReadToken(); err != nil {
		r.err = malformed(err)
	}
}

// since returns the value that was read after start.
func (r *reader) since(start int64) []byte {
	return bytes.TrimLeft(r.body[start:r.dec.InputOffset()], ":, \t\r\n")
}

// fail records a mistake in field, unless what comes next is no JSON at all.
func (r *reader) fail(field, msg string) {
	if r.err == nil && r.dec.PeekKind() == 0 {
		r.value()
	}
	if r.err == nil {
		r.err = badRequest(field, msg)
	}
}

// inside returns a JSON string without its quotes, its escapes as they are.
func inside(v []byte) []byte {
	if len(v) < 2 {
		return nil
	}
	return v[1 : len(v)-1]
}

func malformed(err error) error { return badRequest("", "malformed JSON: "+err.Error()) }

func badRequest(param, msg string) error {
	return &refusal{status: http.StatusBadRequest, param: param, msg: msg}
}
