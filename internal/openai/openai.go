// Package openai holds the wire types of the public API: OpenAI's objects for batches, files and
// models, as they go over the wire.
//
// The server encodes them and the Go client decodes them. They are shapes and nothing else: what
// the values mean, and which are legal, is said in package batch. Every field is present in every
// object; what is unset is an explicit null (contract B-01), so nullable fields are pointers. Times
// are integer unix seconds. [Marshal] keeps those promises whatever is in the struct.
package openai

// A Batch is a set of requests that run to a terminal status (contract §1).
type Batch struct {
	ID               string            `json:"id"`
	Object           string            `json:"object"` // "batch"
	Endpoint         string            `json:"endpoint"`
	Model            *string           `json:"model"`
	Errors           *BatchErrors      `json:"errors"` // only of a failed batch
	InputFileID      string            `json:"input_file_id"`
	CompletionWindow string            `json:"completion_window"`
	Status           string            `json:"status"`
	OutputFileID     *string           `json:"output_file_id"`
	ErrorFileID      *string           `json:"error_file_id"`
	CreatedAt        int64             `json:"created_at"`
	InProgressAt     *int64            `json:"in_progress_at"`
	ExpiresAt        *int64            `json:"expires_at"`
	FinalizingAt     *int64            `json:"finalizing_at"`
	CompletedAt      *int64            `json:"completed_at"`
	FailedAt         *int64            `json:"failed_at"`
	ExpiredAt        *int64            `json:"expired_at"`
	CancellingAt     *int64            `json:"cancelling_at"`
	CancelledAt      *int64            `json:"cancelled_at"`
	RequestCounts    RequestCounts     `json:"request_counts"`
	Usage            *Usage            `json:"usage"`
	Metadata         map[string]string `json:"metadata"` // nil: null
	// Offpeak is what no other server says. It is absent where a server says nothing but what
	// OpenAI's would (docs/contract.md, profiles).
	Offpeak *Offpeak `json:"offpeak,omitzero"`
}

// Offpeak is how a batch is getting on. What cannot be known, or not yet, is null.
type Offpeak struct {
	ETA               *int64   `json:"eta"`              // when it will be done, as things go
	DeadlineAtRisk    *bool    `json:"deadline_at_risk"` // whether that is after its deadline
	WaitingFor        *string  `json:"waiting_for"`      // what holds it, or a lane of it, up, in a short sentence
	RequestsPerSecond *float64 `json:"requests_per_second"`
	InFlight          *int     `json:"in_flight"` // requests sent and unanswered
}

// BatchErrors are the reasons why a batch failed.
type BatchErrors struct {
	Object string       `json:"object"` // "list"
	Data   []BatchError `json:"data"`
}

// A BatchError is one thing that is wrong with a batch's input (contract B-05).
type BatchError struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Param   *string `json:"param"` // path into the line
	Line    *int64  `json:"line"`  // from 1
}

// RequestCounts are how many requests a batch has, how many succeeded and how many failed.
type RequestCounts struct {
	Total     int64 `json:"total"`
	Completed int64 `json:"completed"`
	Failed    int64 `json:"failed"`
}

// Usage is how many tokens a batch took (contract B-06).
type Usage struct {
	InputTokens         int64               `json:"input_tokens"`
	InputTokensDetails  InputTokensDetails  `json:"input_tokens_details"`
	OutputTokens        int64               `json:"output_tokens"`
	OutputTokensDetails OutputTokensDetails `json:"output_tokens_details"`
	TotalTokens         int64               `json:"total_tokens"`
}

// InputTokensDetails are part of Usage.
type InputTokensDetails struct {
	CachedTokens int64 `json:"cached_tokens"`
}

// OutputTokensDetails are part of Usage.
type OutputTokensDetails struct {
	ReasoningTokens int64 `json:"reasoning_tokens"`
}

// CreateBatch is the body of POST /v1/batches (contract §3).
type CreateBatch struct {
	InputFileID        string            `json:"input_file_id"`
	Endpoint           string            `json:"endpoint"`
	CompletionWindow   string            `json:"completion_window"`
	Metadata           map[string]string `json:"metadata,omitempty"`
	OutputExpiresAfter *ExpiresAfter     `json:"output_expires_after,omitempty"`
}

// ExpiresAfter is how long a file is kept.
type ExpiresAfter struct {
	Anchor  string `json:"anchor"` // "created_at"
	Seconds int64  `json:"seconds"`
}

// A File describes an uploaded or produced file (contract §10.1).
type File struct {
	ID            string  `json:"id"`
	Object        string  `json:"object"` // "file"
	Bytes         int64   `json:"bytes"`
	CreatedAt     int64   `json:"created_at"`
	ExpiresAt     *int64  `json:"expires_at"` // null: never
	Filename      string  `json:"filename"`
	Purpose       string  `json:"purpose"`
	Status        string  `json:"status"` // "processed"
	StatusDetails *string `json:"status_details"`
}

// FileDeleted is the answer to DELETE /v1/files/{id}.
type FileDeleted struct {
	ID      string `json:"id"`
	Object  string `json:"object"` // "file"
	Deleted bool   `json:"deleted"`
}

// A Model is something that an upstream serves (contract §12).
type Model struct {
	ID           string `json:"id"`
	Object       string `json:"object"` // "model"
	Created      int64  `json:"created"`
	OwnedBy      string `json:"owned_by"`
	ShutdownDate *int64 `json:"shutdown_date"`
}

// A ModelList is the answer to GET /v1/models. It has no pages.
type ModelList struct {
	Object string  `json:"object"` // "list"
	Data   []Model `json:"data"`
}

// An Upstream is an inference server behind an Offpeak server, and how it stands. No other server
// says so.
type Upstream struct {
	Object            string            `json:"object"` // "offpeak.upstream"
	Name              string            `json:"name"`
	URL               string            `json:"url"`
	Models            []string          `json:"models"`       // aliases among them
	ModelsKnown       bool              `json:"models_known"` // false: it could not be asked so far
	AnyModel          bool              `json:"any_model"`    // it has no list, and is taken to serve whatever it is asked for
	Aliases           map[string]string `json:"aliases"`      // by alias: the upstream's own name of the model; null: none
	Healthy           bool              `json:"healthy"`
	UnhealthySince    *int64            `json:"unhealthy_since"`
	Reason            *string           `json:"reason"` // what is wrong with it, in words
	InFlight          int               `json:"in_flight"`
	Limit             int               `json:"limit"`         // of in_flight, now
	MaxInFlight       *int              `json:"max_in_flight"` // null: the limit is found out
	Cluster           *UpstreamShare    `json:"cluster"`       // null: this node has it to itself
	ThrottledUntil    *int64            `json:"throttled_until"`
	LimitedUntil      *int64            `json:"limited_until"` // by limits a minute; null: they allow a request
	Running           *int              `json:"running"`       // requests that it works on, whoever's they are; null: it does not say
	Waiting           *int              `json:"waiting"`       // requests that wait there, likewise
	RequestsPerMinute *int              `json:"requests_per_minute"`
	TokensPerMinute   *int              `json:"tokens_per_minute"`
	Shared            bool              `json:"shared"`
	Weight            int               `json:"weight"`
}

// An UpstreamShare is how nodes share the limit of requests in flight at an upstream.
type UpstreamShare struct {
	Nodes    int   `json:"nodes"`
	InFlight int64 `json:"in_flight"` // of all nodes
	Limit    int64 `json:"limit"`     // of them, now
	Granted  int64 `json:"granted"`   // of that, to the node that answers
}

// An UpstreamList is the answer to GET /v1/offpeak/upstreams. It has no pages.
type UpstreamList struct {
	Object string     `json:"object"` // "list"
	Data   []Upstream `json:"data"`
}

// A List is one page of objects (contract L-01).
type List[T any] struct {
	Object  string  `json:"object"` // "list"
	Data    []T     `json:"data"`
	FirstID *string `json:"first_id"` // null on an empty page
	LastID  *string `json:"last_id"`  // null on an empty page
	HasMore bool    `json:"has_more"` // whether an object follows this page
}

// NewList returns the page that data makes up. id returns the id of one object.
func NewList[T any](data []T, id func(T) string, hasMore bool) List[T] {
	l := List[T]{Object: "list", Data: data, HasMore: hasMore}
	if n := len(data); n > 0 {
		first, last := id(data[0]), id(data[n-1])
		l.FirstID, l.LastID = &first, &last
	}
	return l
}

// An ErrorResponse is the body of every answer that is not 2xx (contract ER-01).
type ErrorResponse struct {
	Error Error `json:"error"`
}

// An Error says what went wrong.
type Error struct {
	Message string  `json:"message"`
	Type    string  `json:"type"` // such as "invalid_request_error" or "server_error"
	Param   *string `json:"param"`
	Code    *string `json:"code"`
}
