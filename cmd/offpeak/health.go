package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// healthCmd is `offpeak health`: what a container, a unit or a script asks that has no HTTP client
// at hand. An image of ours has nothing but this program.
type healthCmd struct {
	Listen  string        `default:"127.0.0.1:8080" placeholder:"ADDR" env:"OFFPEAK_LISTEN" help:"Address that the server was told to listen on, on this machine (default: ${default})."`
	Ready   bool          `help:"Ask whether it can serve: one that is starting, stopping or without its database says no. Without this flag it only has to be alive."`
	Timeout time.Duration `default:"3s" placeholder:"DURATION" help:"How long it may take to answer (default: ${default})."`
}

// Help implements kong.HelpProvider.
func (healthCmd) Help() string {
	return "Exit codes: 0 the server says yes; 1 it says no, or nothing."
}

// Run asks the server on this machine.
func (cmd *healthCmd) Run(ctx context.Context, s *streams) error {
	address, err := localAddress(cmd.Listen)
	if err != nil {
		return err
	}
	path := "/healthz"
	if cmd.Ready {
		path = "/readyz"
	}
	ctx, cancel := context.WithTimeout(ctx, cmd.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", cmd.Listen, err)
	}
	// No proxy stands between a machine and itself, whatever the environment says.
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", req.URL, resp.Status, strings.Join(strings.Fields(string(text)), " "))
	}
	_, err = fmt.Fprintln(s.Out, "ok")
	return err
}

// localAddress returns where a server can be reached from this machine that listens on an address.
func localAddress(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("--listen %s: %w", listen, err)
	}
	if port == "" || port == "0" {
		return "", fmt.Errorf("--listen %s: say which port the server has taken", listen)
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = "127.0.0.1" // one that listens on all addresses listens on this one, of IPv6, too
	}
	return net.JoinHostPort(host, port), nil
}
