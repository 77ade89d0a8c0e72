package batch

import "time"

// A Heartbeat is what a node learns by telling that it lives.
type Heartbeat struct {
	// Lasts is how long nobody takes the node for dead, counted from before it was sent. Zero: for
	// good, as the node has the database to itself.
	Lasts time.Duration
	At    time.Time // by the database's clock
	Nodes int       // that live, this one among them
}

// A Burial is what became of nodes that were silent for too long.
type Burial struct {
	Nodes    []string // names of those that were declared dead
	Segments int      // of the dead, whenever they died, that are free now
	Batches  int      // likewise, in validation
}
