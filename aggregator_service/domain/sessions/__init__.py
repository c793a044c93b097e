"""Sessions of masked rounds: their records, what moves them on, and which messages they take."""
