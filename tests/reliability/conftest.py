"""Servers that are forked from one process that has imported everything, so that starting one is cheap."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.postgres import fresh_database
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


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forking: Zygote
) -> Iterator[ServerProcess]:
    """A server process that the tests of a module share, on each database; tests must not depend on its being empty."""
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as stack:
        url = f"sqlite:///{folder}/fedquorum.db"
        if request.param == "postgres":
            server_url = request.getfixturevalue("postgres_server_url")
            url = stack.enter_context(fresh_database(server_url, f"m{uuid.uuid4().hex}"))
        process = ServerProcess(url, folder, zygote=forking).start()
        stack.callback(process.kill)
        yield process


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
