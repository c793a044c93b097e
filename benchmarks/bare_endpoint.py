"""What an upload is compared with: uvicorn and an endpoint that hashes a body and stores it, nothing more.

`python -m benchmarks.bare_endpoint FOLDER` fsyncs each body to a file; with the URL of an empty database it writes a
row for each MiB and commits once, over the driver and with the settings of durability that the server has. With
`nothing` it only hashes.
"""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn

from aggregator_service.storage.engine import open_database
from fl_protocol.problems import PROBLEM_MEDIA_TYPE, Problem, ProblemType, problem_uri

PIECE_BYTES = 1 << 20
_TABLE = sa.Table(
    "bare_chunks",
    sa.MetaData(),
    sa.Column("body", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
_UNKNOWN = Problem(
    type=problem_uri(ProblemType.NOT_FOUND), title="Not found", status=404, detail="PUT a body", retryable=False
)

Write = Callable[[bytes], object]
Store = Callable[[], AbstractContextManager[Write]]
"""Takes one body piece by piece; it is durable when the block ends."""


def file_store(folder: Path) -> Store:
    """Stores each body as a file for as long as it takes."""

    @contextmanager
    def store() -> Iterator[Write]:
        path = folder / "body"
        with path.open("wb", buffering=0) as file:
            yield file.write
            os.fsync(file.fileno())
        path.unlink()

    return store


@contextmanager
def no_store() -> Iterator[Write]:
    """Keeps nothing."""
    yield len


def chunk_store(url: str) -> Store:
    """Stores each body as rows of a database, all of them in one transaction."""
    engine = open_database(url).writer
    _TABLE.create(engine)
    bodies = count()

    @contextmanager
    def store() -> Iterator[Write]:
        body, numbers = next(bodies), count()
        with engine.begin() as connection:
            yield lambda data: connection.execute(
                sa.insert(_TABLE), {"body": body, "number": next(numbers), "data": data}
            )

    return store


class BareEndpoint:
    """An ASGI application that stores the body of a PUT and answers with its receipt; it knows nothing else."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Takes one request."""
        if scope["method"] != "PUT":
            await _answer(send, 404, _UNKNOWN.model_dump_json().encode(), media_type=PROBLEM_MEDIA_TYPE)
            return
        hasher, pending, num_bytes = hashlib.sha256(), bytearray(), 0
        with self._store() as write:
            while True:
                message = await receive()
                pending += message["body"]
                if len(pending) >= PIECE_BYTES or not message["more_body"]:
                    hasher.update(pending)
                    write(bytes(pending))
                    num_bytes += len(pending)
                    pending.clear()
                if not message["more_body"]:
                    break
        await _answer(send, 201, json.dumps(_receipt(f"sha256:{hasher.hexdigest()}", num_bytes)).encode())


async def _answer(
    send: Callable[[dict[str, Any]], Awaitable[None]], status: int, body: bytes, *, media_type: str = "application/json"
) -> None:
    headers = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _receipt(digest: str, num_bytes: int) -> dict[str, object]:
    names = {"update_id": "update_0", "task_id": "task_0", "run_id": "run_0", "round": 1}
    return names | {"digest": digest, "num_bytes": num_bytes, "accepted_at": "2026-01-01T00:00:00Z"}


def _store(where: str) -> Store:
    if where == "nothing":
        return no_store
    return chunk_store(where) if "://" in where else file_store(Path(where))


def main() -> None:
    """Serves on a free port until SIGTERM; the only argument says what is written to."""
    listening = socket.create_server(("127.0.0.1", 0))
    application = BareEndpoint(_store(sys.argv[1]))
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(application, loop="uvloop", http="httptools", lifespan="off", log_config=None)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
