"""What only the server computes of a private run: noise that is correlated over rounds, and a clip that adapts."""
