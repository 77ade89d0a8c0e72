package batch

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
)

// A Failure is why a request has no response (contract §9).
type Failure struct {
	Code    string
	Message string
}

// The failures that a request can end with.
var (
	FailureExpired     = Failure{"batch_expired", "This request could not be executed before the completion window expired."}
	FailureCancelled   = Failure{"batch_cancelled", "This request was not executed because the batch was cancelled."}
	FailureTimeout     = Failure{"request_timeout", "The underlying call to the model timed out."}
	FailureServer      = Failure{"server_error", "The server had an error while processing your request."}
	FailureLargeAnswer = Failure{"answer_too_large", "The upstream's answer is larger than this server accepts (--max-answer)."}
)

// A Result is the final outcome of a request: a response or a failure.
type Result struct {
	Status    int    // HTTP status of the response; 0: there is none
	RequestID string // of the call, for the response
	Body      []byte // of the response: one JSON object if Status is 2xx, else whatever came
	Usage     Usage
	Failure   Failure // if Status is 0
}

// OK reports whether the request succeeded, which decides the file its line goes to.
func (r Result) OK() bool { return r.Status >= 200 && r.Status < 300 }

// Compact puts the body of a response on one line as AppendLine does, but without a copy of it: Body is
// changed where it is.
func (r *Result) Compact() {
	if body := bytes.TrimSpace(r.Body); r.OK() && !isOneLine(body) {
		r.Body = dropSpace(body)
	}
}

// AppendLine appends the finished line of an output or error file, line break included (contract
// O-01, §9). batchID and req say which request r is the result of.
func (r Result) AppendLine(dst []byte, batchID string, req Request) []byte {
	dst, body, end := r.Line(dst, batchID, req)
	return append(append(dst, body...), end...)
}

// Line returns the line that AppendLine appends in pieces, the first of them appended to dst. The body
// of a response is a piece of its own, which is not copied if it is on one line: it may be large.
func (r Result) Line(dst []byte, batchID string, req Request) (start, body []byte, end string) {
	dst = append(dst, `{"id":"`...)
	dst = appendRequestID(dst, batchID, req.Line)
	dst = append(dst, `","custom_id":`...)
	dst = append(dst, req.CustomID...)
	if r.Status == 0 {
		dst = append(dst, `,"response":null,"error":{"code":"`...)
		dst = append(dst, r.Failure.Code...)
		dst = append(dst, `","message":`...)
		dst = appendQuoted(dst, r.Failure.Message)
		return dst, nil, "}}\n"
	}
	dst = append(dst, `,"response":{"status_code":`...)
	dst = strconv.AppendInt(dst, int64(r.Status), 10)
	dst = append(dst, `,"request_id":`...)
	dst = appendQuoted(dst, r.RequestID)
	dst = append(dst, `,"body":`...)
	end = "},\"error\":null}\n"
	if r.OK() {
		return dst, oneLine(r.Body), end
	}
	// An upstream's error stands there as the API's clients expect it: as it is if it has OpenAI's
	// shape, else wrapped (contract E-03).
	shaped, text := readError(r.Body)
	if shaped {
		return dst, oneLine(r.Body), end
	}
	return appendError(dst, r.Status, text), nil, end
}

// appendError appends an error with OpenAI's shape.
func appendError(dst []byte, status int, text string) []byte {
	if text == "" {
		text = strings.TrimSpace(strconv.Itoa(status) + " " + http.StatusText(status))
	}
	kind := "invalid_request_error"
	if status >= 500 {
		kind = "server_error"
	}
	dst = append(dst, `{"error":{"message":`...)
	dst = appendQuoted(dst, text)
	dst = append(dst, `,"type":"`...)
	dst = append(dst, kind...)
	return append(dst, `","param":null,"code":null}}`...)
}

// readError reports whether an error body is an object with an error object in it. If not, text is
// what it says in the ways known to us, else its beginning, else empty.
func readError(body []byte) (shaped bool, text string) {
	var s scanner
	says := map[string][]byte{}
	err := s.object(body, func(name []byte) (err error) {
		if string(name) == "error" {
			shaped = s.next() == '{'
		}
		switch key := strings.ToLower(string(name)); {
		case s.next() == '"' && (key == "error" || key == "message" || key == "detail"):
			says[key], err = s.value()
		default:
			err = s.skip()
		}
		return err
	})
	if err == nil {
		if shaped {
			return true, ""
		}
		for _, key := range []string{"error", "message", "detail"} {
			if text := unquote(says[key]); len(text) > 0 {
				return false, string(text)
			}
		}
	}
	const most = 4 << 10
	body = bytes.TrimSpace(body)
	return false, string(body[:min(len(body), most)])
}

// An AnswerParser reads the answers of upstreams. It is not safe for concurrent use.
type AnswerParser struct {
	s scanner
	q quick
}

// Usage checks that body is one JSON object, which every successful answer must be (contract
// O-04), and returns the tokens it reports (contract B-06).
func (p *AnswerParser) Usage(body []byte) (Usage, error) {
	u, ok := p.q.usage(body)
	p.q.raw = nil
	var err error
	if !ok {
		u, err = p.scan(body)
	}
	if u.Total == 0 {
		u.Total = u.Input + u.Output
	}
	return u, err
}

// scan is Usage for whatever body.
func (p *AnswerParser) scan(body []byte) (Usage, error) {
	var u Usage
	err := p.s.object(body, func(name []byte) error {
		if string(name) != "usage" || p.s.next() != '{' {
			return p.s.skip()
		}
		u = Usage{}
		return p.s.members(func(name []byte) error {
			switch string(name) {
			case "prompt_tokens", "input_tokens":
				return p.number(&u.Input)
			case "completion_tokens", "output_tokens":
				return p.number(&u.Output)
			case "total_tokens":
				return p.number(&u.Total)
			case "prompt_tokens_details", "input_tokens_details":
				return p.detail("cached_tokens", &u.Cached)
			case "completion_tokens_details", "output_tokens_details":
				return p.detail("reasoning_tokens", &u.Reasoning)
			}
			return p.s.skip()
		})
	})
	return u, err
}

// detail reads one number of the object that comes next, which may be null.
func (p *AnswerParser) detail(want string, n *int64) error {
	if p.s.next() != '{' {
		return p.s.skip()
	}
	return p.s.members(func(name []byte) error {
		if string(name) == want {
			return p.number(n)
		}
		return p.s.skip()
	})
}

// number reads the value that comes next into n; what is no count leaves n as it is.
func (p *AnswerParser) number(n *int64) error {
	raw, err := p.s.value()
	if err != nil {
		return err
	}
	setCount(n, raw)
	return nil
}

func setCount(n *int64, raw []byte) {
	if v, err := strconv.ParseInt(string(raw), 10, 64); err == nil && v >= 0 && v < 1<<40 {
		*n = v
	}
}
