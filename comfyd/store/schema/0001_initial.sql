-- Facts of the node and the task queue. Instants: *_at in task = wall ms, event.at = wall s, lease_mono = s of lease_boot.
-- Partial indexes keep claim, fetch, ranking and expiry at the size of the queue, not of the history.

CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE override (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;

CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE event (
    seq INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    type TEXT NOT NULL,
    subject TEXT NOT NULL,
    data TEXT NOT NULL
);

-- token: the right to finish; kept when a lease runs out (state PENDING, lease_mono NULL) so that its holder may still
-- come back until someone else is granted the task. lost_token: the last one that was displaced that way.
-- done_token, done_digest: how the last attempt was finished, so that the same report twice is answered twice.
-- holder: the outside caller that fetched it, NULL for the daemon's own claims.
CREATE TABLE task (
    seq INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL UNIQUE,
    workflow_name TEXT NOT NULL,
    environment TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('PENDING', 'FETCHED', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    priority TEXT NOT NULL,
    user_id TEXT,
    rank INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL,
    infra_losses INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    message TEXT,
    output TEXT,
    callback_url TEXT,
    idempotency_key TEXT,
    body_digest TEXT NOT NULL DEFAULT '',
    node_id TEXT,
    slot TEXT,
    generation TEXT,
    instance TEXT,
    target_port INTEGER,
    prompt_id TEXT,
    holder TEXT,
    token TEXT,
    lease_boot TEXT,
    lease_mono REAL,
    lease_expires_at INTEGER,
    lost_token TEXT,
    done_token TEXT,
    done_digest TEXT,
    run_after REAL,
    deadline REAL
);

CREATE INDEX task_queue ON task (environment, rank) WHERE state = 'PENDING';
CREATE INDEX task_workflow_queue ON task (workflow_name, rank) WHERE state = 'PENDING';
CREATE INDEX task_lane ON task (user_id, priority, rank) WHERE finished_at IS NULL;
CREATE INDEX task_held ON task (lease_mono) WHERE token IS NOT NULL;
CREATE UNIQUE INDEX task_idempotency ON task (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX task_ended ON task (state) WHERE finished_at IS NOT NULL;
CREATE INDEX task_workflow ON task (workflow_name);

-- Apart from the hot row, so that a lease does not rewrite a workflow of megabytes. Deferred: cheaper to insert by many.
CREATE TABLE task_params (
    seq INTEGER PRIMARY KEY REFERENCES task (seq) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    json TEXT NOT NULL
);

CREATE TABLE tally (
    environment TEXT NOT NULL,
    workflow_name TEXT NOT NULL,
    state TEXT NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY (environment, workflow_name, state)
) WITHOUT ROWID;
