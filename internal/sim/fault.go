package sim

import (
	"bytes"
	"fmt"
	"net/http"
)

// A fate is what becomes of a call.
type fate int

const (
	served fate = iota
	throttled
	failed
	hung
	cut       // cut half-way through the answer
	dropped   // cut before the answer
	slow      // served late
	html      // a web page, with 200
	notJSON   // text, with 200
	elsewhere // redirected
	poisoned  // cut at once
	always500
	always400
)

// fate decides what becomes of an attempt at a body.
func (s *Server) fate(body []byte, of digest, attempt int) fate {
	for _, t := range []struct {
		text string
		fate fate
	}{
		{s.cfg.Poison, poisoned},
		{s.cfg.Always500, always500},
		{s.cfg.Always400, always400},
	} {
		if t.text != "" && bytes.Contains(body, []byte(t.text)) {
			return t.fate
		}
	}

	f := &s.cfg.Faults
	if f.Attempts > 0 && attempt > f.Attempts || f.total() == 0 {
		return served
	}
	d := newDraw(s.cfg.Seed, of, uint64(attempt))
	at := d.share()
	for _, r := range []struct {
		share float64
		fate  fate
	}{
		{f.Throttle, throttled},
		{f.Error, failed},
		{f.Hang, hung},
		{f.Cut, cut},
		{f.Drop, dropped},
		{f.Slow, slow},
		{f.HTML, html},
		{f.Text, notJSON},
		{f.Redirect, elsewhere},
	} {
		if at < r.share {
			return r.fate
		}
		at -= r.share
	}
	return served
}

// strike makes a call go wrong at once, if that is its fate: it writes the answer, or returns the
// error that the call ends with. It reports whether it did.
func (s *Server) strike(w http.ResponseWriter, f fate, e ends) (struck bool, err error) {
	switch f {
	case throttled:
		return true, &refusal{status: http.StatusTooManyRequests, msg: "simulated: too many requests"}
	case failed:
		return true, &refusal{status: s.cfg.Faults.ErrorStatus, msg: "simulated: the server failed"}
	case always500:
		return true, &refusal{status: http.StatusInternalServerError, msg: "simulated: this body fails always"}
	case always400:
		return true, badRequest("", "simulated: this body is refused always")
	case hung:
		select {
		case <-e.client:
		case <-e.outage:
		}
		return true, errGone
	case poisoned:
		if s.cfg.PoisonCrashes {
			s.crash()
		}
		return true, errGone
	case html:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, "<!doctype html><title>Sign in</title><p>Please sign in to use this network.\n")
		return true, nil
	case notJSON:
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, "upstream connect error\n")
		return true, nil
	case elsewhere:
		w.Header().Set("Location", "/login")
		w.WriteHeader(http.StatusFound)
		return true, nil
	}
	return false, nil
}
