"""An empty database of each kind with its schema, and transactions on it."""

from collections.abc import Iterator

import pytest

from tests.support.store import Store, open_store


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Transactions on an empty database of each kind."""
    with open_store(database_url) as opened:
        yield opened
