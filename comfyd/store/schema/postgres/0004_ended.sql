-- As in ../0004_ended.sql; by the server's clock.
ALTER TABLE comfyd_task ADD COLUMN ended_at bigint;
UPDATE comfyd_task SET ended_at = greatest(finished_at, created_at) WHERE finished_at IS NOT NULL;
CREATE INDEX comfyd_task_kept ON comfyd_task (ended_at) WHERE state IN ('COMPLETED', 'CANCELLED');
