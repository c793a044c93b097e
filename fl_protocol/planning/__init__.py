"""What a run will cost in bytes and in time, from its specification and its model alone."""
