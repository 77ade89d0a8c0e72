package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"
)

// A Load is what an upstream says of itself: how many requests it works on, and how many wait there
// for their turn. They may be anybody's.
type Load struct {
	Running, Waiting int
	At               time.Time // when it said so
}

const (
	loadEvery       = time.Second
	loadEveryShared = 250 * time.Millisecond // people should not wait for long behind a batch
	loadTimeout     = time.Second
	loadGood        = 5 * time.Second // how long a reading is of use
	loadAgain       = 5 * time.Second // after a failure
	loadNone        = time.Minute     // where there is nothing to read
	maxMetrics      = 8 << 20
)

// Load returns the last reading of the upstream's metrics. It is not ok where there is none, or
// none that is recent enough. As long as somebody asks, or calls are in flight, it is kept fresh.
func (u *Upstream) Load() (l Load, ok bool) {
	now := time.Now()
	if u.metrics != nil && now.Sub(time.Unix(0, u.looked.Swap(now.UnixNano()))) >= loadGood {
		wake(u.work)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.load, !u.load.At.IsZero() && now.Sub(u.load.At) < loadGood
}

// wake has whoever reads c look soon, if it does not look anyway.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// followLoad reads the upstream's metrics again and again while anybody could want to know, until
// ctx ends. It tells of each reading.
func (u *Upstream) followLoad(ctx context.Context, tell func()) {
	if u.metrics == nil {
		return
	}
	every := loadEvery
	if u.cfg.Shared {
		every = loadEveryShared
	}
	for {
		if u.calls.Load() == 0 && time.Since(time.Unix(0, u.looked.Load())) >= loadGood {
			select {
			case <-u.work:
				continue
			case <-ctx.Done():
				return
			}
		}
		wait := every
		switch err := u.readLoad(ctx); {
		case err == nil:
			tell()
		case errors.Is(err, errNoMetrics):
			wait = loadNone
		default:
			wait = loadAgain
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// errNoMetrics tells of an upstream that answers and says nothing of its load.
var errNoMetrics = errors.New("no metrics of requests that run and wait")

// readLoad reads the upstream's metrics once.
func (u *Upstream) readLoad(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.metrics.String(), nil)
	if err != nil {
		return err
	}
	if u.metrics.Scheme == u.base.Scheme && u.metrics.Host == u.base.Host {
		req.Header = u.header.Clone() // elsewhere its key is nobody's business
		req.Header.Del("Content-Type")
	}
	req.Header.Set("Accept", "text/plain")
	resp, err := u.rt.RoundTrip(req)
	if err != nil {
		return plain(err)
	}
	defer resp.Body.Close()
	if s := resp.StatusCode; s != http.StatusOK {
		if classOf(s) == Throttled || classOf(s) == Transient && s != http.StatusNotImplemented {
			return errors.New(resp.Status)
		}
		return errNoMetrics
	}
	l, found, err := parseLoad(io.LimitReader(resp.Body, maxMetrics))
	switch {
	case err != nil:
		return plain(err)
	case !found:
		return errNoMetrics
	}
	l.At = time.Now()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.load = l
	return nil
}

// loadMetrics are the gauges of interest, by name: those of requests that wait are marked. vLLM's
// have had these names since its beginning, except that requests swapped out of memory, which wait
// as well, had one of their own until its V1 engine.
var loadMetrics = map[string]bool{
	"vllm:num_requests_running": false, "vllm:num_requests_waiting": true, "vllm:num_requests_swapped": true,
	"sglang:num_running_reqs": false, "sglang:num_queue_reqs": true,
	"llamacpp:requests_processing": false, "llamacpp:requests_deferred": true,
}

// parseLoad reads metrics in Prometheus' text format, and adds up what stands under the names that
// we know: one server may tell of several models and engines. A parser of the whole format would
// have to understand thousands of lines four times a second for the sake of two.
func parseLoad(r io.Reader) (l Load, found bool, err error) {
	series := map[string]float64{}
	lines := bufio.NewReaderSize(r, 16<<10)
	for err == nil {
		var line []byte
		line, err = lines.ReadSlice('\n')
		if err == bufio.ErrBufferFull { // none of ours is so long
			for err == bufio.ErrBufferFull {
				_, err = lines.ReadSlice('\n')
			}
			continue
		}
		name, key, value, ok := parseSample(line)
		if !ok {
			continue
		}
		// Processes that share the work on the same requests tell the same of them.
		key = name + key
		series[key] = max(series[key], value)
	}
	if err != io.EOF {
		return Load{}, false, err
	}
	var running, waiting float64
	for key, v := range series {
		name, _, _ := bytes.Cut([]byte(key), []byte("{"))
		if loadMetrics[string(name)] {
			waiting += v
		} else {
			running, found = running+v, true
		}
	}
	const most = 1 << 30
	return Load{Running: int(min(running, most)), Waiting: int(min(waiting, most))}, found, nil
}

// parseSample reads one line of a metric of interest: its name, the labels that tell it from others
// of the name, and its value.
func parseSample(line []byte) (name, labels string, value float64, ok bool) {
	end := bytes.IndexAny(line, "{ \t")
	if end < 0 || line[0] == '#' {
		return "", "", 0, false
	}
	if _, ok := loadMetrics[string(line[:end])]; !ok {
		return "", "", 0, false
	}
	name, line = string(line[:end]), line[end:]
	if line[0] == '{' {
		if labels, line, ok = parseLabels(line[1:]); !ok {
			return "", "", 0, false
		}
	}
	fields := bytes.Fields(line) // perhaps with a timestamp
	if len(fields) == 0 {
		return "", "", 0, false
	}
	value, err := strconv.ParseFloat(string(fields[0]), 64)
	return name, labels, value, err == nil && !math.IsNaN(value) && value >= 0
}

// parseLabels reads labels up to their closing brace. It leaves those out in which the processes
// differ that work on the same requests together, and is not ok for a part of a sum that is told,
// too: SGLang has its requests of each priority beside those of all, whose priority is empty.
func parseLabels(line []byte) (labels string, rest []byte, ok bool) {
	for {
		line = bytes.TrimLeft(line, ", \t")
		if len(line) == 0 {
			return "", nil, false
		}
		if line[0] == '}' {
			return "{" + labels, line[1:], true
		}
		name, quoted, _ := bytes.Cut(line, []byte("="))
		quoted = bytes.TrimLeft(quoted, " \t")
		if len(quoted) == 0 || quoted[0] != '"' {
			return "", nil, false
		}
		label := string(bytes.TrimSpace(name))
		line = quoted[1:]
		end := 0
		for ; end < len(line) && line[end] != '"'; end++ {
			if line[end] == '\\' {
				end++
			}
		}
		if end >= len(line) {
			return "", nil, false
		}
		value := string(line[:end])
		line = line[end+1:]
		switch label {
		case "tp_rank", "pp_rank", "moe_ep_rank":
		case "priority":
			if value != "" {
				return "", nil, false
			}
		default:
			labels += label + `="` + value + `",`
		}
	}
}
