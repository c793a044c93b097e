"""Pure numbers and decisions: the time, randomness and arrays come in as arguments."""
