"""A client's half of secure aggregation: who it is, whom it believes, what it checks, and what it sends, without I/O.

Only the stores in here touch the client's own state folder; nothing here speaks HTTP.
"""
