"""The asynchronous client: one method for each route of the contract."""

from client_sdk.client.aggregator import AggregatorClient
from client_sdk.client.connection import Seams

__all__ = ["AggregatorClient", "Seams"]
