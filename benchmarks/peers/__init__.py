"""Other frameworks' own code on the same data, each from a virtual environment of its own."""
