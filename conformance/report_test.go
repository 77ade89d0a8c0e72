package conformance

import (
	"strings"
	"testing"
)

func TestChecks(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range Checks() {
		if c.ID == "" || seen[c.ID] || !strings.HasSuffix(c.Title, ".") || c.Rules == "" {
			t.Errorf("not a check of its own: %+v", c)
		}
		seen[c.ID] = true
	}
}

func TestReadReport(t *testing.T) {
	checks := Checks()
	r, err := ReadReport("x", strings.NewReader(checks[0].ID+"  ok\n"+checks[1].ID+"  FAILED  line 3:  two  spaces\n"+checks[2].ID+"  -  no such thing\n"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []Outcome{{OK, ""}, {Failed, "line 3:  two  spaces"}, {Lacking, "no such thing"}, {Missing, ""}} {
		if got := r.Outcomes[checks[i].ID]; got != want {
			t.Errorf("%s: got %v, want %v", checks[i].ID, got, want)
		}
	}
	for _, bad := range []string{"no-such-check  ok", checks[0].ID + "  maybe", checks[0].ID + "  ok\n" + checks[0].ID + "  ok", "Traceback"} {
		if _, err := ReadReport("x", strings.NewReader(bad)); err == nil {
			t.Errorf("%q is taken for a report", bad)
		}
	}
}
