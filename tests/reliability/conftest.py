"""What only Postgres can do, and servers that share one database."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import fresh_database
from tests.support.server import ServerProcess
from tests.support.zygote import Zygote


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """An empty Postgres database, for what only Postgres can do."""
    with fresh_database(postgres_server_url, f"p{uuid.uuid4().hex}") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres", "two-servers-on-postgres"])
def servers(request: pytest.FixtureRequest, tmp_path: Path, forking: Zygote) -> Iterator[list[ServerProcess]]:
    """The server processes that share one database: one on each kind, and two on Postgres."""
    if request.param == "sqlite":
        database_url = f"sqlite:///{tmp_path}/fedquorum.db"
    else:
        database_url = request.getfixturevalue("postgres_url")
    processes = []
    for number in range(2 if request.param.startswith("two") else 1):
        folder = tmp_path / f"server-{number}"
        folder.mkdir()
        processes.append(ServerProcess(database_url, folder, zygote=forking).start())
    yield processes
    for process in processes:
        process.kill()
