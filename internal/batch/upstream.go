package batch

import "time"

// UpstreamState is how one upstream stands, as one node sees it.
type UpstreamState struct {
	Name string
	URL  string // without credentials

	Models       []string          // that it is known to serve, aliases among them, in order
	Aliases      map[string]string // by alias: under which name requests for it are sent
	AnyModel     bool              // it has no list of models and is taken to serve any
	ModelsUnread bool              // it was not possible so far to find out what it serves

	Healthy bool
	Since   time.Time // since when it is not healthy
	Why     string    // why not, or what else is wrong with it

	InFlight       int // calls of this node
	Limit          int // of them, at this moment
	Max            int // that the operator allows; 0: the limit is found out
	ThrottledUntil time.Time
	LimitedUntil   time.Time // until then the limits a minute let nothing through
	// Where several nodes keep the limits together.
	Nodes       int   // 0: this node has the upstream to itself
	AllInFlight int64 // calls of all nodes
	AllLimit    int64 // of them, at this moment
	Granted     int64 // of that, to this node
	// Observed tells that the upstream says of itself how many requests it works on and how many wait
	// there, whoever's they are.
	Observed         bool
	Running, Waiting int

	RequestsPerMinute int // 0: no limit
	TokensPerMinute   int // 0: no limit
	Shared            bool
	Weight            int
}
