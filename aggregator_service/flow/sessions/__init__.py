"""Masked rounds: manifests, seats, and sessions phase by phase, from which the server learns sums alone."""
