package batch

import "time"

// A File is uploaded or produced JSON Lines: an ordered list of parts, each an immutable blob.
type File struct {
	ID        string
	Project   string
	Purpose   string
	Filename  string
	Bytes     int64 // sum over Parts
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
	Parts     []Part    // nil where only the description was asked for
}

// A Part is one blob of a file. Its bytes follow those of the part before it.
type Part struct {
	Key   string
	Bytes int64
}

// Purposes of files that have a meaning here (contract §10.1).
const (
	PurposeBatch       = "batch"
	PurposeBatchOutput = "batch_output"
)

// UploadPurposes are the purposes that a user may upload a file for.
var UploadPurposes = []string{"assistants", PurposeBatch, "fine-tune", "vision", "user_data", "evals"}

// DefaultExpiry returns when a file of the given purpose expires if its owner does not say;
// zero means never (contract FI-05).
func DefaultExpiry(purpose string, created time.Time) time.Time {
	if purpose == PurposeBatch || purpose == PurposeBatchOutput {
		return created.Add(DefaultRetention)
	}
	return time.Time{}
}
