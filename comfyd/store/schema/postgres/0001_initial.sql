-- The task queue that many nodes share. The columns mean what they mean in ../0001_initial.sql; what differs:
-- every instant in comfyd_task is the server's wall ms, and a lease is lease_expires_at alone; message is JSON text,
-- because a text here cannot hold NUL; node_id is also set by a fetch (whose caller asked that node).

CREATE FUNCTION comfyd_now_us() RETURNS bigint LANGUAGE sql STABLE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

CREATE TABLE comfyd_task (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id text NOT NULL UNIQUE,
    workflow_name text NOT NULL,
    environment text NOT NULL,
    state text NOT NULL CHECK (state IN ('PENDING', 'FETCHED', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    priority text NOT NULL,
    user_id text,
    lane text NOT NULL,
    rank bigint NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL,
    infra_losses integer NOT NULL DEFAULT 0,
    cancel_requested integer NOT NULL DEFAULT 0,
    created_at bigint NOT NULL,
    started_at bigint,
    finished_at bigint,
    message text,
    output text,
    callback_url text,
    idempotency_key text,
    body_digest text NOT NULL DEFAULT '',
    node_id text,
    slot text,
    generation text,
    instance text,
    target_port integer,
    prompt_id text,
    holder text,
    token text,
    lease_expires_at bigint,
    lost_token text,
    done_token text,
    done_digest text,
    params text NOT NULL
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

CREATE INDEX comfyd_task_queue ON comfyd_task (environment, rank, seq) WHERE state = 'PENDING';
CREATE INDEX comfyd_task_workflow_queue ON comfyd_task (workflow_name, rank, seq) WHERE state = 'PENDING';
CREATE INDEX comfyd_task_lane ON comfyd_task (lane, rank) WHERE finished_at IS NULL;
CREATE INDEX comfyd_task_lease ON comfyd_task (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
CREATE INDEX comfyd_task_node ON comfyd_task (node_id) WHERE token IS NOT NULL;
CREATE UNIQUE INDEX comfyd_task_idempotency ON comfyd_task (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX comfyd_task_ended ON comfyd_task (state, seq) WHERE finished_at IS NOT NULL;
CREATE INDEX comfyd_task_workflow ON comfyd_task (workflow_name, seq);

-- Changes of the number of tasks, to be summed: a row per count would make every transaction wait for every other.
-- The daemons fold them from time to time.
CREATE TABLE comfyd_tally (environment text NOT NULL, workflow_name text NOT NULL, state text NOT NULL, n bigint NOT NULL);

-- Counts, and wakes the nodes when there may be something to do for them: a queued task, or a cancel.
CREATE FUNCTION comfyd_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO comfyd_tally SELECT environment, workflow_name, state, -count(*) FROM gone GROUP BY 1, 2, 3;
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO comfyd_tally SELECT environment, workflow_name, state, count(*) FROM made GROUP BY 1, 2, 3;
    ELSE
        INSERT INTO comfyd_tally SELECT environment, workflow_name, state, sum(n) FROM (
            SELECT environment, workflow_name, state, 1 AS n FROM made
            UNION ALL SELECT environment, workflow_name, state, -1 FROM gone
        ) AS moves GROUP BY 1, 2, 3 HAVING sum(n) <> 0;
    END IF;
    IF EXISTS (SELECT FROM made WHERE state = 'PENDING' OR cancel_requested <> 0) THEN
        PERFORM pg_notify('comfyd_task', '');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER comfyd_made AFTER INSERT ON comfyd_task REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION comfyd_moved();
CREATE TRIGGER comfyd_changed AFTER UPDATE ON comfyd_task REFERENCING NEW TABLE AS made OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION comfyd_moved();
CREATE TRIGGER comfyd_removed AFTER DELETE ON comfyd_task REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION comfyd_moved();
