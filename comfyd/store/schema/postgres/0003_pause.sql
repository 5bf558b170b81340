-- As in ../0003_pause.sql; for all nodes.
CREATE TABLE comfyd_pause (environment text PRIMARY KEY, at bigint NOT NULL, caller text NOT NULL);

DROP INDEX comfyd_task_workflow_queue;
CREATE INDEX comfyd_task_workflow_queue ON comfyd_task (workflow_name, environment, rank, seq) WHERE state = 'PENDING';
