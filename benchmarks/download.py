"""One download of 400 MB from a socket's other end, against a loop of os.sendfile (`python -m benchmarks download`).

The reader takes the bytes out of its socket and does nothing with them, so that the server's side is what is measured.
"""

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import anyio.to_thread
import numpy as np
from anyio.from_thread import start_blocking_portal

from benchmarks.measurements import Row, in_turns, row
from benchmarks.server import OPERATOR_TOKEN, Server, fresh_server, listening_process
from client_sdk.client import AggregatorClient
from client_sdk.transfer import body_of_tensors
from fl_protocol.runs import RunSpec

NUM_ELEMENTS = 100_000_000
REPETITIONS = 9
BARE = "bare os.sendfile"


def measure() -> list[Row]:
    """Measures the bare loop and the server with file blobs and with chunks in SQLite, in turns; then the CPU time."""
    values = np.random.default_rng(0).normal(scale=0.01, size=NUM_ELEMENTS).astype(np.float32)
    body = body_of_tensors({"weight": values}, {})
    del values
    with contextlib.ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedquorum-bench-")))
        model = folder / "model"
        with model.open("wb") as file:
            file.writelines(body.pieces())
        servers = {BARE: (_bare(stack, model, folder), "/")}
        for name, store in (("server, file blobs", "files"), ("server, chunks in sqlite", "database")):
            server = stack.enter_context(fresh_server("sqlite", blob_store=store))
            servers[name] = server, portal.call(_prepare, server.url, model)
        work = {name: _reading(server.url, path) for name, (server, path) in servers.items()}
        seconds = in_turns(work, repetitions=REPETITIONS)
        processor = {name: _processor_seconds(server, work[name]) for name, (server, _) in servers.items()}
    plain = float(np.median(seconds[BARE]))
    rows = [
        row(f"{name}, 400 MB", "ms", [1e3 * each for each in taken], of=1e3 * plain, ratio_of=BARE)
        for name, taken in seconds.items()
    ]
    return rows + [
        row(f"{name}, CPU time", "ms", [1e3 * taken], of=1e3 * processor[BARE], ratio_of=f"{BARE}, CPU time")
        for name, taken in processor.items()
    ]


def _bare(stack: contextlib.ExitStack, model: Path, folder: Path) -> Server:
    return stack.enter_context(listening_process(["-m", "benchmarks.bare_sendfile", str(model)], folder=folder))


async def _prepare(url: str, model: Path) -> str:
    async with AggregatorClient(url, token=OPERATOR_TOKEN) as client:
        run = await client.create_run(RunSpec(name="download", num_rounds=1))
        await client.put_initial_model(run.run_id, await anyio.to_thread.run_sync(model.read_bytes))
    return f"/v1/runs/{run.run_id}/models/0"


def _processor_seconds(server: Server, read: Callable[[], None]) -> float:
    """Gives the CPU time of the server's process for one download, from several."""
    before = server.processor_seconds()
    for _ in range(REPETITIONS):
        read()
    return (server.processor_seconds() - before) / REPETITIONS


def _reading(url: str, path: str) -> Callable[[], None]:
    where = urlsplit(url)
    request = f"GET {path} HTTP/1.1\r\nhost: {where.netloc}\r\nauthorization: Bearer {OPERATOR_TOKEN}\r\n"
    room = bytearray(1 << 20)

    def read() -> None:
        with socket.create_connection((where.hostname, where.port)) as connection:
            connection.sendall(f"{request}connection: close\r\n\r\n".encode())
            total = sum(_received(connection, room))
        if total < 4 * NUM_ELEMENTS:
            raise RuntimeError(f"{path} gave {total} bytes")

    return read


def _received(connection: socket.socket, room: bytearray) -> Iterator[int]:
    while num_bytes := connection.recv_into(room):
        yield num_bytes
