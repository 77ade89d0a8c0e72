// Command go puts OpenAI's Go SDK to Offpeak. See package conformance, which runs it; its
// checks.tsv says what each id stands for.
package main

import (
	"fmt"
	"slices"
)

func main() {
	for _, t := range slices.Concat(fileChecks, batchChecks, errorChecks, partChecks) {
		fmt.Printf("%s  %s\n", t.id, outcome(t.run))
	}
}
