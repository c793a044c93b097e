"""The life of an update, a file a stage."""
