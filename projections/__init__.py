"""PostgreSQL read models of the log, their rebuild and their past. Knows schemas and streams; never agents."""
