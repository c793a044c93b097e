"""What only the server computes of a run's privacy: its ledger, and the state of its noise from round to round."""
