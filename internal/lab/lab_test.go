package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// newLab makes a lab, if what it needs is there.
func newLab(t *testing.T) *Lab {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(l.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", l.dir, err)
		}
	})
	return l
}

// must skips a test where a program is missing, which CI installs.
func must[T any](t *testing.T, v T, err error) T {
	t.Helper()
	if errors.Is(err, ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestFailover loses a primary again and again: what was committed is on the standby.
func TestFailover(t *testing.T) {
	pg, err := newLab(t).Postgres(true)
	pg = must(t, pg, err)
	must(t, "", second(pg.Query("CREATE TABLE things (n bigint)")))
	for i := range 2 {
		must(t, "", second(pg.Query(fmt.Sprintf("INSERT INTO things VALUES (%d)", i))))
		pg.Kill()
		if err := pg.Promote(); err != nil {
			t.Fatal(err)
		}
		if got := must(t, "", second(pg.Query(fmt.Sprintf("INSERT INTO things VALUES (%d)", 10+i)))); got != "" {
			t.Error(got)
		}
		if err := pg.Attach(); err != nil {
			t.Fatal(err)
		}
	}
	pg.Pause(false)
	pg.Resume(false)
	for _, crash := range []bool{true, false} {
		if err := pg.Restart(crash); err != nil {
			t.Fatal(err)
		}
	}
	if err := pg.Terminate(); err != nil {
		t.Fatal(err)
	}
	got, err := pg.Query("SELECT string_agg(n::text, ' ' ORDER BY n) FROM things")
	if err != nil || got != "0 1 10 11" {
		t.Errorf("%q, %v", got, err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestS3 starts a server.
func TestS3(t *testing.T) {
	s, err := newLab(t).S3()
	s = must(t, s, err)
	if !strings.HasPrefix(S3URL(s.Addr), "s3://offpeak?endpoint=http") {
		t.Error(S3URL(s.Addr))
	}
}

// TestRelay cuts a relay in every way.
func TestRelay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // echoes lines
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	r, err := NewRelay(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", r.Addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	// The way is set before anything is sent, so that it is known what comes of it.
	says := func(c net.Conn, want string) {
		t.Helper()
		got, err := bufio.NewReader(c).ReadString('\n')
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	c := dial()
	fmt.Fprintln(c, "one")
	says(c, "one\n")

	r.Set(Stall)
	late := dial()
	fmt.Fprintln(c, "two")
	fmt.Fprintln(late, "two")
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	says(c, "")
	c.SetReadDeadline(time.Now().Add(time.Minute))
	r.Set(Pass)
	says(c, "two\n")
	says(late, "two\n")

	r.Set(Swallow)
	fmt.Fprintln(c, "three")
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	says(c, "")
	c.SetReadDeadline(time.Now().Add(time.Minute))
	r.Set(Pass)
	says(c, "")
	fmt.Fprintln(late, "four") // nothing of it was swallowed
	says(late, "four\n")

	r.Set(Refuse)
	says(late, "")
	if _, err := net.Dial("tcp", r.Addr); err == nil {
		t.Error("it accepts")
	}
	r.Set(Pass)
	c = dial()
	fmt.Fprintln(c, "five")
	says(c, "five\n")
	r.Reset()
	says(c, "")
}
