// Package crash breaks real processes of the real binary and looks whether Offpeak keeps its
// promises (docs/design.md): kill -9 at random moments, SIGTERM, SIGSTOP, full and failing disks,
// folders that were copied away and come back.
//
// The upstream is in the test's own process, so that it outlives what is broken and knows of every
// call: when it came, whether it was answered, and with what. After each break the data folder is
// examined as it lies there, which tells what was recorded; the upstream then tells whether any of
// it was asked for again.
//
// A cluster is several nodes on PostgreSQL with a synchronous standby and on S3 (package lab). Each
// node has relays of its own to those and to the upstream, which can be cut.
//
//	go test ./crash                  a few rounds of everything
//	make crash ROUNDS=100            more of them, and numbers
//
// What is left to chance is drawn from a seed that is printed; OFFPEAK_TEST_SEED=N draws the same
// again. The moment of a kill is among that, yet no two runs interleave alike. A fault of the disk is
// named when it breaks something, and OFFPEAK_CRASH_FAULT=fsync:error=EIO:when=14+ has it again.
//
// Some tests need root (a disk of their own), strace, leave to trace a process, PostgreSQL, PgBouncer,
// or versitygw. Without that they are skipped, and fail where CI=true.
package crash
