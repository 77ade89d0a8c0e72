package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMigrationsHaveFixtures wants for every migration a data folder that was made by the version
// which brought it, so that the versions to come can show that they take it over (TestUpgrade in
// package engine).
func TestMigrationsHaveFixtures(t *testing.T) {
	migrations, err := filepath.Glob("migrations/sqlite/*.sql")
	if err != nil || len(migrations) == 0 {
		t.Fatal(migrations, err)
	}
	for _, path := range migrations {
		version, _, _ := strings.Cut(filepath.Base(path), "_")
		fixture := filepath.Join("testdata/schema", version)
		if _, err := os.Stat(filepath.Join(fixture, "offpeak.db")); err != nil {
			t.Errorf("%s has no fixture. Once it is as it will be released, make one and commit it:\n"+
				"\tOFFPEAK_MAKE_FIXTURE=1 go test ./internal/engine -run TestMakeFixture\n"+
				"If the migration adds a table, let furnish in internal/engine/upgrade_test.go put something in it first. "+
				"Then let package doctor read the new schema: its constant is to be %s, too.", path, strings.TrimLeft(version, "0"))
		}
	}
}
