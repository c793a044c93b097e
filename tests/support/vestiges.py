"""All that a server keeps or shows, as whoever steals its machine would find it."""

from collections.abc import Iterator
from pathlib import Path

from tests.support.server import ServerProcess
from tests.support.stored import Stored


def database_files(server: ServerProcess) -> Iterator[Path]:
    """Gives the files of an SQLite database, its write-ahead log too; none for Postgres."""
    yield from server.folder.glob("fedquorum.db*")


def everything_kept(server: ServerProcess) -> Iterator[tuple[str, bytes]]:
    """Yields each thing that a server keeps, by name: files, tables, log and output."""
    for path in database_files(server):
        yield path.name, path.read_bytes()
    with Stored(server.database_url) as stored:
        yield "tables", b"\n".join(stored.values())
    yield "log", server.log.encode()
    yield "output", "".join(server.output).encode()
    for path in server.folder.rglob("*"):
        if path.is_file() and not path.name.startswith("fedquorum.db"):
            yield path.name, path.read_bytes()
