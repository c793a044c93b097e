"""Servers that are forked from one process that has imported everything, so that starting one is cheap."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import ServerProcess
from tests.support.zygote import Zygote, zygote


@pytest.fixture(scope="session")
def forking() -> Iterator[Zygote]:
    """The process that forks this session's servers."""
    with zygote() as process:
        yield process


@pytest.fixture
def server(database_url: str, tmp_path: Path, forking: Zygote) -> Iterator[ServerProcess]:
    """A server process of this test's own, on each database."""
    process = ServerProcess(database_url, tmp_path, zygote=forking).start()
    yield process
    process.kill()
