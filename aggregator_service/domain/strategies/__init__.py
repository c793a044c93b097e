"""How updates are combined: one module a strategy."""
