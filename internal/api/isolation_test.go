package api

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"offpeak/internal/batch"
	"offpeak/internal/openai"
)

// An estate is everything that a project has: ids of every kind, of objects in every state.
type estate struct {
	ids  []string
	open string // an upload, with one part
	part string // that part
}

func (w *world) settle() estate {
	w.Helper()
	var e estate
	input := w.uploadFile(chatLine("good", quickModel) +
		`{"custom_id":"bad","method":"POST","url":"/v1/chat/completions","body":{"model":"quick","messages":"none"}}` + "\n")
	data := decode[openai.File](w.tester, w.upload(field{"file", "x.bin", "x"}, field{name: "purpose", value: "user_data"}))
	stuck := w.uploadFile(chatLine("stuck", stuckModel))

	completed := w.await(w.createFrom(input.ID, "/v1/chat/completions").ID, "completed")
	if completed.OutputFileID == nil || completed.ErrorFileID == nil {
		w.Fatalf("a batch without results: %+v", completed)
	}
	failed := w.await(w.createFrom("file-nobodys", "/v1/chat/completions").ID, "failed")
	running := w.await(w.createFrom(stuck.ID, "/v1/chat/completions").ID, "in_progress")

	newUpload := func() (id, part string) {
		u := decode[openai.Upload](w.tester, w.post("/v1/uploads", `{"filename":"x.txt","purpose":"user_data","bytes":4,"mime_type":"text/plain"}`))
		ct, form := encodeForm(field{"data", "part", "data"})
		p := decode[openai.UploadPart](w.tester, w.send("POST", "/v1/uploads/"+u.ID+"/parts", bytes.NewReader(form), "Content-Type", ct))
		return u.ID, p.ID
	}
	one, onePart := newUpload()
	two, twoPart := newUpload()
	whole, wholePart := newUpload()
	u := decode[openai.Upload](w.tester, w.post("/v1/uploads/"+whole+"/complete", fmt.Sprintf(`{"part_ids":[%q]}`, wholePart)))

	e.ids = []string{
		input.ID, data.ID, stuck.ID, *completed.OutputFileID, *completed.ErrorFileID, u.File.ID,
		completed.ID, failed.ID, running.ID, one, two, whole, onePart, twoPart, wholePart,
	}
	e.open, e.part = one, onePart
	return e
}

// stranger is an id of the same shape that nobody has.
func stranger(id string) string {
	at := strings.LastIndexAny(id, "_-") + 1
	digits := []byte(id[at:])
	slices.Reverse(digits)
	return id[:at] + string(digits)
}

// A probe is a request with an id somewhere in it.
type probe struct{ method, path, contentType, body string }

func (w *world) probe(p probe) answer {
	w.Helper()
	var body io.Reader
	if p.method == "POST" {
		body = strings.NewReader(p.body)
	}
	return w.send(p.method, p.path, body, "Content-Type", p.contentType)
}

// bodies are what routes that take a body are sent, with an id in it wherever one may stand. A new
// route that takes one gets a line here.
var bodies = map[string]func(e estate, id string) (contentType, body string){
	"POST /v1/files": func(_ estate, id string) (string, string) {
		ct, form := encodeForm(forBatch, field{"file", id + ".jsonl", "{}\n"})
		return ct, string(form)
	},
	"POST /v1/uploads": func(_ estate, id string) (string, string) {
		return "application/json", fmt.Sprintf(`{"filename":%q,"purpose":"user_data","bytes":1,"mime_type":"x"}`, id)
	},
	"POST /v1/uploads/{id}/parts": func(estate, string) (string, string) {
		ct, form := encodeForm(field{"data", "part", "data"})
		return ct, string(form)
	},
	"POST /v1/uploads/{id}/complete": func(e estate, id string) (string, string) {
		return "application/json", fmt.Sprintf(`{"part_ids":[%q]}`, id)
	},
	"POST /v1/uploads/{id}/cancel": func(estate, string) (string, string) { return "", "" },
	"POST /v1/batches": func(_ estate, id string) (string, string) {
		return "application/json", fmt.Sprintf(`{"input_file_id":%q,"endpoint":"/v1/chat/completions","completion_window":"24h"}`, id)
	},
	"POST /v1/batches/{id}/cancel": func(estate, string) (string, string) { return "", "" },
}

var wildcard = regexp.MustCompile(`\{.*\}`)

// probes lists the requests to a route that name the id: in the path, as a cursor, in the body.
// mine is what the caller has, for the places where the id does not stand.
func probes(t *testing.T, pattern, id string, mine estate) (list []probe) {
	t.Helper()
	method, path, _ := strings.Cut(pattern, " ")
	body, ok := bodies[pattern]
	if method == "POST" && !ok {
		t.Errorf("%s: say in bodies what it is sent", pattern)
		return nil
	}
	if body == nil {
		body = func(estate, string) (string, string) { return "", "" }
	}
	add := func(path, inBody string) {
		ct, text := body(mine, inBody)
		list = append(list, probe{method, path, ct, text})
	}
	if wildcard.MatchString(path) {
		add(wildcard.ReplaceAllString(path, url.PathEscape(id)), mine.part)
		add(wildcard.ReplaceAllString(path, mine.open), id)
	} else {
		add(path, id)
		add(path+"?limit=1&after="+url.QueryEscape(id), id)
	}
	return list
}

var variable = regexp.MustCompile(`"[a-z_]+_at":\d+|"(id|batch_id|upload_id)":"[^"]*"|"offpeak":\{[^}]*\}`)

// answered is an answer in a form that two requests can be compared by: what differs from call to
// call is left out, and so is the id they named.
func answered(a answer, id string) string {
	h := a.Header.Clone()
	for _, name := range []string{"Date", "X-Request-Id", "Openai-Processing-Ms"} {
		h.Del(name)
	}
	body := variable.ReplaceAllString(string(a.body), "")
	return strings.ReplaceAll(fmt.Sprint(a.StatusCode, h, body), id, "ID")
}

// TestProjectsAreWalls sends every route every id that another project has, and an id like it that
// nobody has: the answers are the same. Afterwards the other project finds all as it was, and can
// do with its ids what the first could not.
func TestProjectsAreWalls(t *testing.T) {
	w := newWorld(t, batch.ProfileExtended, batch.Rules{})
	theirs := w.settle()
	routes := slices.Sorted(maps.Keys(w.server.routes()))
	slices.SortStableFunc(routes, func(a, b string) int { return destruction(a) - destruction(b) })
	before := w.snapshot(routes, theirs)

	w.key = w.keys["b"]
	mine := w.settle()
	var pairs [][3]string // batches made of a foreign and of an unknown input, and the foreign id
	for _, pattern := range routes {
		for _, foreign := range theirs.ids {
			unknown := stranger(foreign)
			for i, p := range probes(t, pattern, foreign, mine) {
				got := w.probe(p)
				want := w.probe(probes(t, pattern, unknown, mine)[i])
				if g, w := answered(got, foreign), answered(want, unknown); g != w {
					t.Errorf("%s %s %s\nwith a foreign id: %s\nwith an unknown id: %s", p.method, p.path, p.body, g, w)
				}
				for _, id := range theirs.ids {
					if id != foreign && bytes.Contains(got.body, []byte(id)) {
						t.Errorf("%s %s shows %s: %s", p.method, p.path, id, got.body)
					}
				}
				if pattern == "POST /v1/batches" {
					pairs = append(pairs, [3]string{
						decode[openai.Batch](w.tester, got).ID, decode[openai.Batch](w.tester, want).ID, foreign,
					})
				}
			}
		}
	}
	for _, pair := range pairs {
		got, want := w.await(pair[0], "failed"), w.await(pair[1], "failed")
		if got.Status != "failed" || want.Status != "failed" || got.Errors.Data[0].Code != "invalid_request" ||
			strings.ReplaceAll(got.Errors.Data[0].Message, pair[2], "ID") != strings.ReplaceAll(want.Errors.Data[0].Message, stranger(pair[2]), "ID") {
			t.Errorf("a batch of the foreign %s: %+v\nof an unknown input: %+v", pair[2], got.Errors, want.Errors)
		}
	}

	w.key = w.keys["a"]
	after := w.snapshot(routes, theirs)
	for path, was := range before {
		if is := after[path]; is != was {
			t.Errorf("%s was\n%s\nand is\n%s", path, was, is)
		}
	}
	for _, pattern := range routes {
		if !strings.Contains(pattern, "{") {
			continue
		}
		reached := false
		for _, id := range append(theirs.ids, quickModel) { // models are everybody's
			reached = reached || w.probe(probes(t, pattern, id, theirs)[0]).StatusCode < 300
		}
		if !reached {
			t.Errorf("%s: even who owns them gets at none of %v: this test proves nothing", pattern, theirs.ids)
		}
	}
}

// destruction orders routes: those last that leave nothing for others.
func destruction(pattern string) int {
	switch {
	case strings.HasPrefix(pattern, "DELETE"):
		return 3
	case strings.HasSuffix(pattern, "/cancel"):
		return 2
	case strings.HasPrefix(pattern, "POST"):
		return 1
	}
	return 0
}

// snapshot is what the caller sees of everything it has.
func (w *world) snapshot(routes []string, e estate) map[string]string {
	w.Helper()
	seen := map[string]string{}
	for _, pattern := range routes {
		path, ok := strings.CutPrefix(pattern, "GET /v1")
		if !ok || path == "/offpeak/upstreams" { // how busy those are is everybody's doing
			continue
		}
		for _, id := range e.ids {
			path := "/v1" + wildcard.ReplaceAllString(path, url.PathEscape(id))
			a := w.get(path)
			body, _, _ := strings.Cut(string(a.body), `"offpeak"`)
			seen[path] = fmt.Sprint(a.StatusCode, " ", body)
		}
	}
	return seen
}
