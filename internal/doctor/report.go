package doctor

import (
	"fmt"
	"strings"
)

// A Report is what an examination found.
type Report struct {
	Findings []Finding
	Omitted  int64 // findings beyond those: more of the same
	Examined Examined
	// Running tells that a server works on the folder, as far as can be seen.
	Running bool

	alike map[string]int // findings so far, by kind and subject
}

// Examined says how much was looked at.
type Examined struct {
	Batches  int64 `json:"batches"`
	Requests int64 `json:"requests"` // of inputs
	Results  int64 `json:"results"`  // of journals and result files
	Files    int64 `json:"files"`
	Blobs    int64 `json:"blobs"`
	Bytes    int64 `json:"bytes"` // of blobs
	// Batches that could not be held against everything, because it is gone: deleted, or expired.
	WithoutInput  int64 `json:"batches_without_input"`
	WithoutResult int64 `json:"batches_without_result"`
}

// Sound reports whether nothing was found.
func (r *Report) Sound() bool { return len(r.Findings) == 0 }

// A Finding is one thing that is not as it should be.
type Finding struct {
	// Promise is the number of the promise in docs/design.md that is broken.
	Promise int `json:"promise"`
	// Kind names findings of one kind, for programs.
	Kind string `json:"kind"`
	subject
	Problem string `json:"problem"`
	Advice  string `json:"advice"`
}

// A subject is what a finding is about.
type subject struct {
	Batch  string `json:"batch,omitempty"`
	File   string `json:"file,omitempty"`
	Upload string `json:"upload,omitempty"`
	Blob   string `json:"blob,omitempty"`
	Key    string `json:"key,omitempty"`
}

func (s subject) String() string {
	var words []string
	for _, w := range []string{s.Batch, s.File, s.Upload, s.Key} {
		if w != "" {
			words = append(words, w)
		}
	}
	if s.Blob != "" {
		words = append(words, "blob "+s.Blob)
	}
	return strings.Join(words, ", ")
}

// promises are the names of the promises, by number.
var promises = [...]string{
	1: "every request, exactly once", 2: "counts are facts", 3: "recorded is kept", 4: "a crash costs little",
	5: "one owner", 6: "legal moves only", 7: "an outage fails nothing", 8: "bytes are bytes", 9: "bounded memory and disk",
	10: "projects do not see each other", 11: "a 200 is kept",
}

// String says everything on one line.
func (f Finding) String() string {
	text := f.Problem
	if about := f.subject.String(); about != "" {
		text = about + ": " + text
	}
	return fmt.Sprintf("%s (promise %d, %s); %s", text, f.Promise, promises[f.Promise], f.Advice)
}

// What to do about a finding.
const (
	doRestore = "restore the data folder from a backup, database and blobs together; if the disk is good and nobody but Offpeak wrote there, report a bug"
	doReport  = "unless somebody changed the folder by hand, this is a bug: keep a copy of the folder and report it with this line"
	doPutBack = "put the file back from a backup of the folder blobs, where it has the same name"
	doDelete  = "nothing refers to it: delete the file"
	doRestart = "restart the server, which frees and sweeps what a former process left; if it comes again, report a bug"
)

// most is how many findings of one kind about one subject are told one by one, and mostInAll how
// many of any.
const (
	most      = 10
	mostInAll = 1000
)

// find notes that a promise is broken.
func (x *examination) find(promise int, kind string, s subject, advice, format string, args ...any) {
	r := x.report
	if r.alike == nil {
		r.alike = map[string]int{}
	}
	about := kind + " " + s.Batch + s.File + s.Upload
	if len(r.Findings) >= mostInAll || r.alike[about] >= most {
		r.Omitted++
		return
	}
	r.alike[about]++
	r.Findings = append(r.Findings, Finding{Promise: promise, Kind: kind, subject: s, Problem: fmt.Sprintf(format, args...), Advice: advice})
}
