"""How updates are combined: one module a strategy, and the decision that the fold carries out."""
