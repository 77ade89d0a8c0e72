-- +goose Up

-- The blob by which nodes see that they have the same blobs.
CREATE TABLE storage (
    one         INTEGER PRIMARY KEY CHECK (one = 1),
    blob_key    TEXT NOT NULL REFERENCES blobs (key),
    bytes       BIGINT NOT NULL
);

-- What goes on for batches, as each node says with its heartbeats.
CREATE TABLE activities (
    batch_id    TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE,
    node_id     TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    in_flight   BIGINT NOT NULL,
    rate        BIGINT NOT NULL, -- results in a thousand seconds
    waiting_for TEXT NOT NULL,
    PRIMARY KEY (batch_id, node_id)
) WITH (fillfactor = 50);
CREATE INDEX activities_node ON activities (node_id);

-- node_id is who holds a segment, or validates a batch, and not who did: so the rows of nodes that have
-- ended can go.
UPDATE segments SET node_id = NULL WHERE sealed_at IS NOT NULL AND node_id IS NOT NULL;
UPDATE batches SET node_id = NULL WHERE status <> 'validating' AND node_id IS NOT NULL;
DROP INDEX segments_held;
CREATE INDEX segments_node ON segments (node_id) WHERE node_id IS NOT NULL;
CREATE INDEX batches_node ON batches (node_id) WHERE node_id IS NOT NULL;
