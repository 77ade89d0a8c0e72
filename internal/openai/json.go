package openai

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Marshal encodes v as the API sends it: without needless escapes, maps in the order of their
// keys, a nil map as null and a nil slice as []. Bytes that are not UTF-8, which a client may have
// sent and an error text may quote, become U+FFFD.
func Marshal(v any) ([]byte, error) {
	return json.Marshal(v,
		json.Deterministic(true),
		json.FormatNilMapAsNull(true),
		jsontext.AllowInvalidUTF8(true),
	)
}
