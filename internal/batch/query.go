package batch

import "time"

// A FileQuery asks for one page of a project's files.
type FileQuery struct {
	Purpose   string // of every file; empty: any
	After     string // id of the file that the page starts behind; empty: the first page
	Limit     int    // files on the page, above 0
	Ascending bool   // oldest first; else newest first
}

// A BatchQuery asks for one page of a project's batches, newest first.
type BatchQuery struct {
	After string // id of the batch that the page starts behind; empty: the first page
	Limit int    // batches on the page, above 0
}

// A ModelInfo describes a model that some upstream serves.
type ModelInfo struct {
	ID      string
	Created time.Time // as the upstream says, or since when the model is known
	OwnedBy string
}
