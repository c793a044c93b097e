"""Background work: what must be done is read from the database, so a restart finds it again."""
