-- As in ../0002_due.sql; both instants are the server's wall ms.

ALTER TABLE comfyd_task ADD COLUMN run_after bigint, ADD COLUMN deadline bigint;

CREATE INDEX comfyd_task_waiting ON comfyd_task (run_after) WHERE state = 'PENDING' AND rank >= 1152921504606846976;
CREATE INDEX comfyd_task_deadline ON comfyd_task (deadline) WHERE state = 'PENDING' AND deadline IS NOT NULL;
