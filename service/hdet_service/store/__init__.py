"""The controller's memory: one SQLite database, its migrations, its lock, and its backups."""
