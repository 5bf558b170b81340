-- Tasks that are not to run yet, and deadlines; both in wall ms. A queued task that waits for its run_after has a rank of
-- 2^60 and what its priority costs: behind everything that may run, where no claim looks.

ALTER TABLE task DROP COLUMN run_after;
ALTER TABLE task DROP COLUMN deadline;
ALTER TABLE task ADD COLUMN run_after INTEGER;
ALTER TABLE task ADD COLUMN deadline INTEGER;

CREATE INDEX task_waiting ON task (run_after) WHERE state = 'PENDING' AND rank >= 1152921504606846976;
CREATE INDEX task_deadline ON task (deadline) WHERE state = 'PENDING' AND deadline IS NOT NULL;
