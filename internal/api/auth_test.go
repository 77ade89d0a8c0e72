package api

import (
	"strings"
	"testing"

	"offpeak/internal/openai"
)

func TestAuth(t *testing.T) {
	x := newTester(t, nil)
	noKey := errNoKey.Error()
	wrong := func(masked string) string {
		return "Incorrect API key provided: " + masked + ". You can find your API key at https://platform.openai.com/account/api-keys."
	}
	for _, tt := range []struct{ header, code, message string }{
		{"", "", noKey},
		{"Bearer", "", noKey},
		{"Bearer ", "", noKey},
		{"Basic c2stdGVzdDo=", "", noKey},
		{keyA, "", noKey},
		{"Bearer sk-test-0123456789-cdef", "invalid_api_key", wrong("sk-te**************cdef")},
		{"Bearer short-key", "invalid_api_key", wrong("***")},
		{"bearer sk-0123456789abc", "invalid_api_key", wrong("sk-01*******9abc")},
		{"BEARER " + strings.Repeat("k", 4000), "invalid_api_key", wrong("kkkkk" + strings.Repeat("*", 32) + "kkkk")},
	} {
		x.key = ""
		a := x.get("/v1/models", "Authorization", tt.header)
		x.wantError(a, 401, tt.code, "", tt.message)
		if a.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%q: no WWW-Authenticate", tt.header)
		}
	}
	for _, header := range []string{"Bearer " + keyA, "bearer " + keyA, "BEARER   " + keyA + "  "} {
		x.wantStatus(x.get("/v1/batches", "Authorization", header), 200)
	}
}

// TestEveryRouteWantsAKey, those for operators aside.
func TestEveryRouteWantsAKey(t *testing.T) {
	x := newTester(t, nil)
	x.key = ""
	for _, req := range [][2]string{
		{"POST", "/v1/files"}, {"GET", "/v1/files"}, {"GET", "/v1/files/f"}, {"DELETE", "/v1/files/f"}, {"GET", "/v1/files/f/content"},
		{"POST", "/v1/batches"}, {"GET", "/v1/batches"}, {"GET", "/v1/batches/b"}, {"POST", "/v1/batches/b/cancel"},
		{"GET", "/v1/models"}, {"GET", "/v1/models/m"},
	} {
		x.wantStatus(x.send(req[0], req[1], nil), 401)
	}
}

func TestAnyKey(t *testing.T) {
	x := newTester(t, func(c *Config) { c.Keys = nil })
	x.key = "x"
	a := x.get("/v1/batches")
	x.wantStatus(a, 200)
	if org := a.Header.Get("openai-organization"); org != "default" {
		t.Errorf("openai-organization %q", org)
	}
	x.key = ""
	x.wantError(x.get("/v1/batches"), 401, "", "", errNoKey.Error())
}

// TestProjectsDoNotSeeEachOther: a foreign id behaves exactly like an unknown one.
func TestProjectsDoNotSeeEachOther(t *testing.T) {
	x := newTester(t, nil)
	f, b := x.uploadFile("{}\n"), x.createBatch()
	x.key = keyB
	for _, req := range [][2]string{{"GET", ""}, {"DELETE", ""}, {"GET", "/content"}} {
		x.wantError(x.send(req[0], "/v1/files/"+f.ID+req[1], nil), 404, "", "id", "No such File object: "+f.ID)
	}
	x.wantError(x.get("/v1/files?after="+f.ID), 404, "", "id", "No such File object: "+f.ID)
	for _, req := range [][2]string{{"GET", ""}, {"POST", "/cancel"}} {
		x.wantError(x.send(req[0], "/v1/batches/"+b.ID+req[1], nil), 404, "", "", "No batch found with id '"+b.ID+"'.")
	}
	x.wantError(x.get("/v1/batches?after="+b.ID), 404, "", "", "No batch found with id '"+b.ID+"'.")
	if l := decode[openai.List[openai.Batch]](x, x.get("/v1/batches")); len(l.Data) != 0 {
		t.Errorf("batches of another project: %+v", l.Data)
	}
	if l := decode[openai.List[openai.File]](x, x.get("/v1/files")); len(l.Data) != 0 {
		t.Errorf("files of another project: %+v", l.Data)
	}
	x.key = keyA
	x.wantStatus(x.get("/v1/files/"+f.ID), 200)
	x.wantStatus(x.get("/v1/batches/"+b.ID), 200)
}

// A server without keys takes any, and remembers so many.
func TestKeyringIsBounded(t *testing.T) {
	k := keyring{projects: map[[32]byte]string{}}
	for i := range maxKeyring + 100 {
		k.note([32]byte{byte(i), byte(i >> 8)}, "p")
		if len(k.projects) > maxKeyring {
			t.Fatalf("%d keys are remembered, want %d at most", len(k.projects), maxKeyring)
		}
	}
}
