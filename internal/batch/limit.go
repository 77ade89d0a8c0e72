package batch

import "time"

// A Limit is what is limited of the use of an upstream, for all nodes together.
type Limit string

// The limits.
const (
	LimitCalls    Limit = "calls"    // in flight
	LimitRequests Limit = "requests" // a minute
	LimitTokens   Limit = "tokens"   // a minute
)

// A Claim is what a node says of one limit of an upstream, when it asks for its share.
type Claim struct {
	Upstream string // its name
	Limit    Limit
	Stated   int64 // by the node's settings; 0: none
	Auto     bool  // its settings leave it to be found
	// Keeps is what the node uses, or may come to use before it is answered. It is never granted less:
	// a share that is to become smaller does so as calls end, or as minutes pass.
	Keeps int64
	Uses  int64 // what it uses now
	Wants int64 // what it could use, that included
	Least int64 // less than that is of no use to it
	// Found is how much the node has just found to be right for all; 0: nothing new.
	Found int64
}

// A Holding is what another node holds of the limit.
type Holding struct {
	Node    string
	Stated  int64
	Auto    bool
	Granted int64
	Uses    int64
	Wants   int64
	Least   int64
	Since   time.Time // see Grant.Since
	// Ended tells that the node is no more, and what it spent in its last minute still counts.
	Ended bool
}

// A Search is how far it has come to be found what the limit is to be.
type Search struct {
	Node  string // that searches
	Found int64  // for all nodes together; 0: nothing yet
	At    time.Time
}

// A Division is one limit of an upstream, of which the node is to be granted its share.
type Division struct {
	Node   string
	Now    time.Time
	Mine   Claim
	Had    Holding // what the node had so far
	Others []Holding
	Search Search
}

// A Grant is the share of a limit that a node holds until it asks again.
type Grant struct {
	Upstream string
	Limit    Limit
	Of       int64 // the limit of all nodes together; 0: there is none
	Stated   int64 // the lowest that a node's settings say; 0: none do
	Nodes    int   // among whom it is divided
	// Holds is what nobody else gets, May what the node may use from now on. May is less where others
	// wait for what it still has in use.
	Holds, May int64
	// Fair is what the node may have when it wants all it can get.
	Fair float64
	// Others is what the others use.
	Others int64
	// Leads tells that the node is the one that finds out what the limit is to be.
	Leads bool
	// Since is for how long the node has had something of use to it, or nothing.
	Since time.Time
}
