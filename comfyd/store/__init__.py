"""All SQL. NodeStore is always the local SQLite file; TaskStore the same file or PostgreSQL. Imports only model."""
