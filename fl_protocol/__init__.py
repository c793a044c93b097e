"""The wire contract that the aggregation server and every client agree on; it performs no I/O."""
