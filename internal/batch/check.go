package batch

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A LineError is one thing that validation found wrong with an input (contract B-05, §7.3).
type LineError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Param   string `json:"param,omitempty"` // path into the line; empty if none
	Line    int64  `json:"line,omitempty"`  // from 1; 0 if the error is about the whole file
	// Detail says more than the API has a place for. It is not kept.
	Detail string `json:"-"`
}

func (e LineError) Error() string {
	if e.Line == 0 {
		return e.Message
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Message)
}

// MaxLineErrors is how many errors a batch object reports (contract B-05).
const MaxLineErrors = 100

// MaxCustomID is how long a custom_id may be, in characters (contract I-02).
const MaxCustomID = 512

// MaxEmbeddingInputs is how many inputs the requests of one embeddings batch may have together
// (contract I-10).
const MaxEmbeddingInputs = 50_000

// Rules are what an input is checked against.
type Rules struct {
	Endpoint string // that every line must name; empty: the one that the first line names
	OneModel bool   // refuse a second model (contract I-05)
	// MaxRequests and MaxEmbeddingInputs bound the batch; 0 means no bound.
	MaxRequests        int64
	MaxEmbeddingInputs int64
	MaxLine            int // bytes; see Lines
	// Serves reports whether some upstream has the model. Nil: any model is good.
	Serves func(lane Lane) bool
}

// A Checker validates the lines of one input, one after another, and remembers of them only what
// the uniqueness of custom_id needs: 16 bytes a line.
type Checker struct {
	rules  Rules
	parser Parser
	seen   map[[16]byte]struct{}

	requests, inputs int64
	firstModel       string
	mixed, unserved  bool
}

// NewChecker returns a checker for one input.
func NewChecker(r Rules) *Checker {
	return &Checker{rules: r, seen: make(map[[16]byte]struct{})}
}

// Requests is how many lines were not blank.
func (c *Checker) Requests() int64 { return c.requests }

// Model is the model of all requests so far, or empty if they differ.
func (c *Checker) Model() string {
	if c.mixed {
		return ""
	}
	return c.firstModel
}

// Unserved reports whether a line was refused because no upstream has its model.
func (c *Checker) Unserved() bool { return c.unserved }

// Line checks one line that is not blank. All lines are checked, whatever came before; of one
// line the first error is reported.
func (c *Checker) Line(line Line) (Request, Lane, *LineError) {
	c.requests++
	r, err := c.line(line)
	if err != nil {
		err.Line = line.Number
		return Request{}, Lane{}, err
	}
	return r, Lane{Model: r.Model, Endpoint: c.rules.Endpoint}, nil
}

func (c *Checker) line(line Line) (Request, *LineError) {
	if line.TooLong {
		return Request{}, &LineError{Code: "line_too_long", Message: fmt.Sprintf(
			"This line has %d bytes; a line may have at most %d bytes.", line.Length, c.rules.MaxLine)}
	}
	f, err := c.parser.parse(line.Text)
	if err != nil {
		return Request{}, &LineError{
			Code: "invalid_json_line", Message: "This line is not parseable as valid JSON.", Detail: err.Error(),
		}
	}
	if err := required(f); err != nil {
		return Request{}, err
	}
	if err := c.unique(f.customID); err != nil {
		return Request{}, err
	}
	if m := unquote(f.method); string(m) != "POST" {
		return Request{}, &LineError{
			Code: "invalid_method", Param: "method",
			Message: fmt.Sprintf("Invalid method: '%s'. Only 'POST' is supported in the Batch API.", shorten(string(m))),
		}
	}
	if u := unquote(f.url); c.rules.Endpoint == "" {
		c.rules.Endpoint = string(u)
	} else if string(u) != c.rules.Endpoint {
		return Request{}, &LineError{
			Code: "invalid_url", Param: "url",
			Message: "The URL provided for this request does not match the batch endpoint.",
			Detail:  fmt.Sprintf("it is '%s', the batch endpoint is '%s'", shorten(string(u)), c.rules.Endpoint),
		}
	}
	model, lerr := c.body(f)
	if lerr != nil {
		return Request{}, lerr
	}
	return Request{Line: line.Number, CustomID: f.customID, Body: f.body, Model: model}, nil
}

// required checks that the four parameters of a line are there and of the right type.
func required(f *fields) *LineError {
	for _, p := range [...]struct {
		name  string
		value []byte
		kind  byte // the first byte of a value of the right type
		want  string
	}{
		{"custom_id", f.customID, '"', "a string"},
		{"method", f.method, '"', "a string"},
		{"url", f.url, '"', "a string"},
		{"body", f.body, '{', "an object"},
	} {
		switch {
		case absent(p.value), p.name == "custom_id" && string(p.value) == `""`:
			return &LineError{
				Code: "missing_required_parameter", Param: p.name,
				Message: fmt.Sprintf("Missing required parameter: '%s'.", p.name),
			}
		case p.value[0] != p.kind:
			return wrongType(p.name, p.want, p.value)
		}
	}
	return nil
}

// absent reports whether a JSON value is missing; null counts as missing.
func absent(value []byte) bool { return len(value) == 0 || value[0] == 'n' }

// unique checks that no line before had this custom_id, which is compared as text: "a" and
// "\u0061" are the same. Lines beyond MaxRequests are not remembered: the batch fails for their
// number, and its input may be much larger than our memory.
func (c *Checker) unique(token []byte) *LineError {
	id := unquote(token)
	if n := utf8.RuneCount(id); n > MaxCustomID {
		return &LineError{Code: "string_above_max_length", Param: "custom_id", Message: fmt.Sprintf(
			"Invalid 'custom_id': string too long. Expected a string with maximum length %d, but got a string with length %d instead.",
			MaxCustomID, n)}
	}
	sum := sha256.Sum256(id)
	key := [16]byte(sum[:16])
	if _, dup := c.seen[key]; dup {
		return &LineError{Code: "duplicate_custom_id", Param: "custom_id", Message: fmt.Sprintf(
			"The custom_id '%s' for this request is a duplicate of another request. The custom_id parameter must be unique for each request in a batch.", id)}
	}
	if most := c.rules.MaxRequests; most == 0 || c.requests <= most {
		c.seen[key] = struct{}{}
	}
	return nil
}

// body checks the parameters inside a request's body that decide whether it can run at all; the
// upstream judges the others (contract V-02).
func (c *Checker) body(f *fields) (model string, _ *LineError) {
	switch {
	case absent(f.model), string(f.model) == `""`:
		return "", &LineError{Code: "invalid_request", Message: "Model parameter is required.", Param: "body.model"}
	case f.model[0] != '"':
		return "", wrongType("body.model", "a string", f.model)
	case string(f.stream) == "true":
		return "", &LineError{
			Code: "streaming_unsupported", Param: "body.stream",
			Message: endpointName(c.rules.Endpoint) + ": Streaming is not supported in the Batch API.",
		}
	}
	switch c.rules.Endpoint {
	case "/v1/chat/completions":
		if absent(f.messages) {
			return "", &LineError{Code: "invalid_request", Message: "Messages parameter is required.", Param: "body.messages"}
		}
	case "/v1/embeddings", "/v1/responses", "/v1/moderations":
		if absent(f.input) {
			return "", &LineError{Code: "invalid_request", Message: "Input parameter is required.", Param: "body.input"}
		}
	}
	c.inputs += f.inputs
	model = c.parser.intern(unquote(f.model))
	if c.firstModel == "" {
		c.firstModel = model
	}
	if model != c.firstModel {
		c.mixed = true
		if c.rules.OneModel {
			return "", &LineError{Code: "mismatched_model", Param: "body.model", Message: fmt.Sprintf(
				"The model '%s' for this request does not match the rest of the batch. Each batch must contain requests for a single model.", shorten(model))}
		}
	}
	// A NUL is in no model's name, and in no text that PostgreSQL keeps.
	if strings.IndexByte(model, 0) >= 0 || c.rules.Serves != nil && !c.rules.Serves(Lane{Model: model, Endpoint: c.rules.Endpoint}) {
		c.unserved = true
		return "", &LineError{Code: "model_not_found", Param: "body.model", Message: fmt.Sprintf(
			"The provided model '%s' is not supported by the Batch API.", shorten(model))}
	}
	return model, nil
}

// End returns what is wrong with the input as a whole, once every line was checked.
func (c *Checker) End() []LineError {
	var errs []LineError
	if c.requests == 0 {
		errs = append(errs, LineError{
			Code:    "empty_file",
			Message: "The input file is empty. Please ensure that the batch contains at least one request.",
		})
	}
	if most := c.rules.MaxRequests; most > 0 && c.requests > most {
		errs = append(errs, LineError{Code: "too_many_tasks", Message: fmt.Sprintf(
			"The input file contains %s requests. A batch may contain at most %s requests.", thousands(c.requests), thousands(most))})
	}
	most := c.rules.MaxEmbeddingInputs
	if c.rules.Endpoint == "/v1/embeddings" && most > 0 && c.inputs > most {
		errs = append(errs, LineError{Code: "too_many_embedding_inputs", Message: fmt.Sprintf(
			"The batch contains %s embedding inputs. A batch may contain at most %s embedding inputs.", thousands(c.inputs), thousands(most))})
	}
	return errs
}

// SortLineErrors brings errors in the order of a batch object: by line, those about the whole
// file first.
func SortLineErrors(errs []LineError) {
	slices.SortStableFunc(errs, func(a, b LineError) int { return cmp.Compare(a.Line, b.Line) })
}

// CannotFindFile is why a batch fails whose input does not exist (contract CR-07).
func CannotFindFile(id, organization string) LineError {
	return LineError{Code: "invalid_request", Param: "file_id", Message: fmt.Sprintf(
		"Cannot find file %s, or organization %s does not have access to it.", id, organization)}
}

// WrongPurpose is why a batch fails whose input was not uploaded as one (contract CR-08).
func WrongPurpose(id, purpose string) LineError {
	return LineError{Code: "invalid_request", Param: "file_id", Message: fmt.Sprintf(
		"The file %s has purpose '%s'; a batch input file must have purpose 'batch'.", id, purpose)}
}

func wrongType(param, want string, got []byte) *LineError {
	return &LineError{Code: "invalid_type", Param: param, Message: fmt.Sprintf(
		"Invalid type for '%s': expected %s, but got %s instead.", param, want, kindName(got))}
}

// endpointName is how error texts call an endpoint: "/v1/chat/completions" is "Chat Completions".
func endpointName(endpoint string) string {
	words := strings.FieldsFunc(strings.TrimPrefix(endpoint, "/v1/"), func(r rune) bool { return r == '/' || r == '_' })
	for i, w := range words {
		words[i] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, " ")
}

// shorten cuts what a user wrote to a length fit for an error text.
func shorten(text string) string {
	most := 128 // characters
	for i := range text {
		if most--; most < 0 {
			return text[:i] + "…"
		}
	}
	return text
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
