"""Thousands of requests that wait, each on a connection of its own, from one process that does little else."""

import asyncio
import resource
from collections.abc import Sequence
from types import TracebackType
from typing import Self, cast
from urllib.parse import urlsplit

from benchmarks.load import Call

_AT_ONCE = 256
_SPARE_DESCRIPTORS = 200


class Waiting:
    """One connection a call; all of them are sent, and then each notes when the first byte of its answer came."""

    def __init__(self, url: str, calls: Sequence[Call]) -> None:
        self._address = urlsplit(url)
        self._calls = calls
        self._waiters: list[_Waiter] = []
        self._answered: asyncio.Queue[tuple[float, int]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        allow_descriptors(len(self._calls) + _SPARE_DESCRIPTORS)
        for begin in range(0, len(self._calls), _AT_ONCE):
            some = self._calls[begin : begin + _AT_ONCE]
            self._waiters += await asyncio.gather(*(self._send(call) for call in some))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for waiter in self._waiters:
            waiter.close()
        await asyncio.sleep(0)

    async def answers(self, number: int) -> list[tuple[float, int]]:
        """Waits for so many answers more and gives the loop's time and the status of each, as they came."""
        return [await self._answered.get() for _ in range(number)]

    async def _send(self, call: Call) -> "_Waiter":
        host, port = self._address.hostname, self._address.port
        loop = asyncio.get_running_loop()
        _, waiter = await loop.create_connection(lambda: _Waiter(call.encode(), self._answered), host, port)
        return waiter


class _Waiter(asyncio.Protocol):
    """Sends one request, and notes the time and the status of its answer; 0 if the connection ends without one."""

    _transport: asyncio.Transport

    def __init__(self, request: bytes, answered: "asyncio.Queue[tuple[float, int]]") -> None:
        self._request = request
        self._answered = answered
        self._is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._is_open:
            self._note(int(data[9:12]))

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._is_open:
            self._note(0)

    def close(self) -> None:
        self._is_open = False
        self._transport.close()

    def _note(self, status: int) -> None:
        self._is_open = False
        self._answered.put_nowait((asyncio.get_running_loop().time(), status))


def allow_descriptors(number: int) -> None:
    """Raises this process's limit of open files; raises ValueError where the machine's own limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
