package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set when a release is built.
var version = "development"

// versionCmd is `offpeak version`.
type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(s *streams) error {
	revision := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, v := range info.Settings {
			if v.Key == "vcs.revision" {
				revision = " " + v.Value[:min(len(v.Value), 12)]
			}
		}
	}
	_, err := fmt.Fprintf(s.Out, "offpeak %s%s (%s, %s/%s)\n", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}
