package openai

// An Upload is a file that comes in parts (contract §11).
type Upload struct {
	ID        string `json:"id"`
	Object    string `json:"object"` // "upload"
	Bytes     int64  `json:"bytes"`
	CreatedAt int64  `json:"created_at"`
	Filename  string `json:"filename"`
	Purpose   string `json:"purpose"`
	Status    string `json:"status"`
	ExpiresAt int64  `json:"expires_at"` // of the upload; the file has its own
	File      *File  `json:"file"`       // only of a completed upload
}

// An UploadPart is a part of a file that was received.
type UploadPart struct {
	ID        string `json:"id"`
	Object    string `json:"object"` // "upload.part"
	CreatedAt int64  `json:"created_at"`
	UploadID  string `json:"upload_id"`
}

// CreateUpload is the body of POST /v1/uploads.
type CreateUpload struct {
	Filename     string        `json:"filename"`
	Purpose      string        `json:"purpose"`
	Bytes        int64         `json:"bytes"`
	MIMEType     string        `json:"mime_type"`
	ExpiresAfter *ExpiresAfter `json:"expires_after,omitempty"` // of the file
}

// CompleteUpload is the body of POST /v1/uploads/{id}/complete.
type CompleteUpload struct {
	PartIDs []string `json:"part_ids"` // in the order of their bytes
	MD5     string   `json:"md5,omitempty"`
}
