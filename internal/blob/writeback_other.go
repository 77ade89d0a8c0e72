//go:build !linux

package blob

import "os"

// begin does nothing where the system has nothing for it.
func begin(*os.File, int64, int64) {}
