package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"offpeak/internal/batch"
)

// How a batch ended, as exit codes of the commands that wait for it. 0 means that every request
// succeeded, and 1 is any error that has nothing to do with the requests.
const (
	exitSomeFailed = 2 // it completed, but some requests failed
	exitUnfinished = 3 // cancelled, expired or interrupted: not every request was answered
	exitInvalid    = 4 // the input was refused
)

// outcome returns the exit code of a batch that was left with this status and so many failed
// requests: as an error without words, since the summary has them, or nil for 0.
func outcome(status batch.Status, failed int64) error {
	switch {
	case status == batch.Failed:
		return exitError{code: exitInvalid}
	case status != batch.Completed:
		return exitError{code: exitUnfinished}
	case failed > 0:
		return exitError{code: exitSomeFailed}
	}
	return nil
}

// errorsPath returns where failed lines go when the others go to out: out.errors.jsonl beside
// out.jsonl.
func errorsPath(out string) string {
	ext := filepath.Ext(out)
	return strings.TrimSuffix(out, ext) + ".errors" + ext
}

// maxCodes is how many different error codes are told apart. Upstreams may send what they like.
const maxCodes = 1000

// countErrorCodes reads an error file and returns how many lines have which code. It holds one
// line at a time.
func countErrorCodes(r io.Reader) (map[string]int64, error) {
	codes := map[string]int64{}
	dec := jsontext.NewDecoder(r, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for n := 1; ; n++ {
		line, err := dec.ReadValue()
		switch {
		case errors.Is(err, io.EOF):
			return codes, nil
		case err != nil:
			return codes, fmt.Errorf("error file, line %d: %w", n, err)
		}
		code := errorCode(line)
		if _, known := codes[code]; !known && len(codes) >= maxCodes {
			code = "other"
		}
		codes[code]++
	}
}

// errorCode returns the code of one line of an error file: Offpeak's own for a request without
// an answer, else the upstream's, or the nearest thing to a code that the upstream sent.
func errorCode(line jsontext.Value) string {
	// Upstreams differ in what they put where, so whatever is no string is as good as absent.
	type fault struct {
		Code any `json:"code"`
		Type any `json:"type"`
	}
	var l struct {
		Error    fault `json:"error"`
		Response struct {
			StatusCode int            `json:"status_code"`
			Body       jsontext.Value `json:"body"`
		} `json:"response"`
	}
	var body struct {
		Error fault `json:"error"`
	}
	lax := json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if json.Unmarshal(line, &l, lax) != nil {
		return "unknown"
	}
	json.Unmarshal(l.Response.Body, &body, lax) // if it is of that shape
	for _, v := range []any{l.Error.Code, body.Error.Code, body.Error.Type} {
		if code, _ := v.(string); code != "" {
			return code
		}
	}
	if l.Response.StatusCode > 0 {
		return fmt.Sprintf("http_%d", l.Response.StatusCode)
	}
	return "unknown"
}
