"""What long polls are compared with: uvicorn holding requests on one event until somebody posts to it, nothing more."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn


class BareWaiting:
    """An ASGI application: a GET waits for the next POST."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._num_waiting = 0

    async def __call__(
        self, scope: Any, _receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Takes one request; the answer to a POST is how many waited."""
        body = str(self._num_waiting).encode()
        if scope["method"] == "GET":
            self._num_waiting += 1
            await self._event.wait()
        elif scope["path"] == "/wake":
            self._event.set()
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]}
        )
        await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serves on a free port until SIGTERM."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(BareWaiting(), loop="uvloop", http="httptools", lifespan="off", log_config=None)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
