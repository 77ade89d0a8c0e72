package engine

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"offpeak/internal/batch"
	"offpeak/internal/upstream"
)

// Metrics counts what an engine does. Register them with a prometheus registry.
type Metrics struct {
	results    *prometheus.CounterVec
	tokens     *prometheus.CounterVec
	prefixes   *prometheus.CounterVec
	ended      *prometheus.CounterVec
	latency    *prometheus.HistogramVec
	calls      *prometheus.CounterVec
	commits    prometheus.Histogram
	retried    prometheus.Counter
	journalled prometheus.Counter
	sealed     prometheus.Counter
	freed      prometheus.Counter

	// Of what is asked whenever somebody looks.
	batches, pressing                                            *prometheus.Desc
	nodes, lease, info                                           *prometheus.Desc
	inFlight, waiting, pausing                                   *prometheus.Desc // by lane
	calling, limit, up, throttled, limited, pressure, own, their *prometheus.Desc // by upstream
	sharing, ofAll, granted                                      *prometheus.Desc // by upstream, where there are other nodes
	engine                                                       *Engine

	// Looked up once, since they are counted for every request.
	kept, moved       prometheus.Counter    // of prefixes
	used              [4]prometheus.Counter // of tokens
	completed, failed prometheus.Counter    // of results
}

// NewMetrics returns metrics for one engine.
func NewMetrics() *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	lane, up := []string{"endpoint", "model"}, []string{"upstream"}
	m := &Metrics{
		results: vec("offpeak_requests_total", "Requests with a final result, by outcome: completed or failed.", "outcome"),
		ended:   vec("offpeak_batches_ended_total", "Batches that became terminal, by status.", "status"),
		calls:   vec("offpeak_upstream_calls_total", "Calls to upstreams, by class of the answer.", "upstream", "class"),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "offpeak_upstream_seconds", Help: "Duration of calls to upstreams.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2.5, 16), // 5 ms to 77 min
		}, []string{"upstream"}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "offpeak_journal_commit_seconds", Help: "Duration of journal commits.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		tokens:     vec("offpeak_tokens_total", "Tokens of answers by what their usage says: input, cached (of input), output, reasoning (of output).", "kind"),
		prefixes:   vec("offpeak_prefix_requests_total", "Requests with a long beginning in common with others, by whether the upstream had that before: kept or moved.", "home"),
		retried:    counter("offpeak_requests_retried_total", "Requests that were put back for another attempt."),
		journalled: counter("offpeak_journal_results_total", "Results handed to the journal's transactions."),
		sealed:     counter("offpeak_segments_sealed_total", "Segments sealed."),
		freed:      counter("offpeak_segments_freed_total", "Segments that this node freed, of nodes that it or others had taken for dead."),
		nodes:      prometheus.NewDesc("offpeak_nodes", "Nodes that live, as of the last heartbeat.", nil, nil),
		lease:      prometheus.NewDesc("offpeak_lease_seconds", "For how much longer this node may send without another heartbeat; absent where it has the database to itself.", nil, nil),
		info:       prometheus.NewDesc("offpeak_node_info", "1, with the name of this node.", []string{"node"}, nil),
		batches:    prometheus.NewDesc("offpeak_batches", "Batches that are not terminal, by status.", []string{"status"}, nil),
		pressing:   prometheus.NewDesc("offpeak_batches_pressing", "Batches that get more than their share, to be in time.", nil, nil),
		inFlight:   prometheus.NewDesc("offpeak_lane_in_flight", "Requests sent and unanswered.", lane, nil),
		waiting:    prometheus.NewDesc("offpeak_lane_waiting", "Requests held and not sent.", lane, nil),
		pausing:    prometheus.NewDesc("offpeak_lane_backing_off", "Of the requests that wait, those that wait for their next attempt to be due.", lane, nil),
		calling:    prometheus.NewDesc("offpeak_upstream_in_flight", "Calls sent and unanswered.", up, nil),
		limit:      prometheus.NewDesc("offpeak_upstream_in_flight_limit", "Calls that the upstream may get at a time.", up, nil),
		up:         prometheus.NewDesc("offpeak_upstream_up", "Whether the upstream answers: 1 or 0.", up, nil),
		throttled:  prometheus.NewDesc("offpeak_upstream_throttled_seconds", "For how much longer the upstream asked to be left alone.", up, nil),
		limited:    prometheus.NewDesc("offpeak_upstream_limited_seconds", "For how much longer the limits a minute allow no call.", up, nil),
		pressure:   prometheus.NewDesc("offpeak_upstream_pressure", "How hard a shared upstream is pressed for deadlines, from 0 to 1.", up, nil),
		sharing:    prometheus.NewDesc("offpeak_upstream_nodes", "Nodes that keep the upstream's limits together.", up, nil),
		ofAll:      prometheus.NewDesc("offpeak_upstream_limit_of_all", "Limits of all nodes together, by what is limited: calls in flight, requests or tokens a minute.", []string{"upstream", "limit"}, nil),
		granted:    prometheus.NewDesc("offpeak_upstream_granted", "Of them, what this node may use.", []string{"upstream", "limit"}, nil),
		own:        prometheus.NewDesc("offpeak_upstream_reported_running", "Requests that the upstream says it works on, whoever's.", up, nil),
		their:      prometheus.NewDesc("offpeak_upstream_reported_waiting", "Requests that the upstream says wait there, whoever's.", up, nil),
	}
	for i, kind := range []string{"input", "cached", "output", "reasoning"} {
		m.used[i] = m.tokens.WithLabelValues(kind)
	}
	m.kept, m.moved = m.prefixes.WithLabelValues("kept"), m.prefixes.WithLabelValues("moved")
	for _, s := range batch.Statuses { // so that the first to end is an increase
		if s.Terminal() {
			m.ended.WithLabelValues(string(s))
		}
	}
	m.completed, m.failed = m.results.WithLabelValues("completed"), m.results.WithLabelValues("failed")
	return m
}

func (m *Metrics) parts() []prometheus.Collector {
	return []prometheus.Collector{m.results, m.tokens, m.prefixes, m.ended, m.latency, m.calls, m.commits, m.retried, m.journalled, m.sealed, m.freed}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(c chan<- *prometheus.Desc) {
	for _, p := range m.parts() {
		p.Describe(c)
	}
	for _, d := range []*prometheus.Desc{
		m.batches, m.pressing, m.nodes, m.lease, m.info, m.inFlight, m.waiting, m.pausing,
		m.calling, m.limit, m.up, m.throttled, m.limited, m.pressure, m.own, m.their,
		m.sharing, m.ofAll, m.granted,
	} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(c chan<- prometheus.Metric) {
	for _, p := range m.parts() {
		p.Collect(c)
	}
	if m.engine != nil {
		m.engine.collect(c)
	}
}

func (m *Metrics) watch(e *Engine) { m.engine = e }

func (e *Engine) collect(c chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if counts, err := e.store.CountBatches(ctx); err == nil {
		for _, s := range batch.Statuses {
			if !s.Terminal() {
				gauge(e.metrics.batches, float64(counts[s]), string(s))
			}
		}
	}
	gauge(e.metrics.info, 1, e.cfg.Node)
	gauge(e.metrics.nodes, float64(e.member.live()))
	if left, ok := e.leaseLeft(time.Now()); ok {
		gauge(e.metrics.lease, left.Seconds())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	pressing := map[string]bool{}
	for k, l := range e.lanes {
		gauge(e.metrics.inFlight, float64(l.branch.inFlight), k.Endpoint, k.Model)
		gauge(e.metrics.waiting, float64(l.branch.waiting), k.Endpoint, k.Model)
		gauge(e.metrics.pausing, float64(len(l.retries)), k.Endpoint, k.Model)
		for _, s := range l.shares {
			for _, q := range s.queues {
				if q.weight > 1 {
					pressing[q.batch] = true
				}
			}
		}
	}
	gauge(e.metrics.pressing, float64(len(pressing)))
	for _, s := range e.sites {
		name := s.up.Name()
		up, throttled := 1.0, 0.0
		if _, down := s.down(now); down {
			up = 0
		}
		if until, ok := s.gate.Throttled(); ok {
			throttled = max(0, until.Sub(now).Seconds())
		}
		gauge(e.metrics.calling, float64(s.gate.InFlight()), name)
		gauge(e.metrics.limit, float64(s.gate.Limit()), name)
		gauge(e.metrics.up, up, name)
		gauge(e.metrics.throttled, throttled, name)
		if s.limitsAMinute() {
			wait, _ := s.usedUp(now)
			gauge(e.metrics.limited, wait.Seconds(), name)
		}
		if s.shared() {
			gauge(e.metrics.sharing, float64(s.allowance.grants[callLimit].Nodes), name)
			for _, g := range s.allowance.grants {
				if g.Of > 0 {
					gauge(e.metrics.ofAll, float64(g.Of), name, string(g.Limit))
					gauge(e.metrics.granted, float64(g.May), name, string(g.Limit))
				}
			}
		}
		if s.up.Shared() {
			gauge(e.metrics.pressure, s.pressure, name)
		}
		if load, ok := s.up.Load(); ok {
			gauge(e.metrics.own, float64(load.Running), name)
			gauge(e.metrics.their, float64(load.Waiting), name)
		}
	}
}

// A callMeter counts the calls of one worker.
type callMeter struct {
	m       *Metrics
	up      string
	latency prometheus.Observer
	classes [upstream.Aborted + 1]prometheus.Counter // those that there were; looked up once
}

func (m *Metrics) meter(u *upstream.Upstream) *callMeter {
	return &callMeter{m: m, up: u.Name(), latency: m.latency.WithLabelValues(u.Name())}
}

func (c *callMeter) call(class upstream.Class, d time.Duration) {
	if c.classes[class] == nil {
		c.classes[class] = c.m.calls.WithLabelValues(c.up, class.String())
	}
	c.classes[class].Inc()
	c.latency.Observe(d.Seconds())
}

func (m *Metrics) result(r batch.Result) {
	if r.OK() {
		m.completed.Inc()
	} else {
		m.failed.Inc()
	}
	for i, n := range [...]int64{r.Usage.Input, r.Usage.Cached, r.Usage.Output, r.Usage.Reasoning} {
		if n > 0 {
			m.used[i].Add(float64(n))
		}
	}
}

func (m *Metrics) commit(groups int, d time.Duration) { m.commits.Observe(d.Seconds()) }

// prefix counts a request by where it went; see choice.
func (m *Metrics) prefix(c choice) {
	switch c {
	case kept:
		m.kept.Inc()
	case moved:
		m.moved.Inc()
	}
}
