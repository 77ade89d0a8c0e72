#!/bin/sh
# The main job on a simulated upstream: a file of 120 requests in, every answer out.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
out=offpeak-demo.jsonl
rm -rf "$out" offpeak-demo.errors.jsonl "$out.offpeak"

echo "\$ offpeak run examples/requests.jsonl -o $out --upstream sim"
# Exit code 2: some requests were refused, as three of these must be.
bin/offpeak run examples/requests.jsonl -o "$out" --upstream sim --max-in-flight 8 || [ $? -eq 2 ]

show() { # a custom_id and what was said to it, a line each
	sed -E 's/.*"custom_id":"([^"]*)".*"(content|message)":"(([^"\\]|\\.)*)".*/  \1: \3/' | cut -c 1-150
}
printf '\nThe answers are in %s, in the order of the requests. The first ones:\n' "$out"
head -5 "$out" | show
printf '\nWhat the upstream refused is in offpeak-demo.errors.jsonl:\n'
show <offpeak-demo.errors.jsonl
printf '\nNow with your own: bin/offpeak run YOUR.jsonl --upstream http://localhost:8000/v1\n'
