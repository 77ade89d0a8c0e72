.PHONY: demo test build bench lint simulate

demo: build        # the main job on a simulated upstream: one file in, every answer out
	@examples/demo.sh

test:              # everything that proves something; installs what it needs where it can
	@.ci/test

build:
	go build -trimpath -o bin/offpeak ./cmd/offpeak

lint:
	@.ci/lint

bench:             # beside a bare loop of net/http, in one run
	go run ./bench

SEEDS = 10000
simulate:          # everything that may happen to an engine, in as many orders: make simulate SEEDS=100000
	go test ./internal/engine -run 'TestSimulation$$' -timeout 0 -seeds $(SEEDS)
