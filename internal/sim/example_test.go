package sim_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"

	"offpeak/internal/sim"
)

// A server that throttles every request once, and answers it the second time.
func ExampleStart() {
	up, err := sim.Start(sim.Config{Faults: sim.Faults{Throttle: 1, Attempts: 1}}, "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer up.Close()

	const body = `{"model":"any","max_tokens":3,"messages":[{"role":"user","content":"How are you?"}]}`
	for range 2 {
		res, err := http.Post(up.URL()+"/chat/completions", "application/json", strings.NewReader(body))
		if err != nil {
			log.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		fmt.Println(res.Status)
	}
	calls, answered := up.CallsOf([]byte(body))
	fmt.Println(calls, "calls,", answered, "answered")
	// Output:
	// 429 Too Many Requests
	// 200 OK
	// 2 calls, 1 answered
}
