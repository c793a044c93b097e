"""Runs a real server process on this machine, for the demo and for simulations."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import anyio
from anyio.abc import Process, TaskGroup
from anyio.streams.text import TextReceiveStream

from client_sdk.errors import FedQuorumError

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 15.0

_LISTENING: Final = re.compile(r"^listening on (http://127\.0\.0\.1:\d{1,5})\s*$", re.MULTILINE)


class ServerStartError(FedQuorumError):
    """The server did not start; the message quotes its last words."""


@contextlib.asynccontextmanager
async def running_server(folder: Path, operator_token: str) -> AsyncIterator[str]:
    """Starts a server on SQLite in `folder` and gives its address; SIGTERM ends it, its log stays in `server.log`.

    Raises ServerStartError if it does not listen within 30 seconds.
    """
    arguments = [
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--database-url",
        f"sqlite:///{folder / 'fedquorum.db'}",
    ]
    log = folder / "server.log"
    with log.open("wb") as stderr:
        process = await anyio.open_process(
            [sys.executable, "-m", "aggregator_service", *arguments],
            env=_environment(operator_token),
            stdin=None,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            async with anyio.create_task_group() as drain:
                yield await _address(process, log, drain=drain)
                drain.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(process)


def _environment(operator_token: str) -> dict[str, str]:
    # A fresh server, whatever settings of another server stand in the environment.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEDQUORUM_")}
    return kept | {"FEDQUORUM_OPERATOR_TOKEN": operator_token, "PYTHONUNBUFFERED": "1"}


async def _address(process: Process, log: Path, *, drain: TaskGroup) -> str:
    if process.stdout is None:
        raise ServerStartError("the server has no output")
    output, said = TextReceiveStream(process.stdout, errors="replace"), ""
    with anyio.move_on_after(START_SECONDS):
        async for text in output:
            said += text
            found = _LISTENING.search(said)
            if found is not None:
                drain.start_soon(_drain, output)
                return found[1]
    raise ServerStartError(f"the server did not start: {_last_words(log) or said.strip() or 'it said nothing'}")


async def _drain(output: TextReceiveStream) -> None:
    async for _ in output:
        pass


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300]} (all of it in {log})" if lines else ""


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with anyio.move_on_after(STOP_SECONDS):
            await process.wait()
    if process.returncode is None:
        process.kill()
    await process.aclose()
