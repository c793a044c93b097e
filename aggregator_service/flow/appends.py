"""Who appends to an upload right now: one request at a time, and the newest one (the draft, "Concurrency")."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

DRAIN_SILENCE_SECONDS: Final = 0.05
"""Buffers on this machine are emptied without such a silence; a line that is dead brings nothing more."""
DRAIN_SECONDS: Final = 5.0
"""A sender that goes on for so long is not cut off, it is replaced."""


@dataclass(slots=True)
class RunningAppend:
    """A request that appends to an upload, or is about to; `error` is what ended its body before its end."""

    error: Exception | None = None
    is_stopped: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: asyncio.Timeout | None = None
    _deadline: float = math.inf

    def stop(self) -> None:
        """Ends the body here: what has arrived of it is stored, and nothing more is waited for."""
        if not self.is_stopped:
            self.is_stopped = True
            self._deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        if self._waiting is not None:
            self._waiting.reschedule(self._patience())

    async def arriving(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yields a body until it ends, its sender is gone, or a newer request wants its place.

        Then what the network has brought already is taken, too: it would have to be sent again otherwise.
        """
        while not self.is_stopped or asyncio.get_running_loop().time() < self._deadline:
            try:
                async with asyncio.timeout_at(self._patience()) as self._waiting:
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                return
            except Exception as error:  # noqa: BLE001 - what came before it is stored first, then it is raised
                self.error = error
                return
            finally:
                self._waiting = None
            yield chunk

    def _patience(self) -> float | None:
        """Gives until when the next bytes are waited for, on the event loop's clock; None for as long as it takes."""
        silence = asyncio.get_running_loop().time() + DRAIN_SILENCE_SECONDS
        return min(self._deadline, silence) if self.is_stopped else None


class Appends:
    """The requests of this process that append to uploads, by upload."""

    def __init__(self) -> None:
        self._running: dict[str, RunningAppend] = {}

    @asynccontextmanager
    async def only(self, upload_id: str) -> AsyncIterator[RunningAppend]:
        """Gives the caller an upload for itself, once whoever had it has stored what it had received."""
        while (other := self._running.get(upload_id)) is not None:
            other.stop()
            await other.ended.wait()
        self._running[upload_id] = mine = RunningAppend()
        try:
            yield mine
        finally:
            del self._running[upload_id]
            mine.ended.set()
