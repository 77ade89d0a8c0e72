package main

import "testing"

// Where the blobs are is told in logs and errors, with nothing that lets anybody in.
func TestWithoutSecrets(t *testing.T) {
	for blobs, want := range map[string]string{
		"/var/lib/offpeak": "/var/lib/offpeak",
		"s3://bucket/prefix?region=eu-west-1&endpoint=http://me:secret@minio:9000": "s3://bucket/prefix",
		"s3://key:secret@bucket/prefix#secret":                                     "s3://key:xxxxx@bucket/prefix",
	} {
		if got := withoutSecrets(blobs); got != want {
			t.Errorf("%s: %s, want %s", blobs, got, want)
		}
	}
}
