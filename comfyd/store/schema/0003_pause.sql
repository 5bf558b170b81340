-- What is paused: nothing of it is leased out. environment '' = the whole queue. at: wall ms.
CREATE TABLE pause (environment TEXT PRIMARY KEY, at INTEGER NOT NULL, caller TEXT NOT NULL) WITHOUT ROWID;

-- With the environment, so that the tasks of a paused one are not stepped over one by one.
DROP INDEX task_workflow_queue;
CREATE INDEX task_workflow_queue ON task (workflow_name, environment, rank) WHERE state = 'PENDING';
