package sim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestStartAndClose(t *testing.T) {
	up, err := Start(Config{Faults: Faults{Hang: 1}}, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(Config{}, up.Addr()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second server at %s: %v, want that the address is in use", up.Addr(), err)
	}
	if want := "http://" + up.Addr() + "/v1"; up.URL() != want {
		t.Errorf("URL is %s, want %s", up.URL(), want)
	}

	// One call that hangs and one connection that is idle: Close ends both.
	idle, err := net.Dial("tcp", up.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	hangs, err := net.Dial("tcp", up.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	fmt.Fprintf(hangs, "POST /v1/chat/completions HTTP/1.1\r\nHost: sim\r\nContent-Length: %d\r\n\r\n%s", len(chatBody), chatBody)
	for up.Calls().Calls == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := up.Close(); err != nil {
		t.Error(err)
	}
	if _, err := hangs.Read(make([]byte, 1)); err == nil {
		t.Error("a call was answered by a closed server")
	}
	if err := up.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}

	again, err := Start(Config{}, up.Addr())
	if err != nil {
		t.Fatalf("a server at the address of a closed one: %v", err)
	}
	again.Close()
}

func TestURLOfAllAddresses(t *testing.T) {
	up, err := Start(Config{}, ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	res, err := http.Get(strings.TrimSuffix(up.URL(), "/v1") + "/health")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if res.StatusCode != 200 {
		t.Errorf("%s: %s", up.URL(), res.Status)
	}
}

func TestStartRefusesBadSettings(t *testing.T) {
	if _, err := Start(Config{Slots: -1}, "127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), "Slots") {
		t.Errorf("got %v, want an error that names Slots", err)
	}
}

// A connection without a call is closed after IdleTimeout, as uvicorn does.
func TestIdleTimeout(t *testing.T) {
	up, err := Start(Config{IdleTimeout: 10 * time.Millisecond}, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	conn, err := net.Dial("tcp", up.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /health HTTP/1.1\r\nHost: sim\r\n\r\n")
	r := bufio.NewReader(conn)
	if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != 200 {
		t.Fatalf("%v %v", res, err)
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("an idle connection: %v, want EOF", err)
	}
}

func TestValidate(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
	if err := (Config{Faults: Faults{Throttle: 0.7, Error: 0.2, Cut: 0.1}}).Validate(); err != nil {
		t.Errorf("shares that add up to 1: %v", err)
	}
	for _, c := range []struct {
		field string
		cfg   Config
	}{
		{"Slots", Config{Slots: -1}},
		{"QueueStatus", Config{QueueStatus: 200}},
		{"RetryAfter", Config{RetryAfter: -time.Second}},
		{"Timing.Decode", Config{Timing: Timing{Decode: -1}}},
		{"Timing.Jitter", Config{Timing: Timing{Jitter: 2}}},
		{"Models[1]", Config{Models: []Model{{ID: "a"}, {}}}},
		{"Models[1]", Config{Models: []Model{{ID: "a"}, {ID: "a"}}}},
		{"Models[0].Timing.Latency", Config{Models: []Model{{ID: "a", Timing: &Timing{Latency: -1}}}}},
		{"P99Tokens", Config{P99Tokens: 10}},
		{"Dimensions", Config{Dimensions: 5000}},
		{"DownStatus", Config{DownStatus: 200}},
		{"Faults.Hang", Config{Faults: Faults{Hang: math.NaN()}}},
		{"Faults.Cut", Config{Faults: Faults{Cut: 1.5}}},
		{"Faults", Config{Faults: Faults{Cut: 0.6, Drop: 0.6}}},
		{"Faults.ErrorStatus", Config{Faults: Faults{ErrorStatus: 404}}},
		{"Faults.SlowBy", Config{Faults: Faults{Slow: 0.1}}},
	} {
		err := c.cfg.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), "sim: "+c.field+" ") {
			t.Errorf("%+v: %v, want an error about %s", c.cfg, err, c.field)
		}
	}
}
