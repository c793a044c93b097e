"""Fixtures that many tests share: each database, and a real server on each."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.object_server import ObjectServer, object_server
from tests.support.participant import close_connections
from tests.support.postgres import fresh_database, private_postgres
from tests.support.server import ServerProcess
from tests.support.store import copy_private, give_schema
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


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with its schema and nothing else: copying it is faster than migrating each test's own."""
    path = tmp_path_factory.mktemp("template") / "fedquorum.db"
    give_schema(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server_url: str) -> Iterator[str]:
    """The name of such a database on Postgres."""
    name = f"s{uuid.uuid4().hex}"
    with fresh_database(postgres_server_url, name) as url:
        give_schema(url)
        yield name


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind without a schema."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/fedquorum.db"
        return
    with fresh_database(request.getfixturevalue("postgres_server_url"), f"e{uuid.uuid4().hex}") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind with its schema and nothing else."""
    with _fresh(request, tmp_path) as url:
        yield url


@contextmanager
def _fresh(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    if request.param == "sqlite":
        copy_private(request.getfixturevalue("sqlite_template"), folder / "fedquorum.db")
        yield f"sqlite:///{folder}/fedquorum.db"
        return
    server_url, template = request.getfixturevalue("postgres_server_url"), request.getfixturevalue("postgres_template")
    with fresh_database(server_url, f"t{uuid.uuid4().hex}", template=template) as url:
        yield url


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A real S3-compatible server for the whole session; its variables are set for this process, too."""
    with object_server(tmp_path_factory.mktemp("objects")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


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
    with _fresh(request, folder) as url:
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
