package batch

import (
	"errors"
	"fmt"
)

// A Kind says what the caller of a failed operation can do about it.
type Kind int

// The kinds of errors. Whatever is not an *Error is internal: our fault, not the caller's.
const (
	Invalid  Kind = iota + 1 // the request is wrong; mend it
	NotFound                 // there is no such object, or it is another project's
	Conflict                 // the object's state does not allow it
)

// An Error is a failure the caller can act on. Any other error is internal.
type Error struct {
	Kind  Kind
	Code  string // machine-readable, as the API names it; may be empty
	Param string // offending field, as the API names it; may be empty
	Msg   string // for the user
}

func (e *Error) Error() string { return e.Msg }

// KindOf returns the kind of err, or 0 if err is internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return 0
}

// NoFile is the error for a file that is unknown, deleted, expired or another project's
// (contract FI-12).
func NoFile(id string) error {
	return &Error{Kind: NotFound, Param: "id", Msg: "No such File object: " + id}
}

// NoBatch is the error for a batch that is unknown or another project's (contract R-02).
func NoBatch(id string) error {
	return &Error{Kind: NotFound, Msg: fmt.Sprintf("No batch found with id '%s'.", id)}
}

// ErrNotLocal is the error for a request that came under a foreign name to a server without keys.
var ErrNotLocal error = &Error{Kind: Invalid, Msg: "This server has no API key yet, and so is only for programs on its own machine, " +
	"which call it localhost or 127.0.0.1. To use it under another name, make a key: offpeak keys create."}

// ErrLeaseLost is returned by writes to a segment under a claim that is no longer the newest.
// The segment is another's now; whatever the writer had for it is void.
var ErrLeaseLost = errors.New("lease lost")

// ErrSwept is returned by what names blobs of which one was under way for so long that it was
// taken for abandoned and its bytes are going. They are to be written anew, under a new key.
var ErrSwept = errors.New("swept before anything named it")

// ErrSealed is returned for a group of the journal that is not there any more: its segment was
// sealed.
var ErrSealed = errors.New("segment sealed")

// ErrDeclaredDead is returned to a node that others have taken for dead, or that has left. What it
// held is free; it may join anew.
var ErrDeclaredDead = errors.New("the node was declared dead")
