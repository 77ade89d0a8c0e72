package api

import (
	_ "embed"
	"net/http"
	"strconv"
)

// description is what clients see of this package, as OpenAPI 3.1. Tests hold every answer against
// it.
//
//go:embed openapi.yaml
var description []byte

// openapi shows the description, to anybody.
func (s *server) openapi(w *response, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/yaml")
	w.Header().Set("Content-Length", strconv.Itoa(len(description)))
	_, err := w.Write(description)
	return err
}
