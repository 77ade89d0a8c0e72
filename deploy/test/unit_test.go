package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestUnit has systemd read the unit, and say how much it may do.
func TestUnit(t *testing.T) {
	text := read(t, filepath.Join(root, "deploy/offpeak.service"))
	stop := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindStringSubmatch(text)
	if stop == nil {
		t.Fatal("no TimeoutStopSec")
	}
	if d, _ := time.ParseDuration(stop[1] + "s"); d <= drain(t) {
		t.Errorf("it is killed after %v, within its drain", d)
	}
	for line := range strings.Lines(read(t, filepath.Join(root, "deploy/offpeak.environment"))) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "#")
		if name, _, assigned := strings.Cut(line, "="); assigned && !strings.Contains(name, " ") && !regexp.MustCompile(`^[A-Z0-9_]+$`).MatchString(name) {
			t.Errorf("environment: %s", line)
		}
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("systemd-analyze is missing: install Debian's package systemd")
		}
		t.Skip("systemd-analyze is missing (Debian's package systemd)")
	}
	bin, err := offpeak()
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "offpeak.service") // where the program is not installed
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(text, "/usr/local/bin/offpeak", bin)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
	// In tenths, of 100: 1.4 when this was written.
	if out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", unit).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
