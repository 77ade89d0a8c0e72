package progress_test

import (
	"os"
	"time"

	"offpeak/internal/progress"
)

func Example() {
	p := progress.NewPlain(os.Stdout)
	defer p.Close()

	start := time.Now()
	p.Update(progress.Snapshot{Time: start, Status: "in_progress", Total: 1000})
	p.Update(progress.Snapshot{Time: start.Add(2 * time.Second), Status: "in_progress", Total: 1000, Completed: 80})
	p.Update(progress.Snapshot{Time: start.Add(5 * time.Second), Status: "in_progress", Total: 1000, Completed: 199, Failed: 1})
	p.Message("interrupted; waiting for requests in flight")
	p.Summary(progress.Summary{
		Status: "interrupted", Total: 1000, Completed: 220, Failed: 1, Elapsed: 6 * time.Second,
		Codes: map[string]int64{"invalid_value": 1},
		Next:  "Run the same command again to go on.",
	})

	// Output:
	// in_progress: 0 of 1,000 (0%), 0 req/s, 0:00 elapsed, ETA –
	// in_progress: 200 of 1,000 (20%), 1 failed, 40 req/s, 0:05 elapsed, ETA 0:20
	// interrupted; waiting for requests in flight
	// interrupted: 220 of 1,000 succeeded, 1 failed, 779 not answered
	//   errors    invalid_value: 1
	//   time      6.0 s, 37 requests/s
	// Run the same command again to go on.
}
