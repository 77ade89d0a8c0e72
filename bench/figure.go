package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A row measures one thing. It reports what it finds as figures.
type row struct {
	name string
	what string
	run  func(context.Context, *env) error
}

// A figure is one line of the table.
type figure struct {
	Row       string  `json:"row"`
	Case      string  `json:"case"` // what was measured, and at which size
	Unit      string  `json:"unit"`
	Measured  float64 `json:"measured"`
	Reference float64 `json:"reference,omitzero"` // the same, of what it is compared with
	Against   string  `json:"against,omitzero"`   // what that is
	Ratio     float64 `json:"ratio,omitzero"`     // measured to reference, or the reverse of times
	Goal      string  `json:"goal,omitzero"`
	Met       *bool   `json:"met,omitzero"`
	Reason    string  `json:"reason,omitzero"` // why the goal is missed, if it is
}

// A goal is what a figure should reach: in its ratio, or in what was measured.
type goal struct {
	of     string // "ratio" or "measured"; empty: there is none
	most   bool   // no more than, instead of no less than
	bound  float64
	reason string // why it is missed, where it is: as far as is known
}

func ratioOf(least float64, reason string) goal  { return goal{"ratio", false, least, reason} }
func ratioUpTo(most float64, reason string) goal { return goal{"ratio", true, most, reason} }
func atMost(most float64, reason string) goal    { return goal{"measured", true, most, reason} }
func atLeast(least float64, reason string) goal  { return goal{"measured", false, least, reason} }

// report prints a figure and keeps it.
func (e *env) report(f figure, g goal) {
	f.Row = e.row
	f.Measured, f.Reference, f.Ratio = rounded(f.Measured), rounded(f.Reference), rounded(f.Ratio)
	verdict := ""
	if g.of != "" {
		value, unit := f.Ratio, ""
		if g.of == "measured" {
			value, unit = f.Measured, " "+f.Unit
		}
		met, sign := value >= g.bound, "≥"
		if g.most {
			met, sign = value <= g.bound, "≤"
		}
		f.Goal, f.Met = fmt.Sprintf("%s %s%s", sign, number(g.bound), unit), &met
		verdict = "met"
		if !met {
			verdict, f.Reason = "MISSED", g.reason
		}
	}
	e.figures = append(e.figures, f)
	reference, ratio := "", ""
	if f.Against != "" {
		reference = number(f.Reference) + " " + f.Against
	}
	if f.Ratio != 0 {
		ratio = fmt.Sprintf("%.2f", f.Ratio)
	}
	fmt.Fprintf(e.out, tableLine, f.Row, f.Case, number(f.Measured)+" "+f.Unit, reference, ratio, f.Goal, verdict)
	if f.Reason != "" {
		fmt.Fprintf(e.out, "%12s└ %s\n", "", f.Reason)
	}
}

const tableLine = "%-11s %-46s %18s  %-24s %5s  %-16s %s\n"

func (e *env) heading() {
	fmt.Fprintf(e.out, "%s\n\n", e.machine())
	fmt.Fprintf(e.out, tableLine, "row", "case", "measured", "reference", "ratio", "goal", "")
}

func (e *env) summary() {
	var met, missed int
	for _, f := range e.figures {
		switch {
		case f.Met == nil:
		case *f.Met:
			met++
		default:
			missed++
		}
	}
	fmt.Fprintf(e.out, "\n%d goals met, %d missed; %v\n", met, missed, time.Since(e.began).Round(time.Second))
}

// number writes v with as many digits as tell something, and commas between thousands.
func number(v float64) string {
	switch {
	case v >= 1000:
		digits := fmt.Sprintf("%.0f", v)
		for i := len(digits) - 3; i > 0; i -= 3 {
			digits = digits[:i] + "," + digits[i:]
		}
		return digits
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v == float64(int(v)):
		return fmt.Sprint(int(v))
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return strings.TrimRight(fmt.Sprintf("%.3f", v), "0")
	}
}

// rounded drops digits that no measurement has.
func rounded(v float64) (r float64) {
	fmt.Sscanf(fmt.Sprintf("%.5g", v), "%g", &r)
	return r
}

// machine says where the figures come from: they mean little without.
func (e *env) machine() string {
	cpu := "unknown CPU"
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name\t: "); ok {
			cpu = strings.TrimSpace(name)
			break
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	size := "small sizes"
	if e.full {
		size = "full sizes"
	}
	return fmt.Sprintf("%d × %s, Linux %s, %s, %s, medians of %d, %s", runtime.NumCPU(), cpu,
		strings.TrimSpace(string(kernel)), runtime.Version(), size, e.reps, e.began.UTC().Format(time.RFC3339))
}

// record appends the figures as a line of JSON to the file at path; "-" is out.
func (e *env) record(path string, out io.Writer) error {
	if path == "" {
		return nil
	}
	commit, _ := exec.Command("git", "describe", "--always", "--dirty").Output()
	line, err := json.Marshal(struct {
		Time    time.Time `json:"time"`
		Commit  string    `json:"commit"`
		Machine string    `json:"machine"`
		Full    bool      `json:"full"`
		Figures []figure  `json:"figures"`
	}{e.began, strings.TrimSpace(string(commit)), e.machine(), e.full, e.figures})
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if path == "-" {
		_, err := out.Write(line)
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(line); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// inTurn runs every one of these as often as medians take, one after the other and again: what else
// goes on at the machine meets all of them alike.
func (e *env) inTurn(runs ...func() error) error {
	for range e.reps {
		for _, run := range runs {
			if err := run(); err != nil {
				return err
			}
		}
	}
	return nil
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile returns the value that the part q of v is not above.
func quantile(v []float64, q float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[min(len(v)-1, int(q*float64(len(v))))]
}
