package batch

import "time"

// A Lane is the model and endpoint that a request needs: the unit that has upstreams, limits
// and a queue of its own.
type Lane struct {
	Model    string
	Endpoint string
}

func (l Lane) String() string { return l.Endpoint + " " + l.Model }

// A Segment is one lane's requests in one window of a batch's input: the unit that is claimed,
// recorded and sealed. The window is a byte range of whole lines; where several models are mixed
// in it, several segments share it and each takes the lines of its own lane.
type Segment struct {
	ID        int64
	BatchID   string
	Project   string
	Lane      Lane
	Offset    int64 // of the window in the input, in bytes
	Length    int64 // of the window, in bytes
	FirstLine int64 // line number of the window's first line, from 1
	Total     int64 // requests of this lane in the window
	Tally     Tally // what has been recorded of them
	Deaths    int   // owners in a row that died holding it and had recorded nothing
}

// A Lease is the right to work a segment until somebody else claims it. Every write under it
// carries Token and the Seq it expects, and fails with ErrLeaseLost if either has changed.
type Lease struct {
	Segment
	Token string
	Seq   int64 // of the last write
	// What the owner needs of the batch.
	Input    []Part
	Deadline time.Time
	Ending   Status // see Batch.Ending
	// Died tells, when it is given back, that this is to count as the death of an owner.
	Died bool
}

// Work is what a claim can choose: a batch's segments in one lane that nobody holds.
type Work struct {
	BatchID  string
	Project  string
	Weight   int // of the project
	Lane     Lane
	Ending   Status // set if the batch is ending: its segments are claimed only to be sealed
	Deadline time.Time
	Age      int64 // smaller is older
	Open     int64 // segments that are not sealed, those held among them
}

// A Group is a bundle of results of one segment, recorded together.
type Group struct {
	Lease Lease // Seq is that of the last write the owner knows of
	Tally Tally // of the whole segment with this group: totals, so that repeating adds nothing
	Data  []byte
	// Blob, if not empty, is the key of a blob that is reserved along with the group: it is the last one
	// of its segment, which is written into parts next.
	Blob string
}

// An Admission is the right to validate a batch.
type Admission struct {
	Batch Batch
	Token string
	Input *File // nil if the project has no such file
}

// A Sealed is a segment as somebody sees it who reads results while their batch runs.
type Sealed struct {
	Segment int64
	Sealed  bool
	Part    Part // one of the two kinds of lines of a sealed segment; without key if there are none
}
