package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/blob"
	"offpeak/internal/doctor"
)

// newDoctor has the folder examined with what the bench knows besides: that nobody deletes results,
// what was uploaded, how often a request was sent, and what upstreams answer to it.
func (b *bench) newDoctor() *doctor.Doctor {
	return b.storage.doctor(doctor.Options{
		Now:            func() time.Time { return time.Now().Add(time.Duration(b.ahead.Load())) }, // the store's clock
		NothingDeleted: true,
		Input:          func(file string) []byte { return b.inputs[file] },
		Calls:          b.callsOnce,
		Recorded:       b.compareAnswer,
	})
}

// examine has the doctor look at the folder, and holds what is recorded against what was sent.
func (b *bench) examine() {
	b.Helper()
	b.wrong = 0
	report, err := b.doctor.Examine(context.WithoutCancel(b.Context()))
	if err != nil {
		b.Errorf("the doctor is at a loss: %v", err)
		return
	}
	for _, f := range report.Findings[:min(len(report.Findings), 10)] {
		if f.Kind == "held-by-the-dead" && b.thief {
			continue // who was declared dead lives
		}
		if (f.Kind == "nodes" || f.Kind == "held-by-the-dead") && b.shared {
			continue // the doctor takes the folder for that of one process
		}
		if f.Kind == "no-result" && b.deletes || f.Kind == "not-swept" && b.unswept {
			continue
		}
		b.Error(f)
	}
	if p := b.running.Load(); p != nil {
		for _, wrong := range p.Miscount() {
			b.Error(wrong)
		}
	}
}

// callsOnce is how often body was sent, if it may be sent but once.
func (b *bench) callsOnce(body []byte) int {
	if b.repeats {
		return 0
	}
	return b.calls(body)
}

// steal takes everything away from the process that works, as if it had died.
func (b *bench) steal() {
	b.Helper()
	b.thief = true
	if s, ok := b.storage.(*shared); ok {
		if err := s.bury(b.Context(), b.store); err != nil {
			b.Fatal(err)
		}
		return
	}
	if _, err := b.store.Join(b.Context(), "thief"); err != nil {
		b.Fatal(err)
	}
}

// compareAnswer looks whether a recorded answer is the one that upstreams give.
func (b *bench) compareAnswer(r doctor.Recorded) {
	if !r.OK || b.foreign {
		return
	}
	if want := b.answer(r.Endpoint, r.Request); !bytes.Equal(r.Response, want) {
		if b.wrong++; b.wrong < 5 {
			b.Errorf("promise 8: the answer to %s is %.300s, want %.300s", r.CustomID, r.Response, want)
		}
	}
}

// A result is a line of an output or error file.
type result struct {
	CustomID string `json:"custom_id"`
	Response *struct {
		Status int             `json:"status_code"`
		Body   json.RawMessage `json:"body"`
	} `json:"response"`
	Error *struct{ Code, Message string } `json:"error"`

	ok bool // by the file that it stands in
}

// never reports whether the request was not executed.
func (r result) never() bool {
	return r.Error != nil && (r.Error.Code == batch.FailureExpired.Code || r.Error.Code == batch.FailureCancelled.Code)
}

// results returns the lines of a batch that has ended, by custom_id.
func (b *bench) results(id string) map[string]result {
	b.Helper()
	x := b.look(id)
	out := map[string]result{}
	for i, file := range []string{x.OutputFileID, x.ErrorFileID} {
		if file == "" {
			continue
		}
		f, err := b.store.File(b.Context(), batch.DefaultProject, file)
		if err != nil {
			b.Fatal(err)
		}
		r := blob.Concat(b.Context(), b.blobs, f.Parts, 0, -1)
		defer r.Close()
		for dec := json.NewDecoder(r); dec.More(); {
			r := result{ok: i == 0}
			if err := dec.Decode(&r); err != nil {
				b.Fatal(err)
			}
			out[r.CustomID] = r
		}
	}
	return out
}

// query reads a column of the database, beside whoever works on it.
func query[T any](b *bench, text string, args ...any) []T {
	b.Helper()
	db, err := b.storage.read()
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(b.Context(), text, args...)
	if err != nil {
		b.Fatal(err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			b.Fatal(err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		b.Fatal(err)
	}
	return out
}
