// Package s3test runs a real S3 server for tests: versitygw, on a folder of the test's.
package s3test

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// version is what .ci/test installs.
const version = "v1.8.0"

// The keys of every server here.
const (
	Key    = "offpeak"
	Secret = "not-a-secret-but-a-test"
)

// A Server is a running S3 server.
type Server struct {
	// Addr is its host and port.
	Addr string

	data string
}

// Start starts a server that ends with the test, and with the test process if that is killed. It
// sets the keys in the environment, the same for all.
func Start(t testing.TB) *Server {
	t.Helper()
	binary := find(t)
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": Key, "AWS_SECRET_ACCESS_KEY": Secret, "AWS_EC2_METADATA_DISABLED": "true",
		// What the user of the machine has set shall not matter.
		"AWS_PROFILE": "", "AWS_SESSION_TOKEN": "", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
	} {
		if err := os.Setenv(name, value); err != nil {
			t.Fatal(err)
		}
	}
	s := &Server{data: filepath.Join(t.TempDir(), "data")}
	sidecar := filepath.Join(filepath.Dir(s.data), "sidecar")
	for _, dir := range []string{s.data, sidecar} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Somebody may take the port between our look and the server's, if rarely.
	for range 5 {
		if s.start(t, binary, sidecar) {
			return s
		}
	}
	t.Fatalf("%s does not start", binary)
	return nil
}

func (s *Server) start(t testing.TB, binary, sidecar string) bool {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Addr = l.Addr().String()
	l.Close()

	var log strings.Builder
	// With --sidecar and not --nometa, which overlooks If-None-Match.
	cmd := exec.Command(binary, "--port", s.Addr, "--quiet", "posix", "--sidecar", sidecar, s.data)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+Key, "ROOT_SECRET_KEY="+Secret)
	cmd.Stdout, cmd.Stderr = &log, &log
	ended, stop := run(t, cmd)
	for {
		select {
		case <-ended:
			t.Logf("%s: %s", binary, log.String())
			return false
		case <-time.After(10 * time.Millisecond):
		}
		resp, err := http.Get("http://" + s.Addr + "/")
		if err == nil {
			resp.Body.Close()
			t.Cleanup(stop)
			return true
		}
	}
}

// Bucket makes a bucket and returns the URL that opens it. Of other settings in the URL there may
// be any, as name and value.
func (s *Server) Bucket(t testing.TB, settings ...string) string {
	t.Helper()
	path, err := os.MkdirTemp(s.data, "bucket-")
	if err != nil {
		t.Fatal(err)
	}
	return s.URL(filepath.Base(path), settings...)
}

// URL returns the URL of a bucket, which need not exist.
func (s *Server) URL(bucket string, settings ...string) string {
	return URL(s.Addr, bucket, settings...)
}

// URL returns the URL of a bucket behind any address.
func URL(addr, bucket string, settings ...string) string {
	query := url.Values{"endpoint": {"http://" + addr}}
	for i := 0; i+1 < len(settings); i += 2 {
		query.Set(settings[i], settings[i+1])
	}
	return "s3://" + bucket + "?" + query.Encode()
}

// find returns the path of the server's binary.
func find(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("VERSITYGW"); path != "" {
		return path
	}
	root, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if parent := filepath.Dir(root); parent != root {
			root = parent
			continue
		}
		break
	}
	path := filepath.Join(root, ".cache", "bin", "versitygw-"+version)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	msg := fmt.Sprintf("no S3 server to test with: run `.ci/versitygw`, or name one with VERSITYGW (missing: %s)", path)
	if os.Getenv("CI") == "" {
		t.Skip(msg)
	}
	t.Fatal(msg)
	return ""
}
