"""A load generator that costs little itself: HTTP/1.1 over asyncio streams, a fixed number of requests in flight."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

TENSORS = "application/vnd.safetensors"
JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request."""

    method: str
    path: str
    token: str
    body: bytes = b""
    media_type: str = JSON

    def encode(self) -> bytes:
        """Gives the request's bytes."""
        head = (
            f"{self.method} {self.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Type: {self.media_type}\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and how long it took."""

    body: bytes
    seconds: float

    def json(self) -> Any:
        """Reads the body."""
        return json.loads(self.body)


class Load:
    """Connections to one server, each of which carries one request at a time."""

    def __init__(self, url: str, *, in_flight: int) -> None:
        self._address = urlsplit(url)
        self._in_flight = in_flight
        self._streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        for _ in range(self._in_flight):
            self._streams.append(await asyncio.open_connection(self._address.hostname, self._address.port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, writer in self._streams:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def send(self, calls: Sequence[Call]) -> list[Answer]:
        """Sends every call, so many at once, and gives the answers in order; raises RuntimeError for a refusal."""
        answers: list[Answer | None] = [None] * len(calls)
        waiting = iter(enumerate(calls))

        async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for index, call in waiting:
                begin = asyncio.get_running_loop().time()
                writer.write(call.encode())
                await writer.drain()
                body = await _read_answer(reader)
                answers[index] = Answer(body, asyncio.get_running_loop().time() - begin)

        await asyncio.gather(*(work(reader, writer) for reader, writer in self._streams))
        return [answer for answer in answers if answer is not None]

    async def one(self, call: Call) -> Answer:
        """Sends a single call."""
        return (await self.send([call]))[0]


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("\r\ncontent-length:")[2].partition("\r\n")[0] or 0)
    body = await reader.readexactly(length)
    if head[9] != "2":
        raise RuntimeError(f"{head.splitlines()[0]}: {body.decode(errors='replace')[:500]}")
    return body
