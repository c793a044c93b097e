"""Starts real server processes in a fraction of a second: a process that has imported everything forks each of them.

Nothing but imports happens before the fork: no event loop, no thread and no connection exists yet. The forked process
then runs the same command line as `python -m aggregator_service serve`, in a session of its own.
"""

import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

_MAX_REQUEST = 1 << 20


class ForkedProcess:
    """One forked server, with as much of `subprocess.Popen` as the tests need."""

    def __init__(self, status: socket.socket, stdout: IO[str]) -> None:
        self._status = status.makefile("r")
        status.close()
        self.stdout: IO[str] | None = stdout
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Gives the exit status if the process has ended."""
        return self._read(0)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; a process ended by a signal has the negative signal number."""
        status = self._read(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("forked server", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode


@dataclass(frozen=True)
class Zygote:
    """The process that forks; `fork` may be called from one thread at a time."""

    requests: socket.socket

    def fork(self, *, environment: Mapping[str, str], folder: Path, log: IO[str]) -> ForkedProcess:
        """Forks a server that works in a folder and writes its standard error to a log."""
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        request = json.dumps({"environment": dict(environment), "folder": str(folder)}).encode()
        assert len(request) < _MAX_REQUEST
        try:
            self.requests.sendall(len(request).to_bytes(4, "big"))
            socket.send_fds(self.requests, [request[:1]], [theirs.fileno(), write, log.fileno()])
            self.requests.sendall(request[1:])
        finally:
            theirs.close()
            os.close(write)
        return ForkedProcess(ours, os.fdopen(read, "r"))


@contextmanager
def zygote() -> Iterator[Zygote]:
    """Yields a process that forks servers; it ends when the tests do, and its servers must have been ended before."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[2],
        )
        theirs.close()
        yield Zygote(ours)
        ours.close()
        process.wait(timeout=30)


def _serve_requests(requests: socket.socket) -> None:
    # The children of this process report their servers' ends themselves; nobody waits for them here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        length = _receive(requests, 4)
        if not length:
            return
        first, descriptors, _, _ = socket.recv_fds(requests, 1, 3)
        request = json.loads(first + _receive(requests, int.from_bytes(length, "big") - 1))
        if os.fork() == 0:
            requests.close()
            _watch(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _receive(requests: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size and (part := requests.recv(size - len(received))):
        received += part
    return received


def _watch(request: Mapping[str, object], descriptors: list[int]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status, stdout, stderr = descriptors
    server = os.fork()
    if server == 0:
        os.close(status)
        _become_server(request, stdout=stdout, stderr=stderr)
    os.close(stdout)
    os.close(stderr)
    os.write(status, f"{server}\n".encode())
    _, ended = os.waitpid(server, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
    os._exit(0)


def _become_server(request: Mapping[str, object], *, stdout: int, stderr: int) -> NoReturn:
    os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.chdir(str(request["folder"]))
    environment = request["environment"]
    assert isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["aggregator_service", "serve"]
    code: object = 1
    try:
        importlib.import_module("aggregator_service.__main__").cli(prog_name="fedquorum")
    except SystemExit as error:
        code = 0 if error.code is None else error.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The interpreter's own shutdown would also run what belongs to the process that forked.
        os._exit(code if isinstance(code, int) else 1)


def _import_everything() -> None:
    # By name, so that whoever imports this module does not import the whole service.
    names = ("alembic.command", "alembic.ddl.postgresql", "dp_accounting", "psycopg", "uvloop")
    for name in (*names, "aggregator_service.__main__", "aggregator_service.storage.notifications"):
        importlib.import_module(name)


if __name__ == "__main__":
    _import_everything()
    _serve_requests(socket.socket(fileno=int(sys.argv[1])))
