-- When a task ended by our own clock, wall ms: finished_at may be what an outside worker says. Only what may go after a
-- while is indexed: FAILED ones stay until somebody deletes them.
ALTER TABLE task ADD COLUMN ended_at INTEGER;
UPDATE task SET ended_at = max(finished_at, created_at) WHERE finished_at IS NOT NULL;
CREATE INDEX task_kept ON task (ended_at) WHERE state IN ('COMPLETED', 'CANCELLED');
