package batch

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A Profile is which of two contracts a server keeps (contract §20).
type Profile string

// The profiles.
const (
	ProfileOpenAI   Profile = "openai"   // what OpenAI allows, and nothing else
	ProfileExtended Profile = "extended" // that and more; what an empty Profile means
)

// ParseProfile returns the profile called s.
func ParseProfile(s string) (Profile, error) {
	switch p := Profile(s); p {
	case ProfileOpenAI, ProfileExtended:
		return p, nil
	case "":
		return ProfileExtended, nil
	}
	return "", fmt.Errorf("unknown profile %q: use %q or %q", s, ProfileOpenAI, ProfileExtended)
}

// Endpoints are those that OpenAI's batches know, as an error text lists them (contract CR-02).
var Endpoints = []string{
	"/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions",
	"/v1/moderations", "/v1/images/generations", "/v1/images/edits", "/v1/videos",
}

// A Policy is what a server lets its users create. The zero value is the extended profile.
type Policy struct {
	Profile   Profile
	Endpoints []string // served beside OpenAI's; profile openai ignores them
	// MaxInput bounds a batch's input file, in bytes. Zero: 200 MiB in profile openai (contract
	// I-11), else 8 GiB.
	MaxInput int64
	// MaxFile bounds any other file. Zero: 512 MiB in profile openai (contract FI-04), else 8 GiB.
	MaxFile int64
}

// MaxBytes is how large a file for purpose may be. An empty purpose is one not known yet: the
// answer is what any file may have.
func (p Policy) MaxBytes(purpose string) int64 {
	input, other := p.MaxInput, p.MaxFile
	if p.Profile == ProfileOpenAI {
		input, other = cmp.Or(input, 200<<20), cmp.Or(other, 512<<20)
	}
	input, other = cmp.Or(input, 8<<30), cmp.Or(other, 8<<30)
	switch purpose {
	case PurposeBatch:
		return input
	case "":
		return max(input, other)
	}
	return other
}

// endpoints lists what a batch may name.
func (p Policy) endpoints() []string {
	if p.Profile == ProfileOpenAI {
		return Endpoints
	}
	return slices.Concat(Endpoints, p.Endpoints)
}

// The completion windows of the extended profile reach from 15 minutes to 30 days.
const (
	MinWindow = 15 * time.Minute
	MaxWindow = 30 * 24 * time.Hour
)

// window returns the duration that the completion window s stands for (contract CR-04, §20).
func (p Policy) window(s string) (time.Duration, error) {
	if s == "24h" {
		return 24 * time.Hour, nil
	}
	if p.Profile == ProfileOpenAI {
		return 0, InvalidValue("completion_window", s, "24h")
	}
	if d, ok := parseWindow(s); ok && d >= MinWindow && d <= MaxWindow {
		return d, nil
	}
	return 0, invalidValue("completion_window", s,
		"Value must be '24h', or an integer followed by 'm', 'h' or 'd', from '15m' to '30d'")
}

// parseWindow reads an integer and a unit. There is one way to write a number: without sign and
// without leading zeros.
func parseWindow(s string) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	digits, unit := s[:len(s)-1], s[len(s)-1]
	n, err := strconv.ParseUint(digits, 10, 16) // 30 days have 43,200 minutes
	if err != nil || digits[0] == '0' {
		return 0, false
	}
	switch unit {
	case 'm':
		return time.Duration(n) * time.Minute, true
	case 'h':
		return time.Duration(n) * time.Hour, true
	case 'd':
		return time.Duration(n) * 24 * time.Hour, true
	}
	return 0, false
}

// ExpiresAfter is how long a user wants files kept, as the API takes it: after an anchor, which
// can only be their creation. Both fields are required; zero values are absent ones.
type ExpiresAfter struct {
	Anchor  string
	Seconds *int64
}

// duration returns the time that e, the parameter called param, stands for; 0 if e is nil
// (contract FI-03, CR-01).
func (e *ExpiresAfter) duration(param string) (time.Duration, error) {
	const least, most = 3600, 2_592_000
	switch {
	case e == nil:
		return 0, nil
	case e.Anchor == "":
		return 0, Missing(param + ".anchor")
	case e.Anchor != "created_at":
		return 0, InvalidValue(param+".anchor", e.Anchor, "created_at")
	case e.Seconds == nil:
		return 0, Missing(param + ".seconds")
	}
	return time.Duration(*e.Seconds) * time.Second, CheckRange(param+".seconds", *e.Seconds, least, most)
}

// CreateParams are what a user says of a batch to be created. Empty fields are absent ones.
type CreateParams struct {
	Project            string // whose batch it will be
	InputFileID        string
	Endpoint           string
	CompletionWindow   string
	Metadata           map[string]string
	OutputExpiresAfter *ExpiresAfter // of output and error file; nil: DefaultRetention
}

// maxInputFileID bounds an id that names no file of ours; the batch that names it is kept.
const maxInputFileID = 512

// New returns the batch that p asks for, validating, as it is created at now. Whether there is
// such an input file is found out in validation (contract CR-07).
func New(p CreateParams, pol Policy, now time.Time) (Batch, error) {
	switch {
	case p.InputFileID == "":
		return Batch{}, Missing("input_file_id")
	case p.Endpoint == "":
		return Batch{}, Missing("endpoint")
	case p.CompletionWindow == "":
		return Batch{}, Missing("completion_window")
	}
	if n := utf8.RuneCountInString(p.InputFileID); n > maxInputFileID {
		return Batch{}, TooLong("input_file_id", maxInputFileID, n)
	}
	if supported := pol.endpoints(); !slices.Contains(supported, p.Endpoint) {
		return Batch{}, InvalidValue("endpoint", p.Endpoint, supported...)
	}
	window, err := pol.window(p.CompletionWindow)
	if err != nil {
		return Batch{}, err
	}
	if err := checkMetadata(p.Metadata); err != nil {
		return Batch{}, err
	}
	keep, err := p.OutputExpiresAfter.duration("output_expires_after")
	if err != nil {
		return Batch{}, err
	}
	if keep == 0 {
		keep = DefaultRetention
	}
	return Batch{
		ID: NewBatchID(now), Project: p.Project, Endpoint: p.Endpoint,
		InputFileID: p.InputFileID, OutputFileID: NewFileID(), ErrorFileID: NewFileID(),
		OutputExpiresAfter: keep,
		CompletionWindow:   p.CompletionWindow, Metadata: p.Metadata,
		Status:    Validating,
		CreatedAt: now, ExpiresAt: now.Add(window),
	}, nil
}

// checkMetadata applies the limits of contract CR-06, which count characters. Of several faults
// it reports the first in the order of keys.
func checkMetadata(m map[string]string) error {
	const pairs, keyLength, valueLength = 16, 64, 512
	if len(m) > pairs {
		return &Error{
			Kind: Invalid, Code: "object_above_max_properties", Param: "metadata",
			Msg: fmt.Sprintf("Invalid 'metadata': too many properties. Expected an object with at most %d properties, but got an object with %d properties instead.", pairs, len(m)),
		}
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if n := utf8.RuneCountInString(k); n > keyLength {
			return TooLong("metadata", keyLength, n)
		}
		if n := utf8.RuneCountInString(m[k]); n > valueLength {
			return TooLong("metadata."+k, valueLength, n)
		}
	}
	return nil
}

// UploadParams are what a user says of a file to be created, and what the file says of itself.
type UploadParams struct {
	Project      string
	Purpose      string
	Filename     string
	ExpiresAfter *ExpiresAfter // nil: DefaultExpiry
	Parts        []Part
	// FirstLine is the first line that is not blank, without its end; nil if there is none.
	FirstLine []byte
	// FirstLineCut tells that FirstLine is only the beginning of a long line.
	FirstLineCut bool
}

// maxFilename bounds names of files, in characters.
const maxFilename = 512

// CheckUpload says whether a file of this purpose and name may be uploaded: what can be said
// before its bytes are read.
func CheckUpload(purpose, filename string) error {
	switch n := utf8.RuneCountInString(filename); {
	case purpose == "":
		return Missing("purpose")
	case !slices.Contains(UploadPurposes, purpose): // contract FI-08, FI-19
		return InvalidValue("purpose", purpose, UploadPurposes...)
	case n > maxFilename:
		return TooLong("file.filename", maxFilename, n)
	case purpose == PurposeBatch && !strings.EqualFold(path.Ext(filename), ".jsonl"): // contract FI-06
		return errFileFormat
	}
	return nil
}

// ErrFileTooLarge is returned for a file beyond Policy.MaxBytes (contract FI-09).
var ErrFileTooLarge error = &Error{Kind: Invalid, Msg: "File is too large."}

var errFileFormat error = &Error{Kind: Invalid, Msg: "Invalid file format for Batch API. Must be .jsonl"}

// NewFile returns the file that p describes, as it is created at now. Of a batch's input it wants
// a first line that is JSON, as OpenAI does (contract FI-07); the rest is validated with the batch.
func NewFile(p UploadParams, pol Policy, now time.Time) (File, error) {
	if err := CheckUpload(p.Purpose, p.Filename); err != nil {
		return File{}, err
	}
	keep, err := p.ExpiresAfter.duration("expires_after")
	if err != nil {
		return File{}, err
	}
	f := File{
		ID: NewFileID(), Project: p.Project, Purpose: p.Purpose, Filename: p.Filename,
		CreatedAt: now, ExpiresAt: DefaultExpiry(p.Purpose, now), Parts: p.Parts,
	}
	if keep > 0 {
		f.ExpiresAt = now.Add(keep)
	}
	for _, part := range p.Parts {
		f.Bytes += part.Bytes
	}
	if f.Bytes > pol.MaxBytes(p.Purpose) {
		return File{}, ErrFileTooLarge
	}
	if err := checkFirstLine(p.Purpose, p.FirstLine, p.FirstLineCut); err != nil {
		return File{}, err
	}
	return f, nil
}

// checkFirstLine wants JSON of the first line of a batch's input, unless it is cut.
func checkFirstLine(purpose string, line []byte, cut bool) error {
	// A byte order mark passes here: validation names it, which helps more (contract I-07).
	line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	if purpose == PurposeBatch && !cut && !json.Valid(line) {
		return errFileFormat
	}
	return nil
}
