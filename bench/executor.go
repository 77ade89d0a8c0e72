package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// A sample is one run of one input.
type sample struct {
	rate float64 // requests/s, from the first that the upstream saw to its last answer
	cpu  float64 // seconds per 10,000 requests
	wall float64 // seconds from create to completed
}

// bare runs the bare loop over an input.
func (e *env) bare(ctx context.Context, up *stub, in input, inFlight int) (sample, error) {
	r := up.expect(in.lines)
	u, err := e.reference(ctx, "bare", "-in", in.bodies, "-out", e.path("bare.out"),
		"-url", strings.TrimSuffix(up.url(), "/v1")+in.endpoint, "-c", strconv.Itoa(inFlight))
	if err != nil {
		return sample{}, err
	}
	if err := r.wait(ctx); err != nil {
		return sample{}, err
	}
	return sample{rate: r.rate(), cpu: perTenThousand(u.cpu, in.lines)}, nil
}

// batch runs a file that is uploaded already as a batch. What it costs is what the server uses from
// the call that creates it until it is completed: every check, journal and sealing included.
func (e *env) batch(ctx context.Context, s *server, up *stub, in input, file string) (sample, error) {
	r := up.expect(in.lines)
	before, err := s.cpu()
	if err != nil {
		return sample{}, err
	}
	start := time.Now()
	id, err := s.create(ctx, file, in.endpoint)
	if err != nil {
		return sample{}, err
	}
	if _, err := s.await(ctx, id, "completed", 20*time.Millisecond); err != nil {
		return sample{}, err
	}
	wall := time.Since(start)
	after, err := s.cpu()
	if err != nil {
		return sample{}, err
	}
	if n := r.came.Load(); n != r.want {
		return sample{}, fmt.Errorf("%d requests were sent of %d", n, r.want)
	}
	return sample{rate: r.rate(), cpu: perTenThousand(after-before, in.lines), wall: wall.Seconds()}, nil
}

func perTenThousand(cpu time.Duration, n int) float64 { return cpu.Seconds() / float64(n) * 10_000 }

// medianOf is the median of one number of each sample.
func medianOf(all []sample, of func(sample) float64) float64 {
	v := make([]float64, len(all))
	for i, s := range all {
		v[i] = of(s)
	}
	return median(v)
}

func rate(s sample) float64 { return s.rate }
func cpu(s sample) float64  { return s.cpu }

// executor compares batches with the bare loop over the same bodies, and with wrk, which sends one
// body again and again and looks at no answer.
func executor(ctx context.Context, e *env) error {
	in, err := e.chats(50_000, 335)
	if err == nil {
		in, err = in.withBodies()
	}
	if err != nil {
		return err
	}
	up, err := newStub(0, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	_, noWrk := exec.LookPath("wrk")
	for _, inFlight := range []int{64, 256, 1000} {
		if err := e.executorAt(ctx, up, in, inFlight, noWrk == nil); err != nil {
			return err
		}
	}
	if noWrk != nil {
		fmt.Fprintln(e.out, "            └ wrk is not installed (Debian package wrk), so it is left out")
	}
	return nil
}

func (e *env) executorAt(ctx context.Context, up *stub, in input, inFlight int, withWrk bool) error {
	s, err := e.serve(ctx, serving{upstream: up.url(), inFlight: inFlight})
	if err != nil {
		return err
	}
	defer s.stop()
	file, err := s.upload(ctx, in.path)
	if err != nil {
		return err
	}
	var bares, ours, wrks []sample
	err = e.inTurn(func() error {
		x, err := e.bare(ctx, up, in, inFlight)
		bares = append(bares, x)
		return err
	}, func() error {
		x, err := e.batch(ctx, s, up, in, file)
		ours = append(ours, x)
		return err
	}, func() error {
		if !withWrk {
			return nil
		}
		x, err := e.wrk(ctx, up, in, inFlight)
		wrks = append(wrks, x)
		return err
	})
	if err != nil {
		return err
	}
	is := fmt.Sprintf("%s × 335 B, %s in flight", number(float64(in.lines)), number(float64(inFlight)))
	our, loop := medianOf(ours, rate), medianOf(bares, rate)
	e.report(figure{Case: is, Unit: "requests/s", Measured: our, Reference: loop, Against: "bare loop", Ratio: our / loop},
		ratioOf(1.5, reasonExecutor))
	if withWrk {
		limit := medianOf(wrks, rate)
		e.report(figure{Case: is, Unit: "requests/s", Measured: our, Reference: limit, Against: "wrk", Ratio: our / limit}, goal{})
	}
	our, loop = medianOf(ours, cpu), medianOf(bares, cpu)
	e.report(figure{Case: is + ", CPU", Unit: "s/10,000", Measured: our, Reference: loop, Against: "bare loop", Ratio: our / loop},
		ratioUpTo(1, reasonExecutorCPU))
	if withWrk {
		limit := medianOf(wrks, cpu)
		e.report(figure{Case: is + ", CPU", Unit: "s/10,000", Measured: our, Reference: limit, Against: "wrk", Ratio: our / limit}, goal{})
	}
	return nil
}

const (
	reasonExecutor    = "half of the CPU goes into sockets, as with the loop; validation, journal and sealing come on top, and upstream and server share the cores"
	reasonExecutorCPU = "validation, journal and sealing, which the loop does not have, take more than what is saved on each call"
)

// wrk runs wrk for two seconds against the upstream.
func (e *env) wrk(ctx context.Context, up *stub, in input, inFlight int) (sample, error) {
	bodies, err := os.ReadFile(in.bodies)
	if err != nil {
		return sample{}, err
	}
	body, _, _ := strings.Cut(string(bodies), "\n")
	script := e.path("post.lua")
	text := fmt.Sprintf("wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = [[%s]]\n", body)
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		return sample{}, err
	}
	up.expect(1 << 40)
	u, err := measure(command(ctx, "wrk", "-t", "1", "-c", strconv.Itoa(inFlight), "-d", "2s", "-s", script,
		strings.TrimSuffix(up.url(), "/v1")+in.endpoint))
	if err != nil {
		return sample{}, err
	}
	var n int
	var x sample
	for line := range strings.Lines(string(u.output)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Requests/sec:"); ok {
			x.rate, err = strconv.ParseFloat(strings.TrimSpace(v), 64)
		} else if before, _, ok := strings.Cut(line, " requests in "); ok {
			n, err = strconv.Atoi(strings.TrimSpace(before))
		}
		if err != nil {
			return sample{}, err
		}
	}
	if n == 0 || x.rate == 0 {
		return sample{}, fmt.Errorf("wrk says %s", u.output)
	}
	x.cpu = perTenThousand(u.cpu, n)
	return x, nil
}
