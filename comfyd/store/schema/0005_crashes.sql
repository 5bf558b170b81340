-- How often the instance died while it ran this task: too often, and the task is poison.
ALTER TABLE task ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0;
