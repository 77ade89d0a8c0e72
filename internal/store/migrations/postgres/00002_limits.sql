-- +goose Up

-- Limits of upstreams that all nodes keep together. Whoever is granted a share holds the lock on the
-- row meanwhile.
CREATE TABLE upstreams (
    name        TEXT PRIMARY KEY, -- as in the nodes' settings
    -- Where no limit of calls in flight is stated: the node that finds it, how far it has come, and when
    -- it had use for more.
    finder      TEXT,
    found       BIGINT NOT NULL DEFAULT 0,
    found_at    BIGINT
);

-- What nodes hold of the limits. Of a node that is dead nothing counts but what it may have spent in
-- its last minute.
CREATE TABLE grants (
    upstream    TEXT NOT NULL REFERENCES upstreams (name),
    node_id     TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    kind        TEXT NOT NULL, -- calls in flight; requests and tokens a minute
    stated      BIGINT NOT NULL, -- 0: none
    auto        INTEGER NOT NULL,
    granted     BIGINT NOT NULL CHECK (granted >= 0),
    used        BIGINT NOT NULL,
    wants       BIGINT NOT NULL,
    least       BIGINT NOT NULL,
    since       BIGINT NOT NULL,
    PRIMARY KEY (upstream, node_id, kind)
) WITH (fillfactor = 50); -- rows change all the time, and no index with them
CREATE INDEX grants_node ON grants (node_id);
