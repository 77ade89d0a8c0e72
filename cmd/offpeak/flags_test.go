package main

import (
	"maps"
	"os"
	"testing"

	"github.com/alecthomas/kong"
)

// TestClientFlags reads command lines as main does, with what is not plain in the tags.
func TestClientFlags(t *testing.T) {
	for _, name := range []string{"OFFPEAK_BASE_URL", "OFFPEAK_API_KEY"} {
		t.Setenv(name, "") // so that it is restored
		os.Unsetenv(name)
	}
	t.Setenv("OPENAI_BASE_URL", "http://openai/v1")
	t.Setenv("OPENAI_API_KEY", "sk-openai")
	parse := func(args ...string) (cli struct {
		Batches batchesCmd `cmd:""`
		Files   filesCmd   `cmd:""`
	}) {
		t.Helper()
		k, err := kong.New(&cli)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Parse(args); err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		return cli
	}

	create := parse("batches", "create", "-", "--metadata", "a=b", "--metadata", "c=d;e=f,g", "-o", "-").Batches.Create
	if want := map[string]string{"a": "b", "c": "d;e=f,g"}; !maps.Equal(create.Metadata, want) {
		t.Errorf("metadata %v, want %v", create.Metadata, want)
	}
	if create.Input != "-" || create.Output != "-" || create.Window != "24h" {
		t.Errorf("%+v", create)
	}

	if got := parse("batches", "output", "batch_1", "--base-url", "http://flag/v1").Batches.Output; got.BaseURL != "http://flag/v1" || got.Output != "-" {
		t.Errorf("%+v", got)
	}
	if got := parse("files", "list").Files.List; got.BaseURL != "http://openai/v1" || got.APIKey != "sk-openai" {
		t.Errorf("%+v", got)
	}
	t.Setenv("OFFPEAK_BASE_URL", "http://offpeak/v1")
	if got := parse("files", "list").Files.List; got.BaseURL != "http://offpeak/v1" {
		t.Errorf("%+v", got)
	}
	t.Setenv("OFFPEAK_BASE_URL", "")
	got := parse("files", "list").Files.List
	if c, err := got.client(); err != nil || c.URL() != "http://127.0.0.1:8080/v1" {
		t.Errorf("set but empty: %v, %v", c, err)
	}
}
