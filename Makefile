.PHONY: demo test build bench lint crash mutations simulate

demo: build        # the main job on a simulated upstream: one file in, every answer out
	@examples/demo.sh

test:              # everything that proves something; installs what it needs where it can
	@.ci/test

build:
	go build -trimpath -ldflags "-s -w" -o bin/offpeak ./cmd/offpeak

lint:
	@.ci/lint

bench:             # beside the least that the same work costs on this machine: docs/benchmarks.md
	go run ./bench

crash:             # kill -9 at ROUNDS random moments, and whatever else breaks a process, with numbers
	OFFPEAK_CRASH_ROUNDS=$(or $(ROUNDS),100) go test -count 1 -v -timeout 1h ./crash
	OFFPEAK_CRASH_ROUNDS=$(or $(ROUNDS),100) OFFPEAK_CRASH_RACE=1 go test -count 1 -v -timeout 1h -run 'Rolling|Drain|Balancer|Stopped' ./crash

mutations:         # break each guard and see which test notices: docs/mutations.md, half an hour
	go test ./internal/mutations -run TestMutations -mutate -timeout 0 -v

simulate:          # everything that may happen to an engine, in SEEDS orders: make simulate SEEDS=100000
	go test ./internal/engine -run 'TestSimulation$$' -timeout 0 -seeds $(or $(SEEDS),10000)
