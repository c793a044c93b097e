"""A small real HTTP server whose answers a test writes byte by byte, cuts included."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


Answerer = Callable[[Seen], bytes]


@dataclass
class Wire:
    """The server's address and what it has seen."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)


@contextlib.asynccontextmanager
async def wire(answer: Answerer) -> AsyncIterator[Wire]:
    """Serves on a free port: sends what `answer` gives for each request, then closes the connection."""
    state = Wire()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            seen = await _read(reader)
            state.seen.append(seen)
            writer.write(answer(seen))
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield state
    finally:
        server.close()
        await server.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(method, target, headers, body)


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Writes an answer; keyword `content_length` and others become headers."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given.setdefault("content-length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status} X\r\n{lines}connection: close\r\n\r\n".encode() + body


def names_in(folder: Path) -> list[str]:
    """Lists a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())
