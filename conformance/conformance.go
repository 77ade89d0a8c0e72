// Package conformance puts OpenAI's official SDKs, unmodified, to Offpeak as it ships: the binary,
// with simulated model servers behind it.
//
// Each of the folders python, node, go and java is one suite: a program that runs the same checks
// in the words of its language and prints a line for each, "id  ok", "id  FAILED  why", or
// "id  -  why" where the SDK has no such thing. What each id stands for is said once, in
// checks.tsv. TestSDKs starts the servers, runs the suites and prints one table of them all:
//
//	go test ./conformance -v
//	go test ./conformance -v -run TestSDKs/python
//
// SDKs are pinned, by python/requirements*.txt, node/package-lock.json, go.mod and java/pom.xml, for
// Python and Node in two generations: the newest and the one before, which many still use. Suites
// install them under .cache and find them there the next time. A runtime that is missing is an
// error in CI and a note elsewhere.
package conformance

import (
	"bufio"
	_ "embed"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

//go:embed checks.tsv
var checksTSV string

// A Check is something that every SDK must be able to do.
type Check struct {
	ID    string
	Title string // one sentence
	Rules string // of the contract
}

// Checks lists every check there is.
func Checks() []Check {
	var checks []Check
	for row := range strings.Lines(checksTSV) {
		f := strings.Split(strings.TrimSpace(row), "\t")
		checks = append(checks, Check{ID: f[0], Title: f[1], Rules: f[2]})
	}
	return checks[1:] // below the heading
}

// Outcomes of a check.
const (
	OK      = "ok"
	Failed  = "FAILED"
	Lacking = "-"       // the SDK has no such thing
	Missing = "missing" // the suite did not say, or did not run
)

// An Outcome is how a check went, and why.
type Outcome struct {
	Result string
	Detail string
}

// A Report is what came of one suite.
type Report struct {
	Suite    string
	Outcomes map[string]Outcome // by id
}

// ReadReport reads what a suite prints. A check that is listed and not in it is Missing; one that
// is in it and not listed is an error.
func ReadReport(suite string, r io.Reader) (Report, error) {
	report := Report{suite, make(map[string]Outcome)}
	for _, c := range Checks() {
		report.Outcomes[c.ID] = Outcome{Result: Missing}
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		id, rest, _ := strings.Cut(lines.Text(), "  ")
		result, detail, _ := strings.Cut(rest, "  ")
		if o, ok := report.Outcomes[id]; !ok || o.Result != Missing {
			return report, fmt.Errorf("%s: unknown or repeated check: %q", suite, lines.Text())
		}
		if result != OK && result != Failed && result != Lacking {
			return report, fmt.Errorf("%s: not a result: %q", suite, lines.Text())
		}
		report.Outcomes[id] = Outcome{result, detail}
	}
	return report, lines.Err()
}

// WriteTable writes one row per check and one column per suite, and below it a note on everything
// that failed or is lacking.
func WriteTable(w io.Writer, reports []Report) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "check")
	for _, r := range reports {
		fmt.Fprint(table, "\t", r.Suite)
	}
	fmt.Fprint(table, "\twhat is checked\n")
	var notes strings.Builder
	for _, c := range Checks() {
		fmt.Fprint(table, c.ID)
		for _, r := range reports {
			o := r.Outcomes[c.ID]
			fmt.Fprint(table, "\t", o.Result)
			if o.Result == Failed || o.Result == Lacking {
				fmt.Fprintf(&notes, "%s  %s  %s: %s\n", o.Result, r.Suite, c.ID, o.Detail)
			}
		}
		fmt.Fprintf(table, "\t%s\n", c.Title)
	}
	table.Flush()
	_, err := fmt.Fprint(w, "\n", notes.String())
	return err
}
