package batch

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// An Upload is a file that comes in parts (contract §11). It is created, takes parts for as long
// as it is pending, and then becomes a file of the parts that its owner names, in the order in
// which they are named.
type Upload struct {
	ID       string
	Project  string
	Purpose  string // of the file
	Filename string
	Bytes    int64         // that the file will have
	Keep     time.Duration // how long the file is kept; zero: DefaultExpiry

	// Status is as it was recorded: what is pending beyond ExpiresAt has expired. See StatusAt.
	Status    UploadStatus
	CreatedAt time.Time
	ExpiresAt time.Time // when the upload does; nothing of the file

	// Of a completed upload:
	CompletedAt   time.Time
	FileID        string
	CompletedWith [sha256.Size]byte // what Completion.Hash says of the call that did it
}

// An UploadStatus is where an upload stands. It moves once:
//
//	stateDiagram-v2
//	    [*] --> pending
//	    pending --> completed: complete
//	    pending --> cancelled: cancel
//	    pending --> expired: the clock
type UploadStatus string

// The statuses of uploads.
const (
	UploadPending   UploadStatus = "pending"
	UploadCompleted UploadStatus = "completed"
	UploadCancelled UploadStatus = "cancelled"
	UploadExpired   UploadStatus = "expired"
)

// Bounds of uploads (contract UP-01, UP-03, UP-06).
const (
	UploadTime    = time.Hour // to bring the parts and complete
	MaxUpload     = 8 << 30   // bytes of a file
	MaxUploadPart = 64 << 20
)

// An UploadPart is a part that was brought, to be named or to be dropped.
type UploadPart struct {
	ID        string
	UploadID  string
	CreatedAt time.Time
	Part
}

// NewUploadPart returns the part of the upload that p is, as it is created at now.
func NewUploadPart(upload string, p Part, now time.Time) UploadPart {
	return UploadPart{ID: "part_" + NewCallID(), UploadID: upload, CreatedAt: now, Part: p}
}

// ErrPartTooLarge is returned for a part beyond MaxUploadPart.
var ErrPartTooLarge error = &Error{
	Kind: Invalid, Param: "data",
	Msg: fmt.Sprintf("The part is too large. A part can have at most %d bytes.", MaxUploadPart),
}

// NoUpload is the error for an upload that is unknown or another project's (contract UP-07).
func NoUpload(id string) error {
	return &Error{Kind: NotFound, Param: "upload_id", Msg: "No such Upload object: " + id}
}

// NoUploadPart is the error for a part that is unknown, or another upload's.
func NoUploadPart(upload, part string) error {
	return &Error{
		Kind: Invalid, Code: "invalid_value", Param: "part_ids",
		Msg: fmt.Sprintf("Invalid value: '%s'. Upload %s has no such part.", shorten(part), upload),
	}
}

// CreateUploadParams are what a user says of an upload to be created. Zero values are absent ones.
type CreateUploadParams struct {
	Project      string
	Filename     string
	Purpose      string
	Bytes        *int64
	MIMEType     string        // required by the API, and of no consequence
	ExpiresAfter *ExpiresAfter // of the file
}

// NewUpload returns the upload that p asks for, pending, as it is created at now. Whether a policy
// allows a file of that size is said when it is complete (contract UP-06).
func NewUpload(p CreateUploadParams, now time.Time) (Upload, error) {
	switch {
	case p.Filename == "":
		return Upload{}, Missing("filename")
	case p.Purpose == "":
		return Upload{}, Missing("purpose")
	case p.Bytes == nil:
		return Upload{}, Missing("bytes")
	case p.MIMEType == "":
		return Upload{}, Missing("mime_type")
	}
	if n := utf8.RuneCountInString(p.Filename); n > maxFilename {
		return Upload{}, TooLong("filename", maxFilename, n)
	}
	if err := CheckUpload(p.Purpose, p.Filename); err != nil {
		return Upload{}, err
	}
	if err := CheckRange("bytes", *p.Bytes, 0, MaxUpload); err != nil {
		return Upload{}, err
	}
	keep, err := p.ExpiresAfter.duration("expires_after")
	if err != nil {
		return Upload{}, err
	}
	return Upload{
		ID: "upload_" + NewCallID(), Project: p.Project, Purpose: p.Purpose, Filename: p.Filename,
		Bytes: *p.Bytes, Keep: keep,
		Status: UploadPending, CreatedAt: now, ExpiresAt: now.Add(UploadTime),
	}, nil
}

// StatusAt returns where u stands at now.
func (u *Upload) StatusAt(now time.Time) UploadStatus {
	if u.Status == UploadPending && !now.Before(u.ExpiresAt) {
		return UploadExpired
	}
	return u.Status
}

// CheckPending fails unless u takes parts at now, and can be completed and cancelled.
func (u *Upload) CheckPending(now time.Time) error {
	if s := u.StatusAt(now); s != UploadPending {
		return &Error{Kind: Invalid, Msg: fmt.Sprintf("Upload %s is not pending; its status is '%s'.", u.ID, s)}
	}
	return nil
}

// Cancel ends u without a file. It reports whether that changed anything: repeating a cancel does
// not.
func (u *Upload) Cancel(now time.Time) (changed bool, err error) {
	if u.Status == UploadCancelled {
		return false, nil
	}
	if err := u.CheckPending(now); err != nil {
		return false, err
	}
	u.Status = UploadCancelled
	return true, nil
}

// A Completion is what a user says to make a file of an upload.
type Completion struct {
	PartIDs []string // in the order of their bytes
	MD5     string   // of the whole file, 32 hexadecimal digits; empty if the user does not say
}

// Check says whether c can be meant at all: no part twice, and an MD5 that is one.
func (c Completion) Check() error {
	seen := make(map[string]bool, len(c.PartIDs))
	for _, id := range c.PartIDs {
		if seen[id] {
			return &Error{
				Kind: Invalid, Code: "invalid_value", Param: "part_ids",
				Msg: fmt.Sprintf("Invalid value: '%s'. A part can be used only once.", shorten(id)),
			}
		}
		seen[id] = true
	}
	if raw, err := hex.DecodeString(c.MD5); c.MD5 != "" && (err != nil || len(raw) != md5.Size) {
		return invalidValue("md5", c.MD5, "Value must be the MD5 of the file, 32 hexadecimal digits")
	}
	return nil
}

// CheckMD5 fails if sum is not what c wants the whole file to have.
func (c Completion) CheckMD5(sum [md5.Size]byte) error {
	if got := hex.EncodeToString(sum[:]); c.MD5 != "" && !strings.EqualFold(c.MD5, got) {
		return &Error{
			Kind: Invalid, Param: "md5",
			Msg: fmt.Sprintf("The MD5 of the parts (%s) does not match the given one (%s).", got, strings.ToLower(c.MD5)),
		}
	}
	return nil
}

// Hash tells completions apart.
func (c Completion) Hash() [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%q %q", strings.ToLower(c.MD5), c.PartIDs))
}

// CompletedBy reports whether it was c that completed u. Saying it again changes nothing (contract
// UP-08).
func (u *Upload) CompletedBy(c Completion) bool {
	return u.Status == UploadCompleted && u.CompletedWith == c.Hash()
}

// CheckSize fails if parts do not add up to the file that u was to be (contract UP-04).
func (u *Upload) CheckSize(parts []Part) error {
	var sum int64
	for _, p := range parts {
		sum += p.Bytes
	}
	if sum != u.Bytes {
		return &Error{Kind: Invalid, Msg: fmt.Sprintf(
			"The total size of the parts (%d bytes) does not match the upload size (%d bytes).", sum, u.Bytes)}
	}
	return nil
}

// CheckPolicy fails if the policy does not allow the file that u was to be.
func (u *Upload) CheckPolicy(pol Policy) error {
	if u.Bytes > pol.maxUpload(u.Purpose) {
		return ErrFileTooLarge
	}
	return nil
}

// maxUpload is how large a file for purpose may be that came in parts: as large as any, save that
// OpenAI's bound of 512 MB is one for files that come in one piece (contract FI-04, UP-06).
func (p Policy) maxUpload(purpose string) int64 {
	if purpose != PurposeBatch && p.MaxFile == 0 {
		return MaxUpload
	}
	return p.MaxBytes(purpose)
}

// CheckFirstLine says of the first line of the file what NewFile says. The line is the first that
// is not blank, nil if there is none; cut tells that it is only the beginning of a long one.
func (u *Upload) CheckFirstLine(line []byte, cut bool) error {
	return checkFirstLine(u.Purpose, line, cut)
}

// Complete makes u the file of the parts that c names, which the caller has looked up: parts are
// theirs, in their order.
func (u *Upload) Complete(c Completion, parts []Part, now time.Time) (File, error) {
	if err := u.CheckPending(now); err != nil {
		return File{}, err
	}
	if err := c.Check(); err != nil {
		return File{}, err
	}
	if err := u.CheckSize(parts); err != nil {
		return File{}, err
	}
	u.Status, u.CompletedAt, u.FileID, u.CompletedWith = UploadCompleted, now, NewFileID(), c.Hash()
	f := *u.File()
	f.Parts = parts
	return f, nil
}

// File describes the file that u became, as it was then, or returns nil if u became none.
func (u *Upload) File() *File {
	if u.Status != UploadCompleted {
		return nil
	}
	f := File{
		ID: u.FileID, Project: u.Project, Purpose: u.Purpose, Filename: u.Filename, Bytes: u.Bytes,
		CreatedAt: u.CompletedAt, ExpiresAt: DefaultExpiry(u.Purpose, u.CompletedAt),
	}
	if u.Keep > 0 {
		f.ExpiresAt = u.CompletedAt.Add(u.Keep)
	}
	return &f
}
