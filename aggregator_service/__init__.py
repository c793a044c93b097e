"""The aggregation server: tracks runs and rounds, stores updates durably, publishes exact aggregates."""
