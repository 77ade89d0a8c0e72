package doctor

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/journal"
)

// A patient is a batch with what there is of it in rows.
type patient struct {
	batch.Batch
	garbled  bool  // its errors or its metadata are not JSON
	open     int64 // as the row counts its open segments
	lanes    map[batch.Lane]int64
	segments []segment // in the order of the input
	windows  []window
	requests *requests // nil: its input is not there to be read
}

type segment struct {
	batch.Segment
	sealed bool
	seq    int64
	good   batch.Part // of a sealed one; without key if it has no such lines
	bad    batch.Part
}

// A window is a range of the input that segments share, one for each lane.
type window struct {
	offset, end, firstLine int64
	segments               [2]int // from, to, in patient.segments
	requests               [2]int // from, to, in patient.requests.list
}

func (p *patient) about() subject { return subject{Batch: p.ID} }

func (x *examination) examineBatches(ctx context.Context) error {
	return pages(ctx, x.q, int64(0), scanBatch, func(p *patient) error {
		x.report.Examined.Batches++
		if err := x.examineBatch(ctx, p); err != nil {
			return fmt.Errorf("batch %s: %w", p.ID, err)
		}
		return ctx.Err()
	}, `SELECT seq, id, project_id, endpoint, model, input_file_id, output_file_id, error_file_id,
			output_expires_after, status, ending, errors, metadata, total, completed, failed, input_tokens, cached_tokens, output_tokens,
			reasoning_tokens, total_tokens, open_segments, created_at, expires_at, in_progress_at, finalizing_at,
			completed_at, failed_at, expired_at, cancelling_at, cancelled_at FROM batches WHERE seq > $1`, "seq")
}

func scanBatch(r row) (p *patient, seq int64, err error) {
	p = &patient{lanes: map[batch.Lane]int64{}}
	var errs, metadata sql.NullString
	u := &p.Usage
	err = r.Scan(&seq, &p.ID, &p.Project, &p.Endpoint, &p.Model, &p.InputFileID, &p.OutputFileID, &p.ErrorFileID, &p.OutputExpiresAfter,
		&p.Status, &p.Ending, &errs, &metadata, &p.Counts.Total, &p.Counts.Completed, &p.Counts.Failed, &u.Input, &u.Cached,
		&u.Output, &u.Reasoning, &u.Total, &p.open, at(&p.CreatedAt), at(&p.ExpiresAt),
		at(&p.InProgressAt), at(&p.FinalizingAt), at(&p.CompletedAt), at(&p.FailedAt), at(&p.ExpiredAt),
		at(&p.CancellingAt), at(&p.CancelledAt))
	p.OutputExpiresAfter *= time.Millisecond
	for _, text := range []struct {
		sql.NullString
		to any
	}{{errs, &p.Errors}, {metadata, &p.Metadata}} {
		if err == nil && text.Valid && json.Unmarshal([]byte(text.String), text.to) != nil {
			p.garbled = true
		}
	}
	return p, seq, err
}

func (x *examination) examineBatch(ctx context.Context, p *patient) error {
	x.examineStatus(p)
	if err := x.loadSegments(ctx, p); err != nil {
		return fmt.Errorf("segments: %w", err)
	}
	if p.Status == batch.Validating {
		if len(p.segments) > 0 || p.Counts != (batch.Counts{}) {
			x.find(2, "validating", p.about(), doReport, "it is validating with %d segments and counts %+v", len(p.segments), p.Counts)
		}
		return nil
	}
	if !p.InProgressAt.IsZero() {
		if err := x.loadRequests(ctx, p); err != nil {
			return fmt.Errorf("input: %w", err)
		}
	}
	if p.Status.Terminal() {
		return x.examineEnded(ctx, p)
	}
	return x.examineRunning(ctx, p)
}

// examineStatus holds timestamps, ending and status against each other (contract B-03).
func (x *examination) examineStatus(p *patient) {
	if !slices.Contains(batch.Statuses, p.Status) {
		x.find(6, "status", p.about(), doReport, "there is no status %q", p.Status)
	}
	if p.garbled {
		x.find(11, "garbled", p.about(), doRestore, "its errors or its metadata are not the JSON that they are to be")
	}
	var last time.Time
	for _, t := range []struct {
		name string
		at   time.Time
	}{
		{"created_at", p.CreatedAt}, {"in_progress_at", p.InProgressAt}, {"finalizing_at", p.FinalizingAt},
		{"cancelling_at", p.CancellingAt}, {"completed_at", p.CompletedAt}, {"failed_at", p.FailedAt},
		{"expired_at", p.ExpiredAt}, {"cancelled_at", p.CancelledAt},
	} {
		if !t.at.IsZero() && t.at.Before(last) {
			x.find(6, "times", p.about(), doReport, "its timestamps run backwards: %s is %s, after %s", t.name, stamp(t.at), stamp(last))
		}
		if t.at.After(last) {
			last = t.at
		}
	}
	if p.ExpiresAt.Before(p.CreatedAt) {
		x.find(6, "times", p.about(), doReport, "it was due %s, before it was created %s", stamp(p.ExpiresAt), stamp(p.CreatedAt))
	}
	if p.Ending == batch.Expired && p.FinalizingAt.Before(p.ExpiresAt) {
		x.find(6, "times", p.about(), doReport, "its deadline ended it %s, and was %s", stamp(p.FinalizingAt), stamp(p.ExpiresAt))
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
		if c.at.IsZero() && c.want == must {
			x.find(6, "times", p.about(), doReport, "it is %s and has no %s", p.Status, c.name)
		} else if !c.at.IsZero() && c.want == 0 {
			x.find(6, "times", p.about(), doReport, "it is %s and has %s %s", p.Status, c.name, stamp(c.at))
		}
	}
	ending := map[batch.Status][]batch.Status{
		batch.Validating: {""}, batch.InProgress: {""}, batch.Failed: {""},
		batch.Finalizing: {batch.Completed, batch.Expired}, batch.Cancelling: {batch.Cancelled}, batch.Completed: {batch.Completed},
		batch.Expired: {"", batch.Expired}, batch.Cancelled: {"", batch.Cancelled},
	}[p.Status]
	if !slices.Contains(ending, p.Ending) {
		x.find(6, "ending", p.about(), doReport, "it is %s and heads for %q", p.Status, p.Ending)
	}
	if p.Status.Terminal() && (p.Ending == "") != p.InProgressAt.IsZero() {
		x.find(6, "ending", p.about(), doReport, "it is %s, was headed for %q, and has in_progress_at %s", p.Status, p.Ending, stamp(p.InProgressAt))
	}
	if (p.Status == batch.Failed) != (len(p.Errors) > 0) {
		x.find(6, "errors", p.about(), doReport, "it is %s with the errors %v", p.Status, p.Errors)
	}
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "unset"
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

func (x *examination) loadSegments(ctx context.Context, p *patient) error {
	if err := each(ctx, x.q, func(r row) error {
		var l batch.Lane
		var open int64
		err := r.Scan(&l.Model, &l.Endpoint, &open)
		p.lanes[l] = open
		return err
	}, `SELECT model, endpoint, open FROM batch_lanes WHERE batch_id = $1`, p.ID); err != nil {
		return err
	}
	lanes := map[batch.Lane]batch.Lane{} // to have each name in memory once
	if err := each(ctx, x.q, func(r row) error {
		var s segment
		u := &s.Tally.Usage
		err := r.Scan(&s.ID, &s.Lane.Model, &s.Lane.Endpoint, &s.Offset, &s.Length, &s.FirstLine, &s.Total,
			&s.Tally.Completed, &s.Tally.Failed, &u.Input, &u.Cached, &u.Output, &u.Reasoning, &u.Total,
			&s.sealed, &s.seq, &s.good.Key, &s.good.Bytes, &s.bad.Key, &s.bad.Bytes)
		if known, ok := lanes[s.Lane]; ok {
			s.Lane = known
		}
		lanes[s.Lane] = s.Lane
		p.segments = append(p.segments, s)
		return err
	}, `SELECT id, model, endpoint, byte_offset, byte_length, first_line, total, completed, failed,
			input_tokens, cached_tokens, output_tokens, reasoning_tokens, total_tokens, sealed_at IS NOT NULL, seq,
			coalesce(output_key, ''), coalesce(output_bytes, 0), coalesce(error_key, ''), coalesce(error_bytes, 0)
		FROM segments WHERE batch_id = $1 ORDER BY byte_offset, id`, p.ID); err != nil {
		return err
	}
	for i, s := range p.segments {
		if n := len(p.windows); n > 0 && p.windows[n-1].offset == s.Offset && p.windows[n-1].end == s.Offset+s.Length {
			p.windows[n-1].segments[1] = i + 1
			if p.windows[n-1].firstLine != s.FirstLine {
				x.find(1, "segments", p.about(), doReport, "segment %d begins with line %d, another with line %d, at the same byte", s.ID, s.FirstLine, p.windows[n-1].firstLine)
			}
			continue
		}
		if n := len(p.windows); n > 0 && p.windows[n-1].end > s.Offset {
			x.find(1, "segments", p.about(), doReport, "segment %d begins at byte %d, within the segments before it: its lines are in two segments", s.ID, s.Offset)
		}
		p.windows = append(p.windows, window{offset: s.Offset, end: s.Offset + s.Length, firstLine: s.FirstLine, segments: [2]int{i, i + 1}})
	}
	return nil
}

// loadRequests reads the input, and finds the segment of each line.
func (x *examination) loadRequests(ctx context.Context, p *patient) error {
	f, err := x.loadFile(ctx, p.InputFileID)
	if err != nil {
		return err
	}
	var input io.ReadCloser
	switch {
	case f != nil && x.whole(f.Parts):
		input = blob.Concat(ctx, x.d.blobs, f.Parts, 0, -1)
	case f == nil && x.d.o.Input != nil && x.d.o.Input(p.InputFileID) != nil:
		text := x.d.o.Input(p.InputFileID)
		f = &batch.File{Bytes: int64(len(text))}
		input = io.NopCloser(bytes.NewReader(text))
	default:
		if f == nil && !p.Status.Terminal() {
			x.find(1, "no-input", p.about(), doRestore, "it is %s, and its input %s is gone, so that it cannot go on", p.Status, p.InputFileID)
		}
		x.report.Examined.WithoutInput++
		return nil
	}
	defer input.Close()
	p.requests = x.requests.reset(min(p.Counts.Total, f.Bytes/64))
	w := 0
	for x.lines.Reset(input, 0, 1); ; {
		line, err := x.lines.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			p.requests = nil
			x.report.Examined.WithoutInput++
			return x.inputUnread(ctx, p, f, err)
		}
		if line.Blank() {
			continue
		}
		req, err := x.parser.Request(line)
		if err != nil {
			x.find(1, "input", p.about(), doRestore, "its input was good when it started, and no longer is: %v", err)
			continue
		}
		for w < len(p.windows) && line.Offset >= p.windows[w].end {
			w++
			if w < len(p.windows) {
				p.windows[w].requests = [2]int{len(p.requests.list), len(p.requests.list)}
			}
		}
		if line.Number > 1<<32-1 {
			return fmt.Errorf("%s has more than 2³² lines, which are more than can be examined", p.InputFileID)
		}
		r := request{id: hashID(unquote(req.CustomID)), line: uint32(line.Number), lane: p.requests.model(req.Model)}
		if !p.Status.Terminal() {
			r.lane = x.segmentOf(p, w, line, req.Model)
		}
		if other := p.requests.add(r); other >= 0 {
			x.find(1, "input", p.about(), doRestore, "lines %d and %d of its input have the same custom_id", p.requests.list[other].line, line.Number)
		}
		if x.d.o.Recorded != nil || x.d.o.Calls != nil {
			p.requests.bodies = append(p.requests.bodies, bytes.Clone(req.Body))
		}
		if w < len(p.windows) {
			p.windows[w].requests[1] = len(p.requests.list)
		}
	}
	n := int64(len(p.requests.list))
	p.requests.seen = slices.Grow(p.requests.seen, int(n))[:n]
	clear(p.requests.seen)
	x.report.Examined.Requests += n
	if p.Counts.Total != n {
		x.find(2, "total", p.about(), doReport, "it counts %d requests, its input has %d", p.Counts.Total, n)
	}
	model := ""
	if len(p.requests.models) == 1 {
		model = p.requests.models[0]
	}
	if p.Model != model {
		x.find(2, "model", p.about(), doReport, "it says that its model is %q, and its input has %d models, %q first", p.Model, len(p.requests.models), p.requests.models)
	}
	return nil
}

// inputUnread notes that an input cannot be read that looked well before.
func (x *examination) inputUnread(ctx context.Context, p *patient, f *batch.File, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, part := range f.Parts { // one of them
		if size, err := x.d.blobs.Size(ctx, part.Key); err != nil || size != part.Bytes {
			x.suspects[part.Key] = suspect{by: "file " + f.ID, want: part.Bytes, err: err}
			return nil
		}
	}
	x.find(3, "blob-unreadable", p.about(), doPutBack, "its input %s cannot be read: %v", p.InputFileID, err)
	return nil
}

// segmentOf returns which segment a line belongs to, w being the window that it should be in.
func (x *examination) segmentOf(p *patient, w int, line batch.Line, model string) int32 {
	if w == len(p.windows) || line.Offset < p.windows[w].offset || line.Offset+line.Length > p.windows[w].end {
		x.find(1, "segments", p.about(), doReport, "line %d is in no segment", line.Number)
		return -1
	}
	window := p.windows[w]
	if line.Offset == window.offset && line.Number != window.firstLine {
		x.find(1, "segments", p.about(), doReport, "the segment at byte %d says that it begins with line %d, and begins with line %d", window.offset, window.firstLine, line.Number)
	}
	found := int32(-1)
	for i := window.segments[0]; i < window.segments[1]; i++ {
		if p.segments[i].Lane.Model != model {
			continue
		}
		if found >= 0 {
			x.find(1, "segments", p.about(), doReport, "line %d is in two segments, %d and %d", line.Number, p.segments[found].ID, p.segments[i].ID)
			continue
		}
		found = int32(i)
	}
	if found < 0 {
		x.find(1, "segments", p.about(), doReport, "line %d is in no segment: there is none for the model %q", line.Number, model)
	}
	return found
}

// examineRunning looks whether the segments of a batch are its whole input, and what is recorded of
// them adds up.
func (x *examination) examineRunning(ctx context.Context, p *patient) error {
	about := p.about()
	var total, open int64
	var sealed batch.Tally
	openIn := map[batch.Lane]int64{}
	for _, w := range p.windows {
		for i := w.segments[0]; i < w.segments[1]; i++ {
			s := &p.segments[i]
			total += s.Total
			if s.Lane.Endpoint != p.Endpoint {
				x.find(6, "lanes", about, doReport, "segment %d is for %s, the batch for %s", s.ID, s.Lane.Endpoint, p.Endpoint)
			}
			if n := s.Tally.Recorded(); n > s.Total || s.seq == 0 && n > 0 {
				x.find(2, "segment-counts", about, doReport, "segment %d has %d requests and %d results recorded by %d writes", s.ID, s.Total, n, s.seq)
			}
			if s.sealed {
				sealed.Add(s.Tally)
			} else {
				open++
				openIn[s.Lane]++
			}
			if err := x.examineSegment(ctx, p, w, int32(i)); err != nil {
				return fmt.Errorf("segment %d: %w", s.ID, err)
			}
		}
	}
	if total != p.Counts.Total {
		x.find(1, "total", about, doReport, "it counts %d requests, its segments have %d", p.Counts.Total, total)
	}
	if got := (batch.Tally{Completed: p.Counts.Completed, Failed: p.Counts.Failed, Usage: p.Usage}); got != sealed {
		x.find(2, "counts", about, doReport, "it counts %+v, its sealed segments have %+v", got, sealed)
	}
	if open != p.open {
		x.find(6, "open", about, doReport, "it counts %d open segments and has %d", p.open, open)
	}
	for l, n := range p.lanes {
		if n != openIn[l] {
			x.find(6, "open", about, doReport, "it counts %d open segments in %s and has %d", n, l, openIn[l])
		}
		delete(openIn, l)
	}
	if len(openIn) > 0 {
		x.find(6, "lanes", about, doReport, "it has open segments in lanes that it does not know: %v", openIn)
	}
	if p.Ending == "" && open == 0 || p.Ending == batch.Completed && open > 0 {
		x.find(6, "open", about, doReport, "it is %s with %d segments open", p.Status, open)
	}
	for _, id := range []string{p.OutputFileID, p.ErrorFileID} {
		if f, err := x.loadFile(ctx, id); err != nil {
			return err
		} else if f != nil {
			x.find(6, "early-file", about, doReport, "it is %s and has the result file %s", p.Status, id)
		}
	}
	return nil
}

// examineSegment holds what is recorded of a segment against its requests.
func (x *examination) examineSegment(ctx context.Context, p *patient, w window, i int32) error {
	s := &p.segments[i]
	seqs, err := all(ctx, x.q, scalar[int64], `SELECT seq FROM journal WHERE segment_id = $1 ORDER BY seq`, s.ID)
	if err != nil {
		return err
	}
	if p.requests == nil {
		return nil // without its input, a segment says nothing
	}
	var own []int // positions of its requests
	for at := w.requests[0]; at < w.requests[1]; at++ {
		if p.requests.list[at].lane == i {
			own = append(own, at)
		}
	}
	if int64(len(own)) != s.Total {
		x.find(1, "segment-total", p.about(), doReport, "segment %d counts %d requests and has %d", s.ID, s.Total, len(own))
		return nil
	}
	if s.sealed {
		if len(seqs) > 0 {
			x.find(9, "sealed-journal", p.about(), doReport, "segment %d is sealed and has a journal", s.ID)
		}
		c := comparison{x: x, p: p, what: fmt.Sprintf("segment %d", s.ID), segment: i}
		for _, part := range []struct {
			batch.Part
			ok bool
		}{{s.good, true}, {s.bad, false}} {
			if part.Key == "" {
				continue
			}
			if !x.whole([]batch.Part{part.Part}) {
				return nil
			}
			if err := c.read(ctx, []batch.Part{part.Part}, part.ok); err != nil {
				return unlessUnread(err)
			}
		}
		c.once(w.requests[0], w.requests[1])
		c.tally(s.Tally)
		return nil
	}
	if len(seqs) > 0 && seqs[len(seqs)-1] > s.seq {
		x.find(5, "journal", p.about(), doReport, "segment %d has a group %d, and its last write was number %d", s.ID, seqs[len(seqs)-1], s.seq)
	}
	return x.examineJournal(ctx, p, s, i, own, seqs)
}

// examineJournal reads the journal of an open segment, one group at a time.
func (x *examination) examineJournal(ctx context.Context, p *patient, s *segment, i int32, own []int, seqs []int64) error {
	c := comparison{x: x, p: p, what: fmt.Sprintf("segment %d", s.ID), segment: i}
	damaged := false
	var pieces journal.Pieces
	for _, seq := range seqs {
		group, err := x.JournalGroup(ctx, s.ID, seq)
		if err != nil {
			return err
		}
		damage := func(format string, args ...any) {
			damaged = true
			x.find(3, "journal", p.about(), doRestore, "group %d of segment %d is damaged: %s", seq, s.ID, fmt.Sprintf(format, args...))
		}
		data, err := x.unpack.Unpack(group)
		if err != nil {
			damage("%v", err)
			continue
		}
		for e, err := range journal.Entries(data) {
			if err != nil {
				damage("%v", err)
				break
			}
			if e.Index >= len(own) {
				damage("it has a result of request %d, of %d", e.Index, len(own))
				continue
			}
			text := e.Line
			if e.Piece() {
				if text, err = pieces.Join(ctx, x, x.unpack, s.ID, seq, e); err != nil {
					damage("%v", err)
					break
				}
			}
			if text == nil {
				continue // the rest of the line is to come, or was never recorded
			}
			line := bytes.TrimSuffix(text, []byte("\n"))
			if len(line) != len(text)-1 || bytes.IndexByte(line, '\n') >= 0 {
				damage("the result of request %d is not one line", e.Index)
				continue
			}
			c.result(line, e.OK, own[e.Index])
		}
	}
	for _, at := range own {
		if p.requests.seen[at] > 1 {
			x.find(1, "twice", p.about(), doReport, "line %d is recorded %d times", p.requests.list[at].line, p.requests.seen[at])
		}
	}
	if c.never > 0 {
		x.find(1, "never", p.about(), doReport, "segment %d has it recorded of %d requests that they were not executed", s.ID, c.never)
	}
	if c.sum != s.Tally && !damaged {
		x.find(2, "segment-counts", p.about(), doReport, "segment %d counts %+v, its journal has %+v", s.ID, s.Tally, c.sum)
	}
	return nil
}

// JournalGroup returns one group.
func (x *examination) JournalGroup(ctx context.Context, segment, seq int64) (group []byte, err error) {
	err = x.q.QueryRowContext(ctx, `SELECT data FROM journal WHERE segment_id = $1 AND seq = $2`, segment, seq).Scan(&group)
	return group, err
}

func unlessUnread(err error) error {
	if errors.Is(err, errUnread) {
		return nil
	}
	return err
}

// examineEnded holds the files of a batch against its input and its counts.
func (x *examination) examineEnded(ctx context.Context, p *patient) error {
	about := p.about()
	if len(p.segments) > 0 || len(p.lanes) > 0 || p.open > 0 {
		x.find(9, "left-segments", about, doReport, "it is %s and has %d segments in %d lanes, %d open", p.Status, len(p.segments), len(p.lanes), p.open)
	}
	if p.InProgressAt.IsZero() { // never ran
		if p.OutputFileID+p.ErrorFileID != "" || p.Counts != (batch.Counts{}) || p.Usage != (batch.Usage{}) {
			x.find(1, "never-ran", about, doReport, "it never ran and has files %q, %q and counts %+v", p.OutputFileID, p.ErrorFileID, p.Counts)
		}
		return nil
	}
	c := comparison{x: x, p: p, what: "it", segment: -1}
	if p.requests == nil {
		c.alone = x.requests.reset(p.Counts.Total)
		c.ids = x.ids.reset(p.Counts.Total)
	}
	whole := true
	for _, r := range []struct {
		id, which string
		ok        bool
	}{{p.OutputFileID, "output", true}, {p.ErrorFileID, "error", false}} {
		if r.id == "" {
			continue
		}
		f, err := x.loadFile(ctx, r.id)
		if err != nil {
			return err
		}
		if f == nil {
			whole = false
			x.report.Examined.WithoutResult++
			if x.d.o.NothingDeleted {
				x.find(2, "no-result", about, doRestore, "it names the %s file %s, which is not there", r.which, r.id)
			}
			continue
		}
		want := p.ResultFile(r.id, r.which, f.CreatedAt)
		got := *f
		want.Bytes, got.Parts = got.Bytes, nil
		if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
			x.find(2, "result-file", about, doReport, "its %s file is %s, want %s", r.which, g, w)
		}
		if !x.whole(f.Parts) {
			whole = false
			continue
		}
		before := c.sum
		if err := c.read(ctx, f.Parts, r.ok); err != nil {
			if err := unlessUnread(err); err != nil {
				return err
			}
			whole = false
			c.sum = before
		}
	}
	if !whole {
		return nil
	}
	if p.requests != nil {
		c.once(0, len(p.requests.list))
	} else if n := int64(len(c.alone.list)); n != p.Counts.Total {
		x.find(1, "total", about, doReport, "it counts %d requests, its files have %d", p.Counts.Total, n)
	}
	c.tally(batch.Tally{Completed: p.Counts.Completed, Failed: p.Counts.Failed, Usage: p.Usage})
	return nil
}

// A comparison holds results against the requests that they should be of.
type comparison struct {
	x       *examination
	p       *patient
	what    string
	segment int32            // that the requests are of; -1: any
	order   map[int32]uint32 // by lane: the line that came last; nil: there is no order
	sum     batch.Tally      // of the results so far
	never   int64            // of them, those that were not executed
	alone   *requests        // where there is no input: the custom_ids so far
	ids     *requests        // and the ids
}

// read reads the parts of a file with the results that succeeded, or of the other one.
func (c *comparison) read(ctx context.Context, parts []batch.Part, ok bool) error {
	c.order = map[int32]uint32{}
	return c.x.eachLine(ctx, parts, "batch "+c.p.ID, c.p.about(), func(line []byte) error {
		c.result(line, ok, -1)
		return ctx.Err()
	})
}

// result looks at one result, which is of the request at this position, if that is known.
func (c *comparison) result(line []byte, ok bool, at int) {
	x, p, about := c.x, c.p, c.p.about()
	x.report.Examined.Results++
	r, err := x.line.parse(line)
	if err != nil {
		x.find(8, "line", about, doRestore, "%s has a damaged line: %v: %.80q", c.what, err, line)
		return
	}
	if ok != r.ok() {
		x.find(2, "wrong-file", about, doReport, "%s has %q, with the status %d, among results of which it is said that they succeeded: %v", c.what, r.customID, r.status, ok)
	}
	if r.never() {
		c.never++
		if want := map[batch.Status]string{
			batch.Expired: batch.FailureExpired.Code, batch.Cancelled: batch.FailureCancelled.Code,
		}[p.Ending]; r.failure != want {
			x.find(1, "never", about, doReport, "it heads for %q, and the result of %q is %s", p.Ending, r.customID, r.failure)
		}
	}
	t := batch.Tally{}
	if ok {
		t.Completed = 1
		if t.Usage, err = x.answer.Usage(r.body); err != nil {
			x.find(8, "answer", about, doReport, "the answer to %q is no JSON object: %v", r.customID, err)
		}
	} else if !r.never() {
		t.Failed = 1
	}
	c.sum.Add(t)
	if p.requests == nil {
		c.resultAlone(r)
		return
	}
	found := p.requests.find(hashID(r.customID))
	switch {
	case at >= 0 && found != at:
		x.find(1, "mixed-up", about, doReport, "the result of line %d is recorded for %q", p.requests.list[at].line, r.customID)
		found = at
	case found < 0:
		x.find(1, "unasked", about, doReport, "%s has a result of %q, which is not in its input", c.what, r.customID)
		return
	case c.segment >= 0 && p.requests.list[found].lane != c.segment:
		x.find(1, "unasked", about, doReport, "%s has a result of line %d, which is not its own", c.what, p.requests.list[found].line)
		return
	}
	req := p.requests.list[found]
	if p.requests.seen[found] < 255 {
		p.requests.seen[found]++
	}
	if want := lineID(p.ID, int64(req.line)); string(r.id) != want {
		x.find(1, "id", about, doReport, "the result of line %d has the id %q, want %q", req.line, r.id, want)
	}
	if c.order != nil {
		if last := c.order[req.lane]; req.line <= last {
			x.find(1, "order", about, doReport, "%s has line %d of its input after line %d", c.what, req.line, last)
		}
		c.order[req.lane] = req.line
	}
	if !r.never() {
		c.recorded(r, ok, found)
	}
}

// resultAlone looks at a result of which the request is not to be had.
func (c *comparison) resultAlone(r result) {
	x, about := c.x, c.p.about()
	if c.alone.add(request{id: hashID(r.customID)}) >= 0 {
		x.find(1, "twice", about, doReport, "%s has two results of %q", c.what, r.customID)
	}
	if !strings.HasPrefix(string(r.id), "batch_req_") || len(r.id) != len("batch_req_")+32 {
		x.find(1, "id", about, doReport, "the result of %q has the id %q", r.customID, r.id)
	} else if c.ids.add(request{id: hashID(r.id)}) >= 0 {
		x.find(1, "id", about, doReport, "two results have the id %q", r.id)
	}
}

// once wants one result of each request between two positions that is of c's segment.
func (c *comparison) once(from, to int) {
	t := c.p.requests
	for at := from; at < to; at++ {
		r := t.list[at]
		switch n := t.seen[at]; {
		case c.segment >= 0 && r.lane != c.segment || n == 1:
		case n == 0:
			c.x.find(1, "none", c.p.about(), doReport, "%s has no result of line %d", c.what, r.line)
		default:
			c.x.find(1, "twice", c.p.about(), doReport, "%s has %d results of line %d", c.what, n, r.line)
		}
	}
}

func (c *comparison) tally(want batch.Tally) {
	if c.sum != want {
		c.x.find(2, "counts", c.p.about(), doReport, "%s counts %+v, its results come to %+v", c.what, want, c.sum)
	}
}

// recorded tells whoever wants to know of an answer that must never be asked for again, and looks
// whether it was.
func (c *comparison) recorded(r result, ok bool, at int) {
	d, t := c.x.d, c.p.requests
	if t.bodies == nil {
		return
	}
	body := t.bodies[at]
	if d.o.Calls != nil {
		key, calls := hashID(body), d.o.Calls(body)
		if before, known := d.calls[key]; known && calls > before {
			c.x.find(3, "sent-again", c.p.about(), doReport, "line %d was recorded after %d calls, and is sent again: %d calls", t.list[at].line, before, calls)
		}
		d.calls[key] = calls
	}
	if d.o.Recorded != nil {
		d.o.Recorded(Recorded{
			Batch: c.p.ID, Endpoint: c.p.Endpoint, CustomID: string(r.customID), Line: int64(t.list[at].line), Request: body,
			OK: ok, Status: r.status, Response: r.body,
		})
	}
}
