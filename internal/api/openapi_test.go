package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// A contract is an OpenAPI document that answers are held against.
type contract struct {
	name       string
	doc        any
	operations *http.ServeMux    // finds the pattern of a request
	pointers   map[string]string // to the operation, by pattern
	errors     string            // pointer to the schema of what no operation answers

	mu      sync.Mutex
	schemas *jsonschema.Compiler
	seen    map[string]bool // operation and status of answers that were checked
}

// ours is the description of this package. It leaves room for members to come; an answer with a
// member that it does not have is a mistake all the same.
var ours = sync.OnceValue(func() *contract {
	c, err := newContract("openapi.yaml", description, "")
	if err != nil {
		panic(err)
	}
	return c
})

// theirs is OpenAI's, as far as it goes; nil if it is not beside this checkout.
var theirs = sync.OnceValue(func() *contract {
	text, err := os.ReadFile(filepath.Join(sharedGolden, "..", "openapi.yaml"))
	if err != nil {
		return nil
	}
	c, err := newContract("OpenAI's openapi.yaml", text, "/v1")
	if err != nil {
		panic(err)
	}
	return c
})

// newContract reads a document whose paths stand behind prefix.
func newContract(name string, text []byte, prefix string) (*contract, error) {
	var loose any
	if err := yaml.Unmarshal(text, &loose); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(loose)
	if err != nil {
		return nil, err
	}
	c := &contract{
		name: name, operations: http.NewServeMux(), pointers: map[string]string{}, seen: map[string]bool{},
		errors: "#/components/schemas/ErrorResponse",
	}
	if c.doc, err = jsonschema.UnmarshalJSON(bytes.NewReader(raw)); err != nil {
		return nil, err
	}
	if prefix == "" {
		closeObjects(c.at("#/components/schemas"))
	}
	c.schemas = jsonschema.NewCompiler()
	if err := c.schemas.AddResource("file:///contract", c.doc); err != nil {
		return nil, err
	}
	for path, item := range c.at("#/paths").(map[string]any) {
		for method := range item.(map[string]any) {
			if method == "parameters" {
				continue
			}
			pattern := strings.ToUpper(method) + " " + prefix + path
			c.pointers[pattern] = "#/paths/" + escapePointer(path) + "/" + method
			c.operations.HandleFunc(strings.Replace(pattern, "{model}", "{model...}", 1), func(http.ResponseWriter, *http.Request) {})
		}
	}
	return c, nil
}

// closeObjects forbids members that a schema does not list.
func closeObjects(v any) {
	switch v := v.(type) {
	case map[string]any:
		if _, open := v["additionalProperties"]; v["properties"] != nil && !open && v["type"] == "object" {
			v["additionalProperties"] = false
		}
		for _, x := range v {
			closeObjects(x)
		}
	case []any:
		for _, x := range v {
			closeObjects(x)
		}
	}
}

func escapePointer(key string) string {
	return strings.ReplaceAll(strings.ReplaceAll(key, "~", "~0"), "/", "~1")
}

// at returns what a pointer such as "#/paths" points to; nil if there is no such thing.
func (c *contract) at(pointer string) any {
	v := c.doc
	for _, key := range strings.Split(pointer, "/")[1:] {
		switch at := v.(type) {
		case map[string]any:
			v = at[strings.ReplaceAll(strings.ReplaceAll(key, "~1", "/"), "~0", "~")]
		case []any:
			i, _ := strconv.Atoi(key)
			v = at[i]
		default:
			return nil
		}
	}
	return v
}

// resolve follows a pointer to what it stands for.
func (c *contract) resolve(pointer string) (string, map[string]any) {
	m, _ := c.at(pointer).(map[string]any)
	for m != nil {
		ref, ok := m["$ref"].(string)
		if !ok {
			break
		}
		pointer = ref
		m, _ = c.at(pointer).(map[string]any)
	}
	return pointer, m
}

// validate holds a value against the schema at the pointer.
func (c *contract) validate(pointer string, v any) error {
	c.mu.Lock()
	schema, err := c.schemas.Compile("file:///contract" + pointer)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	return schema.Validate(v)
}

func (c *contract) validateJSON(pointer string, text []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return err
	}
	return c.validate(pointer, v)
}

// operation returns the operation that answers r, or "" if there is none.
func (c *contract) operation(r *http.Request) string {
	_, pattern := c.operations.Handler(r)
	return c.pointers[strings.Replace(pattern, "...", "", 1)]
}

// check holds an answer to r against the contract.
func (c *contract) check(r *http.Request, a *seenAnswer) error {
	op := c.operation(r)
	if op == "" {
		if a.status < 400 {
			return fmt.Errorf("status %d from a route that is not described", a.status)
		}
		return c.validateJSON(c.errors, a.body.Bytes())
	}
	status := strconv.Itoa(a.status)
	if _, m := c.resolve(op + "/responses/" + status); m == nil {
		status = "default"
	}
	pointer, response := c.resolve(op + "/responses/" + status)
	if response == nil {
		return fmt.Errorf("status %d is not described", a.status)
	}
	if status == "default" && a.status < 400 {
		return fmt.Errorf("status %d is taken for an error", a.status)
	}
	c.mu.Lock()
	c.seen[op+" "+status] = true
	c.mu.Unlock()

	headers, _ := response["headers"].(map[string]any)
	for name := range headers {
		pointer, header := c.resolve(pointer + "/headers/" + name)
		values := a.Header().Values(name)
		switch {
		case len(values) == 0 && header["required"] == true:
			return fmt.Errorf("header %s is missing", name)
		case len(values) > 1:
			return fmt.Errorf("header %s stands there %d times", name, len(values))
		case len(values) == 1:
			if err := c.validate(pointer+"/schema", values[0]); err != nil {
				return fmt.Errorf("header %s: %w", name, err)
			}
		}
	}
	content, _ := response["content"].(map[string]any)
	kind, _, err := mime.ParseMediaType(a.Header().Get("Content-Type"))
	if err != nil {
		return fmt.Errorf("content type: %w", err)
	}
	media, ok := content[kind].(map[string]any)
	if !ok {
		return fmt.Errorf("content type %s of status %d is not described", kind, a.status)
	}
	if media["schema"] == nil || r.Method == http.MethodHead {
		return nil
	}
	return c.validateJSON(pointer+"/content/"+escapePointer(kind)+"/schema", a.body.Bytes())
}

// A seenAnswer is an answer that is read on its way out.
type seenAnswer struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer // if it is JSON
}

func (a *seenAnswer) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *seenAnswer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if a.Header().Get("Content-Type") == "application/json" {
		a.body.Write(p)
	}
	return a.ResponseWriter.Write(p)
}

// Unwrap serves http.ResponseController.
func (a *seenAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// described is h, whose every answer is held against both contracts. One that breaks off is none.
func described(t testing.TB, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &seenAnswer{ResponseWriter: w}
		h.ServeHTTP(a, r)
		if err := ours().check(r, a); err != nil {
			t.Errorf("%s %.200s: status %d is not as %s says: %v\n%s", r.Method, r.URL, a.status, ours().name, err, a.body.Bytes())
		}
		if c := theirs(); c != nil && c.operation(r) != "" && r.Method != http.MethodHead {
			if err := c.checkBody(r, a); err != nil {
				t.Errorf("%s %.200s: status %d is not as %s says: %v\n%s", r.Method, r.URL, a.status, c.name, err, a.body.Bytes())
			}
		}
		if err := checkTimelines(a.body.Bytes()); err != nil {
			t.Errorf("%s %.200s: %v\n%s", r.Method, r.URL, err, a.body.Bytes())
		}
	})
}

// checkBody holds the JSON of an answer against a contract that knows neither our headers nor all
// of our statuses.
func (c *contract) checkBody(r *http.Request, a *seenAnswer) error {
	status := "default"
	if a.status == http.StatusOK {
		status = "200"
	}
	pointer, _ := c.resolve(c.operation(r) + "/responses/" + status)
	c.mu.Lock()
	c.seen[c.operation(r)+" "+status] = true
	c.mu.Unlock()
	if a.Header().Get("Content-Type") != "application/json" {
		return nil
	}
	return c.validateJSON(pointer+"/content/application~1json/schema", a.body.Bytes())
}

// checkTimelines checks the batches in an answer by rules that a schema cannot state: which
// timestamps belong to which status, and their order (B-03), where files and reasons may be (§2.4),
// and that counts add up (C-01, C-03).
func checkTimelines(body []byte) error {
	var list struct{ Data []json.RawMessage }
	var one struct{ Object string }
	if json.Unmarshal(body, &one) != nil {
		return nil
	}
	if one.Object == "batch" {
		return checkTimeline(body)
	}
	if one.Object == "list" && json.Unmarshal(body, &list) == nil {
		for _, b := range list.Data {
			if json.Unmarshal(b, &one) == nil && one.Object == "batch" {
				if err := checkTimeline(b); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// timestamps are those of a status (B-03): must be set, may be set; all others are null.
var timestamps = map[string][2]string{
	"validating":  {"", ""},
	"failed":      {"failed_at", ""},
	"in_progress": {"in_progress_at", ""},
	"finalizing":  {"in_progress_at finalizing_at", ""},
	"completed":   {"in_progress_at finalizing_at completed_at", ""},
	"expired":     {"finalizing_at expired_at", "in_progress_at"},
	"cancelling":  {"cancelling_at", "in_progress_at finalizing_at"},
	"cancelled":   {"cancelling_at cancelled_at", "in_progress_at finalizing_at"},
}

func checkTimeline(text []byte) error {
	var b map[string]any
	if err := json.Unmarshal(text, &b); err != nil {
		return err
	}
	status := b["status"].(string)
	must, may := strings.Fields(timestamps[status][0]), strings.Fields(timestamps[status][1])
	last := b["created_at"].(float64)
	for _, name := range []string{
		"in_progress_at", "finalizing_at", "cancelling_at", "completed_at", "failed_at", "expired_at", "cancelled_at",
	} {
		at, set := b[name].(float64)
		switch {
		case !set && slices.Contains(must, name):
			return fmt.Errorf("status %s without %s", status, name)
		case set && !slices.Contains(must, name) && !slices.Contains(may, name):
			return fmt.Errorf("status %s with %s", status, name)
		case set && at < last:
			return fmt.Errorf("status %s: %s is earlier than what comes before it", status, name)
		case set:
			last = at
		}
	}
	terminal := slices.Contains(must, status+"_at") && status != "in_progress" && status != "finalizing" && status != "cancelling"
	files := b["output_file_id"] != nil || b["error_file_id"] != nil
	switch counts := b["request_counts"].(map[string]any); {
	case (b["errors"] != nil) != (status == "failed"):
		return fmt.Errorf("status %s: errors is %v", status, b["errors"])
	case files && (!terminal || status == "failed"):
		return fmt.Errorf("status %s with files", status)
	case b["usage"] != nil && !terminal:
		return fmt.Errorf("status %s with usage", status)
	case b["model"] != nil && (status == "validating" || status == "failed"):
		return fmt.Errorf("status %s with a model", status)
	case counts["total"] != 0. && (status == "validating" || status == "failed"),
		counts["completed"].(float64)+counts["failed"].(float64) > counts["total"].(float64),
		status == "completed" && counts["completed"].(float64)+counts["failed"].(float64) != counts["total"].(float64):
		return fmt.Errorf("status %s with counts %v", status, counts)
	}
	return nil
}

// TestMain sees to it that every answer that is described, by either contract, is seen by some
// test: a description that nothing is held against may be wrong.
func TestMain(m *testing.M) {
	code := m.Run()
	partly := false
	for _, name := range []string{"test.run", "test.skip", "test.fuzz", "test.list"} {
		partly = partly || flag.Lookup(name).Value.String() != ""
	}
	if code != 0 || partly || testing.Short() {
		os.Exit(code)
	}
	for _, c := range []*contract{ours(), theirs()} {
		for _, unseen := range c.unseen() {
			fmt.Fprintf(os.Stderr, "%s: no test sees %s\n", c.name, unseen)
			code = 1
		}
	}
	os.Exit(code)
}

// unseen lists the answers that were not checked.
func (c *contract) unseen() (answers []string) {
	if c == nil {
		return nil
	}
	for pattern, op := range c.pointers {
		for status := range c.at(op + "/responses").(map[string]any) {
			if !c.seen[op+" "+status] {
				answers = append(answers, pattern+" "+status)
			}
		}
	}
	slices.Sort(answers)
	return answers
}

// anyParameter makes routes comparable, whatever they call their parameters.
func anyParameter(pattern string) string {
	before, rest, ok := strings.Cut(pattern, "{")
	if !ok {
		return pattern
	}
	_, after, _ := strings.Cut(rest, "}")
	return before + "{}" + anyParameter(after)
}

// TestDescriptionIsOfTheRoutes: what is served is described, and nothing else.
func TestDescriptionIsOfTheRoutes(t *testing.T) {
	described := map[string]bool{}
	for pattern := range ours().pointers {
		described[anyParameter(pattern)] = true
	}
	s := &server{Config: Config{Metrics: http.NotFoundHandler()}}
	for pattern := range s.routes() {
		if !described[anyParameter(pattern)] {
			t.Errorf("%s is served and not described", pattern)
		}
		delete(described, anyParameter(pattern))
	}
	for pattern := range described {
		t.Errorf("%s is described and not served", pattern)
	}
}

// TestDescriptionIsServed, to anybody, and says of every operation what it is called and what an
// error looks like.
func TestDescriptionIsServed(t *testing.T) {
	x := newTester(t, nil)
	x.key = ""
	a := x.get("/openapi.yaml")
	x.wantStatus(a, 200)
	if !bytes.Equal(a.body, description) || a.Header.Get("Content-Type") != "application/yaml" {
		t.Errorf("%d bytes of %s", len(a.body), a.Header.Get("Content-Type"))
	}
	names := map[any]string{}
	for pattern, op := range ours().pointers {
		o := ours().at(op).(map[string]any)
		if other, dup := names[o["operationId"]]; dup || o["operationId"] == nil {
			t.Errorf("%s: operationId %v is also that of %s", pattern, o["operationId"], other)
		}
		names[o["operationId"]] = pattern
		if o["summary"] == nil || o["tags"] == nil {
			t.Errorf("%s: no summary or no tag", pattern)
		}
		if pointer, _ := ours().resolve(op + "/responses/default"); pointer != "#/components/responses/Error" {
			t.Errorf("%s: an error is not described", pattern)
		}
		for _, parameter := range strings.Split(pattern, "{")[1:] {
			name, _, _ := strings.Cut(parameter, "}")
			if !slices.Contains(ours().parameters(op), name) {
				t.Errorf("%s: parameter %s is not described", pattern, name)
			}
		}
	}
	if err := ours().refs(); err != nil {
		t.Error(err)
	}
}

// parameters lists the names of an operation's parameters.
func (c *contract) parameters(op string) (names []string) {
	for _, at := range []string{op, op[:strings.LastIndexByte(op, '/')]} {
		list, _ := c.at(at + "/parameters").([]any)
		for _, p := range list {
			m := p.(map[string]any)
			if ref, ok := m["$ref"].(string); ok {
				m = c.at(ref).(map[string]any)
			}
			names = append(names, m["name"].(string))
		}
	}
	return names
}

// refs checks that every reference leads somewhere, and that every component is referred to.
func (c *contract) refs() error {
	used := map[string]bool{}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				used[ref] = true
			}
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(c.doc)
	var errs []error
	for ref := range used {
		if c.at(ref) == nil {
			errs = append(errs, fmt.Errorf("%s leads nowhere", ref))
		}
	}
	for kind, components := range c.at("#/components").(map[string]any) {
		for name := range components.(map[string]any) {
			ref := "#/components/" + kind + "/" + name
			if lines := ref == "#/components/schemas/Request" || ref == "#/components/schemas/Result"; !lines && kind != "securitySchemes" && !used[ref] {
				errs = append(errs, fmt.Errorf("nothing refers to %s", ref))
			}
		}
	}
	return errors.Join(errs...)
}

func needTheirs(t *testing.T) *contract {
	t.Helper()
	c := theirs()
	if c == nil {
		t.Skipf("OpenAI's description is not beside this checkout: there is no %s", filepath.Join(sharedGolden, "..", "openapi.yaml"))
	}
	return c
}

// TestDescriptionsAgree: whatever OpenAI's description has, ours has: operations, parameters, the
// members of what is sent and received, and which of them are required. That no answer breaks
// either is checked by [described], in every test.
func TestDescriptionsAgree(t *testing.T) {
	c := needTheirs(t)
	pointers := map[string]string{}
	for pattern, op := range ours().pointers {
		pointers[anyParameter(pattern)] = op
	}
	for pattern, op := range c.pointers {
		mine, ok := pointers[anyParameter(pattern)]
		if !ok {
			t.Errorf("%s is missing", pattern)
			continue
		}
		for _, p := range c.parameters(op) {
			inPath := strings.Contains(pattern, "{"+p+"}")
			if !inPath && !slices.Contains(ours().parameters(mine), p) {
				t.Errorf("%s: parameter %s is missing", pattern, p)
			}
		}
		for _, body := range []string{"/responses/200", "/requestBody"} {
			for _, kind := range []string{"application/json", "multipart/form-data"} {
				compareSchemas(t, pattern+body, c, op+body, mine+body, kind)
			}
		}
	}
}

// compareSchemas compares the members of two objects, and of the objects in them.
func compareSchemas(t *testing.T, where string, c *contract, their, mine, kind string) {
	t.Helper()
	their, _ = c.resolve(their)
	mine, _ = ours().resolve(mine)
	content := "/content/" + escapePointer(kind) + "/schema"
	if c.at(their+content) == nil {
		return
	}
	var compare func(path, their, mine string)
	compare = func(path, their, mine string) {
		their, t1 := c.notNull(their)
		mine, m1 := ours().notNull(mine)
		if t1 == nil || t1["type"] == "string" || t1["properties"] == nil && t1["items"] == nil {
			return
		}
		if m1 == nil {
			t.Errorf("%s: %s is missing", where, path)
			return
		}
		if t1["items"] != nil {
			compare(path+"[]", their+"/items", mine+"/items")
			return
		}
		members, _ := t1["properties"].(map[string]any)
		own, _ := m1["properties"].(map[string]any)
		for name := range members {
			if name == "expires_after" && kind == "multipart/form-data" { // two fields of a form
				continue
			}
			if own[name] == nil {
				t.Errorf("%s: %s.%s is missing", where, path, name)
				continue
			}
			compare(path+"."+name, their+"/properties/"+name, mine+"/properties/"+name)
		}
		required, _ := t1["required"].([]any)
		ownRequired, _ := m1["required"].([]any)
		for _, name := range required {
			if !slices.Contains(ownRequired, name) {
				t.Errorf("%s: %s.%s is not required", where, path, name)
			}
		}
	}
	compare("", their+content, mine+content)
}

// notNull resolves a schema, and of one or null the one.
func (c *contract) notNull(pointer string) (string, map[string]any) {
	pointer, m := c.resolve(pointer)
	for _, key := range []string{"oneOf", "anyOf"} {
		if m[key] != nil {
			return c.resolve(pointer + "/" + key + "/0")
		}
	}
	return pointer, m
}

// TestSharedExamples: the contract's own examples are what our description says.
func TestSharedExamples(t *testing.T) {
	needShared(t)
	index, err := os.ReadFile(filepath.Join(sharedGolden, "INDEX.json"))
	if err != nil {
		t.Skip(err)
	}
	var kinds map[string]string
	if err := json.Unmarshal(index, &kinds); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{
		"OpenAIFile": "File", "DeleteFileResponse": "FileDeleted", "ListBatchesResponse": "BatchList", "ListFilesResponse": "FileList",
		"ListModelsResponse": "ModelList", "CreateBatchRequest": "CreateBatch", "CreateUploadRequest": "CreateUpload",
		"CompleteUploadRequest": "CompleteUpload", "BatchRequestInput": "Request", "BatchRequestOutput": "Result",
	}
	checked := 0
	for file, kind := range kinds {
		if name, ok := names[kind]; ok {
			kind = name
		}
		pointer := "#/components/schemas/" + kind
		if ours().at(pointer) == nil || strings.Contains(file, "429") { // we limit nobody's rate
			continue
		}
		raw, err := os.ReadFile(filepath.Join(sharedGolden, file))
		if err != nil {
			t.Error(err)
			continue
		}
		docs := [][]byte{raw}
		if strings.HasSuffix(file, ".jsonl") {
			docs = bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
		}
		for _, doc := range docs {
			if err := errors.Join(ours().validateJSON(pointer, doc), checkTimelines(doc)); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		checked++
	}
	if checked < 60 {
		t.Errorf("only %d examples were checked", checked)
	}
}

// TestContractIsDocumented: docs/contract.md has every rule of the contract that concerns this
// package, by its id.
func TestContractIsDocumented(t *testing.T) {
	needShared(t)
	text, err := os.ReadFile(filepath.Join(sharedGolden, "..", "CONTRACT.md"))
	if err != nil {
		t.Skip(err)
	}
	documented, err := os.ReadFile("../../docs/contract.md")
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ = bytes.Cut(text, []byte("\n## 16. ")) // webhooks
	id := regexp.MustCompile(`\b(B|S|C|CR|L|R|CA|I|V|O|E|FI|UP|MO|ER|H|SD)-\d\d\b`)
	ours := map[string]bool{}
	for _, rule := range id.FindAllString(string(documented), -1) {
		ours[rule] = true
	}
	for _, rule := range id.FindAllString(string(text), -1) {
		if !ours[rule] {
			t.Errorf("docs/contract.md says nothing of %s", rule)
			ours[rule] = true
		}
	}
}
