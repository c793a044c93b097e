"""Fixtures of the SDK's tests."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The SDK is tried on asyncio, which httpx users have."""
    return "asyncio"
