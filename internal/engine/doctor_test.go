package engine_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/journal"
)

// A doctor examines a data folder, at rest or at work, and says where it does not keep what
// docs/design.md promises. It reads the database beside the store, so that a mistake in the one is
// not repeated in the other.
type doctor struct {
	db      *sql.DB
	journal journal.Store
	blobs   *blob.Dir
	// inputs are files as they were uploaded, by id, so that batches can be examined whose input
	// is gone.
	inputs map[string][]byte

	findings []string
}

// newDoctor opens the database in the folder for reading.
func newDoctor(t testing.TB, dir string, j journal.Store, blobs *blob.Dir) *doctor {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "offpeak.db")+"?mode=ro&_pragma=query_only(1)&_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &doctor{db: db, journal: j, blobs: blobs, inputs: map[string][]byte{}}
}

// finding notes that a promise is broken.
func (d *doctor) finding(promise int, format string, args ...any) {
	d.findings = append(d.findings, fmt.Sprintf("promise %d: ", promise)+fmt.Sprintf(format, args...))
}

// examine examines everything. What it returns is empty if all is well. Nobody may work on the
// folder meanwhile.
func (d *doctor) examine(ctx context.Context) (findings []string, err error) {
	d.findings = nil
	var health string
	if err := d.db.QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&health); err != nil {
		return nil, err
	}
	if health != "ok" {
		d.finding(3, "the database is damaged: %s", health)
	}
	broken, err := query[string](ctx, d.db, "SELECT \"table\" FROM pragma_foreign_key_check")
	if err != nil {
		return nil, err
	}
	for _, table := range broken {
		d.finding(3, "a row of %s refers to nothing", table)
	}
	if err := d.examineBlobs(ctx); err != nil {
		return nil, err
	}
	ids, err := query[string](ctx, d.db, "SELECT id FROM batches ORDER BY seq")
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		b, err := d.load(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("batch %s: %w", id, err)
		}
		d.examineBatch(b)
	}
	return d.findings, nil
}

// examineBlobs looks whether every blob that something names is there and whole, and whether every
// blob that is there will be found again.
func (d *doctor) examineBlobs(ctx context.Context) error {
	type named struct {
		key     string
		bytes   int64
		pending bool
		deleted bool
	}
	rows, err := d.db.QueryContext(ctx, `SELECT b.key, n.bytes, b.pending, b.deleted_at IS NOT NULL FROM blobs b JOIN (
			SELECT blob_key AS key, bytes FROM file_parts
			UNION SELECT output_key, output_bytes FROM segments WHERE output_key IS NOT NULL
			UNION SELECT error_key, error_bytes FROM segments WHERE error_key IS NOT NULL
		) n ON n.key = b.key`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var n named
		if err := rows.Scan(&n.key, &n.bytes, &n.pending, &n.deleted); err != nil {
			return err
		}
		if n.pending || n.deleted {
			d.finding(3, "blob %s is named, and marked pending: %v, deleted: %v", n.key, n.pending, n.deleted)
		}
		if size, err := d.blobs.Size(ctx, n.key); err != nil || size != n.bytes {
			d.finding(3, "blob %s has %d bytes, %v; want %d", n.key, size, err, n.bytes)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	known, err := query[string](ctx, d.db, "SELECT key FROM blobs")
	if err != nil {
		return err
	}
	for info, err := range d.blobs.List(ctx) {
		if err != nil {
			return err
		}
		if !slices.Contains(known, info.Key) {
			d.finding(9, "blob %s is there and nobody knows of it", info.Key)
		}
	}
	return nil
}

// A patient is a batch with everything that there is of it.
type patient struct {
	batch.Batch
	open     int64 // as the row counts its open segments
	input    []batch.Request
	lanes    []batchLane
	segments []segmentRow
	output   *file // nil: none
	errors   *file
}

type batchLane struct {
	batch.Lane
	open int64
}

type segmentRow struct {
	batch.Segment
	sealed  bool
	claimed bool
	journal []result // of an open segment, in the order of lines
	good    []result // of a sealed one
	bad     []result
}

type file struct {
	batch.File
	results []result
}

// A result is a line of an output or error file.
type result struct {
	ID       string `json:"id"`
	CustomID string `json:"custom_id"`
	Response *struct {
		Status    int             `json:"status_code"`
		RequestID string          `json:"request_id"`
		Body      json.RawMessage `json:"body"`
	} `json:"response"`
	Error *struct{ Code, Message string } `json:"error"`

	ok bool // as the journal has it, or by the file that it stands in
}

// never reports whether the request was not executed.
func (r result) never() bool {
	return r.Error != nil && (r.Error.Code == batch.FailureExpired.Code || r.Error.Code == batch.FailureCancelled.Code)
}

func (d *doctor) load(ctx context.Context, id string) (*patient, error) {
	p := &patient{}
	var errs sql.NullString
	at := func(t *time.Time) sql.Scanner { return scanTime{t} }
	if err := d.db.QueryRowContext(ctx, `SELECT id, project_id, endpoint, input_file_id, output_file_id, error_file_id,
			output_expires_after, status, ending, errors, total, completed, failed, input_tokens, cached_tokens, output_tokens,
			reasoning_tokens, total_tokens, open_segments, created_at, expires_at, in_progress_at, finalizing_at,
			completed_at, failed_at, expired_at, cancelling_at, cancelled_at FROM batches WHERE id = $1`, id).Scan(
		&p.ID, &p.Project, &p.Endpoint, &p.InputFileID, &p.OutputFileID, &p.ErrorFileID, &p.OutputExpiresAfter,
		&p.Status, &p.Ending, &errs, &p.Counts.Total, &p.Counts.Completed, &p.Counts.Failed, &p.Usage.Input, &p.Usage.Cached,
		&p.Usage.Output, &p.Usage.Reasoning, &p.Usage.Total, &p.open, at(&p.CreatedAt), at(&p.ExpiresAt),
		at(&p.InProgressAt), at(&p.FinalizingAt), at(&p.CompletedAt), at(&p.FailedAt), at(&p.ExpiredAt),
		at(&p.CancellingAt), at(&p.CancelledAt)); err != nil {
		return nil, err
	}
	p.OutputExpiresAfter *= time.Millisecond
	if errs.Valid {
		if err := json.Unmarshal([]byte(errs.String), &p.Errors); err != nil {
			return nil, err
		}
	}
	if !p.InProgressAt.IsZero() {
		if err := d.loadInput(ctx, p); err != nil {
			return nil, fmt.Errorf("input: %w", err)
		}
	}
	if err := d.loadSegments(ctx, p); err != nil {
		return nil, fmt.Errorf("segments: %w", err)
	}
	var err error
	if p.output, err = d.loadFile(ctx, p.OutputFileID, true); err != nil {
		return nil, err
	}
	p.errors, err = d.loadFile(ctx, p.ErrorFileID, false)
	return p, err
}

func (d *doctor) loadInput(ctx context.Context, p *patient) error {
	text, ok := d.inputs[p.InputFileID]
	if !ok {
		f, err := d.loadFile(ctx, p.InputFileID, true)
		if err != nil {
			return err
		}
		if text, err = d.read(ctx, f.Parts); err != nil {
			return err
		}
	}
	var parser batch.Parser
	for line := range batch.SplitLines(text, 1) {
		if line.Blank() {
			continue
		}
		req, err := parser.Request(line)
		if err != nil {
			return err
		}
		p.input = append(p.input, req)
	}
	return nil
}

func (d *doctor) loadSegments(ctx context.Context, p *patient) error {
	lanes, err := d.db.QueryContext(ctx, `SELECT model, endpoint, open FROM batch_lanes WHERE batch_id = $1`, p.ID)
	if err != nil {
		return err
	}
	defer lanes.Close()
	for lanes.Next() {
		var l batchLane
		if err := lanes.Scan(&l.Model, &l.Endpoint, &l.open); err != nil {
			return err
		}
		p.lanes = append(p.lanes, l)
	}
	rows, err := d.db.QueryContext(ctx, `SELECT id, model, endpoint, byte_offset, byte_length, first_line, total, completed, failed,
			input_tokens, cached_tokens, output_tokens, reasoning_tokens, total_tokens, sealed_at IS NOT NULL, token IS NOT NULL,
			coalesce(output_key, ''), coalesce(output_bytes, 0), coalesce(error_key, ''), coalesce(error_bytes, 0)
		FROM segments WHERE batch_id = $1 ORDER BY id`, p.ID)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var s segmentRow
		var out, bad batch.Part
		u := &s.Tally.Usage
		if err := rows.Scan(&s.ID, &s.Lane.Model, &s.Lane.Endpoint, &s.Offset, &s.Length, &s.FirstLine, &s.Total,
			&s.Tally.Completed, &s.Tally.Failed, &u.Input, &u.Cached, &u.Output, &u.Reasoning, &u.Total,
			&s.sealed, &s.claimed, &out.Key, &out.Bytes, &bad.Key, &bad.Bytes); err != nil {
			return err
		}
		for _, part := range []struct {
			batch.Part
			ok bool
			to *[]result
		}{{out, true, &s.good}, {bad, false, &s.bad}} {
			if part.Key == "" {
				continue
			}
			text, err := d.read(ctx, []batch.Part{part.Part})
			if err != nil {
				return err
			}
			if *part.to, err = parseResults(text, part.ok); err != nil {
				return err
			}
		}
		if s.journal, err = d.readJournal(ctx, s.ID, int(s.Total)); err != nil {
			return err
		}
		p.segments = append(p.segments, s)
	}
	return rows.Err()
}

// readJournal returns the results in the journal of a segment of n requests, in the order of
// lines; those not there are zero. A request that was recorded twice is a finding.
func (d *doctor) readJournal(ctx context.Context, segment int64, n int) ([]result, error) {
	seqs, err := d.journal.JournalSeqs(ctx, segment)
	if err != nil || len(seqs) == 0 {
		return nil, err
	}
	results := make([]result, n)
	unpacker := journal.NewUnpacker()
	defer unpacker.Close()
	for _, seq := range seqs {
		group, err := d.journal.JournalGroup(ctx, segment, seq)
		if err != nil {
			return nil, err
		}
		data, err := unpacker.Unpack(group)
		if err != nil {
			return nil, err
		}
		for e, err := range journal.Entries(data) {
			if err != nil {
				return nil, err
			}
			parsed, err := parseResults(e.Line, e.OK)
			if err != nil {
				return nil, err
			}
			if e.Index >= n || len(parsed) != 1 {
				return nil, fmt.Errorf("entry %d of segment %d with %d requests holds %d lines", e.Index, segment, n, len(parsed))
			}
			if results[e.Index].ID != "" {
				d.finding(1, "request %d of segment %d is recorded twice", e.Index, segment)
			}
			results[e.Index] = parsed[0]
		}
	}
	return results, nil
}

func (d *doctor) loadFile(ctx context.Context, id string, ok bool) (*file, error) {
	f := &file{}
	err := d.db.QueryRowContext(ctx, `SELECT id, project_id, purpose, filename, bytes, created_at, expires_at FROM files WHERE id = $1`, id).
		Scan(&f.ID, &f.Project, &f.Purpose, &f.Filename, &f.Bytes, scanTime{&f.CreatedAt}, scanTime{&f.ExpiresAt})
	if err == sql.ErrNoRows {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rows, err := d.db.QueryContext(ctx, `SELECT blob_key, bytes FROM file_parts WHERE file_id = $1 ORDER BY n`, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	sum := int64(0)
	for rows.Next() {
		var p batch.Part
		if err := rows.Scan(&p.Key, &p.Bytes); err != nil {
			return nil, err
		}
		f.Parts = append(f.Parts, p)
		sum += p.Bytes
	}
	if sum != f.Bytes || f.Purpose == batch.PurposeBatchOutput && sum == 0 {
		d.finding(2, "file %s has %d bytes, its parts have %d", id, f.Bytes, sum)
	}
	if f.Purpose != batch.PurposeBatchOutput {
		return f, nil
	}
	text, err := d.read(ctx, f.Parts)
	if err != nil {
		return nil, err
	}
	f.results, err = parseResults(text, ok)
	return f, err
}

func (d *doctor) read(ctx context.Context, parts []batch.Part) ([]byte, error) {
	r := blob.Concat(ctx, d.blobs, parts, 0, -1)
	defer r.Close()
	return io.ReadAll(r)
}

// parseResults reads lines as strictly as anybody might.
func parseResults(text []byte, ok bool) (results []result, err error) {
	if len(text) > 0 && text[len(text)-1] != '\n' {
		return nil, fmt.Errorf("the last line does not end: %q", text[max(0, len(text)-80):])
	}
	for line := range bytes.Lines(text) {
		r := result{ok: ok}
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		results = append(results, r)
	}
	return results, nil
}

func (d *doctor) examineBatch(p *patient) {
	d.examineStatus(p)
	switch {
	case !p.Status.Terminal():
		d.examineRunning(p)
	default:
		d.examineEnded(p)
	}
}

// examineStatus holds timestamps, ending and status against each other (contract B-03).
func (d *doctor) examineStatus(p *patient) {
	var last time.Time
	for _, t := range []time.Time{
		p.CreatedAt, p.InProgressAt, p.FinalizingAt, p.CancellingAt, p.CompletedAt, p.FailedAt, p.ExpiredAt, p.CancelledAt,
	} {
		if !t.IsZero() && t.Before(last) {
			d.finding(6, "timestamps of %s run backwards: %+v", p.ID, p.Batch)
		}
		last = latest(last, t)
	}
	const may, must = 1, 2 // else must not
	type row struct{ inProgress, finalizing, completed, failed, expired, cancelling, cancelled int }
	want := map[batch.Status]row{
		batch.Validating: {},
		batch.InProgress: {inProgress: must},
		batch.Finalizing: {inProgress: must, finalizing: must},
		batch.Completed:  {inProgress: must, finalizing: must, completed: must},
		batch.Failed:     {failed: must},
		batch.Expired:    {inProgress: may, finalizing: must, expired: must},
		batch.Cancelling: {inProgress: must, finalizing: may, cancelling: must},
		batch.Cancelled:  {inProgress: may, finalizing: may, cancelling: must, cancelled: must},
	}[p.Status]
	for _, c := range []struct {
		name string
		at   time.Time
		want int
	}{
		{"in_progress_at", p.InProgressAt, want.inProgress}, {"finalizing_at", p.FinalizingAt, want.finalizing},
		{"completed_at", p.CompletedAt, want.completed}, {"failed_at", p.FailedAt, want.failed},
		{"expired_at", p.ExpiredAt, want.expired}, {"cancelling_at", p.CancellingAt, want.cancelling},
		{"cancelled_at", p.CancelledAt, want.cancelled},
	} {
		if c.at.IsZero() && c.want == must || !c.at.IsZero() && c.want == 0 {
			d.finding(6, "%s is %s and has %s %v", p.ID, p.Status, c.name, c.at)
		}
	}
	ending := map[batch.Status][]batch.Status{
		batch.Validating: {""}, batch.InProgress: {""}, batch.Failed: {""},
		batch.Finalizing: {batch.Completed, batch.Expired}, batch.Cancelling: {batch.Cancelled}, batch.Completed: {batch.Completed},
		batch.Expired: {"", batch.Expired}, batch.Cancelled: {"", batch.Cancelled},
	}[p.Status]
	if !slices.Contains(ending, p.Ending) {
		d.finding(6, "%s is %s and heads for %q", p.ID, p.Status, p.Ending)
	}
	if (p.Status == batch.Failed) != (len(p.Errors) > 0) {
		d.finding(6, "%s is %s with the errors %v", p.ID, p.Status, p.Errors)
	}
}

// examineRunning looks whether the segments of a batch are its whole input, and what is recorded of
// them adds up.
func (d *doctor) examineRunning(p *patient) {
	if p.Status == batch.Validating {
		if len(p.segments) > 0 || p.Counts != (batch.Counts{}) {
			d.finding(2, "%s is validating with %d segments and counts %+v", p.ID, len(p.segments), p.Counts)
		}
		return
	}
	var total, open int64
	var sealed batch.Tally
	openIn := map[batch.Lane]int64{}
	covered := map[int64]bool{} // by line
	for _, s := range p.segments {
		total += s.Total
		requests := p.of(s)
		if int64(len(requests)) != s.Total {
			d.finding(1, "segment %d counts %d requests and has %d", s.ID, s.Total, len(requests))
			continue
		}
		for _, r := range requests {
			if covered[r.Line] {
				d.finding(1, "line %d of %s is in two segments", r.Line, p.ID)
			}
			covered[r.Line] = true
		}
		if s.sealed {
			sealed.Add(s.Tally)
			d.compare(p, fmt.Sprintf("segment %d", s.ID), requests, s.good, s.bad, s.Tally)
			if len(s.journal) > 0 {
				d.finding(9, "segment %d is sealed and has a journal", s.ID)
			}
			continue
		}
		open++
		openIn[s.Lane]++
		var tally batch.Tally
		for i, r := range s.journal {
			if r.ID == "" {
				continue
			}
			if r.CustomID != customID(requests[i]) {
				d.finding(1, "the result for %s in segment %d is recorded for %s", r.CustomID, s.ID, customID(requests[i]))
			}
			tally.Add(tallyOf(r))
		}
		if tally != s.Tally {
			d.finding(2, "segment %d counts %+v, its journal has %+v", s.ID, s.Tally, tally)
		}
	}
	if total != p.Counts.Total || total != int64(len(p.input)) || len(covered) != len(p.input) {
		d.finding(1, "%s counts %d requests, its segments have %d, its input %d", p.ID, p.Counts.Total, total, len(p.input))
	}
	if got := (batch.Tally{Completed: p.Counts.Completed, Failed: p.Counts.Failed, Usage: p.Usage}); got != sealed {
		d.finding(2, "%s counts %+v, its sealed segments have %+v", p.ID, got, sealed)
	}
	if open != p.open {
		d.finding(6, "%s counts %d open segments and has %d", p.ID, p.open, open)
	}
	for _, l := range p.lanes {
		if l.open != openIn[l.Lane] {
			d.finding(6, "%s counts %d open segments in %s and has %d", p.ID, l.open, l.Lane, openIn[l.Lane])
		}
		delete(openIn, l.Lane)
	}
	if len(openIn) > 0 {
		d.finding(6, "%s has open segments in lanes that it does not know: %v", p.ID, openIn)
	}
	if p.Ending == "" && open == 0 || p.Ending == batch.Completed && open > 0 {
		d.finding(6, "%s is %s with %d segments open", p.ID, p.Status, open)
	}
	if p.output != nil || p.errors != nil {
		d.finding(6, "%s is %s and has result files", p.ID, p.Status)
	}
}

// of returns the requests of a segment.
func (p *patient) of(s segmentRow) []batch.Request {
	// Windows follow each other; this one ends where the next begins.
	end := int64(1) << 62
	for _, o := range p.segments {
		if o.FirstLine > s.FirstLine {
			end = min(end, o.FirstLine)
		}
	}
	var requests []batch.Request
	for _, r := range p.input {
		if r.Line >= s.FirstLine && r.Line < end && r.Model == s.Lane.Model {
			requests = append(requests, r)
		}
	}
	return requests
}

// examineEnded holds the files of a batch against its input and its counts.
func (d *doctor) examineEnded(p *patient) {
	if len(p.segments) > 0 || len(p.lanes) > 0 {
		d.finding(9, "%s is %s and has %d segments in %d lanes", p.ID, p.Status, len(p.segments), len(p.lanes))
	}
	if p.InProgressAt.IsZero() { // never ran
		if p.output != nil || p.errors != nil || p.OutputFileID+p.ErrorFileID != "" || p.Counts != (batch.Counts{}) {
			d.finding(1, "%s never ran and has files %q, %q and counts %+v", p.ID, p.OutputFileID, p.ErrorFileID, p.Counts)
		}
		return
	}
	var good, bad []result
	for _, f := range []struct {
		*file
		id, which string
		to        *[]result
	}{{p.output, p.OutputFileID, "output", &good}, {p.errors, p.ErrorFileID, "error", &bad}} {
		if (f.file == nil) != (f.id == "") {
			d.finding(2, "%s names the %s file %q, which is there: %v", p.ID, f.which, f.id, f.file != nil)
		}
		if f.file == nil {
			continue
		}
		*f.to = f.results
		want := p.ResultFile(f.id, f.which, f.CreatedAt)
		want.Bytes, want.Parts = f.Bytes, f.Parts
		if fmt.Sprintf("%+v", want) != fmt.Sprintf("%+v", f.File) {
			d.finding(2, "the %s file of %s is %+v, want %+v", f.which, p.ID, f.File, want)
		}
	}
	if p.Counts.Total != int64(len(p.input)) {
		d.finding(2, "%s counts %d requests, its input has %d", p.ID, p.Counts.Total, len(p.input))
	}
	d.compare(p, p.ID, p.input, good, bad, batch.Tally{Completed: p.Counts.Completed, Failed: p.Counts.Failed, Usage: p.Usage})
}

// compare holds results against the requests that they should be of, each of which has one, and
// against what they are said to come to.
func (d *doctor) compare(p *patient, what string, requests []batch.Request, good, bad []result, want batch.Tally) {
	byID := make(map[string]batch.Request, len(requests))
	for _, r := range requests {
		byID[customID(r)] = r
	}
	found := map[string]int{}
	ids := map[string]bool{}
	var tally batch.Tally
	for _, results := range [][]result{good, bad} {
		order := map[string]int64{} // by model: the line that came last
		for _, r := range results {
			found[r.CustomID]++
			req, ok := byID[r.CustomID]
			if !ok {
				d.finding(1, "%s has a result of %s, which is not in its input", what, r.CustomID)
			}
			if req.Line <= order[req.Model] {
				d.finding(1, "%s has line %d of its input after line %d", what, req.Line, order[req.Model])
			}
			order[req.Model] = req.Line
			if ids[r.ID] || !strings.HasPrefix(r.ID, "batch_req_") {
				d.finding(1, "%s has the id %s twice, or it is none", what, r.ID)
			}
			ids[r.ID] = true
			if (r.Response == nil) == (r.Error == nil) || r.ok != (r.Response != nil && r.Response.Status/100 == 2) {
				d.finding(2, "%s has among lines that succeeded: %v, %+v", what, r.ok, r)
			}
			if r.never() {
				if want := map[batch.Status]string{
					batch.Expired: batch.FailureExpired.Code, batch.Cancelled: batch.FailureCancelled.Code,
				}[p.Ending]; r.Error.Code != want {
					d.finding(1, "%s heads for %q and has a line %s", what, p.Ending, r.Error.Code)
				}
				continue
			}
			tally.Add(tallyOf(r))
		}
	}
	for _, r := range requests {
		if id := customID(r); found[id] != 1 {
			d.finding(1, "%s has %d results of %s, line %d", what, found[id], id, r.Line)
		}
	}
	if tally != want {
		d.finding(2, "%s counts %+v, its lines come to %+v", what, want, tally)
	}
}

// recorded calls yield with every request of the batch that has an answer which must never be asked
// for again, and the answer.
func (p *patient) recorded(yield func(batch.Request, result)) {
	byID := make(map[string]batch.Request, len(p.input))
	for _, r := range p.input {
		byID[customID(r)] = r
	}
	emit := func(results []result) {
		for _, r := range results {
			if r.ID != "" && !r.never() {
				yield(byID[r.CustomID], r)
			}
		}
	}
	for _, s := range p.segments {
		emit(s.journal)
		emit(s.good)
		emit(s.bad)
	}
	for _, f := range []*file{p.output, p.errors} {
		if f != nil {
			emit(f.results)
		}
	}
}

func tallyOf(r result) batch.Tally {
	if !r.ok {
		return batch.Tally{Failed: 1}
	}
	var parser batch.AnswerParser
	usage, _ := parser.Usage(r.Response.Body)
	return batch.Tally{Completed: 1, Usage: usage}
}

func customID(r batch.Request) string {
	var id string
	if err := json.Unmarshal(r.CustomID, &id); err != nil {
		panic(err) // it passed validation
	}
	return id
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func query[T any](ctx context.Context, db *sql.DB, text string, args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// scanTime reads unix milliseconds.
type scanTime struct{ to *time.Time }

func (s scanTime) Scan(v any) error {
	*s.to = time.Time{}
	if ms, ok := v.(int64); ok {
		*s.to = time.UnixMilli(ms)
	}
	return nil
}
