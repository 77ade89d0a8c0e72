.PHONY: demo test build bench lint mutations

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

mutations:         # break each guard and see which test notices: docs/mutations.md, half an hour
	go test ./internal/mutations -run TestMutations -mutate -timeout 0 -v
