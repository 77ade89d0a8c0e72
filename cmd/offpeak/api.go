package main

import (
	"cmp"
	"io"
	"os"

	"golang.org/x/term"

	"offpeak/internal/client"
	"offpeak/internal/progress"
)

// apiFlags say which server a client command talks to, and as whom. Every such command embeds
// them.
type apiFlags struct {
	BaseURL string `name:"base-url" env:"OFFPEAK_BASE_URL,OPENAI_BASE_URL" default:"http://127.0.0.1:8080/v1" placeholder:"URL" help:"Server to talk to: Offpeak, or any other with this API."`
	APIKey  string `name:"api-key" env:"OFFPEAK_API_KEY,OPENAI_API_KEY" default:"offpeak" placeholder:"KEY" help:"Key to send. A server without keys takes any."`
}

// client returns a client of that server.
func (f apiFlags) client() (*client.Client, error) {
	// An environment variable may be set but empty, which is not the same as a URL.
	return client.New(cmp.Or(f.BaseURL, "http://127.0.0.1:8080/v1"), cmp.Or(f.APIKey, "offpeak"), nil)
}

// newPrinter returns the printer that suits s: JSON lines on standard output if asked for, else
// a bar where standard error is a terminal that can show one, else plain lines.
func newPrinter(s *streams, json bool) progress.Printer {
	switch {
	case json:
		return progress.NewJSON(s.Out)
	case isTerminal(s.Err) && s.Getenv("TERM") != "dumb":
		return progress.NewBar(s.Err, s.Getenv("NO_COLOR") == "")
	}
	return progress.NewPlain(s.Err)
}

// isTerminal reports whether w is a terminal that knows its size; some in containers don't, and
// nothing can be drawn on those.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return err == nil && width > 0 && height > 0
}
