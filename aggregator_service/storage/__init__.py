"""The only room that knows SQLAlchemy: transactions, one store a table, and the bytes of models and updates."""
