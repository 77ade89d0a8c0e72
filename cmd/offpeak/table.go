package main

import (
	"cmp"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"offpeak/internal/openai"
)

// printList prints the first limit values of all, or every one if limit is 0: as a table with one
// row each, or as JSON lines.
func printList[T any](w io.Writer, all iter.Seq2[T, error], limit int, json bool, head string, row func(T) string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if !json {
		fmt.Fprintln(t, head)
	}
	n := 0
	for v, err := range all {
		if err != nil {
			if n > 0 {
				t.Flush() // what came before is true
			}
			return err
		}
		if json {
			if err := printJSON(w, v); err != nil {
				return err
			}
		} else {
			fmt.Fprintln(t, row(v))
		}
		if n++; n == limit {
			break
		}
	}
	return t.Flush()
}

// rows are the lines "name  value" of one thing.
type rows struct{ t *tabwriter.Writer }

func newRows(w io.Writer) rows { return rows{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

// add adds a line, unless there is no value.
func (r rows) add(name, value string) {
	if value != "" {
		fmt.Fprintf(r.t, "%s\t%s\n", name, value)
	}
}

func (r rows) flush() error { return r.t.Flush() }

// printJSON prints v as one line, as the API would.
func printJSON(w io.Writer, v any) error {
	b, err := openai.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// localTime writes unix seconds for people; 0 is empty.
func localTime(seconds int64) string {
	if seconds == 0 {
		return ""
	}
	return time.Unix(seconds, 0).Format("2006-01-02 15:04:05")
}

func orDash(s string) string { return cmp.Or(s, "-") }

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
