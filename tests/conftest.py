"""Fixtures that many tests share: each database, and a real server on each."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.participant import close_connections
from tests.support.postgres import fresh_database, private_postgres
from tests.support.server import ServerProcess
from tests.support.zygote import Zygote, zygote


@pytest.fixture(autouse=True)
def _close_connections() -> Iterator[None]:
    yield
    close_connections()


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """A private Postgres for the whole session."""
    with private_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/fedquorum.db"
        return
    with fresh_database(request.getfixturevalue("postgres_server_url"), f"t{uuid.uuid4().hex}") as url:
        yield url


@pytest.fixture(scope="session")
def forking() -> Iterator[Zygote]:
    """The process that forks this session's servers: it has imported everything, so that starting one is cheap."""
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
    if request.param == "sqlite":
        process = ServerProcess(f"sqlite:///{folder}/fedquorum.db", folder, zygote=forking).start()
        yield process
        process.kill()
        return
    with fresh_database(request.getfixturevalue("postgres_server_url"), f"m{uuid.uuid4().hex}") as url:
        process = ServerProcess(url, folder, zygote=forking).start()
        yield process
        process.kill()


@pytest.fixture
def operator(server: ServerProcess) -> Iterator[httpx.Client]:
    """The operator's connection to this test's own server."""
    with server.http() as http:
        yield http


@pytest.fixture(scope="module")
def shared_operator(shared_server: ServerProcess) -> Iterator[httpx.Client]:
    """The operator's connection to the module's server."""
    with shared_server.http() as http:
        yield http
