-- Times are unix milliseconds, NULL where unset. Tokens are random; NULL means unclaimed.

-- +goose Up

CREATE TABLE projects (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    weight      INTEGER NOT NULL DEFAULT 1 CHECK (weight > 0),
    created_at  BIGINT NOT NULL
);

CREATE TABLE keys (
    id           TEXT PRIMARY KEY,
    project_id   TEXT NOT NULL REFERENCES projects (id),
    name         TEXT NOT NULL,
    prefix       TEXT NOT NULL,        -- shown to people; the key itself is not kept
    hash         BYTEA NOT NULL UNIQUE, -- SHA-256
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT,
    revoked_at   BIGINT
);

-- A node is one start of a process: its id is random, its name a label.
CREATE TABLE nodes (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    started_at   BIGINT NOT NULL,
    heartbeat_at BIGINT NOT NULL,
    dead_at      BIGINT
);

-- A row is committed, pending, before the bytes are written. The transaction that names the blob
-- clears the mark. Deleted: the row is a reminder to remove the bytes once backups are past.
CREATE TABLE blobs (
    key         TEXT PRIMARY KEY,
    pending     INTEGER NOT NULL DEFAULT 1,
    created_at  BIGINT NOT NULL,
    deleted_at  BIGINT
);
CREATE INDEX blobs_pending ON blobs (created_at) WHERE pending = 1;
CREATE INDEX blobs_deleted ON blobs (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE files (
    seq         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          TEXT NOT NULL UNIQUE,
    project_id  TEXT NOT NULL REFERENCES projects (id),
    purpose     TEXT NOT NULL,
    filename    TEXT NOT NULL,
    bytes       BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    expires_at  BIGINT,
    deleted_at  BIGINT
);
CREATE INDEX files_list ON files (project_id, created_at, seq) WHERE deleted_at IS NULL;
CREATE INDEX files_purpose ON files (project_id, purpose, created_at, seq) WHERE deleted_at IS NULL;
CREATE INDEX files_expiry ON files (expires_at) WHERE deleted_at IS NULL AND expires_at IS NOT NULL;
CREATE INDEX files_deleted ON files (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE file_parts (
    file_id     TEXT NOT NULL REFERENCES files (id),
    n           INTEGER NOT NULL,
    blob_key    TEXT NOT NULL REFERENCES blobs (key),
    bytes       BIGINT NOT NULL,
    PRIMARY KEY (file_id, n)
);
CREATE INDEX file_parts_blob ON file_parts (blob_key);

-- Files that come in parts. A pending upload whose expires_at has passed counts as expired.
CREATE TABLE uploads (
    id             TEXT PRIMARY KEY,
    project_id     TEXT NOT NULL REFERENCES projects (id),
    purpose        TEXT NOT NULL,
    filename       TEXT NOT NULL,
    bytes          BIGINT NOT NULL,
    keep           BIGINT NOT NULL, -- milliseconds that the file is kept; 0: as its purpose says
    status         TEXT NOT NULL,
    created_at     BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    -- Of a completed upload. The file may be gone before the row is.
    completed_at   BIGINT,
    file_id        TEXT,
    completed_with BYTEA -- SHA-256 of what was asked
);
CREATE INDEX uploads_pending ON uploads (expires_at) WHERE status = 'pending';
CREATE INDEX uploads_ended ON uploads (expires_at) WHERE status <> 'pending';

-- Parts of pending uploads, and parts that ended ones have left to the sweeper.
CREATE TABLE upload_parts (
    id          TEXT PRIMARY KEY,
    upload_id   TEXT NOT NULL REFERENCES uploads (id),
    blob_key    TEXT NOT NULL REFERENCES blobs (key),
    bytes       BIGINT NOT NULL,
    created_at  BIGINT NOT NULL
);
CREATE INDEX upload_parts_upload ON upload_parts (upload_id);
CREATE INDEX upload_parts_blob ON upload_parts (blob_key);

CREATE TABLE batches (
    seq                  BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id                   TEXT NOT NULL UNIQUE,
    project_id           TEXT NOT NULL REFERENCES projects (id),
    endpoint             TEXT NOT NULL,
    model                TEXT NOT NULL DEFAULT '',
    input_file_id        TEXT NOT NULL, -- as the user gave it: there may be no such file
    output_file_id       TEXT NOT NULL,
    error_file_id        TEXT NOT NULL,
    output_expires_after BIGINT NOT NULL, -- milliseconds
    completion_window    TEXT NOT NULL,
    metadata             TEXT, -- JSON object
    status               TEXT NOT NULL,
    ending               TEXT NOT NULL DEFAULT '',
    errors               TEXT, -- JSON array
    -- Of sealed segments; what open ones have recorded stands with them.
    total                BIGINT NOT NULL DEFAULT 0,
    completed            BIGINT NOT NULL DEFAULT 0,
    failed               BIGINT NOT NULL DEFAULT 0,
    input_tokens         BIGINT NOT NULL DEFAULT 0,
    cached_tokens        BIGINT NOT NULL DEFAULT 0,
    output_tokens        BIGINT NOT NULL DEFAULT 0,
    reasoning_tokens     BIGINT NOT NULL DEFAULT 0,
    total_tokens         BIGINT NOT NULL DEFAULT 0,
    open_segments        BIGINT NOT NULL DEFAULT 0,
    -- The node that validates it.
    node_id              TEXT REFERENCES nodes (id),
    token                TEXT,
    created_at           BIGINT NOT NULL,
    expires_at           BIGINT NOT NULL,
    in_progress_at       BIGINT,
    finalizing_at        BIGINT,
    completed_at         BIGINT,
    failed_at            BIGINT,
    expired_at           BIGINT,
    cancelling_at        BIGINT,
    cancelled_at         BIGINT
);
CREATE INDEX batches_list ON batches (project_id, created_at, seq);
CREATE INDEX batches_validating ON batches (seq) WHERE status = 'validating';
CREATE INDEX batches_running ON batches (expires_at) WHERE status IN ('validating', 'in_progress');
CREATE INDEX batches_ending ON batches (seq) WHERE status IN ('finalizing', 'cancelling');
CREATE INDEX batches_input ON batches (input_file_id)
    WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling');

CREATE INDEX batches_ended ON batches (coalesce(completed_at, failed_at, expired_at, cancelled_at))
    WHERE status IN ('completed', 'failed', 'expired', 'cancelled');

-- A batch's open work in one lane: what a claim chooses from.
CREATE TABLE batch_lanes (
    batch_id    TEXT NOT NULL REFERENCES batches (id),
    model       TEXT NOT NULL,
    endpoint    TEXT NOT NULL,
    open        BIGINT NOT NULL, -- segments not sealed
    PRIMARY KEY (batch_id, model, endpoint)
);

-- seq counts the writes under all claims of the segment; with the token it is what every write
-- compares and sets.
CREATE TABLE segments (
    id               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    batch_id         TEXT NOT NULL REFERENCES batches (id),
    model            TEXT NOT NULL,
    endpoint         TEXT NOT NULL,
    byte_offset      BIGINT NOT NULL,
    byte_length      BIGINT NOT NULL,
    first_line       BIGINT NOT NULL,
    total            BIGINT NOT NULL,
    completed        BIGINT NOT NULL DEFAULT 0,
    failed           BIGINT NOT NULL DEFAULT 0,
    input_tokens     BIGINT NOT NULL DEFAULT 0,
    cached_tokens    BIGINT NOT NULL DEFAULT 0,
    output_tokens    BIGINT NOT NULL DEFAULT 0,
    reasoning_tokens BIGINT NOT NULL DEFAULT 0,
    total_tokens     BIGINT NOT NULL DEFAULT 0,
    node_id          TEXT REFERENCES nodes (id),
    token            TEXT,
    seq              BIGINT NOT NULL DEFAULT 0,
    deaths           INTEGER NOT NULL DEFAULT 0,
    output_key       TEXT REFERENCES blobs (key),
    output_bytes     BIGINT,
    error_key        TEXT REFERENCES blobs (key),
    error_bytes      BIGINT,
    sealed_at        BIGINT
);
CREATE INDEX segments_batch ON segments (batch_id, id);
CREATE INDEX segments_touched ON segments (batch_id) WHERE sealed_at IS NULL AND seq > 0;
CREATE INDEX segments_free ON segments (batch_id, model, endpoint, id) WHERE sealed_at IS NULL AND token IS NULL;
CREATE INDEX segments_held ON segments (node_id) WHERE sealed_at IS NULL AND token IS NOT NULL;
CREATE INDEX segments_output ON segments (output_key) WHERE output_key IS NOT NULL;
CREATE INDEX segments_error ON segments (error_key) WHERE error_key IS NOT NULL;

-- Results of open segments, in groups as they were committed.
CREATE TABLE journal (
    segment_id  BIGINT NOT NULL REFERENCES segments (id),
    seq         BIGINT NOT NULL,
    data        BYTEA NOT NULL,
    PRIMARY KEY (segment_id, seq)
);

-- POSTs that carried an Idempotency-Key, for a day (docs/contract.md, extended).
CREATE TABLE idempotency_keys (
    project_id  TEXT NOT NULL REFERENCES projects (id),
    key         TEXT NOT NULL,
    request     BYTEA NOT NULL, -- SHA-256 of what was asked
    batch_id    TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (project_id, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

INSERT INTO projects (id, name, created_at) VALUES ('proj_default', 'default', 0);

-- Storage, of which SQLite has no choice. Groups of results are packed already.
ALTER TABLE journal ALTER COLUMN data SET STORAGE EXTERNAL;
-- Rows that change many times change in their page.
ALTER TABLE nodes SET (fillfactor = 50);
ALTER TABLE batch_lanes SET (fillfactor = 50);
ALTER TABLE batches SET (fillfactor = 80);
-- And what is left of old ones is not to pile up in the indexes that claims are chosen by.
ALTER TABLE segments SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);
