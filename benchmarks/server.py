"""Server processes and databases that a benchmark measures."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.postgres import private_postgres

OPERATOR_TOKEN = "operator-token-of-the-benchmarks"  # noqa: S105 - of a server that lives for seconds
STOP_SECONDS = 30
BLOB_STORES = ("database", "files")
_LISTENING = "listening on "


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    url: str
    pid: int

    def peak_mebibytes(self) -> float:
        """Gives the most memory that the process ever had resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def processor_seconds(self) -> float:
        """Gives the seconds of a core that the process and its threads have taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


STORES = {
    "sqlite": ("sqlite", "database"),
    "postgres": ("postgres", "database"),
    "sqlite with files": ("sqlite", "files"),
}
"""The databases and blob stores that most benchmarks measure, by the names that their rows have."""


@contextlib.contextmanager
def fresh_server(database: str, *, blob_store: str = "database") -> Iterator[Server]:
    """Runs a server on a new database, `sqlite` or `postgres`, and removes both afterwards.

    Tensors are in the `database` or in `files` beside it.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedquorum-bench-")))
        url = stack.enter_context(fresh_database(database, folder))
        arguments = ["-m", "aggregator_service", "serve", "--port", "0", "--database-url", url]
        store = f"file://{folder}/blobs" if blob_store == "files" else blob_store
        environment = {"FEDQUORUM_OPERATOR_TOKEN": OPERATOR_TOKEN, "FEDQUORUM_BLOB_STORE": store}
        yield stack.enter_context(listening_process(arguments, folder=folder, environment=environment))


@contextlib.contextmanager
def fresh_database(database: str, folder: Path) -> Iterator[str]:
    """Yields the URL of an empty database, `sqlite` in this folder or `postgres`."""
    if database == "sqlite":
        yield f"sqlite:///{folder}/fedquorum.db"
    else:
        with private_postgres() as url:
            yield url


@contextlib.contextmanager
def listening_process(
    arguments: list[str], *, folder: Path, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """Runs Python with these arguments until the block ends; it must say `listening on URL`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDQUORUM_")}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=inherited | (environment or {}),
        )
    with process:
        try:
            yield Server(_address(process, folder / "log"), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: "subprocess.Popen[str]", log: Path) -> str:
    for line in process.stdout or ():
        if line.startswith(_LISTENING):
            return line.removeprefix(_LISTENING).strip()
    raise RuntimeError(f"the server ended before it listened:\n{log.read_text()[-4000:]}")
