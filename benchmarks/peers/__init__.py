"""Other frameworks' own code on the same data, each in a virtual environment of its own (`make bench-peers`)."""
