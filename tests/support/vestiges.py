"""All that a server keeps or shows, as whoever steals its machine would find it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.server import ServerProcess
from tests.support.stored import Stored


@dataclass(frozen=True, slots=True)
class LogPlace:
    """A place in Postgres' write-ahead log: a segment's file and an offset in it."""

    segment: str
    offset: int


def database_files(server: ServerProcess) -> Iterator[Path]:
    """Gives the files of an SQLite database, its write-ahead log too; none for Postgres."""
    yield from server.folder.glob("fedquorum.db*")


def log_end(server: ServerProcess) -> LogPlace | None:
    """Gives how far Postgres has written its write-ahead log; None for SQLite, or for files that are not to be seen."""
    if list(database_files(server)) or not _data_folder(server).is_dir():
        return None
    with Stored(server.database_url) as stored:
        ((segment, offset),) = stored.rows("SELECT * FROM pg_walfile_name_offset(pg_current_wal_flush_lsn())")
    return LogPlace(segment, offset)


def postgres_files(server: ServerProcess, since: LogPlace) -> Iterator[tuple[str, bytes]]:
    """Yields what a Postgres database has on the disk: its log since a place, and its tables' files, dead rows too."""
    folder, end = _data_folder(server), log_end(server)
    assert end is not None
    segments = sorted(path for path in folder.joinpath("pg_wal").iterdir() if since.segment <= path.name <= end.segment)
    log = b"".join(path.read_bytes() for path in segments)
    behind = segments[-1].stat().st_size - end.offset
    yield "write-ahead log", log[since.offset : len(log) - behind]
    with Stored(server.database_url) as stored:
        stored.change("CHECKPOINT")
        ((number,),) = stored.rows("SELECT oid FROM pg_database WHERE datname = current_database()")
    for path in sorted(folder.joinpath("base", str(number)).iterdir()):
        yield f"base/{path.name}", path.read_bytes()


def everything_kept(server: ServerProcess, since: LogPlace | None = None) -> Iterator[tuple[str, bytes]]:
    """Yields each thing that a server keeps, by name: files, tables, log and output.

    With a place in Postgres' log also what that has written there since, and its tables' files.
    """
    for path in database_files(server):
        yield path.name, path.read_bytes()
    if since is not None:
        yield from postgres_files(server, since)
    with Stored(server.database_url) as stored:
        yield "tables", b"\n".join(stored.values())
    yield "log", server.log.encode()
    yield "output", "".join(server.output).encode()
    for path in server.folder.rglob("*"):
        if path.is_file() and not path.name.startswith("fedquorum.db"):
            yield path.name, path.read_bytes()


def _data_folder(server: ServerProcess) -> Path:
    with Stored(server.database_url) as stored:
        ((folder,),) = stored.rows("SHOW data_directory")
    return Path(folder)
