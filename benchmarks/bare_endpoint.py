"""What an upload is compared with: uvicorn and an endpoint that hashes a body and fsyncs it to a file, nothing more."""

import hashlib
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn

PIECE_BYTES = 1 << 20


class BareEndpoint:
    """An ASGI application that answers any request with the receipt of its body."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    async def __call__(
        self, _scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Takes one request."""
        hasher, pending = hashlib.sha256(), bytearray()
        self._number += 1
        path = self._folder / f"{self._number}"
        with path.open("wb", buffering=0) as file:
            while True:
                message = await receive()
                pending += message["body"]
                if len(pending) >= PIECE_BYTES or not message["more_body"]:
                    hasher.update(pending)
                    file.write(pending)
                    pending.clear()
                if not message["more_body"]:
                    break
            os.fsync(file.fileno())
            num_bytes = file.tell()
        path.unlink()
        receipt = json.dumps(_receipt(f"sha256:{hasher.hexdigest()}", num_bytes)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(receipt)).encode())]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": receipt})


def _receipt(digest: str, num_bytes: int) -> dict[str, object]:
    names = {"update_id": "update_0", "task_id": "task_0", "run_id": "run_0", "round": 1}
    return names | {"digest": digest, "num_bytes": num_bytes, "accepted_at": "2026-01-01T00:00:00Z"}


def main() -> None:
    """Serves on a free port until SIGTERM; the only argument is the folder that files are written to."""
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    application = BareEndpoint(Path(sys.argv[1]))
    config = uvicorn.Config(application, loop="uvloop", http="httptools", lifespan="off", log_config=None)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
