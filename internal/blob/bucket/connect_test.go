package bucket_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"offpeak/internal/blob/bucket"
	"offpeak/internal/blob/s3test"
)

// TestOpenRefuses has each thing that may be wrong with a bucket. The error says which, what helps,
// and no secret.
func TestOpenRefuses(t *testing.T) {
	server := s3test.Start(t)
	good := server.Bucket(t)
	const secret = "hunter2"
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRelay(t, server)
	elsewhere := func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("X-Amz-Bucket-Region", "eu-west-3")
		refuse(w, r, 301, "PermanentRedirect")
	}
	forbidden := func(w http.ResponseWriter, r *http.Request, _ http.Handler) { refuse(w, r, 403, "AccessDenied") }
	broken := func(w http.ResponseWriter, r *http.Request, _ http.Handler) { refuse(w, r, 500, "InternalError") }
	for _, test := range []struct {
		name  string
		url   string
		env   map[string]string
		spoil spoiler
		want  string
	}{
		{name: "no URL", url: "s3://%zz" + secret, want: "not a URL"},
		{name: "another scheme", url: "gs://bucket", want: "not the URL of a bucket"},
		{name: "no bucket", url: "s3:///prefix", want: "not the URL of a bucket"},
		{name: "keys in the URL", url: "s3://key:" + secret + "@bucket", want: "AWS_SECRET_ACCESS_KEY"},
		{name: "keys as parameters", url: "s3://bucket?secret=" + secret, want: `no parameter "secret"`},
		{name: "no endpoint", url: "s3://bucket?endpoint=minio:9000", want: "endpoint is a URL"},
		{name: "keys in the endpoint", url: "s3://bucket?endpoint=http://key:" + secret + "@minio:9000", want: "endpoint is a URL"},
		{name: "style", url: "s3://bucket?use_path_style=maybe", want: "true or false"},
		{name: "two prefixes", url: "s3://bucket/a?prefix=b", want: "give one"},
		{name: "no region", url: "s3://bucket", want: "region=…"},
		{name: "missing bucket", url: server.URL("missing"), want: "there is no such bucket: create it"},
		{name: "wrong secret", url: good, env: map[string]string{"AWS_SECRET_ACCESS_KEY": secret}, want: "check AWS_SECRET_ACCESS_KEY"},
		{name: "wrong key", url: good, env: map[string]string{"AWS_ACCESS_KEY_ID": "nobody"}, want: "check AWS_ACCESS_KEY_ID"},
		{name: "no keys", url: good, env: map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, want: "set AWS_ACCESS_KEY_ID"},
		{name: "no profile", url: good + "&profile=nobody", want: "nobody"},
		{name: "another region", url: s3test.URL(r.addr, "bucket", "region", "us-east-2"), spoil: elsewhere, want: "say region=eu-west-3"},
		{name: "forbidden", url: s3test.URL(r.addr, "bucket"), spoil: forbidden, want: "s3:ListBucket"},
		{name: "out of order", url: s3test.URL(r.addr, "bucket"), spoil: broken, want: "try again later"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("AWS_REGION", "")
			t.Setenv("AWS_CONFIG_FILE", empty)
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", empty)
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			r.set(test.spoil)
			_, err := bucket.Open(t.Context(), test.url, bucket.Impatient)
			if err == nil {
				t.Fatal("it opens")
			}
			if !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "blobs: ") {
				t.Errorf("%v; want it to say %q", err, test.want)
			}
			if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), s3test.Secret) {
				t.Errorf("the error has a secret: %v", err)
			}
			t.Log(err)
		})
	}
}

// TestFromEnvironment opens a bucket whose address and keys stand where the AWS tools look for them.
func TestFromEnvironment(t *testing.T) {
	server := s3test.Start(t)
	name, _, _ := strings.Cut(strings.TrimPrefix(server.Bucket(t), "s3://"), "?")
	t.Setenv("AWS_ENDPOINT_URL_S3", "http://"+server.Addr)
	put(t, open(t, "s3://"+name), []byte("bytes"))

	credentials := filepath.Join(t.TempDir(), "credentials")
	err := os.WriteFile(credentials, []byte("[batches]\naws_access_key_id = "+s3test.Key+"\naws_secret_access_key = "+s3test.Secret+"\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", credentials)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	put(t, open(t, "s3://"+name+"?profile=batches"), []byte("bytes"))
}
