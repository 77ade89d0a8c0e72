package main

import (
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"offpeak/internal/blob/s3test"
	"offpeak/internal/store/pgtest"
)

// cluster starts what nodes share, and names it in $database, an empty PostgreSQL database, and
// $blobs, an S3 bucket without anything in it:
//
//	cluster
func cluster(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: cluster")
	}
	s := scriptOf(ts)
	ts.Setenv("database", pgtest.Get(s.t).TCP(pgtest.Empty(s.t)))
	ts.Setenv("blobs", s3test.Start(s.t).Bucket(s.t))
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"} {
		ts.Setenv(name, os.Getenv(name))
		s.env = append(s.env, name+"="+os.Getenv(name))
	}
}
