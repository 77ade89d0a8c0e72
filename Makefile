.PHONY: demo test build bench lint

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
