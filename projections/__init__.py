"""Files for people: what the log says, as rows in DuckDB."""
