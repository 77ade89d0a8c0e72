package blob

import (
	"os"
	"syscall"
)

// begin has the disk begin to write n bytes of f from off on. It waits for nothing and promises
// nothing: what failed the fsync tells.
func begin(f *os.File, off, n int64) {
	const rangeWrite = 2 // SYNC_FILE_RANGE_WRITE of sync_file_range(2)
	syscall.SyncFileRange(int(f.Fd()), off, n, rangeWrite)
}
