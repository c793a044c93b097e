"""What uvicorn keeps for each connection, made small: thousands of them wait at a time.

An `asyncio.Event` or a `deque` takes 0.7 KB from its first moment on, and of each connection's three hardly one is ever
waited on or filled.
"""

import asyncio
from typing import Literal, TypeVar

from uvicorn.protocols.http.flow_control import FlowControl

T = TypeVar("T")


class Signal(asyncio.Event):
    """An event that makes room for those who wait when there are any."""

    def __init__(self, *, is_set: bool = False) -> None:
        self._value = is_set
        self._futures: tuple[asyncio.Future[None], ...] = ()

    def set(self) -> None:
        """Lets everyone go who waits, and who comes."""
        self._value = True
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> Literal[True]:
        """Waits until it is set."""
        if self._value:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures += (future,)
        try:
            await future
        finally:
            self._futures = tuple(one for one in self._futures if one is not future)
        return True


class Flow(FlowControl):
    """Holds reading or writing back; nearly no connection ever writes so much that it must."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        self._is_writable_event = Signal(is_set=True)


class Pipeline(list[T]):
    """Requests that came before the one ahead of them was answered: the methods of a `deque` that uvicorn calls."""

    __slots__ = ()

    def appendleft(self, item: T) -> None:
        """Puts an item behind all others; `pop` takes the one that has waited longest."""
        self.insert(0, item)
