package main

import (
	"context"
	"fmt"
	"time"

	"offpeak/internal/doctor"
	"offpeak/internal/store"
)

// nodesCmd is `offpeak nodes`.
type nodesCmd struct {
	dataFlags
	All  bool `help:"Also those that have ended, for a week."`
	JSON bool `name:"json" help:"Print JSON, one node per line."`
}

// Help implements kong.HelpProvider.
func (nodesCmd) Help() string {
	return "A node that executes batches sends a heartbeat every 5 s. After 15 s without one others take it for dead and go on " +
		"with its segments; should it come back, it joins anew. States: live; silent, without a heartbeat for too long, and about to be " +
		"taken for dead; and with --all left, asked to stop, and dead. Nodes that only serve the API (--role api) hold nothing and are not listed."
}

// A nodeLine is a node as it is printed as JSON.
type nodeLine struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	State       string `json:"state"`
	StartedAt   int64  `json:"started_at"`
	HeartbeatAt *int64 `json:"heartbeat_at"` // null where one process has everything to itself
	EndedAt     *int64 `json:"ended_at"`
	Segments    int64  `json:"segments"`
}

// Run lists the nodes.
func (cmd *nodesCmd) Run(ctx context.Context, s *streams) error {
	db, err := cmd.open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	nodes, err := db.Nodes(ctx, true)
	if err != nil {
		return err
	}
	var lines []nodeLine
	for _, n := range nodes {
		if !cmd.cluster() && n.State == store.Live && !doctor.Running(cmd.Data) {
			n.State = store.Dead // and nobody has come since to say so
		}
		if !cmd.All && (n.State == store.Dead || n.State == store.Left) {
			continue
		}
		lines = append(lines, nodeLine{n.ID, n.Name, n.State, n.StartedAt.Unix(), seconds(n.HeartbeatAt), seconds(n.EndedAt), n.Held})
	}
	return printList(s.Out, each(lines), 0, cmd.JSON, "NAME\tSTATE\tSEGMENTS\tHEARTBEAT\tSTARTED\tENDED\tID", func(n nodeLine) string {
		when := func(at *int64) string {
			if at == nil {
				return "-"
			}
			return localTime(*at)
		}
		return fmt.Sprintf("%s\t%s\t%d\t%s\t%s\t%s\t%s", orDash(n.Name), n.State, n.Segments,
			when(n.HeartbeatAt), localTime(n.StartedAt), when(n.EndedAt), n.ID)
	})
}

// seconds returns t as unix seconds, nil if it is zero.
func seconds(t time.Time) *int64 {
	if t.IsZero() {
		return nil
	}
	s := t.Unix()
	return &s
}
