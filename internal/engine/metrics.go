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
	ended      *prometheus.CounterVec
	latency    *prometheus.HistogramVec
	calls      *prometheus.CounterVec
	commits    prometheus.Histogram
	retried    prometheus.Counter
	journalled prometheus.Counter
	sealed     prometheus.Counter

	batches, inFlight, waiting, limit, up *prometheus.Desc
	engine                                *Engine
}

// NewMetrics returns metrics for one engine.
func NewMetrics() *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
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
		retried:    counter("offpeak_requests_retried_total", "Requests that were put back for another attempt."),
		journalled: counter("offpeak_journal_results_total", "Results handed to the journal's transactions."),
		sealed:     counter("offpeak_segments_sealed_total", "Segments sealed."),
		batches:    prometheus.NewDesc("offpeak_batches", "Batches that are not terminal, by status.", []string{"status"}, nil),
		inFlight:   prometheus.NewDesc("offpeak_lane_in_flight", "Requests sent and unanswered.", []string{"endpoint", "model"}, nil),
		waiting:    prometheus.NewDesc("offpeak_lane_waiting", "Requests held and not sent.", []string{"endpoint", "model"}, nil),
		limit:      prometheus.NewDesc("offpeak_upstream_in_flight_limit", "Calls that the upstream may get at a time.", []string{"upstream"}, nil),
		up:         prometheus.NewDesc("offpeak_upstream_up", "Whether the upstream answers: 1 or 0.", []string{"upstream"}, nil),
	}
	for _, outcome := range []string{"completed", "failed"} {
		m.results.WithLabelValues(outcome) // present from the start, as zero
	}
	return m
}

func (m *Metrics) parts() []prometheus.Collector {
	return []prometheus.Collector{m.results, m.ended, m.latency, m.calls, m.commits, m.retried, m.journalled, m.sealed}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(c chan<- *prometheus.Desc) {
	for _, p := range m.parts() {
		p.Describe(c)
	}
	for _, d := range []*prometheus.Desc{m.batches, m.inFlight, m.waiting, m.limit, m.up} {
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
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, l := range e.lanes {
		gauge(e.metrics.inFlight, float64(l.inFlight), k.Endpoint, k.Model)
		gauge(e.metrics.waiting, float64(l.held()-l.inFlight), k.Endpoint, k.Model)
	}
	for _, s := range e.sites {
		_, _, closed := s.gate.Closed()
		up := 1.0
		if closed {
			up = 0
		}
		gauge(e.metrics.up, up, s.up.Name())
		gauge(e.metrics.limit, float64(s.gate.Limit()), s.up.Name())
	}
}

func (m *Metrics) call(u *upstream.Upstream, class upstream.Class, d time.Duration) {
	m.calls.WithLabelValues(u.Name(), class.String()).Inc()
	m.latency.WithLabelValues(u.Name()).Observe(d.Seconds())
}

func (m *Metrics) result(r batch.Result) {
	outcome := "failed"
	if r.OK() {
		outcome = "completed"
	}
	m.results.WithLabelValues(outcome).Inc()
}

func (m *Metrics) commit(groups int, d time.Duration) { m.commits.Observe(d.Seconds()) }
