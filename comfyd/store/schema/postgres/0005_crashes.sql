-- As in ../0005_crashes.sql.
ALTER TABLE comfyd_task ADD COLUMN crashes integer NOT NULL DEFAULT 0;
